// SPDX-License-Identifier: GPL-2.0-only
// Frame numbers and page tables. The builder maps the first megabytes at VIRT_BASE, page tables included (read-only).
#include <guest/hypercall.h>
#include <guest/pages.h>
#include <guest/text.h>

static char pool[POOL_PAGES][PAGE_SIZE] PAGE_ALIGNED;
static u32 pool_used;

u64 pfn_to_mfn(u64 pfn)
{
    return ((const u64 *)start_info->mfn_list)[pfn];
}

u64 mfn_to_pfn(u64 mfn)
{
    return MACHINE_TO_PHYS[mfn];
}

u64 virt_to_pfn(const volatile void *address)
{
    return ((u64)address - VIRT_BASE) >> PAGE_SHIFT;
}

u64 virt_to_mfn(const volatile void *address)
{
    return pfn_to_mfn(virt_to_pfn(address));
}

void *mfn_to_virt(u64 mfn)
{
    return (void *)(VIRT_BASE + (mfn_to_pfn(mfn) << PAGE_SHIFT));
}

void *page_alloc(void)
{
    return pool_used < POOL_PAGES ? pool[pool_used++] : NULL;
}

static u32 table_index(const volatile void *address, int level)
{
    return ((u64)address >> (PAGE_SHIFT + 9 * (level - 1))) & 511;
}

volatile u64 *entry_of(const volatile void *address, int level)
{
    volatile u64 *table = (u64 *)start_info->pt_base;

    for (int at = 4; at > level; at--) {
        u64 entry = table[table_index(address, at)];

        if (!(entry & PTE_PRESENT))
            return NULL;
        table = mfn_to_virt(PTE_MFN(entry));
    }
    return &table[table_index(address, level)];
}

u64 entry_machine_address(const volatile u64 *entry)
{
    return virt_to_mfn(entry) << PAGE_SHIFT | ((u64)entry & ~PAGE_MASK);
}

long page_set_flags(void *page, u64 flags)
{
    return hyp_update_va_mapping((u64)page, make_pte(virt_to_mfn(page), flags), UVMF_INVLPG);
}

long page_make_readonly(void *page)
{
    return page_set_flags(page, PTE_RO | PTE_NX);
}

long page_make_writable(void *page)
{
    return page_set_flags(page, PTE_RW | PTE_NX);
}

long mmu_update_one(u64 machine_address, u64 value)
{
    struct mmu_update update = {machine_address, value};

    return hyp_mmu_update(&update, 1, NULL, DOMID_SELF);
}

long mmuext_one(u32 command, u64 arg1, u64 arg2)
{
    struct mmuext_op op = {command, arg1, arg2};

    return hyp_mmuext_op(&op, 1, NULL, DOMID_SELF);
}

long tables_make(void *address)
{
    for (int level = 4; level > 1; level--) {
        volatile u64 *entry = entry_of(address, level);
        void *table;
        long error;

        if (*entry & PTE_PRESENT)
            continue;
        table = page_alloc();
        if (!table)
            return -ENOMEM;
        error = page_make_readonly(table);
        if (!error)
            error = mmu_update_one(entry_machine_address(entry), make_pte(virt_to_mfn(table), PTE_TABLE));
        if (error)
            return error;
    }
    return 0;
}
