// SPDX-License-Identifier: GPL-2.0-only
// Direct paging: frame numbers, page-table entries, a pool of pages.
#ifndef GUEST_PAGES_H
#define GUEST_PAGES_H

#include <guest/machine.h>

#define PTE_PRESENT 0x1UL
#define PTE_WRITE 0x2UL
#define PTE_USER 0x4UL
#define PTE_ACCESSED 0x20UL
#define PTE_DIRTY 0x40UL
#define PTE_LARGE 0x80UL
#define PTE_GLOBAL 0x100UL
#define PTE_NX (1UL << 63)
#define PTE_MFN(pte) (((pte)&0x000ffffffffff000UL) >> 12)
#define PTE_TABLE (PTE_PRESENT | PTE_WRITE | PTE_USER | PTE_ACCESSED | PTE_DIRTY)
#define PTE_RW (PTE_PRESENT | PTE_WRITE | PTE_USER | PTE_ACCESSED | PTE_DIRTY)
#define PTE_RO (PTE_PRESENT | PTE_USER | PTE_ACCESSED)
#define make_pte(mfn, flags) ((u64)(mfn) << 12 | (flags))

u64 pfn_to_mfn(u64 pfn);
u64 mfn_to_pfn(u64 mfn);
u64 virt_to_pfn(const volatile void *address);
u64 virt_to_mfn(const volatile void *address);
void *mfn_to_virt(u64 mfn); // of a page that the builder mapped

void *page_alloc(void); // zeroed, mapped writable, from a fixed pool
#define POOL_PAGES 96

// The entry that maps `address` at `level` (1..4) in the current tables, NULL where a table is missing.
volatile u64 *entry_of(const volatile void *address, int level);
u64 entry_machine_address(const volatile u64 *entry);

// Changes how a page of this kernel is mapped. 0 or -errno.
long page_set_flags(void *page, u64 flags);
long page_make_readonly(void *page);
long page_make_writable(void *page);

// One-element forms of the calls.
long mmu_update_one(u64 machine_address, u64 value);
long mmuext_one(u32 command, u64 arg1, u64 arg2);

// Puts page-table levels below `address` where they are missing, so that an L1 entry exists.
long tables_make(void *address);

#endif
