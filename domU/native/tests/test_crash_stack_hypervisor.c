// SPDX-License-Identifier: GPL-2.0-only
// Tests: an exception in kernel mode with RSP in the hypervisor's addresses: nothing is pushed there.
// Outcome: the domain crashes (shutdown reason 3), the host lives. FAILURE: it goes on. ERROR: it could not be tried.
#include <guest/test.h>

XEN_NOTES

void test_main(void)
{
    test_expect_crash("ud2 with a stack in the hypervisor");
    __asm__ volatile("movq %0, %%rsp\n\tud2" : : "r"(0xffff830000100000) : "memory");
    CHECK(!"the domain goes on");
}
