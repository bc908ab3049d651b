// SPDX-License-Identifier: GPL-2.0-only
//
// The packets of known flows (flows.h), moved by a thread of the host without Python: from one guest's ring into
// another's, or to and from the process that is a bridge's way to the world.
//
// The switch decides (dom0/backend/net/switch.py): it sees the first packet of each flow, and all that are none, and shows
// the datapath where such packets go. A packet of which nothing is known stays where it is, on the ring or in the socket,
// and the trio thread is called; nothing is taken from there until it has been, so no packet overtakes another. A ring is
// left alone, too, while the trio thread has taken packets from it and not answered. The rings of guests and the sockets of
// links are *places*; a place's flows go before it does.
//
// One lock holds everything; the trio thread comes in for short calls, and first. The datapath's looks at the rings while
// it is awake, which it stays for a moment (linger.h), and asks the guests for an event only before it sleeps. The functions
// at the end are the trio thread's.

#define _GNU_SOURCE
#include "flows.h"
#include "linger.h"
#include "packets.h"
#include "thread.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#define MOST_PLACES 4096
#define AT_ONCE 16 // packets of one place, before the others have their turn
#define LONGEST 0x10000
#define SMALL 2048 // what is looked at of a frame from a link: larger ones are put together, which the switch's side does
#define STIR UINT32_MAX
#define EVENTS 16

void xenpy_fence_all(void);

enum kind { NOTHING, LANE, LINK };

struct place {
    enum kind kind;
    uint32_t source; // under which its packets' flows are known
    int wake_fd; // a guest has sent an event; of a link, its socket
    int call_fd; // the trio thread is wanted
    bool ready; // an event has come and not been looked for
    bool touched; // packets were put there and not shown
    uint64_t rx_packets, rx_bytes, tx_packets, tx_bytes; // rx: came in there, as the switch counts
    // a lane
    struct xenpy_packets *packets;
    void *bell;
    int bell_fd;
    uint32_t tx_port, rx_port; // the guest's
    uint32_t longest, gso_kinds, blank_versions; // what it takes: bits 1 << kind, 1 << version
    // a link
    bool called, held; // held: frames of the trio thread's wait to be sent
};

struct xenpy_datapath {
    uint64_t forwarded, missed, lingered;
    struct xenpy_lock lock;
    struct xenpy_linger linger;
    int epoll_fd, stir_fd;
    int stop;
    uint32_t count; // places up to here may be something
    struct place places[MOST_PLACES];
    struct xenpy_flows flows;
    uint8_t buffer[1 + LONGEST]; // a message to a link: its kind, the frame
    pthread_t thread;
};

// ---- a packet on its way; its bytes begin behind the first of the buffer ----

enum csum { UNKNOWN, VALID, BLANK };

// Into a guest's ring; false: the switch is to see to it.
static bool put(struct place *place, uint8_t *data, const struct xenpy_packet *packet, const struct xenpy_frame *frame,
                enum csum csum)
{
    struct xenpy_packets *p = place->packets;
    uint32_t flags = 0;

    if (!p->rx.lent || p->held)
        return false;
    if (packet->gso) {
        if (!(place->gso_kinds & 1u << packet->gso) || frame->behind + packet->gso_size > place->longest)
            return false;
    } else if (packet->size > place->longest) {
        return false;
    }
    if (csum == BLANK && !packet->gso && !(place->blank_versions & 1u << frame->version)) {
        xenpy_complete(data, frame);
        csum = VALID;
    }
    if (csum == BLANK)
        flags = RX_CSUM_BLANK | RX_VALID;
    else if (csum == VALID)
        flags = RX_VALID;
    if (xenpy_put(p, data, packet->size, flags, packet->gso, packet->gso_size) != PUT_DONE)
        return false;
    place->touched = true;
    return true;
}

static bool send_out(struct place *place, uint8_t *message, const struct xenpy_packet *packet,
                     const struct xenpy_frame *frame, enum csum csum)
{
    if (place->called || place->held)
        return false;
    if (csum == BLANK)
        xenpy_complete(message + 1, frame);
    message[0] = 'F';
    return send(place->wake_fd, message, 1 + packet->size, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
}

// A packet in the buffer, which came in at `from`; false: nothing has been done with it.
static bool forward(struct xenpy_datapath *d, struct place *from, const struct xenpy_packet *packet, enum csum csum,
                    uint64_t now)
{
    uint8_t *data = d->buffer + 1;
    struct xenpy_frame frame;

    if (!xenpy_parse(data, packet->size, &frame) || (from->kind == LINK && frame.end != packet->size))
        return false;
    if (packet->gso && (frame.protocol != 6 || frame.version != (packet->gso == GSO_TCPV4 ? 4 : 6) || packet->gso_size < 48))
        return false; // least segment as in xen_py/io/packet.py
    const struct xenpy_flow *flow = xenpy_flow_of(&d->flows, from->source, data, &frame, now);
    if (!flow || packet->size > flow->longest)
        return false;
    struct place *to = &d->places[flow->target];
    if (!(to->kind == LINK ? send_out(to, d->buffer, packet, &frame, csum) : put(to, data, packet, &frame, csum)))
        return false;
    from->rx_packets++;
    from->rx_bytes += packet->size;
    to->tx_packets++;
    to->tx_bytes += packet->size;
    d->forwarded++;
    return true;
}

static void show_touched(struct xenpy_datapath *d)
{
    for (uint32_t n = 0; n < d->count; n++) {
        struct place *place = &d->places[n];
        if (!place->touched)
            continue;
        place->touched = false;
        if (xenpy_push(&place->packets->rx))
            xenpy_tell(place->bell, place->bell_fd, place->rx_port);
    }
}

// ---- where packets come in: whether there was one ----

// Whether the thread may take from the tx ring now.
static bool is_ours(const struct xenpy_packets *p) { return p->tx.lent && !p->busy && !p->called; }

static void call_for_lane(struct xenpy_datapath *d, struct place *place)
{
    place->packets->called = true;
    d->missed++;
    xenpy_call(place->call_fd);
}

static bool serve_lane(struct xenpy_datapath *d, struct place *place, uint64_t now)
{
    struct xenpy_packets *p = place->packets;
    const int16_t okay = 0;
    uint32_t there, count = 0;
    bool known = true;

    if (place->ready) {
        place->ready = false;
        if (!p->tx.lent || !p->rx.lent || p->held) // it may be about what the trio thread waits for
            xenpy_call(place->call_fd);
    }
    if (!is_ours(p))
        return false;
    if (!xenpy_available(&p->tx, &there)) {
        call_for_lane(d, place);
        return false;
    }
    if (!there)
        return false;
    p->taken_count = 0;
    while (there && count < AT_ONCE) {
        struct xenpy_packet packet;
        uint32_t n = xenpy_peek(p, 0, there, &packet, d->buffer + 1, LONGEST);
        enum csum csum = UNKNOWN;
        if (n && (packet.gso || packet.flags & TX_CSUM_BLANK))
            csum = BLANK;
        else if (n && packet.flags & TX_VALID)
            csum = VALID;
        known = n && forward(d, place, &packet, csum, now);
        if (!known)
            break;
        p->taken_count += n;
        p->tx.consumed += n;
        there -= n;
        count++;
    }
    if (count) {
        p->sent += count;
        show_touched(d); // who waits for them is told first
        xenpy_respond(p, &okay);
        if (xenpy_push(&p->tx))
            xenpy_tell(place->bell, place->bell_fd, place->tx_port);
    }
    if (!known)
        call_for_lane(d, place);
    return count > 0;
}

static bool serve_link(struct xenpy_datapath *d, struct place *place, uint64_t now)
{
    uint32_t count = 0;

    while (place->ready && !place->called && count < AT_ONCE) {
        ssize_t size = recv(place->wake_fd, d->buffer, 1 + SMALL, MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT);
        if (size < 0 && (errno == EAGAIN || errno == EINTR)) {
            place->ready = false;
            break;
        }
        struct xenpy_packet packet = {.size = size > 0 ? (uint32_t)size - 1 : 0};
        if (size < 1 || size > 1 + SMALL || d->buffer[0] != 'F' || !forward(d, place, &packet, VALID, now)) {
            place->called = true;
            d->missed++;
            xenpy_call(place->call_fd);
            break;
        }
        if (recv(place->wake_fd, d->buffer, 1, MSG_DONTWAIT) < 0)
            break; // it was there a moment ago, and nobody else takes it
        count++;
    }
    if (count)
        show_touched(d);
    return count > 0;
}

static bool serve_all(struct xenpy_datapath *d)
{
    uint64_t now = xenpy_now();
    bool found = false;

    while (__atomic_load_n(&d->lock.wanted, __ATOMIC_SEQ_CST))
        sched_yield();
    pthread_mutex_lock(&d->lock.mutex);
    for (uint32_t n = 0; n < d->count; n++) {
        struct place *place = &d->places[n];
        if (place->kind == LANE)
            found |= serve_lane(d, place, now);
        else if (place->kind == LINK)
            found |= serve_link(d, place, now);
    }
    pthread_mutex_unlock(&d->lock.mutex);
    return found;
}

// ---- the thread ----

// Wait so long at most (milliseconds, -1: for ever) for events, and mark who has had one; whether somebody has.
static bool look(struct xenpy_datapath *d, int timeout)
{
    struct epoll_event events[EVENTS];
    uint64_t n;
    int count = epoll_wait(d->epoll_fd, events, EVENTS, timeout);

    if (count <= 0)
        return false;
    pthread_mutex_lock(&d->lock.mutex);
    for (int k = 0; k < count; k++) {
        struct place *place = &d->places[events[k].data.u32 % MOST_PLACES];
        if (events[k].data.u32 == STIR) {
            if (read(d->stir_fd, &n, sizeof n) < 0)
                return true; // nobody else reads it
            continue;
        }
        place->ready = place->kind == LINK || (place->kind == LANE && read(place->wake_fd, &n, sizeof n) > 0);
    }
    pthread_mutex_unlock(&d->lock.mutex);
    return true;
}

// Ask every guest for an event; whether there is nothing on any ring that this thread would take.
static bool may_sleep(struct xenpy_datapath *d)
{
    bool asked = false, found = false;
    uint32_t there;

    pthread_mutex_lock(&d->lock.mutex);
    for (uint32_t n = 0; n < d->count; n++) {
        struct place *place = &d->places[n];
        if (place->kind == LANE && is_ours(place->packets))
            asked |= xenpy_arm(&place->packets->tx);
    }
    if (asked)
        xenpy_fence_all();
    for (uint32_t n = 0; n < d->count; n++) {
        struct place *place = &d->places[n];
        if (place->kind == LANE && is_ours(place->packets))
            found |= !xenpy_available(&place->packets->tx, &there) || there;
        else if (place->kind == LINK)
            found |= place->ready && !place->called;
    }
    pthread_mutex_unlock(&d->lock.mutex);
    return !found;
}

static void *run(void *argument)
{
    struct xenpy_datapath *d = argument;

    while (!__atomic_load_n(&d->stop, __ATOMIC_ACQUIRE)) {
        if (serve_all(d)) {
            look(d, 0); // one place that is never empty keeps none of the others waiting
            continue;
        }
        xenpy_linger_begin(&d->linger);
        bool found = false;
        do {
            found = look(d, 0);
            found |= serve_all(d);
        } while (!found && xenpy_linger(&d->linger));
        if (found) {
            d->lingered++;
            continue;
        }
        if (may_sleep(d)) {
            look(d, -1);
            xenpy_linger_slept(&d->linger);
        }
    }
    return NULL;
}

// ---- the trio thread's ----

static void free_datapath(struct xenpy_datapath *d)
{
    if (d->epoll_fd >= 0)
        close(d->epoll_fd);
    if (d->stir_fd >= 0)
        close(d->stir_fd);
    free(d);
}

// NULL: there is no thread or descriptor to be had.
struct xenpy_datapath *xenpy_datapath_open(void)
{
    struct xenpy_datapath *d = calloc(1, sizeof *d);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = STIR};

    if (!d)
        return NULL;
    pthread_mutex_init(&d->lock.mutex, NULL);
    d->flows.generation = 1;
    d->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    d->stir_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (d->epoll_fd < 0 || d->stir_fd < 0 || epoll_ctl(d->epoll_fd, EPOLL_CTL_ADD, d->stir_fd, &event)) {
        free_datapath(d);
        return NULL;
    }
    if (!xenpy_start_thread(&d->thread, run, d)) {
        free_datapath(d);
        return NULL;
    }
    return d;
}

// No place is left.
void xenpy_datapath_close(struct xenpy_datapath *d)
{
    __atomic_store_n(&d->stop, 1, __ATOMIC_RELEASE);
    xenpy_call(d->stir_fd);
    pthread_join(d->thread, NULL);
    pthread_mutex_destroy(&d->lock.mutex);
    free_datapath(d);
}

// A place, and its descriptor watched; -1: there is no room.
static int add(struct xenpy_datapath *d, const struct place *place, uint32_t events)
{
    int number = -1;

    xenpy_enter(&d->lock);
    for (uint32_t n = 0; n < MOST_PLACES && number < 0; n++) {
        struct epoll_event event = {.events = events, .data.u32 = n};
        if (d->places[n].kind != NOTHING)
            continue;
        if (epoll_ctl(d->epoll_fd, EPOLL_CTL_ADD, place->wake_fd, &event))
            break;
        number = (int)n;
        d->places[n] = *place;
        if (n >= d->count)
            d->count = n + 1;
        if (place->kind == LANE)
            place->packets->lock = &d->lock;
    }
    xenpy_leave(&d->lock);
    if (number >= 0)
        xenpy_call(d->stir_fd);
    return number;
}

// The rings of a queue, neither of which is lent yet. `wake_fd` does not block.
int xenpy_datapath_add_lane(struct xenpy_datapath *d, struct xenpy_packets *packets, uint32_t source, int wake_fd,
                            int call_fd, void *bell, int bell_fd, uint32_t tx_port, uint32_t rx_port, uint32_t longest,
                            uint32_t gso_kinds, uint32_t blank_versions)
{
    struct place place = {.kind = LANE, .source = source, .wake_fd = wake_fd, .call_fd = call_fd, .packets = packets,
                          .bell = bell, .bell_fd = bell_fd, .tx_port = tx_port, .rx_port = rx_port, .longest = longest,
                          .gso_kinds = gso_kinds, .blank_versions = blank_versions};

    return add(d, &place, EPOLLIN);
}

// A socket of messages that are a byte and, where that is 'F', a frame.
int xenpy_datapath_add_link(struct xenpy_datapath *d, uint32_t source, int fd, int call_fd)
{
    struct place place = {.kind = LINK, .source = source, .wake_fd = fd, .call_fd = call_fd, .ready = true};

    return add(d, &place, EPOLLIN | EPOLLET);
}

// Nothing comes from there or goes there any more. Rings have been taken back.
void xenpy_datapath_remove(struct xenpy_datapath *d, int number)
{
    xenpy_enter(&d->lock);
    struct place *place = &d->places[number];
    epoll_ctl(d->epoll_fd, EPOLL_CTL_DEL, place->wake_fd, NULL);
    if (place->kind == LANE)
        place->packets->lock = NULL;
    d->flows.generation++;
    place->kind = NOTHING;
    xenpy_leave(&d->lock);
}

// A packet of that source has gone to that place, as all of its flow are to, up to so many bytes. Whether it has a flow.
int xenpy_datapath_learn(struct xenpy_datapath *d, uint32_t source, const char *data, uint32_t size, uint32_t target,
                         uint32_t longest)
{
    struct xenpy_frame frame;

    if (!xenpy_parse((const uint8_t *)data, size, &frame))
        return 0;
    xenpy_enter(&d->lock);
    xenpy_flow_learn(&d->flows, source, (const uint8_t *)data, &frame, target, longest, xenpy_now());
    xenpy_leave(&d->lock);
    return 1;
}

// Something has changed at a switch.
void xenpy_datapath_forget(struct xenpy_datapath *d)
{
    xenpy_enter(&d->lock);
    d->flows.generation++;
    xenpy_leave(&d->lock);
}

// Frames wait to be sent on a link, none may overtake them; or they wait no longer.
void xenpy_datapath_hold(struct xenpy_datapath *d, int number, int on)
{
    xenpy_enter(&d->lock);
    d->places[number].held = on;
    xenpy_leave(&d->lock);
}

// The trio thread has taken all that there was on a link for which it had been called.
void xenpy_datapath_resume(struct xenpy_datapath *d, int number)
{
    xenpy_enter(&d->lock);
    d->places[number].called = false;
    d->places[number].ready = true;
    xenpy_leave(&d->lock);
    xenpy_call(d->stir_fd);
}

// Packets and bytes that came in there, and that went out.
void xenpy_datapath_counts(struct xenpy_datapath *d, int number, uint64_t counts[4])
{
    xenpy_enter(&d->lock);
    const struct place *place = &d->places[number];
    counts[0] = place->rx_packets;
    counts[1] = place->rx_bytes;
    counts[2] = place->tx_packets;
    counts[3] = place->tx_bytes;
    xenpy_leave(&d->lock);
}
