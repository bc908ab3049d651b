// SPDX-License-Identifier: GPL-2.0-only
//
// The two rings of a network queue, served in C on the thread that calls (packets.h): packets out of what a guest sends,
// and into what it receives. There is no thread and no waiting here, only the copying and the arithmetic that each packet
// costs.
//
// A ring is this side's while `dom0.backend.net.lane` has lent it, with its positions. It does what needs nobody: whole
// packets in grants that can be read or written at once (outside.h), with no extra information but that on segments.
// At anything else - a packet whose slots have not all come, an order about multicasts, a grant that cannot be had, an
// index that cannot be true - it leaves the packet on the ring and says so; Python, which is the reference
// (dom0/backend/net/transmit.py and receive.py, xen_py/io/netchain.py), gets the ring back and does it.
//
// Slots are copied once and then checked; the guest may change the rings and its frames at any time. What is inside of
// a packet is not looked at here. Layouts: netif.h, ring.h. The trio thread's, and the datapath's (datapath.c).

#define _GNU_SOURCE
#include "packets.h"

#include <stdlib.h>
#include <string.h>

#define HEADER 64
#define MOST_SLOTS 18 // of one packet, without extra information
#define MOST_EXTRAS 8
#define SHORTEST 14

enum { EXTRA_GSO = 1, EXTRA_FLAG_MORE = 1 };
enum { STATUS_NULL = 1 };
enum { REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT };
enum { TX_SLOT = 12, RX_SLOT = 8 };

void xenpy_fence_all(void);

struct tx_request {
    uint32_t ref;
    uint16_t offset, flags, id, size;
};

struct extra {
    uint8_t type, flags;
    uint16_t size; // the rest is that of EXTRA_GSO
    uint8_t gso, pad;
    uint16_t features;
};

static uint32_t *index_word(const struct xenpy_ring *r, int n) { return (uint32_t *)r->page + n; }

static uint8_t *slot_at(const struct xenpy_ring *r, uint32_t position)
{
    return r->page + HEADER + (size_t)(position & (r->slots - 1)) * r->slot_size;
}

static uint32_t seen(const struct xenpy_ring *r) { return __atomic_load_n(index_word(r, REQ_PROD), __ATOMIC_ACQUIRE); }

// Requests that have come; false where their index cannot be true.
bool xenpy_available(const struct xenpy_ring *r, uint32_t *count)
{
    *count = seen(r) - r->consumed;
    return *count <= r->slots - (r->consumed - r->produced);
}

enum { SETTLED_TELL = 1, SETTLED_MORE = 2, SETTLED_BROKEN = 4 };

// Show all responses and ask for an event when so many requests have come. Whether the guest is to be told, whether they
// have come already, and whether its index cannot be true.
static uint32_t settle(struct xenpy_ring *r, uint32_t wanted)
{
    uint32_t old = r->pushed, result = 0, there;

    __atomic_store_n(index_word(r, RSP_PROD), r->produced, __ATOMIC_SEQ_CST);
    r->armed = r->consumed + wanted;
    __atomic_store_n(index_word(r, REQ_EVENT), r->armed, __ATOMIC_SEQ_CST);
    xenpy_fence_all();
    r->pushed = r->produced;
    if (r->pushed - __atomic_load_n(index_word(r, RSP_EVENT), __ATOMIC_SEQ_CST) < r->pushed - old)
        result = SETTLED_TELL;
    if (!xenpy_available(r, &there))
        return result | SETTLED_BROKEN;
    return result | (there >= wanted ? SETTLED_MORE : 0);
}

bool xenpy_arm(struct xenpy_ring *r)
{
    if (r->armed == r->consumed + 1)
        return false;
    r->armed = r->consumed + 1;
    __atomic_store_n(index_word(r, REQ_EVENT), r->armed, __ATOMIC_SEQ_CST);
    return true;
}

static bool wants_event(const struct xenpy_ring *r)
{
    return r->produced - __atomic_load_n(index_word(r, RSP_EVENT), __ATOMIC_SEQ_CST) < r->produced - r->pushed;
}

// A guest that is seen to want an event wants one; that it wants none is known behind a barrier only.
bool xenpy_push(struct xenpy_ring *r)
{
    bool tell;

    if (r->produced == r->pushed)
        return false;
    __atomic_store_n(index_word(r, RSP_PROD), r->produced, __ATOMIC_SEQ_CST);
    tell = wants_event(r);
    if (!tell) {
        xenpy_fence_all();
        tell = wants_event(r);
    }
    r->pushed = r->produced;
    return tell;
}

// ---- whose turn it is ----

static void enter(struct xenpy_packets *p)
{
    if (p->lock)
        xenpy_enter(p->lock);
}

static void leave(struct xenpy_packets *p)
{
    if (p->lock)
        xenpy_leave(p->lock);
}

// ---- what the guest sends ----

// The bytes of one part; false: the grant is not to be had at once, or is none.
static bool copy_out(const struct xenpy_frames *f, uint32_t ref, uint32_t offset, uint32_t size, uint8_t *to)
{
    struct xenpy_granted g;

    if (offset + size > OUTSIDE_PAGE || !xenpy_look_up(f, ref, false, &g))
        return false;
    memcpy(to, xenpy_bytes(f, g.index) + offset, size);
    return xenpy_still_granted(f, &g);
}

uint32_t xenpy_peek(struct xenpy_packets *p, uint32_t ahead, uint32_t there, struct xenpy_packet *packet, uint8_t *buffer,
                    uint32_t room)
{
    struct tx_request parts[MOST_SLOTS];
    uint32_t first = p->tx.consumed + ahead, n = 1, extras = 0, count = 1, rest = 0, at = 0;

    memcpy(&parts[0], slot_at(&p->tx, first), TX_SLOT);
    packet->flags = parts[0].flags;
    packet->size = parts[0].size;
    packet->gso = 0;
    packet->gso_size = 0;
    if (parts[0].flags & TX_EXTRA) {
        struct extra extra;
        do {
            if (n == there || ++extras > MOST_EXTRAS)
                return 0;
            memcpy(&extra, slot_at(&p->tx, first + n++), sizeof extra);
            if (extra.type != EXTRA_GSO)
                return 0;
            packet->gso = extra.gso;
            packet->gso_size = extra.size;
        } while (extra.flags & EXTRA_FLAG_MORE);
        if (packet->gso < 1 || packet->gso > 2 || !packet->gso_size)
            return 0;
    }
    while (parts[count - 1].flags & TX_MORE) {
        if (n == there || count == MOST_SLOTS)
            return 0;
        memcpy(&parts[count], slot_at(&p->tx, first + n++), TX_SLOT);
        rest += parts[count++].size;
    }
    if (packet->size < SHORTEST || rest > packet->size || packet->size > room || p->taken_count + n > XENPY_MOST_TAKEN)
        return 0;
    parts[0].size = (uint16_t)(packet->size - rest);
    for (uint32_t k = 0; k < count; k++) {
        if (!copy_out(&p->frames, parts[k].ref, parts[k].offset, parts[k].size, buffer + at))
            return 0;
        at += parts[k].size;
    }
    for (uint32_t k = 0; k < n; k++) {
        bool extra = k >= 1 && k <= extras;
        p->taken[p->taken_count + k].packet = 0;
        p->taken[p->taken_count + k].extra = extra;
        p->taken[p->taken_count + k].id = extra ? 0 : parts[k ? k - extras : 0].id;
    }
    return n;
}

static uint32_t take(struct xenpy_packets *p, struct xenpy_packet *packets, uint32_t most, uint8_t *buffer, uint32_t room,
                     uint32_t *odd)
{
    uint32_t there, ahead = 0, count = 0, used = 0;

    p->taken_count = 0;
    p->called = false;
    *odd = 0;
    if (!xenpy_available(&p->tx, &there)) {
        *odd = 1;
        return 0;
    }
    while (count < most && ahead < there) {
        struct xenpy_packet *packet = &packets[count];
        uint32_t n;

        if (room - used < 0xffff)
            break;
        n = xenpy_peek(p, ahead, there - ahead, packet, buffer + used, room - used);
        if (!n) {
            *odd = 1;
            p->left++;
            break;
        }
        packet->at = used;
        used += packet->size;
        for (uint32_t k = 0; k < n; k++)
            p->taken[p->taken_count++].packet = (uint16_t)count;
        ahead += n;
        count++;
    }
    p->tx.consumed += ahead;
    p->sent += count;
    p->busy = count > 0;
    return count;
}

// Take up to `most` packets. How many; `*odd` says whether one is left that Python has to see to.
uint32_t xenpy_packets_take(struct xenpy_packets *p, struct xenpy_packet *packets, uint32_t most, uint8_t *buffer,
                            uint32_t room, uint32_t *odd)
{
    enter(p);
    uint32_t count = take(p, packets, most, buffer, room, odd);
    leave(p);
    return count;
}

void xenpy_respond(struct xenpy_packets *p, const int16_t *statuses)
{
    for (uint32_t k = 0; k < p->taken_count; k++) {
        struct {
            uint16_t id;
            int16_t status;
        } response = {p->taken[k].id, p->taken[k].extra ? STATUS_NULL : statuses[p->taken[k].packet]};
        memcpy(slot_at(&p->tx, p->tx.produced++), &response, sizeof response);
    }
    p->taken_count = 0;
}

// Answer what was taken, a status for each packet; SETTLED_*.
uint32_t xenpy_packets_answer(struct xenpy_packets *p, const int16_t *statuses)
{
    enter(p);
    xenpy_respond(p, statuses);
    p->busy = false;
    uint32_t settled = settle(&p->tx, 1);
    leave(p);
    return settled;
}

// ---- what it receives ----

// A packet into the guest's next slots. PUT_FULL: it has not posted enough of them.
uint32_t xenpy_put(struct xenpy_packets *p, const uint8_t *data, uint32_t size, uint32_t flags, uint32_t gso,
                   uint32_t gso_size)
{
    struct {
        uint16_t id, padding;
        uint32_t ref;
    } slots[MOST_SLOTS + 1];
    uint32_t pages = (size + OUTSIDE_PAGE - 1) / OUTSIDE_PAGE, need = pages + (gso ? 1 : 0), there;
    struct xenpy_ring *r = &p->rx;

    if (!pages || pages > MOST_SLOTS || !xenpy_available(r, &there))
        return PUT_ODD;
    if (there < need)
        return PUT_FULL;
    for (uint32_t k = 0; k < need; k++)
        memcpy(&slots[k], slot_at(r, r->consumed + k), RX_SLOT);
    if (gso) // the second is for what is said of the segments
        memmove(&slots[1], &slots[2], (pages - 1) * sizeof *slots);
    for (uint32_t k = 0; k < pages; k++) {
        uint32_t piece = k == pages - 1 ? size - k * OUTSIDE_PAGE : OUTSIDE_PAGE;
        struct xenpy_granted g;
        bool good;

        if (!xenpy_look_up(&p->frames, slots[k].ref, true, &g) || !xenpy_begin_write(&p->frames, g.index)) {
            p->left++;
            return PUT_ODD;
        }
        memcpy(xenpy_bytes(&p->frames, g.index), data + k * OUTSIDE_PAGE, piece);
        good = xenpy_end_write(&p->frames, g.index);
        if (!xenpy_still_granted(&p->frames, &g) || !good) {
            p->left++;
            return PUT_ODD;
        }
    }
    r->consumed += need;
    for (uint32_t k = 0; k < pages; k++) {
        struct {
            uint16_t id, offset, flags;
            int16_t status;
        } response = {.id = slots[k].id, .flags = k ? 0 : (uint16_t)(flags | (gso ? RX_EXTRA : 0))};

        response.status = (int16_t)(k == pages - 1 ? size - k * OUTSIDE_PAGE : OUTSIDE_PAGE);
        if (k < pages - 1)
            response.flags |= RX_MORE;
        memcpy(slot_at(r, r->produced++), &response, sizeof response);
        if (!k && gso) {
            struct extra extra = {.type = EXTRA_GSO, .size = (uint16_t)gso_size, .gso = (uint8_t)gso};
            memcpy(slot_at(r, r->produced++), &extra, sizeof extra);
        }
    }
    p->received++;
    return PUT_DONE;
}

uint32_t xenpy_packets_put(struct xenpy_packets *p, const uint8_t *data, uint32_t size, uint32_t flags, uint32_t gso,
                           uint32_t gso_size)
{
    enter(p);
    uint32_t result = xenpy_put(p, data, size, flags, gso, gso_size);
    leave(p);
    return result;
}

// Show what was put, and look for so many slots, which packets wait for unless they are XENPY_NEVER; SETTLED_*.
uint32_t xenpy_packets_show(struct xenpy_packets *p, uint32_t wanted)
{
    enter(p);
    p->held = wanted < XENPY_NEVER;
    uint32_t settled = settle(&p->rx, wanted);
    leave(p);
    return settled;
}

// ---- whose a ring is ----

static void go_on(struct xenpy_ring *r, uint32_t consumed, uint32_t produced)
{
    r->consumed = consumed;
    r->produced = r->pushed = produced;
    r->armed = consumed;
    r->lent = true;
}

void xenpy_packets_lend_tx(struct xenpy_packets *p, uint32_t consumed, uint32_t produced)
{
    enter(p);
    p->called = p->busy = false;
    go_on(&p->tx, consumed, produced);
    leave(p);
}

void xenpy_packets_lend_rx(struct xenpy_packets *p, uint32_t consumed, uint32_t produced)
{
    enter(p);
    p->held = false;
    go_on(&p->rx, consumed, produced);
    leave(p);
}

// A ring is Python's from now on, and goes on at these positions (consumed, produced).
void xenpy_packets_return_tx(struct xenpy_packets *p, uint32_t positions[2])
{
    enter(p);
    p->tx.lent = false;
    positions[0] = p->tx.consumed;
    positions[1] = p->tx.produced;
    leave(p);
}

// All that was put has been shown; SETTLED_*.
uint32_t xenpy_packets_return_rx(struct xenpy_packets *p, uint32_t positions[2])
{
    enter(p);
    uint32_t settled = settle(&p->rx, XENPY_NEVER);
    p->rx.lent = p->held = false;
    positions[0] = p->rx.consumed;
    positions[1] = p->rx.produced;
    leave(p);
    return settled;
}

struct xenpy_packets *xenpy_packets_open(uint8_t *tx_page, uint32_t tx_slots, uint8_t *rx_page, uint32_t rx_slots,
                                         const struct xenpy_frames *frames)
{
    struct xenpy_packets *p = calloc(1, sizeof *p);

    if (!p)
        return NULL;
    p->tx = (struct xenpy_ring){.page = tx_page, .slots = tx_slots, .slot_size = TX_SLOT};
    p->rx = (struct xenpy_ring){.page = rx_page, .slots = rx_slots, .slot_size = RX_SLOT};
    p->frames = *frames;
    return p;
}

void xenpy_packets_close(struct xenpy_packets *p) { free(p); }
