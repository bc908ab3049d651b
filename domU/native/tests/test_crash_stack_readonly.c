// SPDX-License-Identifier: GPL-2.0-only
// Tests: an exception in kernel mode with RSP in a read-only page: its frame cannot be pushed.
// Outcome: the domain crashes (shutdown reason 3), the host lives. FAILURE: it goes on. ERROR: it could not be tried.
#include <guest/test.h>

XEN_NOTES

static char hole[PAGE_SIZE] PAGE_ALIGNED;

void test_main(void)
{
    if (page_make_readonly(hole) != 0)
        test_error("cannot make it read-only");
    test_expect_crash("ud2 with a read-only stack");
    __asm__ volatile("movq %0, %%rsp\n\tud2" : : "r"(hole + 2048) : "memory");
    CHECK(!"the domain goes on");
}
