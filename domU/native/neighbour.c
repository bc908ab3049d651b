// SPDX-License-Identifier: GPL-2.0-only
// Two of these use each other's grants, both at once: each maps the other's page, writes into it, reads it, unmaps it,
// and copies to and from it. Its kernel command line is the other's domid and how many rounds.
// Ends well ("neighbour: ok") when all that both have written is where it should be and nobody uses its page any more.
#include <guest/clock.h>
#include <guest/hypercall.h>
#include <guest/machine.h>
#include <guest/notes.h>
#include <guest/pages.h>
#include <guest/store.h>
#include <guest/text.h>
#include <xen/grant_table.h>
#include <xen/sched.h>

XEN_NOTES

#define SHARED 8 // reference of the page that the other writes
#define SHOWN 9  // of the one it only reads
#define full_barrier() __atomic_thread_fence(__ATOMIC_SEQ_CST)

// What is in the shared page: its owner writes the first words, the other the second ones, copies land behind.
struct shared {
    u64 magic, finished;
    char pad[1008];
    u64 their_rounds, they_finished;
    char pad2[1008];
    u64 copied[256];
};

static char grant_place[PAGE_SIZE] PAGE_ALIGNED;
static char map_place[PAGE_SIZE] PAGE_ALIGNED;
static volatile struct shared *mine;
static volatile u64 *shown;
static u64 *local;
static u16 peer;
static u64 wrong;

static u64 number(const char **text)
{
    u64 value = 0;

    for (; **text >= '0' && **text <= '9'; ++*text)
        value = value * 10 + (u64)(**text - '0');
    while (**text == ' ')
        ++*text;
    return value;
}

static void expect(const char *what, u64 is, u64 should)
{
    if (is == should)
        return;
    if (!wrong++)
        print("neighbour: %s is %lu and should be %lu\n", what, is, should);
}

static void give(volatile struct grant_entry_v1 *table, u32 ref, volatile void *page, u16 flags)
{
    table[ref].domid = peer;
    table[ref].frame = (u32)virt_to_mfn(page);
    full_barrier();
    table[ref].flags = GTF_permit_access | flags;
}

static s16 map(u32 ref, u32 flags, struct gnttab_map_grant_ref *mapping)
{
    *mapping = (struct gnttab_map_grant_ref){.host_addr = (u64)map_place, .flags = flags, .ref = ref, .dom = peer};
    hyp_grant_table_op(GNTTABOP_map_grant_ref, mapping, 1);
    return mapping->status;
}

static void unmap(const struct gnttab_map_grant_ref *mapping)
{
    struct gnttab_unmap_grant_ref back = {(u64)map_place, 0, mapping->handle, 0};

    hyp_grant_table_op(GNTTABOP_unmap_grant_ref, &back, 1);
    expect("the status of an unmap", (u64)back.status, GNTST_okay);
}

static void copy(bool to_peer, u32 ref, u16 offset, void *here, u16 length)
{
    struct gnttab_copy op = {.len = length, .flags = to_peer ? GNTCOPY_dest_gref : GNTCOPY_source_gref};

    op.source.domid = op.dest.domid = DOMID_SELF;
    if (to_peer) {
        op.source.frame_or_ref = virt_to_mfn(here), op.source.offset = (u16)((u64)here & 4095);
        op.dest.frame_or_ref = ref, op.dest.domid = peer, op.dest.offset = offset;
    } else {
        op.dest.frame_or_ref = virt_to_mfn(here), op.dest.offset = (u16)((u64)here & 4095);
        op.source.frame_or_ref = ref, op.source.domid = peer, op.source.offset = offset;
    }
    hyp_grant_table_op(GNTTABOP_copy, &op, 1);
    expect("the status of a copy", (u64)op.status, GNTST_okay);
}

static void one_round(u64 n)
{
    volatile struct shared *theirs = (void *)map_place;
    volatile u64 *theirs_shown = (void *)map_place;
    struct gnttab_map_grant_ref mapping;

    expect("the status of a map", (u64)map(SHARED, GNTMAP_host_map, &mapping), GNTST_okay);
    expect("the magic number", theirs->magic, 0x5eed0000UL + peer);
    theirs->their_rounds = n;
    unmap(&mapping);
    expect("the status of a read-only map", (u64)map(SHOWN, GNTMAP_host_map | GNTMAP_readonly, &mapping), GNTST_okay);
    expect("what is shown", theirs_shown[n % 512], (u64)peer << 32 | n % 512);
    unmap(&mapping);
    expect("the status of a map for writing", (u64)map(SHOWN, GNTMAP_host_map, &mapping), (u64)GNTST_general_error);
    copy(false, SHOWN, (u16)(n % 512 * 8), local, 8);
    expect("what was copied from there", local[0], (u64)peer << 32 | n % 512);
    local[1] = n;
    copy(true, SHARED, (u16)(2048 + n % 256 * 8), local + 1, 8);
}

void guest_main(void)
{
    static u64 frames[1];
    const char *line = (const char *)start_info->cmd_line;
    struct gnttab_setup_table setup = {DOMID_SELF, 1, 0, frames};
    volatile struct grant_entry_v1 *table = (void *)grant_place;
    volatile struct shared *theirs = (void *)map_place;
    struct gnttab_map_grant_ref mapping;
    char domid[16] = "";
    const char *text = domid;
    u64 rounds, began, me;

    peer = (u16)number(&line);
    rounds = number(&line);
    timer_init();
    mine = page_alloc();
    shown = page_alloc();
    local = page_alloc();
    hyp_grant_table_op(GNTTABOP_setup_table, &setup, 1);
    hyp_update_va_mapping((u64)grant_place, make_pte(frames[0], PTE_RW), UVMF_INVLPG);
    store_read("domid", domid, sizeof(domid));
    me = number(&text);
    mine->magic = 0x5eed0000UL + me;
    for (u64 n = 0; n < 512; n++)
        shown[n] = me << 32 | n;
    give(table, SHARED, mine, 0);
    give(table, SHOWN, shown, GTF_readonly);
    while (map(SHOWN, GNTMAP_host_map | GNTMAP_readonly, &mapping) != GNTST_okay)
        clock_sleep(NS_PER_MS);
    unmap(&mapping);
    print("neighbour: found\n");
    began = clock_now();
    for (u64 n = 1; n <= rounds; n++)
        one_round(n);
    print("neighbour: %lu rounds took %lu us\n", rounds, (clock_now() - began) / 1000);
    mine->finished = 1;
    expect("the last map", (u64)map(SHARED, GNTMAP_host_map, &mapping), GNTST_okay);
    theirs->they_finished = 1;
    while (!theirs->finished)
        clock_sleep(NS_PER_MS);
    unmap(&mapping);
    while (!mine->they_finished || (table[SHARED].flags & (GTF_reading | GTF_writing)) ||
           (table[SHOWN].flags & (GTF_reading | GTF_writing)))
        clock_sleep(NS_PER_MS);
    expect("the other's rounds", mine->their_rounds, rounds);
    for (u64 n = rounds < 256 ? 1 : rounds - 255; n <= rounds; n++)
        expect("what was copied here", mine->copied[n % 256], n);
    print(wrong ? "neighbour: %lu wrong\n" : "neighbour: ok\n", wrong);
    machine_shutdown(SHUTDOWN_poweroff);
}
