// SPDX-License-Identifier: GPL-2.0-only
//
// The host's loop lingering before it sleeps (linger.h, dom0/host/linger.py): for what guests ring and for whatever its
// epoll has. The host's trio thread.

#define _GNU_SOURCE
#include "linger.h"

#include <poll.h>
#include <unistd.h>

int xenpy_bell_waiting(const void *bell);
void xenpy_bell_awake(void *bell, int on);

// Nanoseconds at most; nothing is done where lingering has not been worth it. A bell that has been rung makes its eventfd
// readable afterwards, as it would have been had we slept. Whether there is something.
int xenpy_linger_for(struct xenpy_linger *l, uint64_t most, int epoll_fd, void *const *bells, const int *eventfds, int count)
{
    struct pollfd fd = {.fd = epoll_fd, .events = POLLIN};
    uint64_t one = 1;
    int found = 0;

    xenpy_linger_begin(l);
    if (!l->limit)
        return 0;
    for (int n = 0; n < count; n++)
        xenpy_bell_awake(bells[n], 1);
    do {
        for (int n = 0; n < count; n++)
            found |= xenpy_bell_waiting(bells[n]);
        found |= poll(&fd, 1, 0) > 0;
    } while (!found && xenpy_linger(l) && xenpy_now() - l->began < most);
    for (int n = 0; n < count; n++) {
        xenpy_bell_awake(bells[n], 0);
        if (xenpy_bell_waiting(bells[n])) // a count that is full is readable, too
            found |= write(eventfds[n], &one, sizeof one) > 0;
    }
    return found;
}

void xenpy_linger_woke(struct xenpy_linger *l) { xenpy_linger_slept(l); }
