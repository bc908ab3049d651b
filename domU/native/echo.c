// SPDX-License-Identifier: GPL-2.0-only
// The frontend of the echo device (examples/echo_device) in C: what a small kernel needs to use a backend in Python.
// Connects, sends requests one at a time and as many at once as fit, checks what comes back, closes; says how fast it was.
// Its kernel command line is the milliseconds that each measurement takes.
#include <guest/clock.h>
#include <guest/events.h>
#include <guest/hypercall.h>
#include <guest/machine.h>
#include <guest/notes.h>
#include <guest/pages.h>
#include <guest/store.h>
#include <guest/text.h>
#include <xen/grant_table.h>
#include <xen/sched.h>

XEN_NOTES

#define ROOM 48
#define SLOTS 32
#define REF 8 // the first grant that is not the toolstack's
#define FRONT "device/echo/0/"
#define full_barrier() __atomic_thread_fence(__ATOMIC_SEQ_CST)

enum { CONNECTED = 4, CLOSING = 5, CLOSED = 6 };

struct request {
    u64 id;
    u32 length, pad;
    char data[ROOM];
};
struct response {
    u64 id;
    s32 status;
    u32 length;
    char data[ROOM];
};
struct ring {
    u32 req_prod, req_event, rsp_prod, rsp_event;
    char pad[48];
    union {
        struct request request;
        struct response response;
    } slots[SLOTS];
};

static char grant_place[PAGE_SIZE] PAGE_ALIGNED;
static volatile struct ring *ring;
static u32 port, rsp_cons;
static u64 wrong;

static void on_event(u32 which, void *data)
{
    (void)which;
    (void)data;
}

static bool has_responses(void *unused)
{
    (void)unused;
    return ring->rsp_prod != rsp_cons;
}

static void write_number(const char *node, u64 value)
{
    char path[64], text[24];

    format_text(path, sizeof(path), FRONT "%s", node);
    format_text(text, sizeof(text), "%lu", value);
    if (store_write(path, text) < 0)
        print("%s cannot be written: %s\n", path, store_error);
}

static long backend_state(void)
{
    char path[128], value[16];

    if (store_read(FRONT "backend", path, sizeof(path) - 8) <= 0)
        return -1;
    memcpy(path + text_length(path), "/state", 7);
    return store_read(path, value, sizeof(value)) == 1 ? value[0] - '0' : -1;
}

static void wait_for_backend(long state)
{
    while (backend_state() != state)
        clock_sleep(NS_PER_S / 1000);
}

static void connect(void)
{
    static u64 frames[1];
    struct gnttab_setup_table setup = {DOMID_SELF, 1, 0, frames};
    struct evtchn_alloc_unbound unbound = {DOMID_SELF, 0, 0};
    volatile struct grant_entry_v1 *table = (void *)grant_place;

    ring = page_alloc();
    ring->req_event = ring->rsp_event = 1;
    hyp_grant_table_op(GNTTABOP_setup_table, &setup, 1);
    hyp_update_va_mapping((u64)grant_place, make_pte(frames[0], PTE_RW), UVMF_INVLPG);
    table[REF].domid = 0;
    table[REF].frame = virt_to_mfn(ring);
    full_barrier();
    table[REF].flags = GTF_permit_access;
    hyp_event_channel_op(EVTCHNOP_alloc_unbound, &unbound);
    port = unbound.port;
    event_bind(port, on_event, NULL);
    write_number("ring-ref", REF);
    write_number("event-channel", port);
    write_number("state", 3);
    wait_for_backend(CONNECTED);
    write_number("state", CONNECTED);
}

// Puts `count` requests, tells the backend if it wants to be told, and takes their responses.
static void exchange(u32 count)
{
    u32 old = ring->req_prod, end = old + count;

    for (u32 i = old; i != end; i++) {
        volatile struct request *request = &ring->slots[i % SLOTS].request;

        request->id = i;
        request->length = 5;
        request->data[0] = 'a' + i % 26;
    }
    full_barrier();
    ring->req_prod = end;
    full_barrier();
    if (end - ring->req_event < end - old)
        event_notify(port);
    while (rsp_cons != end) {
        while (rsp_cons != ring->rsp_prod) {
            volatile struct response *response = &ring->slots[rsp_cons % SLOTS].response;

            full_barrier();
            if (response->status != 0 || response->length != 5 || response->data[0] != (char)('a' + response->id % 26))
                wrong++;
            rsp_cons++;
        }
        ring->rsp_event = rsp_cons + 1;
        full_barrier();
        if (rsp_cons != end && rsp_cons == ring->rsp_prod)
            events_wait_until(has_responses, NULL);
    }
}

static void measure(u32 at_once, u64 ns)
{
    u64 began = clock_now(), took, count = 0;

    do {
        exchange(at_once);
        count += at_once;
    } while ((took = clock_now() - began) < ns);
    print("rate %u %lu\n", at_once, count * NS_PER_S / took);
}

void guest_main(void)
{
    u64 milliseconds = 0;

    for (const char *c = (const char *)start_info->cmd_line; *c >= '0' && *c <= '9'; c++)
        milliseconds = milliseconds * 10 + (*c - '0');
    timer_init();
    connect();
    measure(1, milliseconds * NS_PER_MS);
    measure(SLOTS, milliseconds * NS_PER_MS);
    print("wrong answers: %lu\n", wrong);
    write_number("state", CLOSING);
    wait_for_backend(CLOSING);
    write_number("state", CLOSED);
    wait_for_backend(CLOSED);
    print("closed\n");
    machine_shutdown(SHUTDOWN_poweroff);
}
