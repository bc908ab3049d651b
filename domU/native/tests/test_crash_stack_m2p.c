// SPDX-License-Identifier: GPL-2.0-only
// Tests: an exception in kernel mode with RSP in the machine-to-phys table.
// Outcome: the domain crashes (shutdown reason 3), the host lives. FAILURE: it goes on. ERROR: it could not be tried.
#include <guest/test.h>

XEN_NOTES

void test_main(void)
{
    test_expect_crash("ud2 with a stack in the machine-to-phys table");
    __asm__ volatile("movq %0, %%rsp\n\tud2" : : "r"(&MACHINE_TO_PHYS[512]) : "memory");
    CHECK(!"the domain goes on");
}
