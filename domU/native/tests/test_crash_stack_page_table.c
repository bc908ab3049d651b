// SPDX-License-Identifier: GPL-2.0-only
// Tests: an exception in kernel mode with RSP in a page table, with writable page tables assisted: a frame is no entry.
// Outcome: the domain crashes (shutdown reason 3), the host lives. FAILURE: it goes on. ERROR: it could not be tried.
#include <guest/test.h>

XEN_NOTES

void test_main(void)
{
    if (hyp_vm_assist(VMASST_enable, VMASST_writable_pagetables) != 0)
        test_error("vm_assist");
    test_expect_crash("ud2 with a page table as stack");
    __asm__ volatile("movq %0, %%rsp\n\tud2" : : "r"(((u64)entry_of(hyp_set_trap_table, 1) & PAGE_MASK) | 2048) : "memory");
    CHECK(!"the domain goes on");
}
