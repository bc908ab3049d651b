// SPDX-License-Identifier: GPL-2.0-only
// Tests: a page fault whose handler is itself in an unmapped page: faults on top of faults until the stack ends.
// Outcome: the domain crashes (shutdown reason 3), the host lives. FAILURE: it goes on. ERROR: it could not be tried.
#include <guest/test.h>

XEN_NOTES

static char hole[PAGE_SIZE] PAGE_ALIGNED;

void test_main(void)
{
    struct trap_info table[2] = {{TRAP_PAGE_FAULT, 0, FLAT_KERNEL_CS, (u64)hole}, {0, 0, 0, 0}};

    if (hyp_update_va_mapping((u64)hole, 0, UVMF_INVLPG) != 0 || hyp_set_trap_table(table) != 0)
        test_error("cannot set it up");
    test_expect_crash("a page fault handler that faults");
    *(volatile char *)hole = 1;
    CHECK(!"the domain goes on");
}
