// SPDX-License-Identifier: GPL-2.0-only
/*
 * Events, timers, sleep and waking of a domain, without Python: between two events a guest that has nothing else to ask
 * for is not left by its thread.
 *
 * Events are sent from here for any domain. The rest is for domains with one vCPU on a real clock, once the loop has
 * said how events come and go (`xpy_connect`): a kick whose cause is an event or the timer is attended to, and a vCPU
 * that blocks sleeps here. Everything else brings the loop back: a message on the link, a kick that asked for Python
 * (`asked`), a signal, an area of the guest's that cannot be written. That may be at any moment; `blocked`, the run state
 * and the timers lie in the vCPU's shared words, and Python goes on from there.
 *
 * The readable reference is Python: xen_py/evtchn.py (PendingEvents), xen_py/domain.py (run_timers, update_time, _sleep),
 * xen_py/runstate.py, hypercalls/{event_channel,vcpu,sched}_op.py, dom0/host/vmloop.py. All of it is the domain's
 * thread's.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

int xenpy_bell_ring(void *bell, uint32_t port);
int xenpy_bell_take(void *bell, uint32_t *ports);
int xenpy_bell_waiting(const void *bell);
int xenpy_bell_called(void *bell);
void xenpy_bell_awake(void *bell, int on);

#define MOST_PORTS 4096
#define PENDING 2048
#define MASK (PENDING + MOST_PORTS / 8)
#define TIME_IN_VCPU_INFO 32

enum { PORT_CLOSED, PORT_LOCAL, PORT_OUTWARD }; /* xen_py/evtchn.py, PortKind */
enum { RUNNING, RUNNABLE, BLOCKED };            /* xen_py/vcpu.py, Runstate */
enum { STATE_RUNNING = 1, STATE_BLOCKED = 2 };  /* xen_py/doorbell.py, RunState */
enum { PUBLISHED_STATE, PUBLISHED_PAGES, PUBLISHED_COUNT, PUBLISHED_FLAGS, PUBLISHED_NS };
enum { VCPU_ONLINE = 1, VCPU_BLOCKED = 2 };

struct runstate_record { /* vcpu.h, struct vcpu_runstate_info */
    uint32_t state, padding;
    uint64_t since, times[4];
};

struct time_record { /* xen.h, struct vcpu_time_info */
    uint32_t version, padding;
    uint64_t tsc, system_time;
    uint32_t mul;
    int8_t shift;
    uint8_t flags, padding2[2];
};

/* Whether time and sleep are ours. */
bool xpy_sees_to_events(const struct xpy_engine *e) { return e->fast.vcpu && e->fast.alone && e->paths.inbox; }

static uint8_t *vcpu_info(const struct xpy_engine *e) { return e->fast.memory + e->fast.vcpu->info_offset; }

/* ---- sending ---- */

bool xpy_send(const struct xpy_engine *e, uint32_t port)
{
    const struct xpy_paths *p = &e->paths;
    uint64_t one = 1;
    int fd;

    if (!p->outbox || port >= MOST_PORTS || e->fast.ports[port] != PORT_OUTWARD)
        return false;
    fd = p->routes[port];
    if (fd < 0 && !xenpy_bell_ring(p->outbox, port))
        return true;
    /* a count that is full has not been read yet: who is to be woken is awake */
    return write(fd < 0 ? p->outbox_fd : fd, &one, sizeof one) > 0 || errno == EAGAIN;
}

/* ---- being told ---- */

static void raise_port(struct xpy_engine *e, uint32_t port)
{
    uint8_t *shared = e->fast.memory + e->fast.shared_info, *info = vcpu_info(e);
    uint64_t bit = 1ull << port % 64, word = 1ull << port / 64;
    uint64_t *pending = (uint64_t *)(shared + PENDING) + port / 64, *selector = (uint64_t *)(info + 8);

    if (e->fast.ports[port] == PORT_CLOSED || (*pending & bit))
        return;
    *pending |= bit;
    e->fast.events[0]++;
    if (((uint64_t *)(shared + MASK))[port / 64] & bit)
        return;
    if (!(*selector & word)) {
        *selector |= word;
        info[0] = 1;
    }
    e->fast.vcpu->blocked = 0;
}

void xpy_take_inbox(struct xpy_engine *e)
{
    uint32_t ports[MOST_PORTS];

    if (!xenpy_bell_waiting(e->paths.inbox))
        return;
    for (int n = 0, count = xenpy_bell_take(e->paths.inbox, ports); n < count; n++)
        raise_port(e, ports[n]);
}

/* ---- timers ---- */

/* The next timer, 0 for none. The periodic one ticks for a vCPU that runs. */
static uint64_t next_deadline(const struct xpy_vcpu *v)
{
    uint64_t periodic = v->blocked ? 0 : v->periodic_next;

    return v->singleshot && (!periodic || v->singleshot < periodic) ? v->singleshot : periodic;
}

void xpy_run_timers(struct xpy_engine *e)
{
    struct xpy_vcpu *v = e->fast.vcpu;
    uint64_t now = xenpy_now();
    bool due = false;

    if (v->singleshot && v->singleshot <= now) {
        v->singleshot = 0;
        due = true;
    }
    if (v->periodic_next && v->periodic_next <= now && !v->blocked) {
        v->periodic_next += ((now - v->periodic_next) / v->periodic_period + 1) * v->periodic_period;
        due = true;
    }
    if (due && e->fast.events[1])
        raise_port(e, (uint32_t)e->fast.events[1]);
    xpy_set_deadline(e, next_deadline(v));
}

bool xpy_set_singleshot(struct xpy_engine *e, uint64_t when)
{
    if (!xpy_sees_to_events(e))
        return false;
    e->fast.vcpu->singleshot = when;
    xpy_run_timers(e);
    return true;
}

/* ---- telling the time ---- */

static void update_time(struct xpy_engine *e, void *area)
{
    struct xpy_vcpu *v = e->fast.vcpu;
    struct time_record record = {.mul = (uint32_t)e->fast.tsc_mul, .shift = (int8_t)e->fast.tsc_shift};

    record.version = (uint32_t)(v->time_version = (v->time_version + 2) & 0xfffffffe);
    record.tsc = xpy_rdtsc();
    record.system_time = xenpy_now();
    memcpy(vcpu_info(e) + TIME_IN_VCPU_INFO, &record, sizeof record);
    if (area)
        memcpy(area, &record, sizeof record);
}

static void change_runstate(struct xpy_vcpu *v, uint64_t state, void *area)
{
    uint64_t now = xenpy_now();

    v->runstate_times[v->runstate & 3] += now - v->runstate_since;
    v->runstate = state;
    v->runstate_since = now;
    if (area) {
        struct runstate_record record = {.state = (uint32_t)state, .since = now};
        memcpy(record.times, v->runstate_times, sizeof record.times);
        memcpy(area, &record, sizeof record);
    }
}

/* ---- sleep ---- */

/* SCHEDOP_block, but for the sleep itself: the guest is left for that (xpy_attend). */
bool xpy_block(struct xpy_engine *e)
{
    uint8_t *info = vcpu_info(e);

    if (!xpy_sees_to_events(e))
        return false;
    info[1] = 0;
    if (info[0])
        return true;
    e->fast.vcpu->blocked = 1;
    e->uc_emu_stop(e->uc);
    return true;
}

/* The guest sleeps. Its thread stays awake for a while if it is likely to be woken soon; true when it is. */
static bool doze(struct xpy_engine *e)
{
    uint64_t until = next_deadline(e->fast.vcpu);

    xenpy_linger_begin(&e->linger);
    while (e->looking && xenpy_linger(&e->linger)) {
        if (xenpy_bell_waiting(e->paths.inbox) || e->kicked || (until && until <= xenpy_now())) {
            e->fast.lingered++;
            return true;
        }
    }
    return false;
}

static void fall_asleep(struct xpy_engine *e)
{
    struct xpy_vcpu *v = e->fast.vcpu;
    uint64_t *published = e->paths.published;

    change_runstate(v, BLOCKED, NULL);
    published[PUBLISHED_PAGES] = *e->fast.allocated;
    published[PUBLISHED_FLAGS] = VCPU_ONLINE | VCPU_BLOCKED;
    published[PUBLISHED_NS] = v->runstate_times[RUNNING];
    published[PUBLISHED_COUNT] = 1;
    published[PUBLISHED_STATE] = STATE_BLOCKED;
    e->fast.sleeps++;
}

/* Wait for the link, the inbox or a timer. False when Python has to see to something. */
static bool wait_for_something(struct xpy_engine *e)
{
    struct pollfd fds[2] = {{.fd = e->paths.link_fd, .events = POLLIN}, {.fd = e->paths.inbox_fd, .events = POLLIN}};
    struct xpy_vcpu *v = e->fast.vcpu;
    struct timespec left = {0, 0}, *patience = &left;
    uint64_t count;

    if (v->blocked) {
        uint64_t until = next_deadline(v), now = xenpy_now();
        if (!until) {
            patience = NULL;
        } else if (until > now) {
            left.tv_sec = (time_t)((until - now) / 1000000000u);
            left.tv_nsec = (long)((until - now) % 1000000000u);
        }
    }
    e->stopped = 0;
    if (ppoll(fds, 2, patience, NULL) < 0) /* any other signal is Python's to handle */
        return errno == EINTR && e->stopped;
    /* emptied before the marks are taken: one made later makes it readable again */
    if (fds[1].revents && read(e->paths.inbox_fd, &count, sizeof count) < 0 && errno != EAGAIN)
        return false;
    return !fds[0].revents;
}

/* Until the vCPU can run: true. */
static bool wait_until_runnable(struct xpy_engine *e)
{
    struct xpy_vcpu *v = e->fast.vcpu;
    const uint8_t *info = vcpu_info(e);
    bool looked = false;

    for (;;) {
        __atomic_store_n(&e->kicked, 0, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&e->asked, __ATOMIC_SEQ_CST))
            return false;
        xpy_take_inbox(e);
        if (xenpy_bell_called(e->paths.inbox))
            looked = false;
        xpy_run_timers(e);
        if (info[0] && !info[1])
            v->blocked = 0;
        if (!v->blocked && looked)
            return true;
        if (v->blocked && v->runstate == RUNNING)
            fall_asleep(e);
        if (v->blocked && !e->asleep) {
            if (doze(e)) {
                looked = true; /* who writes to the link calls, too */
                continue;
            }
            __atomic_store_n(&e->asleep, 1, __ATOMIC_SEQ_CST);
            xenpy_bell_awake(e->paths.inbox, 0);
            if (xenpy_bell_waiting(e->paths.inbox)) /* marked while we were awake, for which nobody wakes us */
                continue;
        }
        if (!wait_for_something(e))
            return false;
        looked = true;
    }
}

/*
 * The guest has been left without a reason of its own: by a kick, or to sleep. True when it has been seen to and the
 * guest can go on; otherwise Python sees to what is left. The emulator is not running.
 */
bool xpy_attend(struct xpy_engine *e)
{
    struct xpy_vcpu *v = e->fast.vcpu;
    void *runstate_area = NULL, *time_area = NULL;
    bool runs;

    /* a single step is the guest's debugger's, or Python's, which carries an instruction out and wants nothing between */
    if (!xpy_sees_to_events(e) || (e->r.rflags & TF_FLAG))
        return false;
    if (v->runstate_area && !(runstate_area = xpy_kernel_range(e, v->runstate_area, sizeof(struct runstate_record))))
        return false;
    if (v->time_area && !(time_area = xpy_kernel_range(e, v->time_area, sizeof(struct time_record))))
        return false;
    xpy_enter(e); /* so that a kick reaches us by its signal */
    runs = wait_until_runnable(e);
    xpy_leave(e);
    if (e->asleep) {
        __atomic_store_n(&e->asleep, 0, __ATOMIC_SEQ_CST);
        xenpy_linger_slept(&e->linger);
        if (e->looking) {
            xenpy_bell_awake(e->paths.inbox, 1);
            xpy_rouse_watcher(e);
        }
    }
    if (runs && v->runstate == BLOCKED) {
        change_runstate(v, RUNNING, runstate_area);
        e->paths.published[PUBLISHED_STATE] = STATE_RUNNING;
    }
    if (!runs)
        return false;
    e->fast.kicks++;
    xpy_run_timers(e); /* one may have come to nobody while we were still taken for asleep */
    update_time(e, time_area);
    return xpy_upcall(e);
}
