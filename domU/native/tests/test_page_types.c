// SPDX-License-Identifier: GPL-2.0-only
// Tests: page typing: what is a page table is never writable, what is writable never becomes a page table, pins and
// their conflicts, contents that fail validation, and descriptor pages.
// SUCCESS: every conflict is refused and leaves types as they were. FAILURE: the named check. ERROR: no memory.
#include <guest/test.h>
#include <xen/memory.h>

XEN_NOTES

static long map(void *place, void *page, u64 flags)
{
    return hyp_update_va_mapping((u64)place, make_pte(virt_to_mfn(page), flags), UVMF_INVLPG);
}

static long pin(u32 command, void *page)
{
    return mmuext_one(command, virt_to_mfn(page), 0);
}

static char place[PAGE_SIZE] PAGE_ALIGNED; // gives up its own frame

static void live_tables(void)
{
    u64 *l4 = (u64 *)start_info->pt_base;
    void *l3 = mfn_to_virt(PTE_MFN(*entry_of(place, 4)));
    void *l2 = mfn_to_virt(PTE_MFN(*entry_of(place, 3)));
    void *l1 = mfn_to_virt(PTE_MFN(*entry_of(place, 2)));
    void *tables[] = {l4, l3, l2, l1};

    for (u32 i = 0; i < ARRAY_LENGTH(tables); i++) {
        CHECK_EQUAL(map(place, tables[i], PTE_RW), -EBUSY);
        CHECK_EQUAL(mmu_update_one(entry_machine_address(entry_of(place, 1)), make_pte(virt_to_mfn(tables[i]), PTE_RW)),
                    -EBUSY);
        CHECK_EQUAL(map(place, tables[i], PTE_RO), 0);
        CHECK_EQUAL(*(u64 *)place == *(u64 *)tables[i], true);
    }
    CHECK_EQUAL(pin(MMUEXT_PIN_L4_TABLE, l4), -EINVAL); // the builder did
    CHECK_EQUAL(pin(MMUEXT_PIN_L3_TABLE, l4), -EINVAL);
    CHECK_EQUAL(pin(MMUEXT_PIN_L1_TABLE, l2), -EINVAL);
    CHECK_EQUAL(pin(MMUEXT_PIN_L2_TABLE, l1), -EINVAL);
    CHECK_EQUAL(pin(MMUEXT_PIN_L1_TABLE, l1), 0); // a pin of its own for a table in use
    CHECK_EQUAL(pin(MMUEXT_PIN_L1_TABLE, l1), -EINVAL);
    CHECK_EQUAL(pin(MMUEXT_UNPIN_TABLE, l1), 0);
    CHECK_EQUAL(pin(MMUEXT_UNPIN_TABLE, l1), -EINVAL);
    CHECK_EQUAL(pin(MMUEXT_UNPIN_TABLE, l3), -EINVAL); // in use, but never pinned
    CHECK_EQUAL(mmuext_one(MMUEXT_NEW_BASEPTR, virt_to_mfn(l3), 0), -EINVAL);
    CHECK_EQUAL(mmuext_one(MMUEXT_NEW_BASEPTR, virt_to_mfn(page_alloc()), 0), -EINVAL); // writable
    CHECK_EQUAL(mmuext_one(MMUEXT_NEW_BASEPTR, virt_to_mfn(l4), 0), 0);
    CHECK_EQUAL(mmuext_one(MMUEXT_NEW_USER_BASEPTR, virt_to_mfn(l2), 0), -EINVAL);
    CHECK_EQUAL(mmuext_one(MMUEXT_NEW_USER_BASEPTR, 0, 0), 0); // none
}

static void pins(void)
{
    u64 *page = page_alloc();

    // Writable here, so no table.
    for (u32 command = MMUEXT_PIN_L1_TABLE; command <= MMUEXT_PIN_L4_TABLE; command++)
        CHECK_EQUAL(pin(command, page), -EINVAL);
    CHECK_EQUAL(pin(MMUEXT_UNPIN_TABLE, page), -EINVAL);
    page[0] = 1; // and still ours to write
    page[0] = 0;

    CHECK_EQUAL(page_make_readonly(page), 0);
    CHECK_EQUAL(pin(MMUEXT_PIN_L1_TABLE, page), 0);
    CHECK_EQUAL(page_make_writable(page), -EBUSY);
    CHECK_EQUAL(map(place, page, PTE_RW), -EBUSY);
    CHECK_EQUAL(pin(MMUEXT_PIN_L2_TABLE, page), -EINVAL);
    CHECK_EQUAL(pin(MMUEXT_UNPIN_TABLE, page), 0);
    CHECK_EQUAL(page_make_writable(page), 0);
    CHECK_EQUAL(pin(MMUEXT_PIN_L1_TABLE, page), -EINVAL);

    // Two mappings, one of them writable.
    CHECK_EQUAL(map(place, page, PTE_RW), 0);
    CHECK_EQUAL(page_make_readonly(page), 0);
    CHECK_EQUAL(pin(MMUEXT_PIN_L1_TABLE, page), -EINVAL);
    CHECK_EQUAL(map(place, page, PTE_RO), 0);
    CHECK_EQUAL(pin(MMUEXT_PIN_L1_TABLE, page), 0);
    CHECK_EQUAL(pin(MMUEXT_UNPIN_TABLE, page), 0);
    CHECK_EQUAL(hyp_update_va_mapping((u64)place, 0, UVMF_INVLPG), 0);
    CHECK_EQUAL(page_make_writable(page), 0);
}

// Tables whose contents do not bear validation. Each page is read-only when pinned, and writable in between.
static void contents(void)
{
    u64 *table = page_alloc(), *other = page_alloc(), *writable = page_alloc();
    u64 me = virt_to_mfn(table);
    struct {
        u32 level;
        u64 entry;
        long want;
    } const cases[] = {
        {1, make_pte(virt_to_mfn(writable), PTE_RW), 0},
        {1, make_pte(virt_to_mfn(writable), PTE_RW | PTE_NX | PTE_GLOBAL), 0},
        {1, make_pte(me, PTE_RO), 0},                                         // itself, read-only
        {1, make_pte(me, PTE_RW), -EBUSY},                                    // itself, writable
        {1, make_pte(virt_to_mfn((void *)start_info->pt_base), PTE_RW), -EBUSY}, // a live table, writable
        {1, make_pte(0x7ffffff, PTE_RO), -EPERM},                             // no memory there
        {1, make_pte(0x7ffffff, 0), 0},                                       // not present: anything goes
        {2, make_pte(virt_to_mfn(other), PTE_TABLE), 0},
        {2, make_pte(virt_to_mfn(writable), PTE_TABLE), -EINVAL},             // writable elsewhere
        {2, make_pte(virt_to_mfn(writable) & ~511UL, PTE_RW | PTE_LARGE), -EINVAL},
        {2, make_pte(virt_to_mfn((void *)start_info->pt_base), PTE_TABLE), -EINVAL}, // an L4
        {3, make_pte(virt_to_mfn(writable), PTE_TABLE), -EINVAL},
        {3, make_pte(0x7ffffff, PTE_TABLE), -EINVAL},
        {4, make_pte(virt_to_mfn(writable), PTE_TABLE), -EINVAL},
        {4, make_pte(virt_to_mfn(other), PTE_TABLE), 0},
    };

    CHECK_EQUAL(page_make_readonly(other), 0);
    for (u32 i = 0; i < ARRAY_LENGTH(cases); i++) {
        long got;

        memset(table, 0, PAGE_SIZE);
        table[7] = cases[i].entry;
        CHECK_EQUAL(page_make_readonly(table), 0);
        got = pin(MMUEXT_PIN_L1_TABLE + cases[i].level - 1, table);
        test_equal(got, cases[i].want, __FILE_NAME__, (int)i, "pin of a table with this entry");
        if (got == 0)
            CHECK_EQUAL(pin(MMUEXT_UNPIN_TABLE, table), 0);
        CHECK_EQUAL(page_make_writable(table), 0); // nothing of the failed attempt is left
    }
    CHECK_EQUAL(page_make_writable(other), 0);
    CHECK_EQUAL(page_make_writable(writable), 0);
}

static void self_links(void)
{
    u64 *l2 = page_alloc();

    memset(l2, 0, PAGE_SIZE);
    l2[3] = make_pte(virt_to_mfn(l2), PTE_TABLE); // writable: never; read-only it would be a linear page table
    CHECK_EQUAL(page_make_readonly(l2), 0);
    CHECK_EQUAL(pin(MMUEXT_PIN_L2_TABLE, l2), -EINVAL);
    CHECK_EQUAL(page_make_writable(l2), 0);
}

static void updates(void)
{
    u64 *l1 = page_alloc(), *data = page_alloc();
    u64 machine = virt_to_mfn(l1) << 12;
    struct mmu_update updates[3] = {
        {machine, make_pte(virt_to_mfn(data), PTE_RW)},
        {machine + 8, make_pte(virt_to_mfn(l1), PTE_RW)}, // a writable mapping of the table itself
        {machine + 16, make_pte(virt_to_mfn(data), PTE_RW)},
    };
    u32 done = 77;

    CHECK_EQUAL(page_make_readonly(l1), 0);
    CHECK_EQUAL(pin(MMUEXT_PIN_L1_TABLE, l1), 0);
    CHECK_EQUAL(hyp_mmu_update(updates, 3, &done, DOMID_SELF), -EBUSY);
    CHECK_EQUAL(done, 1);
    CHECK_EQUAL(PTE_MFN(l1[0]), virt_to_mfn(data));
    CHECK_EQUAL(l1[1], 0);
    CHECK_EQUAL(l1[2], 0);
    CHECK_EQUAL(l1[0] & PTE_USER, PTE_USER);
    // Accessed and dirty survive where asked for.
    CHECK_EQUAL(mmu_update_one(machine, make_pte(virt_to_mfn(data), PTE_PRESENT | PTE_WRITE | PTE_USER)), 0);
    CHECK_EQUAL(l1[0] & (PTE_ACCESSED | PTE_DIRTY), 0);
    CHECK_EQUAL(mmu_update_one(machine, make_pte(virt_to_mfn(data), PTE_RW)), 0);
    CHECK_EQUAL(mmu_update_one(machine | MMU_PT_UPDATE_PRESERVE_AD,
                               make_pte(virt_to_mfn(data), PTE_PRESENT | PTE_USER)), 0);
    CHECK_EQUAL(l1[0] & (PTE_ACCESSED | PTE_DIRTY | PTE_WRITE), PTE_ACCESSED | PTE_DIRTY);
    // An entry without the USER bit gets it, and is marked as the kernel's (bit 52).
    CHECK_EQUAL(mmu_update_one(machine, make_pte(virt_to_mfn(data), PTE_PRESENT | PTE_ACCESSED)), 0);
    CHECK_EQUAL(l1[0] & (PTE_USER | 1UL << 52), PTE_USER | 1UL << 52);
    CHECK_EQUAL(mmu_update_one(machine, 0), 0);
    CHECK_EQUAL(mmu_update_one(machine, make_pte(virt_to_mfn(data), PTE_PRESENT | PTE_ACCESSED | PTE_USER)), 0);
    CHECK_EQUAL(l1[0] & (PTE_USER | PTE_GLOBAL | 1UL << 52), PTE_USER | PTE_GLOBAL);
    CHECK_EQUAL(mmu_update_one(machine, 0), 0);
    CHECK_EQUAL(pin(MMUEXT_UNPIN_TABLE, l1), 0);

    CHECK_EQUAL(hyp_mmu_update(updates, 1, &done, DOMID_XEN) < 0, true);
    CHECK_EQUAL(hyp_mmu_update(updates, 1, &done, 1234), -ESRCH);
    CHECK_EQUAL(hyp_mmu_update(NULL, 0, &done, DOMID_SELF), 0);
}

static void descriptor_pages(void)
{
    u64 *page = page_alloc(), frame = virt_to_mfn(page);

    CHECK_EQUAL(hyp_set_gdt(&frame, 8), -EINVAL); // writable
    CHECK_EQUAL(page_make_readonly(page), 0);
    CHECK_EQUAL(hyp_set_gdt(&frame, 8), 0);
    CHECK_EQUAL(page_make_writable(page), -EBUSY);
    CHECK_EQUAL(pin(MMUEXT_PIN_L1_TABLE, page), -EINVAL);
    CHECK_TRAP(probe_write_record(page, 0), TRAP_PAGE_FAULT, PF_PRESENT | PF_WRITE);
    CHECK_EQUAL(hyp_set_gdt(NULL, 0), 0);
    CHECK_EQUAL(page_make_writable(page), 0);
    CHECK_EQUAL(mmuext_one(MMUEXT_SET_LDT, (u64)page, 8), 0); // looked at when first used
    CHECK_EQUAL(mmuext_one(MMUEXT_SET_LDT, 0, 0), 0);
}

static void contents_calls(void)
{
    u64 *page = page_alloc(), *other = page_alloc();

    page[5] = 55;
    CHECK_EQUAL(mmuext_one(MMUEXT_COPY_PAGE, virt_to_mfn(other), virt_to_mfn(page)), 0);
    CHECK_EQUAL(other[5], 55);
    CHECK_EQUAL(mmuext_one(MMUEXT_CLEAR_PAGE, virt_to_mfn(other), 0), 0);
    CHECK_EQUAL(other[5], 0);
    CHECK_EQUAL(mmuext_one(MMUEXT_CLEAR_PAGE, virt_to_mfn((void *)start_info->pt_base), 0), -EINVAL);
    CHECK_EQUAL(mmuext_one(MMUEXT_COPY_PAGE, virt_to_mfn((void *)start_info->pt_base), virt_to_mfn(page)), -EINVAL);
    CHECK_EQUAL(mmuext_one(MMUEXT_COPY_PAGE, virt_to_mfn(other), 0x7ffffff), -EINVAL);
}

static void freed_tables(void)
{
    u64 *table = page_alloc(), frame = virt_to_mfn(table);
    struct xen_memory_reservation reservation = {&frame, 1, 0, 0, DOMID_SELF};

    // A pinned table cannot be used up by giving it back: its type stays until it is unpinned.
    CHECK_EQUAL(page_make_readonly(table), 0);
    CHECK_EQUAL(pin(MMUEXT_PIN_L1_TABLE, table), 0);
    CHECK_EQUAL(pin(MMUEXT_UNPIN_TABLE, table), 0);
    CHECK_EQUAL(hyp_update_va_mapping((u64)table, 0, UVMF_INVLPG), 0);
    CHECK_EQUAL(hyp_memory_op(XENMEM_decrease_reservation, &reservation), 1);
    CHECK_EQUAL(mmuext_one(MMUEXT_PIN_L1_TABLE, frame, 0), -EINVAL); // no longer ours
    CHECK_EQUAL(hyp_update_va_mapping((u64)table, make_pte(frame, PTE_RO), UVMF_INVLPG) < 0, true);
}

void test_main(void)
{
    live_tables();
    pins();
    contents();
    self_links();
    updates();
    descriptor_pages();
    contents_calls();
    freed_tables();
}
