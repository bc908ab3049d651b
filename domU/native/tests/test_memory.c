// SPDX-License-Identifier: GPL-2.0-only
// Tests: memory_op: what the domain has and may have, giving frames back and getting frames, and the limits.
// SUCCESS: as Xen does it. FAILURE: the named check. ERROR: never.
#include <guest/test.h>
#include <xen/memory.h>

XEN_NOTES

static u64 frames[2048];

static long reservation(u32 command, u64 count, u32 order)
{
    struct xen_memory_reservation reservation = {frames, count, order, 0, DOMID_SELF};

    return hyp_memory_op(command, &reservation);
}

void test_main(void)
{
    u16 self = DOMID_SELF, other = 1234;
    struct e820_entry entries[4];
    struct xen_memory_map map = {ARRAY_LENGTH(entries), entries};
    long current = hyp_memory_op(XENMEM_current_reservation, &self);
    long maximum = hyp_memory_op(XENMEM_maximum_reservation, &self);
    char *page = page_alloc();
    u64 pfn = virt_to_pfn(page), old = virt_to_mfn(page), value;
    long got;

    CHECK_EQUAL(current, start_info->nr_pages);
    CHECK(maximum >= current);
    CHECK_EQUAL(hyp_memory_op(XENMEM_current_reservation, &other), -ESRCH);
    CHECK(hyp_memory_op(XENMEM_maximum_ram_page, NULL) > 0);

    CHECK_EQUAL(hyp_memory_op(XENMEM_memory_map, &map), 0);
    CHECK_EQUAL(map.nr_entries, 1);
    CHECK_EQUAL(entries[0].addr, 0);
    CHECK(entries[0].size >= (u64)current << 12);
    CHECK_EQUAL(entries[0].type, E820_RAM);
    map = (struct xen_memory_map){0, entries};
    CHECK_EQUAL(hyp_memory_op(XENMEM_memory_map, &map), 0);
    CHECK_EQUAL(map.nr_entries, 0);

    // Give a page back: unmapped first, then it is gone from us.
    CHECK_EQUAL(hyp_update_va_mapping((u64)page, 0, UVMF_INVLPG), 0);
    frames[0] = old;
    CHECK_EQUAL(reservation(XENMEM_decrease_reservation, 1, 0), 1);
    CHECK_EQUAL(hyp_memory_op(XENMEM_current_reservation, &self), current - 1);
    CHECK_EQUAL(hyp_update_va_mapping((u64)page, make_pte(old, PTE_RW), UVMF_INVLPG) < 0, true);
    frames[0] = old;
    CHECK_EQUAL(reservation(XENMEM_decrease_reservation, 1, 0), 0); // not twice
    // And another for the same guest frame: its number comes back in the list, and is in the M2P.
    frames[0] = pfn;
    CHECK_EQUAL(reservation(XENMEM_populate_physmap, 1, 0), 1);
    CHECK_EQUAL(hyp_memory_op(XENMEM_current_reservation, &self), current);
    CHECK_EQUAL(MACHINE_TO_PHYS[frames[0]], pfn);
    CHECK_EQUAL(hyp_update_va_mapping((u64)page, make_pte(frames[0], PTE_RW), UVMF_INVLPG), 0);
    ((u64 *)start_info->mfn_list)[pfn] = frames[0];
    page[17] = 1;
    CHECK(probe_read(page, &value));

    // A page that is still mapped stays readable until the mapping goes.
    page = page_alloc();
    page[0] = 42;
    pfn = virt_to_pfn(page);
    frames[0] = virt_to_mfn(page);
    CHECK_EQUAL(reservation(XENMEM_decrease_reservation, 1, 0), 1);
    CHECK_EQUAL(page[0], 42);
    CHECK_EQUAL(hyp_update_va_mapping((u64)page, 0, UVMF_INVLPG), 0);
    frames[0] = pfn;
    CHECK_EQUAL(reservation(XENMEM_populate_physmap, 1, 0), 1);
    ((u64 *)start_info->mfn_list)[pfn] = frames[0];

    // More than allowed: as many as are allowed, in order.
    for (u32 i = 0; i < ARRAY_LENGTH(frames); i++)
        frames[i] = start_info->nr_pages + i;
    got = reservation(XENMEM_populate_physmap, maximum - current + 2, 0);
    CHECK_EQUAL(got, maximum - current);
    CHECK_EQUAL(hyp_memory_op(XENMEM_current_reservation, &self), maximum);
    for (long i = 0; i < got; i++)
        if (MACHINE_TO_PHYS[frames[i]] != start_info->nr_pages + (u64)i)
            CHECK_EQUAL(MACHINE_TO_PHYS[frames[i]], start_info->nr_pages + (u64)i);
    if (got > 0)
        CHECK_EQUAL(reservation(XENMEM_decrease_reservation, (u64)got, 0), got);
    CHECK_EQUAL(hyp_memory_op(XENMEM_current_reservation, &self), current);

    // Nothing to do, too much, a list that is not there, someone else's.
    CHECK_EQUAL(reservation(XENMEM_populate_physmap, 0, 0), 0);
    CHECK_EQUAL(reservation(XENMEM_decrease_reservation, 0, 0), 0);
    frames[0] = start_info->nr_pages;
    CHECK_EQUAL(reservation(XENMEM_populate_physmap, 1, 40), 0);
    struct xen_memory_reservation bad = {(u64 *)HYPERVISOR_START, 1, 0, 0, DOMID_SELF};
    CHECK_EQUAL(hyp_memory_op(XENMEM_decrease_reservation, &bad), 0);
    CHECK_EQUAL(hyp_memory_op(XENMEM_populate_physmap, &bad), 0);
    bad = (struct xen_memory_reservation){frames, 1, 0, 0, 1234};
    CHECK_EQUAL(hyp_memory_op(XENMEM_decrease_reservation, &bad), 0);
}
