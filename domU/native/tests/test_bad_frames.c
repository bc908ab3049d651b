// SPDX-License-Identifier: GPL-2.0-only
// Tests: every hypercall that takes a machine frame or address is given frames that are not there, not ours, or
// beyond all memory.
// SUCCESS: each refuses with Xen's error and the domain goes on. FAILURE: the named call. ERROR: never.
#include <guest/test.h>
#include <xen/memory.h>
#include <xen/sched.h>

XEN_NOTES

static char place[PAGE_SIZE] PAGE_ALIGNED;

void test_main(void)
{
    const u64 frames[] = {0x7fffffffUL, 0xfffffffUL, 0xffffffffffUL, 0xfffffffffffffUL};
    volatile u64 *l1_entry = entry_of(place, 1), *l2_entry = entry_of(place, 2), *l3_entry = entry_of(place, 3),
                 *l4_entry = (u64 *)start_info->pt_base + 5;
    u64 before = *l1_entry;

    for (u32 i = 0; i < ARRAY_LENGTH(frames); i++) {
        u64 mfn = frames[i], frame = mfn;
        struct vcpu_register_vcpu_info info = {mfn, 0, 0};
        struct xen_memory_reservation reservation = {&frame, 1, 0, 0, DOMID_SELF};
        long refusal = mfn > 0xffffffffUL ? -EINVAL : -EPERM;
        for (u32 command = MMUEXT_PIN_L1_TABLE; command <= MMUEXT_UNPIN_TABLE; command++)
            CHECK_EQUAL(mmuext_one(command, mfn, 0), -EINVAL);
        CHECK_EQUAL(mmuext_one(MMUEXT_NEW_BASEPTR, mfn, 0), -EINVAL);
        CHECK_EQUAL(mmuext_one(MMUEXT_NEW_USER_BASEPTR, mfn, 0), -EINVAL);
        // The frame of the table, then the frame in the entry.
        CHECK_EQUAL(mmu_update_one(mfn << 12 & 0x7ffffffffffff000UL, 0), -EINVAL);
        CHECK_EQUAL(hyp_set_gdt(&frame, 8), -EINVAL);
        CHECK_EQUAL(hyp_update_descriptor(mfn << 12 & 0x7ffffffffffff000UL, 0), -EINVAL);
        CHECK_EQUAL(hyp_vcpu_op(VCPUOP_register_vcpu_info, 0, &info), -EINVAL);
        CHECK_EQUAL(hyp_memory_op(XENMEM_decrease_reservation, &reservation), 0);
        if (mfn > 0xffffffffffUL)
            continue; // does not fit an entry
        // Where no memory is, an L1 entry would map a device: not permitted. Beyond all addresses: invalid.
        CHECK_EQUAL(hyp_update_va_mapping((u64)place, make_pte(mfn, PTE_RW), UVMF_INVLPG), refusal);
        CHECK_EQUAL(mmu_update_one(entry_machine_address(l1_entry), make_pte(mfn, PTE_RW)), refusal);
        CHECK_EQUAL(mmu_update_one(entry_machine_address(l1_entry), make_pte(mfn, PTE_RO)), refusal);
        CHECK_EQUAL(mmu_update_one(entry_machine_address(l2_entry), make_pte(mfn, PTE_TABLE)), -EINVAL);
        CHECK_EQUAL(mmu_update_one(entry_machine_address(l3_entry), make_pte(mfn, PTE_TABLE)), -EINVAL);
        CHECK_EQUAL(mmu_update_one(entry_machine_address(l4_entry), make_pte(mfn, PTE_TABLE)), -EINVAL);
    }
    CHECK_EQUAL(*l1_entry & ~(PTE_ACCESSED | PTE_DIRTY), before & ~(PTE_ACCESSED | PTE_DIRTY));

    // update_va_mapping where no table is, in the hypervisor's part, and beyond what is canonical.
    CHECK_EQUAL(hyp_update_va_mapping(0x123456789000, make_pte(virt_to_mfn(place), PTE_RO), 0), -EINVAL);
    CHECK_EQUAL(hyp_update_va_mapping(HYPERVISOR_START, make_pte(virt_to_mfn(place), PTE_RO), 0), -EINVAL);
    CHECK_EQUAL(hyp_update_va_mapping(0xffff820000000000, make_pte(virt_to_mfn(place), PTE_RO), 0), -EINVAL);
    // Table slots that are the hypervisor's.
    for (u32 slot = 256; slot < 272; slot++)
        CHECK_EQUAL(mmu_update_one(entry_machine_address((u64 *)start_info->pt_base + slot), 0), -EINVAL);
    // Not a page table at all: an ordinary page is written like memory.
    CHECK_EQUAL(mmu_update_one(virt_to_mfn(place) << 12, 0x1234567890), 0);
    CHECK_EQUAL(*(u64 *)place, 0x1234567890);
    // The low three bits are the command.
    for (u32 command = 4; command < 8; command++)
        CHECK_EQUAL(mmu_update_one(virt_to_mfn(place) << 12 | command, 0), -ENOSYS);
    CHECK_EQUAL(mmu_update_one(MMU_MACHPHYS_UPDATE | 0x7fffffffUL << 12, 0), -EINVAL);
}
