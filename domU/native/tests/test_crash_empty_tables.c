// SPDX-License-Identifier: GPL-2.0-only
// Tests: a switch to a valid, but empty, L4: nothing is mapped, not even the next instruction.
// Outcome: the domain crashes (shutdown reason 3), the host lives. FAILURE: it goes on. ERROR: it could not be tried.
#include <guest/test.h>

XEN_NOTES

void test_main(void)
{
    void *l4 = page_alloc();

    if (page_make_readonly(l4) != 0)
        test_error("cannot make it read-only");
    test_expect_crash("an empty address space");
    mmuext_one(MMUEXT_NEW_BASEPTR, virt_to_mfn(l4), 0);
    CHECK(!"the domain goes on");
}
