// SPDX-License-Identifier: GPL-2.0-only
// Tests: an L4 that maps itself read-only (a linear page table), as some systems do. Xen may be built without it.
// SUCCESS: either every such link is refused, or it works read-only and goes away again. FAILURE: the named check.
// ERROR: never.
#include <guest/test.h>

XEN_NOTES

#define SLOT 5

void test_main(void)
{
    u64 *l4 = (u64 *)start_info->pt_base;
    u64 slot = (virt_to_mfn(l4) << 12) + SLOT * 8, me = make_pte(virt_to_mfn(l4), PTE_RO);
    u64 *window = (u64 *)((u64)SLOT << 39 | (u64)SLOT << 30 | (u64)SLOT << 21 | (u64)SLOT << 12), value;
    long result;

    CHECK_EQUAL(mmu_update_one(slot, make_pte(virt_to_mfn(l4), PTE_TABLE)), -EINVAL); // writable: never
    result = mmu_update_one(slot, me);
    CHECK(result == 0 || result == -EINVAL);
    print("linear page tables are %s\n", result ? "refused" : "allowed");
    if (result == 0) {
        CHECK(probe_read(window + 511, &value));
        CHECK_EQUAL(value, l4[511]);
        CHECK_EQUAL(probe_write_record(window, 0).vector, TRAP_PAGE_FAULT);
        CHECK_EQUAL(mmu_update_one(slot, make_pte(virt_to_mfn(l4), PTE_TABLE)), -EINVAL);
        CHECK_EQUAL(mmu_update_one(slot, 0), 0);
        CHECK_EQUAL(mmuext_one(MMUEXT_TLB_FLUSH_LOCAL, 0, 0), 0);
        CHECK(!probe_read(window, &value));
    }
    CHECK_EQUAL(l4[SLOT], 0);
}
