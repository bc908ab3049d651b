// SPDX-License-Identifier: GPL-2.0-only
// Tests: grant table size, set-up and version, and their errors, which are in the status of each operation.
// SUCCESS: as Xen does it. FAILURE: the named check. ERROR: never.
#include <guest/test.h>
#include <xen/grant_table.h>

XEN_NOTES

static u64 frames[64];
static char place[PAGE_SIZE] PAGE_ALIGNED;

struct gnttab_version {
    u32 version;
};
struct gnttab_get_version {
    u16 dom;
    u16 pad;
    u32 version;
};

void test_main(void)
{
    struct gnttab_query_size size = {DOMID_SELF, 0, 0, 0};
    struct gnttab_setup_table setup = {DOMID_SELF, 2, 0, frames};
    struct gnttab_setup_table two[2];
    struct gnttab_version version = {1};
    struct gnttab_get_version is = {DOMID_SELF, 0, 0};
    volatile struct grant_entry_v1 *table = (void *)place;
    u64 first;

    CHECK_EQUAL(hyp_grant_table_op(GNTTABOP_query_size, &size, 1), 0);
    CHECK_EQUAL(size.status, GNTST_okay);
    CHECK(size.nr_frames >= 1);
    CHECK(size.max_nr_frames >= 4);

    CHECK_EQUAL(hyp_grant_table_op(GNTTABOP_setup_table, &setup, 1), 0);
    CHECK_EQUAL(setup.status, GNTST_okay);
    CHECK(frames[0] != 0 && frames[1] != 0 && frames[0] != frames[1]);
    first = frames[0];
    CHECK_EQUAL(hyp_grant_table_op(GNTTABOP_query_size, &size, 1), 0);
    CHECK(size.nr_frames >= 2);
    CHECK_EQUAL(hyp_update_va_mapping((u64)place, make_pte(frames[1], PTE_RW), UVMF_INVLPG), 0);
    table[0].frame = 0x1234; // the new frame is ours to write
    CHECK_EQUAL(table[0].frame, 0x1234);
    CHECK_EQUAL(table[1].frame, 0);

    // Again: the same frames, and what was written stays.
    setup.nr_frames = 3;
    CHECK_EQUAL(hyp_grant_table_op(GNTTABOP_setup_table, &setup, 1), 0);
    CHECK_EQUAL(setup.status, GNTST_okay);
    CHECK_EQUAL(frames[0], first);
    CHECK_EQUAL(table[0].frame, 0x1234);

    // Grant frames are no page tables, and not ours to give away.
    CHECK_EQUAL(mmuext_one(MMUEXT_PIN_L1_TABLE, first, 0), -EINVAL);

    setup.nr_frames = size.max_nr_frames + 1;
    CHECK_EQUAL(hyp_grant_table_op(GNTTABOP_setup_table, &setup, 1), 0);
    CHECK_EQUAL(setup.status, GNTST_general_error);
    setup.nr_frames = 1;
    setup.dom = 1234;
    CHECK_EQUAL(hyp_grant_table_op(GNTTABOP_setup_table, &setup, 1), 0);
    CHECK_EQUAL(setup.status, GNTST_bad_domain);
    setup.dom = 0; // there, but not ours to ask about
    CHECK_EQUAL(hyp_grant_table_op(GNTTABOP_setup_table, &setup, 1), 0);
    CHECK_EQUAL(setup.status, GNTST_permission_denied);
    size.dom = 1234;
    CHECK_EQUAL(hyp_grant_table_op(GNTTABOP_query_size, &size, 1), 0);
    CHECK_EQUAL(size.status, GNTST_bad_domain);
    setup = (struct gnttab_setup_table){DOMID_SELF, 1, 0, (u64 *)HYPERVISOR_START};
    CHECK_EQUAL(hyp_grant_table_op(GNTTABOP_setup_table, &setup, 1), -EFAULT);
    two[0] = two[1] = setup;
    CHECK_EQUAL(hyp_grant_table_op(GNTTABOP_setup_table, two, 2), -EINVAL); // one at a time

    CHECK_EQUAL(hyp_grant_table_op(GNTTABOP_set_version, &version, 1), 0);
    CHECK_EQUAL(hyp_grant_table_op(GNTTABOP_get_version, &is, 1), 0);
    CHECK_EQUAL(is.version, 1);
    version.version = 3;
    CHECK_EQUAL(hyp_grant_table_op(GNTTABOP_set_version, &version, 1), -EINVAL);
}
