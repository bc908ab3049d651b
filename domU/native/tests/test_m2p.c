// SPDX-License-Identifier: GPL-2.0-only
// Tests: the machine-to-phys table: readable, right for all of our frames, not writable, not executable; its size as
// memory_op says; MACHPHYS updates.
// SUCCESS: as the ABI says. FAILURE: the named check. ERROR: never.
#include <guest/test.h>
#include <xen/memory.h>

XEN_NOTES

static char page[PAGE_SIZE] PAGE_ALIGNED;

static void call(void *address)
{
    __asm__ volatile("call *%0" : : "r"(address));
}

void test_main(void)
{
    struct xen_machphys_mapping mapping = {0, 0, 0};
    u64 mfn = virt_to_mfn(page), pfn = virt_to_pfn(page), wrong = 0;
    struct trap_record r;

    CHECK_EQUAL(hyp_memory_op(XENMEM_machphys_mapping, &mapping), 0);
    CHECK_EQUAL(mapping.v_start, (u64)MACHINE_TO_PHYS);
    CHECK(mapping.v_end > mapping.v_start + mfn * 8);
    CHECK(mapping.max_mfn >= mfn);
    CHECK_EQUAL(mapping.v_end, mapping.v_start + (mapping.max_mfn + 1) * 8);

    for (u64 i = 0; i < start_info->nr_pages; i++)
        wrong += MACHINE_TO_PHYS[pfn_to_mfn(i)] != i;
    CHECK_EQUAL(wrong, 0);

    r = probe_write_record((void *)&MACHINE_TO_PHYS[mfn], 1);
    CHECK_TRAP(r, TRAP_PAGE_FAULT, PF_PRESENT | PF_WRITE);
    CHECK_EQUAL(r.cr2, (u64)&MACHINE_TO_PHYS[mfn]);
    CHECK_EQUAL(MACHINE_TO_PHYS[mfn], pfn);
    r = guarded(call, (void *)&MACHINE_TO_PHYS[mfn]);
    CHECK_TRAP(r, TRAP_PAGE_FAULT, PF_PRESENT | PF_FETCH);

    // Also not by way of a hypercall's result.
    CHECK_EQUAL(hyp_memory_op(XENMEM_machphys_mapping, (void *)&MACHINE_TO_PHYS[mfn]), -EFAULT);
    CHECK_EQUAL(MACHINE_TO_PHYS[mfn], pfn);

    CHECK_EQUAL(mmu_update_one(mfn << 12 | MMU_MACHPHYS_UPDATE, 0x123), 0);
    CHECK_EQUAL(MACHINE_TO_PHYS[mfn], 0x123);
    CHECK_EQUAL(mmu_update_one(mfn << 12 | MMU_MACHPHYS_UPDATE, pfn), 0);
    CHECK_EQUAL(MACHINE_TO_PHYS[mfn], pfn);
}
