/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The two rings of a network queue, for those who serve them in C: packets.c, which knows the rings, and datapath.c, whose
 * thread takes packets from one and puts them into another.
 *
 * Who touches any of this holds the lock of the datapath that the queue has joined; a queue that has joined none is the
 * trio thread's alone.
 */
#ifndef XENPY_PACKETS_H
#define XENPY_PACKETS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "outside.h"

#define XENPY_MOST_TAKEN 512 /* slots taken and not answered: at least a ring's */
#define XENPY_NEVER 1024 /* slots of which a ring has fewer: no event is wanted for them */

enum { TX_CSUM_BLANK = 1, TX_VALID = 2, TX_MORE = 4, TX_EXTRA = 8 };
enum { RX_VALID = 1, RX_CSUM_BLANK = 2, RX_MORE = 4, RX_EXTRA = 8 };
enum { GSO_TCPV4 = 1, GSO_TCPV6 = 2 };

struct xenpy_ring {
    uint8_t *page;
    uint32_t slots, slot_size, consumed, produced, pushed;
    uint32_t armed; /* the request position at whose coming an event has been asked for */
    bool lent; /* C serves it */
};

/* A packet that was taken: where its bytes are in the buffer, and what its first slot says. */
struct xenpy_packet {
    uint32_t at, size;
    uint16_t flags, gso_size;
    uint8_t gso, padding[3];
};

struct xenpy_lock {
    pthread_mutex_t mutex;
    uint32_t wanted; /* by the trio thread */
};

/* The trio thread's way in; the other one lets who waits here go first. */
static inline void xenpy_enter(struct xenpy_lock *lock)
{
    __atomic_fetch_add(&lock->wanted, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_lock(&lock->mutex);
    __atomic_fetch_sub(&lock->wanted, 1, __ATOMIC_SEQ_CST);
}

static inline void xenpy_leave(struct xenpy_lock *lock) { pthread_mutex_unlock(&lock->mutex); }

struct xenpy_packets {
    /* done here */
    uint64_t sent, received, left;
    /* the slots taken and not yet answered, of all packets in order */
    uint32_t taken_count;
    struct {
        uint16_t id, packet;
        bool extra;
    } taken[XENPY_MOST_TAKEN];
    struct xenpy_ring tx, rx;
    struct xenpy_frames frames;
    struct xenpy_lock *lock; /* of the datapath it has joined */
    bool busy; /* the trio thread has taken packets and not answered */
    bool called; /* it has been told that there is something on the tx ring for it */
    bool held; /* packets wait for slots of the rx ring: none may overtake them */
};

/* Requests that have come; false where their index cannot be true. */
bool xenpy_available(const struct xenpy_ring *r, uint32_t *count);
/* The packet `ahead` slots from here, if it is a plain one: how many of the `there` slots it takes, or 0. Its bytes go into
 * the buffer, its slots behind those in `taken`; nothing is taken yet. */
uint32_t xenpy_peek(struct xenpy_packets *p, uint32_t ahead, uint32_t there, struct xenpy_packet *packet, uint8_t *buffer,
                    uint32_t room);
void xenpy_respond(struct xenpy_packets *p, const int16_t *statuses);
enum { PUT_DONE, PUT_FULL, PUT_ODD };
uint32_t xenpy_put(struct xenpy_packets *p, const uint8_t *data, uint32_t size, uint32_t flags, uint32_t gso,
                   uint32_t gso_size);
/* Show the guest all responses; whether it wants to be told. */
bool xenpy_push(struct xenpy_ring *r);
/* Ask for an event for the next request; whether that is new: who sleeps then looks once more, behind a barrier. */
bool xenpy_arm(struct xenpy_ring *r);

#endif
