// SPDX-License-Identifier: GPL-2.0-only
//
// A block ring served by a thread of its own, without Python: plain reads and writes of granted frames.
//
// A ring belongs to one side at a time, the host's trio thread or this one; `lent` says to whom, and goes over with its
// positions (dom0/backend/block/lane.py). This side takes requests in their order and answers each at once. It does
// only what needs nobody: segments in frames that are granted and may be written from outside (outside.h), data that
// the page cache has or takes. At the first request that is anything else - a flush, a bad grant, a frame that may hold
// translated code, whatever is wrong - it gives the ring back with that request still on it, and Python, which is the
// reference, does it all over: repeating a read or a write is harmless. Requests, indirect pages and grant entries are
// copied once and then checked; the frontend may change them at any time.
//
// The object goes only while the ring is Python's. Layouts: blkif.h, ring.h, grant_table.h.

#define _GNU_SOURCE
#include "linger.h"
#include "outside.h"
#include "thread.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#define MOST_PAGES 16
#define SLOT 112
#define HEADER 64
#define PAGE 4096
#define PLAIN_SEGMENTS 11
#define MOST_SEGMENTS 256
#define AT_ONCE 32 // answers that the frontend is shown together, at most
#define REQUEST_NS 30000 // what an emulated guest needs for a request, and for each segment of it
#define SEGMENT_NS 4000
#define LOOK_FIRST 8 // bursts
#define LOOK_MOST 1024

enum { OP_READ = 0, OP_WRITE = 1, OP_INDIRECT = 6 };

void xenpy_fence_all(void);

struct xenpy_blocks {
    // who has the ring; changed with release, looked at with acquire
    int lent, wanted, stop;
    uint32_t consumed, produced;
    uint64_t sectors;
    // done by this side
    uint64_t requests, bytes_read, bytes_written, given_back, events, lingered;
    // how many answers the frontend was shown together, the last time; bursts until one is tried to grow, and how many
    // it was then; segments of the last request
    uint32_t burst, until_look, look_every, last_count;
    struct xenpy_linger linger;
    // fixed
    uint8_t *pages[MOST_PAGES];
    uint32_t slots, unit;
    struct xenpy_frames frames;
    int fd, wake_fd, call_fd, bell_fd;
    int read_flags;
    bool readonly;
    void *bell;
    uint32_t port;
    pthread_t thread;
};

struct segment {
    uint32_t ref;
    uint8_t first, last, padding[2];
};

static uint32_t *index_word(struct xenpy_blocks *b, int n) { return (uint32_t *)b->pages[0] + n; }

static void copy_slot(struct xenpy_blocks *b, uint32_t position, uint8_t *slot)
{
    size_t at = HEADER + (size_t)(position & (b->slots - 1)) * SLOT, offset = at % PAGE, head = PAGE - offset;

    if (head >= SLOT) {
        memcpy(slot, b->pages[at / PAGE] + offset, SLOT);
    } else {
        memcpy(slot, b->pages[at / PAGE] + offset, head);
        memcpy(slot + head, b->pages[at / PAGE + 1], SLOT - head);
    }
}

static void put_response(struct xenpy_blocks *b, const uint8_t *response, size_t size)
{
    size_t at = HEADER + (size_t)(b->produced++ & (b->slots - 1)) * SLOT, offset = at % PAGE, head = PAGE - offset;

    if (head >= size) {
        memcpy(b->pages[at / PAGE] + offset, response, size);
    } else {
        memcpy(b->pages[at / PAGE] + offset, response, head);
        memcpy(b->pages[at / PAGE + 1], response + head, size - head);
    }
}

// What a request is about, checked as far as it can be without the frames.
struct work {
    bool read;
    uint64_t sector, total; // in sectors of 512 bytes
    uint32_t count;
    struct segment segments[MOST_SEGMENTS];
    struct xenpy_granted granted[MOST_SEGMENTS];
    struct iovec pieces[MOST_SEGMENTS];
};

// The segments of an indirect request, copied out of its page; all that are allowed fit into one.
static bool copy_segments(const struct xenpy_frames *f, uint32_t ref, struct work *w)
{
    struct xenpy_granted page;

    if (!xenpy_look_up(f, ref, false, &page))
        return false;
    memcpy(w->segments, xenpy_bytes(f, page.index), w->count * sizeof *w->segments);
    return xenpy_still_granted(f, &page);
}

static bool understand(struct xenpy_blocks *b, const uint8_t *slot, struct work *w)
{
    uint8_t operation = slot[0];

    memcpy(&w->sector, slot + 16, 8);
    if (operation == OP_INDIRECT) {
        uint16_t count;
        uint32_t ref;
        memcpy(&count, slot + 2, 2);
        memcpy(&ref, slot + 28, 4);
        operation = slot[1];
        w->count = count;
        if (!count || count > MOST_SEGMENTS || !copy_segments(&b->frames, ref, w))
            return false;
    } else {
        w->count = slot[1];
        if (!w->count || w->count > PLAIN_SEGMENTS)
            return false;
        memcpy(w->segments, slot + 24, w->count * sizeof *w->segments);
    }
    if ((operation != OP_READ && operation != OP_WRITE) || (operation == OP_WRITE && b->readonly))
        return false;
    w->read = operation == OP_READ;
    w->total = 0;
    for (uint32_t n = 0; n < w->count; n++) {
        const struct segment *s = &w->segments[n];
        if (s->first > s->last || s->last >= PAGE / 512)
            return false;
        if (!xenpy_look_up(&b->frames, s->ref, w->read, &w->granted[n]))
            return false;
        w->pieces[n].iov_base = xenpy_bytes(&b->frames, w->granted[n].index) + s->first * 512;
        w->pieces[n].iov_len = (size_t)(s->last - s->first + 1) * 512;
        w->total += s->last - s->first + 1;
    }
    uint64_t sectors = __atomic_load_n(&b->sectors, __ATOMIC_RELAXED);
    return w->sector <= sectors && w->total <= sectors - w->sector && !(w->sector % b->unit) && !(w->total % b->unit);
}

// Pieces that adjoin in memory are one for the kernel; how many are left.
static int put_together(struct iovec *pieces, uint32_t count)
{
    int many = 0;

    for (uint32_t n = 1; n < count; n++) {
        if ((uint8_t *)pieces[many].iov_base + pieces[many].iov_len == pieces[n].iov_base)
            pieces[many].iov_len += pieces[n].iov_len;
        else
            pieces[++many] = pieces[n];
    }
    return many + 1;
}

static bool read_in(struct xenpy_blocks *b, struct work *w)
{
    uint32_t begun = 0;
    bool good = true;
    ssize_t got = -1;

    while (begun < w->count && xenpy_begin_write(&b->frames, w->granted[begun].index))
        begun++;
    if (begun == w->count) {
        int pieces = put_together(w->pieces, w->count);
        got = preadv2(b->fd, w->pieces, pieces, (off_t)(w->sector * 512), b->read_flags);
    }
    for (uint32_t n = 0; n < begun; n++)
        good &= xenpy_end_write(&b->frames, w->granted[n].index);
    return good && got == (ssize_t)(w->total * 512);
}

static bool write_out(struct xenpy_blocks *b, struct work *w)
{
    int pieces = put_together(w->pieces, w->count);

    return pwritev(b->fd, w->pieces, pieces, (off_t)(w->sector * 512)) == (ssize_t)(w->total * 512);
}

// One request, done and answered; false: Python is to do it.
static bool serve(struct xenpy_blocks *b, const uint8_t *slot)
{
    struct work w;
    uint8_t response[16] = {0};

    if (!understand(b, slot, &w) || !(w.read ? read_in : write_out)(b, &w))
        return false;
    for (uint32_t n = 0; n < w.count; n++)
        if (!xenpy_still_granted(&b->frames, &w.granted[n]))
            return false;
    *(w.read ? &b->bytes_read : &b->bytes_written) += w.total * 512;
    b->requests++;
    b->last_count = w.count;
    memcpy(response, slot + 8, 8);
    response[8] = w.read ? OP_READ : OP_WRITE;
    put_response(b, response, sizeof response);
    return true;
}

// Whether the frontend wants an event for what has been answered since `shown`.
static bool wants_event(struct xenpy_blocks *b, uint32_t shown)
{
    return b->produced - __atomic_load_n(index_word(b, 3), __ATOMIC_SEQ_CST) < b->produced - shown;
}

// Show the frontend what has been answered since `shown`, and tell it if it sleeps. Before this side sleeps itself, it
// asks for an event (`ask`). A guest that is seen to want an event wants one; that it wants none, or has put nothing more
// on the ring, is known behind a barrier only, and one does for both questions.
static void show(struct xenpy_blocks *b, uint32_t shown, bool ask)
{
    bool tell;

    if (b->produced == shown && !ask)
        return;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    __atomic_store_n(index_word(b, 2), b->produced, __ATOMIC_SEQ_CST);
    if (ask)
        __atomic_store_n(index_word(b, 1), b->consumed + 1, __ATOMIC_SEQ_CST);
    tell = wants_event(b, shown);
    if (ask || !tell) {
        xenpy_fence_all();
        tell = wants_event(b, shown);
    }
    if (!tell)
        return;
    b->events++;
    xenpy_tell(b->bell, b->bell_fd, b->port);
}

static uint32_t available(struct xenpy_blocks *b)
{
    return __atomic_load_n(index_word(b, 0), __ATOMIC_ACQUIRE) - b->consumed;
}

// Requests are served faster here than an emulated guest makes them, and an event for each of them costs it more than
// the request does. So where the last burst was of several, the answers of this one are held back until there are as
// many, as long as the guest needs for another request like the last; now and then for one more, as bursts grow, and
// less often where they do not.
static bool more_will_come(struct xenpy_blocks *b, uint32_t shown)
{
    uint32_t here = b->produced - shown;
    uint64_t end;

    if (!here || here == b->slots || here > b->burst || (here == b->burst && b->until_look))
        return false;
    end = xenpy_now() + REQUEST_NS + b->last_count * SEGMENT_NS;
    do {
        for (int n = 0; n < 32; n++)
            __builtin_ia32_pause();
        if (available(b))
            return true;
    } while (!__atomic_load_n(&b->wanted, __ATOMIC_ACQUIRE) && xenpy_now() < end);
    return false;
}

// Whether another request comes soon, so that the frontend need not be asked to wake us.
static bool one_comes_soon(struct xenpy_blocks *b)
{
    xenpy_linger_begin(&b->linger);
    while (!available(b))
        if (__atomic_load_n(&b->wanted, __ATOMIC_ACQUIRE) || !xenpy_linger(&b->linger))
            return false;
    b->lingered++;
    return true;
}

static void end_of_burst(struct xenpy_blocks *b, uint32_t here)
{
    if (b->until_look) {
        b->until_look--;
    } else if (here >= b->burst) {
        b->look_every = here > b->burst ? LOOK_FIRST : b->look_every < LOOK_MOST ? b->look_every * 2 : LOOK_MOST;
        b->until_look = b->look_every;
    }
    b->burst = here > b->burst ? here : (here + b->burst) / 2; // a guest that was held up once may go on
}

// Until the ring is empty (true), or Python has to look at it.
static bool serve_all(struct xenpy_blocks *b)
{
    uint8_t slot[SLOT];
    uint32_t shown = b->produced, count;

    for (;;) {
        while ((count = available(b)) || more_will_come(b, shown)) {
            if (count > b->slots - (b->consumed - b->produced) || __atomic_load_n(&b->wanted, __ATOMIC_ACQUIRE)) {
                show(b, shown, false);
                return false;
            }
            for (; count; count--) {
                copy_slot(b, b->consumed, slot);
                if (!serve(b, slot)) {
                    show(b, shown, false);
                    return false;
                }
                b->consumed++;
                if (b->produced - shown == AT_ONCE) {
                    show(b, shown, false);
                    shown = b->produced;
                }
            }
        }
        if (b->produced != shown)
            end_of_burst(b, b->produced - shown);
        show(b, shown, false);
        shown = b->produced;
        if (one_comes_soon(b))
            continue;
        show(b, shown, true);
        if (!available(b))
            return !__atomic_load_n(&b->wanted, __ATOMIC_ACQUIRE);
    }
}

static void *run(void *argument)
{
    struct xenpy_blocks *b = argument;
    uint64_t n;

    while (read(b->wake_fd, &n, sizeof n) == sizeof n && !__atomic_load_n(&b->stop, __ATOMIC_ACQUIRE)) {
        xenpy_linger_slept(&b->linger);
        if (__atomic_load_n(&b->lent, __ATOMIC_ACQUIRE)) {
            if (serve_all(b))
                continue;
            b->given_back++;
            __atomic_store_n(&b->lent, 0, __ATOMIC_RELEASE);
        }
        xenpy_call(b->call_fd); // the ring, or an event for it, is Python's
    }
    return NULL;
}

struct xenpy_blocks *xenpy_blocks_open(uint8_t **pages, uint32_t page_count, uint32_t slots,
                                       const struct xenpy_frames *frames, int fd, uint32_t unit, int readonly,
                                       int read_flags, int wake_fd, int call_fd, void *bell, int bell_fd, uint32_t port)
{
    struct xenpy_blocks *b = calloc(1, sizeof *b);

    if (!b || page_count > MOST_PAGES) {
        free(b);
        return NULL;
    }
    memcpy(b->pages, pages, page_count * sizeof *pages);
    b->slots = slots;
    b->frames = *frames;
    b->fd = fd;
    b->unit = unit;
    b->readonly = readonly;
    b->look_every = LOOK_FIRST;
    b->read_flags = read_flags;
    b->wake_fd = wake_fd;
    b->call_fd = call_fd;
    b->bell = bell;
    b->bell_fd = bell_fd;
    b->port = port;
    if (!xenpy_start_thread(&b->thread, run, b)) {
        free(b);
        return NULL;
    }
    return b;
}

// The ring is this side's from now on.
void xenpy_blocks_lend(struct xenpy_blocks *b, uint32_t consumed, uint32_t produced)
{
    b->consumed = consumed;
    b->produced = produced;
    __atomic_store_n(&b->wanted, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&b->lent, 1, __ATOMIC_RELEASE);
    xenpy_call(b->wake_fd);
}

// Python wants it back: it gets it through the call.
void xenpy_blocks_want(struct xenpy_blocks *b)
{
    __atomic_store_n(&b->wanted, 1, __ATOMIC_RELEASE);
    xenpy_call(b->wake_fd);
}

int xenpy_blocks_lent(const struct xenpy_blocks *b) { return __atomic_load_n(&b->lent, __ATOMIC_ACQUIRE); }

void xenpy_blocks_size(struct xenpy_blocks *b, uint64_t sectors)
{
    __atomic_store_n(&b->sectors, sectors, __ATOMIC_RELAXED);
}

// Only while the ring is Python's.
void xenpy_blocks_close(struct xenpy_blocks *b)
{
    __atomic_store_n(&b->stop, 1, __ATOMIC_RELEASE);
    xenpy_call(b->wake_fd);
    pthread_join(b->thread, NULL);
    free(b);
}
