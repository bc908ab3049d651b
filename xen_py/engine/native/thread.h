/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A backend's native thread, and how it reaches others: the trio thread by an eventfd, a guest by its doorbell.
 */
#ifndef XENPY_THREAD_H
#define XENPY_THREAD_H

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <unistd.h>

int xenpy_bell_ring(void *bell, uint32_t port);

/* Whether it runs. Signals are for Python's main thread. */
static inline bool xenpy_start_thread(pthread_t *thread, void *(*run)(void *), void *argument)
{
    sigset_t all, old;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int failed = pthread_create(thread, NULL, run, argument);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return !failed;
}

static inline void xenpy_call(int fd)
{
    uint64_t one = 1;

    if (write(fd, &one, sizeof one) < 0)
        return; /* its count is full: whoever reads it has still to come */
}

/* Send a guest an event, by the inbox of its doorbell and what goes with it. */
static inline void xenpy_tell(void *bell, int bell_fd, uint32_t port)
{
    if (xenpy_bell_ring(bell, port))
        xenpy_call(bell_fd);
}

#endif
