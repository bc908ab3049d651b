/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Staying awake for a moment before sleep, where what is waited for has lately come soon.
 *
 * To wake a thread whose CPU idles costs the waker a few microseconds, and as many as a hundred where the machine is a
 * virtual one. So who waits looks for itself for a while, first, as KVM does for a halted vCPU (halt_poll_ns), and by the
 * same rule: longer after a sleep that was short, not at all after one that was long. It gives way to whoever wants the
 * CPU. Belongs to the one thread that waits.
 */
#ifndef XENPY_LINGER_H
#define XENPY_LINGER_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#define LINGER_FIRST_NS 10000
#define LINGER_MOST_NS 400000 /* twice that of KVM, whose guests are faster */
#define LINGER_GIVEN_WAY_NS 20000 /* a yield that took as long has let somebody else run */

struct xenpy_linger {
    uint64_t limit; /* nanoseconds */
    uint64_t began;
};

static inline uint64_t xenpy_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void xenpy_linger_begin(struct xenpy_linger *l) { l->began = xenpy_now(); }

/* Let a moment pass, a microsecond or two. False: it is time to sleep. */
static inline bool xenpy_linger(struct xenpy_linger *l)
{
    uint64_t now;

    if (!l->limit)
        return false;
    for (int n = 0; n < 32; n++)
        __builtin_ia32_pause();
    now = xenpy_now();
    if (now - l->began >= l->limit)
        return false;
    sched_yield();
    return xenpy_now() - now < LINGER_GIVEN_WAY_NS;
}

/* After the sleep: what came has come so long after the beginning. */
static inline void xenpy_linger_slept(struct xenpy_linger *l)
{
    if (xenpy_now() - l->began > LINGER_MOST_NS)
        l->limit = 0;
    else if (!l->limit)
        l->limit = LINGER_FIRST_NS;
    else if ((l->limit *= 2) > LINGER_MOST_NS)
        l->limit = LINGER_MOST_NS;
}

#endif
