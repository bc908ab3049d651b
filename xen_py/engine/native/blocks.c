// SPDX-License-Identifier: GPL-2.0-only
//
// A block ring served by a thread of its own, without Python: plain reads and writes of frames that are pinned already.
//
// A ring belongs to one side at a time, the host's trio thread or this one; `lent` says to whom, and goes over with its
// positions (dom0/backend/block/lane.py). This side takes requests in their order and answers each at once. It does
// only what needs nobody: segments in frames it knows, data that the page cache has or takes. At the first request that
// is anything else - a flush, an unknown grant, a frame that may hold translated code, whatever is wrong - it gives the
// ring back with that request still on it, and Python, which is the reference, does it all over: repeating a read or
// a write is harmless. Requests are copied once and then checked; the frontend may change the ring at any time.
//
// Frames become known and unknown, and the object goes, only while the ring is Python's. Layouts: blkif.h, ring.h.

#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define MOST_PAGES 16
#define SLOT 112
#define HEADER 64
#define PAGE 4096
#define PLAIN_SEGMENTS 11
#define MOST_SEGMENTS 256
#define AT_ONCE 32 // requests between two looks at whether the frontend or the host wants something

enum { OP_READ = 0, OP_WRITE = 1, OP_INDIRECT = 6 };
enum { NOBODY = UINT32_MAX };

int xenpy_bell_ring(void *bell, uint32_t port);
void xenpy_fence_all(void);

struct known {
    uint32_t ref, index; // index NOBODY: free
};

struct xenpy_blocks {
    // who has the ring; changed with release, looked at with acquire
    int lent, wanted, stop;
    uint32_t consumed, produced;
    uint64_t sectors;
    // done by this side
    uint64_t requests, bytes_read, bytes_written, given_back;
    // fixed
    uint8_t *pages[MOST_PAGES];
    uint32_t slots, unit;
    uint8_t *memory;
    const uint8_t *code_seen;
    int fd, wake_fd, call_fd, bell_fd;
    int read_flags;
    bool readonly;
    void *bell;
    uint32_t port;
    pthread_t thread;
    struct known *known;
    uint32_t room; // of `known`: a power of two, at most half full
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

static uint32_t slot_of(uint32_t ref, uint32_t room) { return (ref * 2654435761u) & (room - 1); }

static uint8_t *frame(const struct xenpy_blocks *b, uint32_t ref, uint32_t *index)
{
    if (!b->room)
        return NULL;
    for (uint32_t n = slot_of(ref, b->room);; n = (n + 1) & (b->room - 1)) {
        if (b->known[n].index == NOBODY)
            return NULL;
        if (b->known[n].ref == ref) {
            *index = b->known[n].index;
            return b->memory + (uint64_t)*index * PAGE;
        }
    }
}

// One request, done and answered; false: Python is to do it.
static bool serve(struct xenpy_blocks *b, const uint8_t *slot)
{
    struct segment segments[MOST_SEGMENTS];
    struct iovec pieces[MOST_SEGMENTS];
    uint32_t indices[MOST_SEGMENTS], count, index;
    uint64_t sector, total = 0, moved = 0;
    uint8_t operation = slot[0];
    uint8_t response[16] = {0};

    memcpy(response, slot + 8, 8);
    memcpy(&sector, slot + 16, 8);
    if (operation == OP_INDIRECT) {
        uint16_t n;
        memcpy(&n, slot + 2, 2);
        count = n;
        operation = slot[1];
        if (!count || count > MOST_SEGMENTS)
            return false;
        uint32_t ref;
        memcpy(&ref, slot + 28, 4);
        uint8_t *page = frame(b, ref, &index); // MOST_SEGMENTS fit into one
        if (!page)
            return false;
        memcpy(segments, page, count * sizeof *segments);
    } else {
        count = slot[1];
        if (!count || count > PLAIN_SEGMENTS)
            return false;
        memcpy(segments, slot + 24, count * sizeof *segments);
    }
    if ((operation != OP_READ && operation != OP_WRITE) || (operation == OP_WRITE && b->readonly))
        return false;
    for (uint32_t n = 0; n < count; n++) {
        const struct segment *s = &segments[n];
        if (s->first > s->last || s->last >= PAGE / 512)
            return false;
        uint8_t *data = frame(b, s->ref, &indices[n]);
        if (!data || (operation == OP_READ && b->code_seen[indices[n]]))
            return false;
        pieces[n].iov_base = data + s->first * 512;
        pieces[n].iov_len = (size_t)(s->last - s->first + 1) * 512;
        total += s->last - s->first + 1;
    }
    uint64_t sectors = __atomic_load_n(&b->sectors, __ATOMIC_RELAXED);
    if (sector > sectors || total > sectors - sector || sector % b->unit || total % b->unit)
        return false;
    // pieces that adjoin in memory are one for the kernel
    uint32_t many = 0;
    for (uint32_t n = 1; n < count; n++) {
        if ((uint8_t *)pieces[many].iov_base + pieces[many].iov_len == pieces[n].iov_base)
            pieces[many].iov_len += pieces[n].iov_len;
        else
            pieces[++many] = pieces[n];
    }
    ssize_t got = operation == OP_READ
                      ? preadv2(b->fd, pieces, (int)many + 1, (off_t)(sector * 512), b->read_flags)
                      : pwritev(b->fd, pieces, (int)many + 1, (off_t)(sector * 512));
    moved = got < 0 ? 0 : (uint64_t)got;
    if (moved != total * 512)
        return false;
    if (operation == OP_READ) {
        // the data before the look: who makes a frame executable marks it before it translates anything
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        for (uint32_t n = 0; n < count; n++)
            if (__atomic_load_n(&b->code_seen[indices[n]], __ATOMIC_RELAXED))
                return false;
        b->bytes_read += moved;
    } else {
        b->bytes_written += moved;
    }
    b->requests++;
    response[8] = operation;
    put_response(b, response, sizeof response);
    return true;
}

static void call(int fd)
{
    uint64_t one = 1;

    if (write(fd, &one, sizeof one) < 0)
        return; // its count is full: whoever reads it has still to come
}

// Show the frontend what has been answered since `shown`, and tell it if it sleeps.
static uint32_t show(struct xenpy_blocks *b, uint32_t shown)
{
    uint32_t now = b->produced;

    if (now == shown)
        return now;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    __atomic_store_n(index_word(b, 2), now, __ATOMIC_SEQ_CST);
    xenpy_fence_all();
    if (now - __atomic_load_n(index_word(b, 3), __ATOMIC_SEQ_CST) < now - shown && xenpy_bell_ring(b->bell, b->port))
        call(b->bell_fd);
    return now;
}

// Until the ring is empty (true), or Python has to look at it.
static bool serve_all(struct xenpy_blocks *b)
{
    uint8_t slot[SLOT];
    uint32_t shown = b->produced;

    for (;;) {
        uint32_t available = __atomic_load_n(index_word(b, 0), __ATOMIC_ACQUIRE) - b->consumed;
        if (available > b->slots - (b->consumed - b->produced)) {
            show(b, shown);
            return false;
        }
        for (uint32_t n = 0; available; available--, n++) {
            if (n % AT_ONCE == AT_ONCE - 1)
                shown = show(b, shown);
            if (__atomic_load_n(&b->wanted, __ATOMIC_ACQUIRE)) {
                show(b, shown);
                return false;
            }
            copy_slot(b, b->consumed, slot);
            if (!serve(b, slot)) {
                show(b, shown);
                return false;
            }
            b->consumed++;
        }
        shown = show(b, shown);
        __atomic_store_n(index_word(b, 1), b->consumed + 1, __ATOMIC_SEQ_CST);
        xenpy_fence_all();
        if (__atomic_load_n(index_word(b, 0), __ATOMIC_ACQUIRE) == b->consumed)
            return !__atomic_load_n(&b->wanted, __ATOMIC_ACQUIRE);
    }
}

static void *run(void *argument)
{
    struct xenpy_blocks *b = argument;
    uint64_t n;

    while (read(b->wake_fd, &n, sizeof n) == sizeof n && !__atomic_load_n(&b->stop, __ATOMIC_ACQUIRE)) {
        if (__atomic_load_n(&b->lent, __ATOMIC_ACQUIRE)) {
            if (serve_all(b))
                continue;
            b->given_back++;
            __atomic_store_n(&b->lent, 0, __ATOMIC_RELEASE);
        }
        call(b->call_fd); // the ring, or an event for it, is Python's
    }
    return NULL;
}

struct xenpy_blocks *xenpy_blocks_open(uint8_t **pages, uint32_t page_count, uint32_t slots, uint8_t *memory,
                                       const uint8_t *code_seen, int fd, uint32_t unit, int readonly, int read_flags,
                                       int wake_fd, int call_fd, void *bell, int bell_fd, uint32_t port)
{
    struct xenpy_blocks *b = calloc(1, sizeof *b);
    sigset_t all, old;

    if (!b || page_count > MOST_PAGES) {
        free(b);
        return NULL;
    }
    memcpy(b->pages, pages, page_count * sizeof *pages);
    b->slots = slots;
    b->memory = memory;
    b->code_seen = code_seen;
    b->fd = fd;
    b->unit = unit;
    b->readonly = readonly;
    b->read_flags = read_flags;
    b->wake_fd = wake_fd;
    b->call_fd = call_fd;
    b->bell = bell;
    b->bell_fd = bell_fd;
    b->port = port;
    sigfillset(&all); // signals are for Python's main thread
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int failed = pthread_create(&b->thread, NULL, run, b);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (failed) {
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
    call(b->wake_fd);
}

// Python wants it back: it gets it through the call.
void xenpy_blocks_want(struct xenpy_blocks *b)
{
    __atomic_store_n(&b->wanted, 1, __ATOMIC_RELEASE);
    call(b->wake_fd);
}

int xenpy_blocks_lent(const struct xenpy_blocks *b) { return __atomic_load_n(&b->lent, __ATOMIC_ACQUIRE); }

void xenpy_blocks_size(struct xenpy_blocks *b, uint64_t sectors)
{
    __atomic_store_n(&b->sectors, sectors, __ATOMIC_RELAXED);
}

static void place(struct known *known, uint32_t room, uint32_t ref, uint32_t index)
{
    uint32_t n = slot_of(ref, room);

    while (known[n].index != NOBODY && known[n].ref != ref)
        n = (n + 1) & (room - 1);
    known[n] = (struct known){ref, index};
}

// All frames that may be used, anew: `refs` and their frame indices. False where there is no memory for them.
int xenpy_blocks_know(struct xenpy_blocks *b, const uint32_t *refs, const uint32_t *indices, uint32_t count)
{
    uint32_t room = 64;
    while (room < 2 * count)
        room *= 2;
    struct known *known = malloc(room * sizeof *known);

    if (!known)
        return 0;
    memset(known, 0xff, room * sizeof *known);
    for (uint32_t n = 0; n < count; n++)
        place(known, room, refs[n], indices[n]);
    free(b->known);
    b->known = known;
    b->room = room;
    return 1;
}

// Only while the ring is Python's.
void xenpy_blocks_close(struct xenpy_blocks *b)
{
    __atomic_store_n(&b->stop, 1, __ATOMIC_RELEASE);
    call(b->wake_fd);
    pthread_join(b->thread, NULL);
    free(b->known);
    free(b);
}
