// SPDX-License-Identifier: GPL-2.0-only
// Tests: an exception whose gate in the trap table is empty.
// Outcome: the domain crashes (shutdown reason 3), the host lives. FAILURE: it goes on. ERROR: it could not be tried.
#include <guest/test.h>

XEN_NOTES

void test_main(void)
{
    test_expect_crash("ud2 with an empty trap table");
    hyp_set_trap_table(NULL);
    __asm__ volatile("ud2");
    CHECK(!"the domain goes on");
}
