// SPDX-License-Identifier: GPL-2.0-only
// Tests: set_gdt, update_descriptor and the LDT: what is accepted, what is corrected, what is refused, and that
// accepted segments work.
// SUCCESS: as Xen checks them. FAILURE: the named check. ERROR: never.
#include <guest/test.h>

XEN_NOTES

#define DATA_SEGMENT 0x00cff3000000ffffUL     // flat, level 3, writable
#define DATA_SEGMENT_DPL0 0x00cf93000000ffffUL
#define CODE_SEGMENT 0x00affb000000ffffUL     // 64-bit, level 3
#define TASK_STATE 0x00008b0000000067UL
#define LDT_SEGMENT 0x0000820000000fffUL
#define INTERRUPT_GATE 0x00008e0000080000UL
#define NOT_PRESENT (0x12345678ff0f7fffUL & ~(1UL << 47))
#define DPL(descriptor) ((descriptor) >> 45 & 3)

static u64 *table;
static u64 data_word = 0x5555;

static long update(u64 *entry, u64 descriptor)
{
    return hyp_update_descriptor(virt_to_mfn(entry) << 12 | ((u64)entry & 0xfff), descriptor);
}

static void load_ds(void *arg)
{
    __asm__ volatile("movw %w0, %%ds" : : "r"(arg));
}

static void load_fs_and_read(void *arg)
{
    __asm__ volatile("movw %w0, %%fs\n\tmovq %%fs:(%1), %%rax" : : "r"(arg), "r"(&data_word) : "rax");
}

// Goes on in another code segment.
static void far_return(void *arg)
{
    __asm__ volatile("leaq 1f(%%rip), %%rax\n\tpushq %0\n\tpushq %%rax\n\tlretq\n1:" : : "r"(arg) : "rax", "memory");
}

static void gdt(void)
{
    u64 frame = virt_to_mfn(table), frames[2] = {frame, 0x7ffffff};

    table[1] = DATA_SEGMENT;
    table[2] = CODE_SEGMENT;
    table[3] = DATA_SEGMENT_DPL0;
    CHECK_EQUAL(page_make_readonly(table), 0);
    CHECK_EQUAL(hyp_set_gdt(&frame, 512), 0);
    CHECK_EQUAL(DPL(table[3]), 3); // level 0 is not for guests
    CHECK_NO_TRAP(guarded(load_ds, (void *)(1 << 3 | 3)));
    CHECK_NO_TRAP(guarded(load_fs_and_read, (void *)(1 << 3 | 3)));
    CHECK_NO_TRAP(guarded(far_return, (void *)(2 << 3 | 3)));
    CHECK_TRAP(guarded(load_ds, (void *)(5 << 3)), TRAP_GENERAL_PROTECTION, 5 << 3);
    CHECK_NO_TRAP(guarded(load_ds, (void *)0));

    CHECK_EQUAL(hyp_set_gdt(frames, 513), -EINVAL); // the second frame is none
    CHECK_EQUAL(hyp_set_gdt(&frame, 14 * 512 + 1), -EINVAL);
    CHECK_EQUAL(hyp_set_gdt(&frame, 0xffffffff), -EINVAL);
    CHECK_NO_TRAP(guarded(load_ds, (void *)(1 << 3 | 3))); // the old one is still in place
    CHECK_NO_TRAP(guarded(load_ds, (void *)0));
}

static void updates(void)
{
    CHECK_EQUAL(update(&table[5], DATA_SEGMENT), 0);
    CHECK_NO_TRAP(guarded(load_ds, (void *)(5 << 3 | 3)));
    CHECK_NO_TRAP(guarded(load_ds, (void *)0));
    CHECK_EQUAL(update(&table[5], 0), 0);
    CHECK_TRAP(guarded(load_ds, (void *)(5 << 3 | 3)), TRAP_GENERAL_PROTECTION, 5 << 3);
    CHECK_EQUAL(update(&table[5], DATA_SEGMENT_DPL0), 0);
    CHECK_EQUAL(DPL(table[5]), 3);
    CHECK_EQUAL(update(&table[5], NOT_PRESENT), 0);
    CHECK_EQUAL(table[5], NOT_PRESENT);
    CHECK_TRAP(guarded(load_ds, (void *)(5 << 3 | 3)), TRAP_GENERAL_PROTECTION, 5 << 3);

    CHECK_EQUAL(update(&table[5], TASK_STATE), -EINVAL);
    CHECK_EQUAL(update(&table[5], LDT_SEGMENT), -EINVAL);
    CHECK_EQUAL(update(&table[5], INTERRUPT_GATE), -EINVAL);
    CHECK_EQUAL(table[5], NOT_PRESENT);
    CHECK_EQUAL(hyp_update_descriptor((virt_to_mfn(table) << 12) + 44, DATA_SEGMENT), -EINVAL); // misaligned
    CHECK_EQUAL(hyp_update_descriptor(start_info->pt_base - VIRT_BASE, DATA_SEGMENT), -EINVAL); // not our memory
    CHECK_EQUAL(update((u64 *)start_info->pt_base, DATA_SEGMENT), -EINVAL);                     // a page table
}

static void bad_pages(void)
{
    u64 *page = page_alloc(), frame = virt_to_mfn(page);

    page[511] = TASK_STATE;
    CHECK_EQUAL(page_make_readonly(page), 0);
    CHECK_EQUAL(hyp_set_gdt(&frame, 8), -EINVAL);
    CHECK_EQUAL(page_make_writable(page), 0);
    page[511] = 0;
    CHECK_EQUAL(page_make_readonly(page), 0);
    CHECK_EQUAL(hyp_set_gdt(&frame, 8), 0);
    CHECK_EQUAL(hyp_set_gdt(NULL, 0), 0);
    CHECK_EQUAL(page_make_writable(page), 0);
}

static void ldt(void)
{
    u64 *page = page_alloc();
    struct trap_record r;

    memset(page, 0, PAGE_SIZE);
    page[0] = DATA_SEGMENT;
    page[2] = DATA_SEGMENT;
    CHECK_EQUAL(page_make_readonly(page), 0);
    CHECK_TRAP(guarded(load_ds, (void *)7), TRAP_GENERAL_PROTECTION, 4); // none yet
    CHECK_EQUAL(mmuext_one(MMUEXT_SET_LDT, (u64)page, 4), 0);
    CHECK_NO_TRAP(guarded(load_ds, (void *)(0 << 3 | 7)));
    CHECK_NO_TRAP(guarded(load_fs_and_read, (void *)(2 << 3 | 7)));
    CHECK_TRAP(guarded(load_ds, (void *)(1 << 3 | 7)), TRAP_GENERAL_PROTECTION, 1 << 3 | 4);
    CHECK_TRAP(guarded(load_ds, (void *)(4 << 3 | 7)), TRAP_GENERAL_PROTECTION, 4 << 3 | 4); // beyond its end
    CHECK_EQUAL(page_make_writable(page), -EBUSY); // in use
    CHECK_NO_TRAP(guarded(load_ds, (void *)0));
    CHECK_NO_TRAP(guarded(load_fs_and_read, (void *)(2 << 3 | 7)));
    __asm__ volatile("movw %w0, %%fs" : : "r"(0));

    CHECK_EQUAL(mmuext_one(MMUEXT_SET_LDT, (u64)page + 8, 4), -EINVAL);
    CHECK_EQUAL(mmuext_one(MMUEXT_SET_LDT, (u64)page, 8193), -EINVAL);
    CHECK_EQUAL(mmuext_one(MMUEXT_SET_LDT, HYPERVISOR_START, 4), -EINVAL);
    CHECK_EQUAL(mmuext_one(MMUEXT_SET_LDT, 0, 0), 0);
    CHECK_EQUAL(page_make_writable(page), 0);
    CHECK_TRAP(guarded(load_ds, (void *)7), TRAP_GENERAL_PROTECTION, 4);

    // An LDT in a page that cannot be one: the fault is a page fault in the LDT, at its first use.
    CHECK_EQUAL(mmuext_one(MMUEXT_SET_LDT, (u64)page, 4), 0); // writable
    r = guarded(load_ds, (void *)(2 << 3 | 7));
    CHECK_EQUAL(r.vector, TRAP_PAGE_FAULT);
    CHECK_EQUAL(r.cr2, (u64)page + 16);
    CHECK_EQUAL(mmuext_one(MMUEXT_SET_LDT, 0, 0), 0);
}

void test_main(void)
{
    table = page_alloc();
    gdt();
    updates();
    bad_pages();
    ldt();
}
