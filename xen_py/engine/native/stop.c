// SPDX-License-Identifier: GPL-2.0-only
/*
 * Making a running guest stop: kicks, deadlines, and the signal that brings the thread out of translated code.
 * xpy_kick and the watcher run on other threads; the rest belongs to the domain's.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

int xenpy_bell_waiting(const void *bell);
void xenpy_bell_stir(void *bell);

/*
 * The wish to stop is kept in `kicked`, which is tested before each run; a request that uc_emu_start clears on entry is
 * made again, because the watcher repeats it until the run has ended.
 *
 * The request itself is a signal to the thread that runs the guest. Where it finds that thread in translated code, the
 * block it is in still has to be left for the main loop, which sees the request: its direct jumps to other blocks are
 * bent to its own exits, and a flag that no block has makes look-ups of indirect jumps fail. So the guest stops at the
 * end of the block. Both are put back when the run has ended, on the same thread, before anything else can happen to
 * the block. Where it finds the thread elsewhere (in a helper, say), the next signal comes a few microseconds later.
 */
__thread struct xpy_engine *volatile xpy_running_here INITIAL_EXEC;

/* The number of this thread; a process that is forked has another. */
static __thread pid_t number_here INITIAL_EXEC;

static void forget_number(void) { number_here = 0; }

__attribute__((constructor)) static void forget_after_fork(void) { pthread_atfork(NULL, NULL, forget_number); }

static int stop_signal(void) { return SIGRTMIN + 6; }

static void bend(struct xpy_engine *e, struct block *b)
{
    e->cut = b;
    for (int n = 0; n < 2; n++) {
        int32_t *at = (int32_t *)(b->code + b->jmp_target_arg[n]);

        e->bent[n].at = NULL;
        if (b->jmp_reset_offset[n] == NO_JUMP)
            continue;
        e->bent[n].at = at;
        e->bent[n].was = *at;
        e->bent[n].dest = b->jmp_dest[n];
        __atomic_store_n(at, (int32_t)(b->code + b->jmp_reset_offset[n] - ((uint8_t *)at + 4)), __ATOMIC_RELAXED);
    }
}

static void straighten(struct xpy_engine *e)
{
    struct block *b = e->cut;

    e->cut = NULL;
    e->cpu->hflags &= ~HF_NOWHERE;
    if (!b)
        return;
    /* A jump that was unlinked meanwhile, because its target or the block itself went, stays so. */
    for (int n = 0; n < 2; n++)
        if (e->bent[n].at && !(b->cflags & CF_INVALID) && b->jmp_dest[n] == e->bent[n].dest)
            *e->bent[n].at = e->bent[n].was;
}

static void on_stop_signal(int signal, siginfo_t *info, void *context)
{
    struct xpy_engine *e = xpy_running_here;
    uintptr_t pc = (uintptr_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];

    (void)signal;
    (void)info;
    if (!e)
        return;
    e->stopped = 1;
    xpy_outdate_sites(e);
    e->uc_emu_stop(e->uc);
    if (pc < e->code_start || pc >= e->code_end)
        return;
    e->cpu->hflags |= HF_NOWHERE;
    struct block *b = e->block_at(e->tcg, pc);
    if (b && b != e->cut) {
        struct block *before = e->cut;
        if (before) {
            straighten(e);
            e->cpu->hflags |= HF_NOWHERE;
        }
        bend(e, b);
    }
}

static void signal_runner(struct xpy_engine *e)
{
    syscall(SYS_tgkill, getpid(), e->thread, stop_signal());
}

/* Marks the wish; true when a run is under way that has to be told. */
static bool want_stop(struct xpy_engine *e)
{
    __atomic_store_n(&e->kicked, 1, __ATOMIC_SEQ_CST);
    return __atomic_load_n(&e->running, __ATOMIC_SEQ_CST);
}

/* ---- the timer: set to the deadline or to one before it, so that a guest that puts it off need not set it ---- */

static void arm_timer(struct xpy_engine *e)
{
    uint64_t ns;

    do { /* the thread and the watcher may be here together: the later one to look has the present deadline */
        ns = __atomic_load_n(&e->deadline, __ATOMIC_SEQ_CST);
        if (!ns)
            return;
        struct itimerspec t = {.it_value = {.tv_sec = ns / 1000000000u, .tv_nsec = ns % 1000000000u}};
        __atomic_store_n(&e->armed, ns, __ATOMIC_SEQ_CST); /* before it may go off, which takes it back */
        timerfd_settime(e->timer_fd, TFD_TIMER_ABSTIME, &t, NULL);
    } while (ns != __atomic_load_n(&e->deadline, __ATOMIC_SEQ_CST));
}

void xpy_set_deadline(struct xpy_engine *e, uint64_t ns)
{
    __atomic_store_n(&e->deadline, ns, __ATOMIC_SEQ_CST);
    uint64_t armed = __atomic_load_n(&e->armed, __ATOMIC_SEQ_CST);
    if (ns && (!armed || ns < armed))
        arm_timer(e);
}

/* The timer has gone off. True when it was the deadline and nobody knows of it. */
static bool time_is_up(struct xpy_engine *e)
{
    struct timespec t;

    __atomic_store_n(&e->armed, 0, __ATOMIC_SEQ_CST);
    uint64_t deadline = __atomic_load_n(&e->deadline, __ATOMIC_SEQ_CST);
    clock_gettime(CLOCK_MONOTONIC, &t);
    if (deadline > (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec) {
        arm_timer(e);
        return false;
    }
    /* a sleeper knows the time by itself, and looks at the timers when it no longer is one */
    return deadline && !__atomic_load_n(&e->asleep, __ATOMIC_SEQ_CST);
}

/* ---- the watcher ---- */

#define QUIET_TICKS 2 /* milliseconds for which the watcher stays about after a guest has run */

struct watch {
    unsigned tries, quiet;
    bool waited;
    uint64_t runs, looks;
};

/* How long the watcher may sleep, in milliseconds: while a guest looks for its events by itself (look.c) only for one. */
static int patience(struct xpy_engine *e, struct watch *w)
{
    if (!e->jumps_are_ours)
        return -1;
    if (w->runs != e->c.runs || (__atomic_load_n(&e->looking, __ATOMIC_SEQ_CST) && !e->asleep)) {
        w->runs = e->c.runs;
        w->quiet = 0;
        return 1;
    }
    if (w->quiet++ < QUIET_TICKS)
        return 1;
    __atomic_store_n(&e->resting, 1, __ATOMIC_SEQ_CST);
    return __atomic_load_n(&e->looking, __ATOMIC_SEQ_CST) && !__atomic_load_n(&e->asleep, __ATOMIC_SEQ_CST) ? 1 : -1;
}

/* A guest begins to look, by its thread. */
void xpy_rouse_watcher(struct xpy_engine *e)
{
    uint64_t one = 1;

    if (__atomic_load_n(&e->resting, __ATOMIC_SEQ_CST)) {
        __atomic_store_n(&e->resting, 0, __ATOMIC_SEQ_CST);
        if (write(e->event_fd, &one, sizeof one) < 0)
            return; /* its count is full: it is awake */
    }
}

/* Whether marks have waited since the last tick, and the guest has not looked since. */
static bool does_not_look(struct xpy_engine *e, struct watch *w)
{
    bool waits = __atomic_load_n(&e->looking, __ATOMIC_SEQ_CST) && xenpy_bell_waiting(e->paths.inbox);
    bool still = waits && w->waited && w->looks == e->fast.looks;

    w->waited = waits;
    w->looks = e->fast.looks;
    return still;
}

static void *watch_loop(void *arg)
{
    struct xpy_engine *e = arg;
    struct epoll_event events[4];
    struct watch w = {0};
    uint64_t n;

    prctl(PR_SET_TIMERSLACK, 1000); /* short pauses are to be short */

    while (!__atomic_load_n(&e->closing, __ATOMIC_SEQ_CST)) {
        bool wanted = __atomic_load_n(&e->kicked, __ATOMIC_SEQ_CST) && __atomic_load_n(&e->running, __ATOMIC_SEQ_CST);

        if (wanted) {
            /* mostly a helper was running; long calls into the library (a translation, say) are waited for */
            struct timespec t = {0, w.tries++ < 100 ? 10000 : 200000};
            nanosleep(&t, NULL);
        } else {
            w.tries = 0;
        }
        int got = epoll_wait(e->epoll_fd, events, 4, wanted ? 0 : patience(e, &w));

        __atomic_store_n(&e->resting, 0, __ATOMIC_SEQ_CST);
        for (int i = 0; i < got; i++) {
            int fd = events[i].data.fd;

            /* The timer and our own eventfd are read here; a foreign eventfd is its reader's, hence edge-triggered. */
            if (fd != e->timer_fd && fd != e->event_fd) {
                wanted = true;
                continue;
            }
            if (read(fd, &n, sizeof n) < 0 && errno != EAGAIN)
                return NULL;
            if (fd == e->event_fd) {
                wanted |= __atomic_load_n(&e->kicked, __ATOMIC_SEQ_CST) != 0;
            } else if (time_is_up(e)) {
                if (__atomic_load_n(&e->looking, __ATOMIC_SEQ_CST))
                    xenpy_bell_stir(e->paths.inbox);
                else
                    wanted = true;
            }
        }
        if (!got && does_not_look(e, &w))
            wanted = true;
        if (wanted && want_stop(e))
            signal_runner(e);
    }
    return NULL;
}

void xpy_kick(struct xpy_engine *e)
{
    uint64_t one = 1;

    __atomic_store_n(&e->asked, 1, __ATOMIC_SEQ_CST);
    /* Through the watcher, which goes on until the stop has taken effect. */
    if (want_stop(e) && write(e->event_fd, &one, sizeof one) < 0)
        signal_runner(e);
}

int xpy_kick_pending(struct xpy_engine *e) { return __atomic_load_n(&e->kicked, __ATOMIC_SEQ_CST); }

void xpy_clear_kick(struct xpy_engine *e)
{
    __atomic_store_n(&e->kicked, 0, __ATOMIC_SEQ_CST);
    __atomic_store_n(&e->asked, 0, __ATOMIC_SEQ_CST);
}

/* Kick for what arrives in the inbox from now on; the descriptor is emptied by who takes the marks. */
int xpy_connect(struct xpy_engine *e, const struct xpy_paths *paths)
{
    struct epoll_event ev = {.events = EPOLLIN | EPOLLET, .data.fd = paths->inbox_fd};

    if (epoll_ctl(e->epoll_fd, EPOLL_CTL_ADD, paths->inbox_fd, &ev))
        return -errno;
    e->paths = *paths;
    e->inbox_watched = true;
    return 0;
}

/* Whether the watcher kicks for the inbox. A guest that looks at it by itself, or sleeps on it, has no use for that.
 * Switched on again it tells of what is there. */
void xpy_watch_inbox(struct xpy_engine *e, bool on)
{
    struct epoll_event ev = {.events = on ? EPOLLIN | EPOLLET : 0, .data.fd = e->paths.inbox_fd};

    epoll_ctl(e->epoll_fd, EPOLL_CTL_MOD, e->paths.inbox_fd, &ev);
    e->inbox_watched = on;
}

bool xpy_start_watcher(struct xpy_engine *e)
{
    struct epoll_event ev = {.events = EPOLLIN};
    sigset_t all, old;

    e->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    e->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    e->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (e->epoll_fd < 0 || e->event_fd < 0 || e->timer_fd < 0)
        return false;
    ev.data.fd = e->event_fd;
    if (epoll_ctl(e->epoll_fd, EPOLL_CTL_ADD, e->event_fd, &ev))
        return false;
    ev.data.fd = e->timer_fd;
    if (epoll_ctl(e->epoll_fd, EPOLL_CTL_ADD, e->timer_fd, &ev))
        return false;
    struct sigaction act = {.sa_sigaction = on_stop_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigemptyset(&act.sa_mask);
    if (sigaction(stop_signal(), &act, NULL))
        return false;
    /* Signals are for Python's main thread. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    e->watching = pthread_create(&e->watcher, NULL, watch_loop, e) == 0;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return e->watching;
}

void xpy_stop_watcher(struct xpy_engine *e)
{
    uint64_t one = 1;

    if (e->watching) {
        __atomic_store_n(&e->closing, 1, __ATOMIC_SEQ_CST);
        if (write(e->event_fd, &one, sizeof one) == sizeof one)
            pthread_join(e->watcher, NULL);
    }
    for (int *fd = (int[]){e->epoll_fd, e->event_fd, e->timer_fd, -2}; *fd != -2; fd++)
        if (*fd >= 0)
            close(*fd);
}

/* Around each run: from now on this thread is one that stops can be asked of, and no longer. */
void xpy_enter(struct xpy_engine *e)
{
    if (!number_here)
        number_here = (pid_t)syscall(SYS_gettid);
    e->thread = number_here;
    xpy_outdate_sites_for_others(e);
    xpy_running_here = e;
    __atomic_store_n(&e->running, 1, __ATOMIC_SEQ_CST);
}

void xpy_leave(struct xpy_engine *e)
{
    __atomic_store_n(&e->running, 0, __ATOMIC_SEQ_CST);
    xpy_running_here = NULL;
    straighten(e);
}
