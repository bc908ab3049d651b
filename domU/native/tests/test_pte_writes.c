// SPDX-License-Identifier: GPL-2.0-only
// Tests: direct writes to page-table entries: L1 entries are trapped, checked and written when vm_assist asked for it;
// everything else is the guest's page fault.
// SUCCESS: stores of 1 to 8 bytes, exchange, compare-and-exchange and locked bit operations all work on L1 entries;
// misaligned ones, bad entries, and upper levels fault. FAILURE: the named check. ERROR: never.
#include <guest/test.h>

XEN_NOTES

static char place[PAGE_SIZE] PAGE_ALIGNED;
static u64 *first, *second; // two pages to be mapped at `place`
static volatile u64 *entry;

static void flush(void)
{
    mmuext_one(MMUEXT_INVLPG_LOCAL, (u64)place, 0);
}

// What `place` shows now: 1 or 2, or 0 when it is not mapped.
static u64 shown(void)
{
    u64 value;

    flush();
    return probe_read(place, &value) ? value : 0;
}

static void store_1(void *arg) { *(volatile u8 *)entry = (u8)(u64)arg; }
static void store_2(void *arg) { *(volatile u16 *)entry = (u16)(u64)arg; }
static void store_4(void *arg) { *(volatile u32 *)entry = (u32)(u64)arg; }
static void store_4_high(void *arg) { *((volatile u32 *)entry + 1) = (u32)(u64)arg; }
static void store_8(void *arg) { *entry = (u64)arg; }
static void store_misaligned(void *arg) { *(volatile u64 *)((char *)entry + 4) = (u64)arg; }
static void store_misaligned_4(void *arg) { *(volatile u32 *)((char *)entry + 2) = (u32)(u64)arg; }
static void store_immediate(void *arg)
{
    (void)arg;
    __asm__ volatile("movq $0, (%0)" : : "r"(entry) : "memory");
}

static void exchange(void *arg)
{
    u64 *value = arg;

    __asm__ volatile("xchgq %0, (%1)" : "+r"(*value) : "r"(entry) : "memory");
}

static void exchange_4(void *arg)
{
    u32 *value = arg;

    __asm__ volatile("xchgl %0, (%1)" : "+r"(*value) : "r"(entry) : "memory");
}

struct compare {
    u64 expected, desired;
    bool equal;
};

static void compare_exchange(void *arg)
{
    struct compare *c = arg;

    __asm__ volatile("lock cmpxchgq %3, (%2)" : "+a"(c->expected), "=@ccz"(c->equal) : "r"(entry), "r"(c->desired) : "memory");
}

static void clear_bit(void *arg) { __asm__ volatile("lock btrq %1, (%0)" : : "r"(entry), "r"((u64)arg) : "memory", "cc"); }
static void set_bit(void *arg) { __asm__ volatile("lock btsq %1, (%0)" : : "r"(entry), "r"((u64)arg) : "memory", "cc"); }
static void and_mask(void *arg) { __asm__ volatile("lock andq %1, (%0)" : : "r"(entry), "r"((u64)arg) : "memory", "cc"); }
static void or_mask(void *arg) { __asm__ volatile("orq %1, (%0)" : : "r"(entry), "r"((u64)arg) : "memory", "cc"); }
static void and_byte(void *arg) { __asm__ volatile("andb %1, (%0)" : : "r"(entry), "q"((u8)(u64)arg) : "memory", "cc"); }

static void with_assistance(u64 to_first, u64 to_second)
{
    u64 value = to_first;
    u32 value_4;
    struct compare compare = {0, 0, false};

    CHECK_NO_TRAP(guarded(store_8, (void *)to_second));
    CHECK_EQUAL(shown(), 2);
    CHECK_EQUAL(PTE_MFN(*entry), virt_to_mfn(second));
    CHECK_EQUAL(*entry & PTE_USER, PTE_USER);
    CHECK_NO_TRAP(guarded(store_8, 0));
    CHECK_EQUAL(shown(), 0);
    CHECK_NO_TRAP(guarded(store_8, (void *)to_first));
    CHECK_EQUAL(shown(), 1);
    CHECK_NO_TRAP(guarded(store_immediate, NULL));
    CHECK_EQUAL(shown(), 0);

    CHECK_NO_TRAP(guarded(exchange, &value));
    CHECK_EQUAL(value, 0);
    CHECK_EQUAL(shown(), 1);
    value = to_second;
    CHECK_NO_TRAP(guarded(exchange, &value));
    CHECK_EQUAL(PTE_MFN(value), virt_to_mfn(first));
    CHECK_EQUAL(shown(), 2);

    compare = (struct compare){*entry, to_first, false};
    CHECK_NO_TRAP(guarded(compare_exchange, &compare));
    CHECK(compare.equal);
    CHECK_EQUAL(shown(), 1);
    compare = (struct compare){0x1234, to_second, true};
    CHECK_NO_TRAP(guarded(compare_exchange, &compare));
    CHECK(!compare.equal);
    CHECK_EQUAL(compare.expected, *entry);
    CHECK_EQUAL(shown(), 1);

    // Bit operations: writable off and on, present off and on.
    CHECK_NO_TRAP(guarded(clear_bit, (void *)1));
    flush();
    CHECK_TRAP(probe_write_record(place, 1), TRAP_PAGE_FAULT, PF_PRESENT | PF_WRITE);
    CHECK_NO_TRAP(guarded(set_bit, (void *)1));
    flush();
    CHECK_NO_TRAP(probe_write_record(place, 1));
    CHECK_NO_TRAP(guarded(and_mask, (void *)~PTE_PRESENT));
    CHECK_EQUAL(shown(), 0);
    CHECK_NO_TRAP(guarded(or_mask, (void *)PTE_PRESENT));
    CHECK_EQUAL(shown(), 1);
    CHECK_NO_TRAP(guarded(and_byte, (void *)(u64)(u8)~PTE_PRESENT));
    CHECK_EQUAL(shown(), 0);

    // Parts of an entry.
    CHECK_NO_TRAP(guarded(store_1, (void *)(u64)(u8)to_first));
    CHECK_EQUAL(shown(), 1);
    CHECK_NO_TRAP(guarded(store_4, (void *)(u64)(u32)to_second));
    CHECK_EQUAL(shown(), 2);
    CHECK_NO_TRAP(guarded(store_2, (void *)(to_second & 0xffff & ~PTE_PRESENT)));
    CHECK_EQUAL(shown(), 0);
    value_4 = (u32)to_first;
    CHECK_NO_TRAP(guarded(exchange_4, &value_4));
    CHECK_EQUAL(shown(), 1);
    CHECK_NO_TRAP(guarded(store_4_high, (void *)(u64)(to_first >> 32 | 0x80000000))); // no-execute
    CHECK_EQUAL(*entry >> 63, 1);
    CHECK_EQUAL(shown(), 1);
}

static void refused(u64 to_first)
{
    struct trap_record r;
    u64 before;

    CHECK_NO_TRAP(guarded(store_8, (void *)to_first));
    before = *entry;
    r = guarded(store_8, (void *)make_pte(0x7ffffff, PTE_RW)); // no memory there
    CHECK_TRAP(r, TRAP_PAGE_FAULT, PF_PRESENT | PF_WRITE);
    CHECK_EQUAL(r.cr2, (u64)entry);
    r = guarded(store_8, (void *)make_pte(virt_to_mfn((void *)entry), PTE_RW)); // the table itself, writable
    CHECK_TRAP(r, TRAP_PAGE_FAULT, PF_PRESENT | PF_WRITE);
    r = guarded(store_misaligned, (void *)0);
    CHECK_TRAP(r, TRAP_PAGE_FAULT, PF_PRESENT | PF_WRITE);
    CHECK_EQUAL(r.cr2, (u64)entry + 4);
    CHECK_TRAP(guarded(store_misaligned_4, (void *)0), TRAP_PAGE_FAULT, PF_PRESENT | PF_WRITE);
    CHECK_EQUAL(*entry, before);
}

static void upper_levels(void)
{
    for (int level = 2; level <= 4; level++) {
        volatile u64 *upper = entry_of(place, level);
        u64 value = *upper;
        struct trap_record r = probe_write_record(upper, value);

        CHECK_TRAP(r, TRAP_PAGE_FAULT, PF_PRESENT | PF_WRITE);
        CHECK_EQUAL(r.cr2, (u64)upper);
    }
}

void test_main(void)
{
    u64 to_first, to_second;

    first = page_alloc();
    second = page_alloc();
    *first = 1;
    *second = 2;
    to_first = make_pte(virt_to_mfn(first), PTE_RW);
    to_second = make_pte(virt_to_mfn(second), PTE_RW);
    entry = entry_of(place, 1);
    CHECK_EQUAL(hyp_update_va_mapping((u64)place, to_first, UVMF_INVLPG), 0);
    CHECK_EQUAL(shown(), 1);

    // Before it was asked for, writes to tables are plain faults.
    CHECK_TRAP(guarded(store_8, (void *)to_second), TRAP_PAGE_FAULT, PF_PRESENT | PF_WRITE);
    upper_levels();
    CHECK_EQUAL(hyp_vm_assist(VMASST_enable, VMASST_writable_pagetables), 0);
    with_assistance(to_first, to_second);
    refused(to_first);
    upper_levels();
    CHECK_EQUAL(hyp_vm_assist(VMASST_disable, VMASST_writable_pagetables), 0);
    CHECK_TRAP(guarded(store_8, (void *)to_second), TRAP_PAGE_FAULT, PF_PRESENT | PF_WRITE);
}
