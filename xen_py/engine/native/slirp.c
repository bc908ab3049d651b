// SPDX-License-Identifier: GPL-2.0-only
//
// The loop around libslirp (dom0/backend/net/slirp.py, which starts it and sees to everything but frames): frames of a
// socket go into the library, what it sends goes back there, and it gets the polling, the clock and the timers that it
// asks its user for. One thread, that of its process.
//
// A message of the socket is a byte and what it is about: F, a frame. Any other ends the loop's turn; Python sees to it.
// Frames that the other side does not take are kept up to a bound, then lost, as on any wire.
//
// libslirp is not linked: its functions come as pointers. Types and meanings: libslirp.h, version 4 of its interface.

#define _GNU_SOURCE
#include "linger.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#define LONGEST (1 << 17)
#define MOST_WAITING 4096
#define MOST_IN_A_ROW 64
#define MOST_TIMERS 64 // the library makes one for its router advertisements
#define IDLE_MS 1000
#define NEVER INT64_MAX

typedef void timer_function(void *opaque);

struct callbacks {
    ssize_t (*send_packet)(const void *data, size_t size, void *opaque);
    void (*guest_error)(const char *text, void *opaque);
    int64_t (*clock_get_ns)(void *opaque);
    void *(*timer_new)(timer_function *function, void *argument, void *opaque);
    void (*timer_free)(void *timer, void *opaque);
    void (*timer_mod)(void *timer, int64_t milliseconds, void *opaque);
    void (*register_poll_fd)(int fd, void *opaque);
    void (*unregister_poll_fd)(int fd, void *opaque);
    void (*notify)(void *opaque);
    void *init_completed, *timer_new_opaque;
};

struct message {
    struct message *next;
    size_t size;
    uint8_t data[];
};

struct timer {
    timer_function *function; // NULL: this one is free
    void *argument;
    int64_t due; // milliseconds
};

struct xenpy_slirp {
    int link;
    void *slirp;
    void (*fill)(void *slirp, uint32_t *timeout, int (*add)(int fd, int events, void *opaque), void *opaque);
    void (*poll)(void *slirp, int failed, int (*get)(int index, void *opaque), void *opaque);
    void (*input)(void *slirp, const uint8_t *frame, int size);
    struct callbacks callbacks;
    struct timer timers[MOST_TIMERS];
    struct pollfd *polled; // the first is the link
    size_t count, room;
    struct message *first, **last; // wait to be sent
    size_t waiting;
    uint8_t received[LONGEST];
};

// libslirp's bits of a descriptor, and poll's.
static const struct {
    int slirp;
    short poll;
} bits[] = {{1, POLLIN}, {2, POLLOUT}, {4, POLLPRI}, {8, POLLERR}, {16, POLLHUP}};

#define BITS (sizeof bits / sizeof bits[0])

static int64_t clock_get_ns(void *opaque)
{
    (void)opaque;
    return (int64_t)xenpy_now();
}

// ---- to the host ----

static void keep(struct xenpy_slirp *s, const struct iovec *parts, int count)
{
    size_t size = 0, at = 0;

    for (int n = 0; n < count; n++)
        size += parts[n].iov_len;
    struct message *m = malloc(sizeof *m + size);
    if (!m)
        return;
    for (int n = 0; n < count; at += parts[n++].iov_len)
        memcpy(m->data + at, parts[n].iov_base, parts[n].iov_len);
    m->next = NULL;
    m->size = size;
    *s->last = m;
    s->last = &m->next;
    s->waiting++;
}

static void send_parts(struct xenpy_slirp *s, const struct iovec *parts, int count, bool may_be_lost)
{
    const struct msghdr header = {.msg_iov = (struct iovec *)parts, .msg_iovlen = (size_t)count};

    if (!s->first && (sendmsg(s->link, &header, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0 || errno != EAGAIN))
        return; // or the host has gone, which the loop finds out
    if (s->waiting < MOST_WAITING || !may_be_lost)
        keep(s, parts, count);
}

static void send_waiting(struct xenpy_slirp *s)
{
    while (s->first) {
        struct message *m = s->first;
        if (send(s->link, m->data, m->size, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno == EAGAIN)
            return;
        s->first = m->next;
        s->waiting--;
        free(m);
    }
    s->last = &s->first;
}

// ---- what the library asks for ----

static ssize_t send_packet(const void *data, size_t size, void *opaque)
{
    const struct iovec parts[] = {{(void *)"F", 1}, {(void *)data, size}};

    send_parts(opaque, parts, 2, true);
    return (ssize_t)size;
}

static void *timer_new(timer_function *function, void *argument, void *opaque)
{
    struct xenpy_slirp *s = opaque;

    for (int n = 0; n < MOST_TIMERS; n++) {
        if (!s->timers[n].function) {
            s->timers[n] = (struct timer){function, argument, NEVER};
            return &s->timers[n];
        }
    }
    abort(); // it has been changed: the process ends, and it is said that it has
}

static void timer_free(void *timer, void *opaque)
{
    (void)opaque;
    if (timer)
        ((struct timer *)timer)->function = NULL;
}

static void timer_mod(void *timer, int64_t milliseconds, void *opaque)
{
    (void)opaque;
    ((struct timer *)timer)->due = milliseconds;
}

static void ignore_text(const char *text, void *opaque) { (void)text, (void)opaque; }

static void ignore_fd(int fd, void *opaque) { (void)fd, (void)opaque; }

static void ignore(void *opaque) { (void)opaque; }

static int add_polled(int fd, int events, void *opaque)
{
    struct xenpy_slirp *s = opaque;
    short wanted = 0;

    if (s->count == s->room) {
        size_t room = s->room * 2;
        struct pollfd *larger = realloc(s->polled, room * sizeof *larger);
        if (!larger)
            abort();
        s->polled = larger;
        s->room = room;
    }
    for (size_t n = 0; n < BITS; n++)
        if (events & bits[n].slirp)
            wanted |= bits[n].poll;
    s->polled[s->count] = (struct pollfd){.fd = fd, .events = wanted};
    return (int)s->count++;
}

static int get_polled(int index, void *opaque)
{
    const struct xenpy_slirp *s = opaque;
    int found = 0;

    if (index < 1 || (size_t)index >= s->count)
        return 0;
    for (size_t n = 0; n < BITS; n++)
        if (s->polled[index].revents & bits[n].poll)
            found |= bits[n].slirp;
    return found;
}

// ---- the loop ----

static int64_t fire(struct xenpy_slirp *s)
{
    int64_t now = (int64_t)(xenpy_now() / 1000000), next = NEVER;

    for (int n = 0; n < MOST_TIMERS; n++) {
        struct timer *t = &s->timers[n];
        if (t->function && t->due <= now) {
            t->due = NEVER;
            t->function(t->argument);
        }
        if (t->function && t->due < next)
            next = t->due;
    }
    return next == NEVER || next - now > IDLE_MS ? IDLE_MS : next > now ? next - now : 0;
}

// What the host has sent: 0, the size of a message that is no frame, or -1 at the link's end.
static int receive(struct xenpy_slirp *s)
{
    for (int n = 0; n < MOST_IN_A_ROW; n++) {
        ssize_t size = recv(s->link, s->received, sizeof s->received, MSG_DONTWAIT);
        if (size < 0 && (errno == EAGAIN || errno == EINTR))
            return 0;
        if (size <= 0)
            return -1;
        if (s->received[0] != 'F')
            return (int)size;
        s->input(s->slirp, s->received + 1, (int)size - 1);
    }
    return 0;
}

// Until there is a message that is no frame, in `received` (its size), or the host has gone (-1).
int xenpy_slirp_run(struct xenpy_slirp *s, void *slirp)
{
    s->slirp = slirp;
    for (;;) {
        uint32_t timeout = (uint32_t)fire(s);
        s->count = 1;
        s->fill(slirp, &timeout, add_polled, s);
        s->polled[0] = (struct pollfd){.fd = s->link, .events = POLLIN | (s->first ? POLLOUT : 0)};
        int failed = poll(s->polled, s->count, (int)timeout) < 0;
        s->poll(slirp, failed, get_polled, s);
        if (failed)
            continue;
        if (s->polled[0].revents & POLLOUT)
            send_waiting(s);
        if (s->polled[0].revents & (POLLIN | POLLHUP)) {
            int size = receive(s);
            if (size)
                return size;
        }
    }
}

const uint8_t *xenpy_slirp_received(const struct xenpy_slirp *s) { return s->received; }

// A message that is no frame, to the host.
void xenpy_slirp_send(struct xenpy_slirp *s, const char *data, size_t size)
{
    const struct iovec part = {(void *)data, size};

    send_parts(s, &part, 1, false);
}

void *xenpy_slirp_callbacks(struct xenpy_slirp *s) { return &s->callbacks; }

// Around that socket, with the library's slirp_pollfds_fill, slirp_pollfds_poll and slirp_input.
struct xenpy_slirp *xenpy_slirp_open(int link, void *fill, void *poll, void *input)
{
    struct xenpy_slirp *s = calloc(1, sizeof *s);

    if (!s || !(s->polled = calloc(16, sizeof *s->polled)))
        abort();
    s->link = link;
    memcpy(&s->fill, &fill, sizeof fill);
    memcpy(&s->poll, &poll, sizeof poll);
    memcpy(&s->input, &input, sizeof input);
    s->room = 16;
    s->last = &s->first;
    s->callbacks = (struct callbacks){
        .send_packet = send_packet, .guest_error = ignore_text, .clock_get_ns = clock_get_ns, .timer_new = timer_new,
        .timer_free = timer_free, .timer_mod = timer_mod, .register_poll_fd = ignore_fd,
        .unregister_poll_fd = ignore_fd, .notify = ignore,
    };
    return s;
}
