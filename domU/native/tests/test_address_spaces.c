// SPDX-License-Identifier: GPL-2.0-only
// Tests: a second kernel address space: tables made and pinned by the guest, switched to and back, changed while not in
// use; flushes; and that what update_va_mapping says is what the next access sees.
// SUCCESS: so it is. FAILURE: the named check. ERROR: no memory.
#include <guest/test.h>

XEN_NOTES

#define WINDOW ((void *)0x10000000000) // in a slot of the L4 that the builder left empty

static u64 *first, *second;

static long switch_to(u64 mfn)
{
    return mmuext_one(MMUEXT_NEW_BASEPTR, mfn, 0);
}

static u64 word_at(void *address)
{
    u64 value;

    return probe_read(address, &value) ? value : 0;
}

void test_main(void)
{
    u64 *l4 = page_alloc(), *old_l4 = (u64 *)start_info->pt_base;
    u64 old_mfn = virt_to_mfn(old_l4), new_mfn = virt_to_mfn(l4), mask[1] = {1};
    volatile u64 *entry;

    first = page_alloc();
    second = page_alloc();
    *first = 1;
    *second = 2;

    // A mapping in a fresh corner of the present tables.
    CHECK_EQUAL(tables_make(WINDOW), 0);
    CHECK_EQUAL(hyp_update_va_mapping((u64)WINDOW, make_pte(virt_to_mfn(first), PTE_RW), UVMF_INVLPG), 0);
    CHECK_EQUAL(word_at(WINDOW), 1);
    CHECK_EQUAL(hyp_update_va_mapping((u64)WINDOW, make_pte(virt_to_mfn(second), PTE_RW), UVMF_TLB_FLUSH), 0);
    CHECK_EQUAL(word_at(WINDOW), 2);
    entry = entry_of(WINDOW, 1);
    CHECK_EQUAL(mmu_update_one(entry_machine_address(entry), make_pte(virt_to_mfn(first), PTE_RW)), 0);
    CHECK_EQUAL(mmuext_one(MMUEXT_INVLPG_LOCAL, (u64)WINDOW, 0), 0);
    CHECK_EQUAL(word_at(WINDOW), 1);
    CHECK_EQUAL(mmu_update_one(entry_machine_address(entry), make_pte(virt_to_mfn(second), PTE_RW)), 0);
    CHECK_EQUAL(mmuext_one(MMUEXT_TLB_FLUSH_LOCAL, 0, 0), 0);
    CHECK_EQUAL(word_at(WINDOW), 2);
    CHECK_EQUAL(mmuext_one(MMUEXT_TLB_FLUSH_ALL, 0, 0), 0);
    CHECK_EQUAL(mmuext_one(MMUEXT_INVLPG_ALL, (u64)WINDOW, 0), 0);
    CHECK_EQUAL(mmuext_one(MMUEXT_TLB_FLUSH_MULTI, 0, (u64)mask), 0);
    CHECK_EQUAL(mmuext_one(MMUEXT_INVLPG_MULTI, (u64)WINDOW, (u64)mask), 0);
    CHECK_EQUAL(mmuext_one(MMUEXT_TLB_FLUSH_MULTI, 0, HYPERVISOR_START), -EINVAL);

    // Another L4 that shares all but the window's slot.
    memcpy(l4, old_l4, PAGE_SIZE);
    memset(l4 + 256, 0, 16 * 8);
    l4[2] = 0;
    CHECK_EQUAL(page_make_readonly(l4), 0);
    CHECK_EQUAL(switch_to(new_mfn), 0); // validated on the way, without a pin
    CHECK_EQUAL(word_at(WINDOW), 0);
    CHECK(l4[256] & PTE_PRESENT); // Xen's own slots are in
    CHECK(MACHINE_TO_PHYS[new_mfn] == virt_to_pfn(l4));
    CHECK_EQUAL(switch_to(old_mfn), 0);
    CHECK_EQUAL(word_at(WINDOW), 2);
    CHECK_EQUAL(page_make_writable(l4), 0); // nothing held it but being in use
    CHECK_EQUAL(page_make_readonly(l4), 0);
    CHECK_EQUAL(mmuext_one(MMUEXT_PIN_L4_TABLE, new_mfn, 0), 0);
    CHECK_EQUAL(page_make_writable(l4), -EBUSY);
    // Changed while nobody uses it: the window comes in.
    CHECK_EQUAL(mmu_update_one((new_mfn << 12) + 2 * 8, old_l4[2]), 0);
    CHECK_EQUAL(switch_to(new_mfn), 0);
    CHECK_EQUAL(word_at(WINDOW), 2);
    // The live one loses a slot.
    CHECK_EQUAL(mmu_update_one((new_mfn << 12) + 2 * 8, 0), 0);
    CHECK_EQUAL(mmuext_one(MMUEXT_TLB_FLUSH_LOCAL, 0, 0), 0);
    CHECK_EQUAL(word_at(WINDOW), 0);
    CHECK_EQUAL(switch_to(old_mfn), 0);
    CHECK_EQUAL(mmuext_one(MMUEXT_UNPIN_TABLE, new_mfn, 0), 0);
    CHECK_EQUAL(page_make_writable(l4), 0);
    CHECK_EQUAL(word_at(WINDOW), 2);
}
