// SPDX-License-Identifier: GPL-2.0-only
// Tests: the state a domain builder and Xen leave a PV guest in at its first instruction.
// SUCCESS: registers, start_info, initial page tables, p2m, M2P, reserved grants and masks are as the ABI promises.
// FAILURE: the named item differs. ERROR: never.
#include <guest/test.h>
#include <xen/grant_table.h>
#include <xen/rings.h>

XEN_NOTES

extern u64 start_registers[8]; // rax rsp rsi rflags cs ss ds rbx
extern char _start[];

static void registers(void)
{
    CHECK_EQUAL(start_registers[0], 0);
    CHECK_EQUAL(start_registers[1] & 0xfff, 0);            // top of the boot stack
    CHECK_EQUAL(start_registers[2], (u64)start_info);      // rsi
    CHECK_EQUAL(start_registers[3] & ~2UL, 0x200);         // rflags: interrupts only
    CHECK_EQUAL(start_registers[4], FLAT_KERNEL_CS);
    CHECK_EQUAL(start_registers[5], FLAT_KERNEL_SS);
    CHECK_EQUAL(start_registers[6], 0);
    CHECK_EQUAL(start_registers[7], 0);
}

static void start_info_page(void)
{
    CHECK(text_equal(start_info->magic, "xen-3.0-x86_64"));
    CHECK_EQUAL(start_info->flags & (SIF_PRIVILEGED | SIF_INITDOMAIN), 0);
    CHECK(text_starts(start_info->cmd_line, "selftest"));
    CHECK_EQUAL(start_info->shared_info & 0xfff, 0);
    CHECK(start_info->store_evtchn != 0);
    CHECK(start_info->console_evtchn != 0);
    CHECK(start_info->store_evtchn != start_info->console_evtchn);
    CHECK_EQUAL(start_info->mod_len, 0);
    CHECK_EQUAL((u64)start_info & 0xfff, 0);
    // Order behind the kernel: p2m list, start_info, store, console, page tables, boot stack.
    CHECK(start_info->mfn_list < (u64)start_info);
    CHECK_EQUAL(virt_to_mfn((char *)start_info + PAGE_SIZE), start_info->store_mfn);
    CHECK_EQUAL(virt_to_mfn((char *)start_info + 2 * PAGE_SIZE), start_info->console_mfn);
    CHECK_EQUAL(start_info->pt_base, (u64)start_info + 3 * PAGE_SIZE);
    CHECK_EQUAL(start_registers[1], start_info->pt_base + (start_info->nr_pt_frames + 1) * PAGE_SIZE);
}

static void frame_lists(void)
{
    u64 wrong = 0;

    for (u64 pfn = 0; pfn < start_info->nr_pages; pfn++)
        if (mfn_to_pfn(pfn_to_mfn(pfn)) != pfn)
            wrong++;
    CHECK_EQUAL(wrong, 0);
    CHECK(pfn_to_mfn(0) != 0); // machine frames are no guest frames
}

static void page_tables(void)
{
    u64 end;
    volatile u64 *entry;

    // Tables are mapped read-only, other pages writable; the first table page is the L4.
    for (u64 i = 0; i < start_info->nr_pt_frames; i++) {
        entry = entry_of((char *)start_info->pt_base + i * PAGE_SIZE, 1);
        CHECK(entry && (*entry & PTE_PRESENT) && !(*entry & PTE_WRITE));
    }
    entry = entry_of(start_info, 1);
    CHECK(*entry & PTE_WRITE);
    CHECK(*entry & PTE_USER);
    entry = entry_of(_start, 1);
    CHECK_EQUAL(PTE_MFN(*entry), virt_to_mfn(_start));
    // The mapping goes on for at least 512 KiB behind the boot stack, to a 4 MiB boundary.
    end = ((start_registers[1] + 0x80000) + 0x3fffff) & ~0x3fffffUL;
    entry = entry_of((char *)end - PAGE_SIZE, 1);
    CHECK(entry && (*entry & PTE_PRESENT));
    entry = entry_of((char *)end, 1);
    CHECK(!entry || !(*entry & PTE_PRESENT));
}

static void reserved_grants(void)
{
    static u64 frames[1];
    static char place[PAGE_SIZE] PAGE_ALIGNED;
    struct gnttab_setup_table setup = {DOMID_SELF, 1, 0, frames};
    struct grant_entry_v1 *table = (struct grant_entry_v1 *)place;

    CHECK_EQUAL(hyp_grant_table_op(GNTTABOP_setup_table, &setup, 1), 0);
    CHECK_EQUAL(setup.status, GNTST_okay);
    CHECK_EQUAL(hyp_update_va_mapping((u64)place, make_pte(frames[0], PTE_RW | PTE_NX), UVMF_INVLPG), 0);
    CHECK_EQUAL(table[GNTTAB_RESERVED_CONSOLE].frame, start_info->console_mfn);
    CHECK_EQUAL(table[GNTTAB_RESERVED_XENSTORE].frame, start_info->store_mfn);
    CHECK_EQUAL(table[GNTTAB_RESERVED_CONSOLE].flags & 3, GTF_permit_access);
    CHECK_EQUAL(table[GNTTAB_RESERVED_XENSTORE].flags & 3, GTF_permit_access);
    CHECK_EQUAL(table[GNTTAB_RESERVED_CONSOLE].domid, 0);
    CHECK_EQUAL(table[2].flags, 0);
}

void test_main(void)
{
    registers();
    start_info_page();
    frame_lists();
    page_tables();
    reserved_grants();
}
