// SPDX-License-Identifier: GPL-2.0-only
//
// Doorbells: which event channel ports want attention, told from one process to another through a shared page.
//
// Two parties that run truly at the same time change these words, so every access here is a C atomic with full
// ordering; Python's loads and stores promise nothing. A doorbell is one summary word (bit n: words[n] may be
// non-zero) and 64 words of 64 ports. The order is what keeps a notification from being lost:
//
//   ring:  data, then the port's bit, then the summary bit, then (in Python) the eventfd
//   take:  the eventfd is emptied first (in Python), then the summary is taken, then the words it names
//
// Whoever finds the port's bit already set may go home: the one who set it has still to raise the summary and the
// eventfd, or has done so and the taker has not come yet. tests/models/kick.pml is this protocol as a model.
//
// A taker that is `awake` looks at the summary by itself, all the time (look.c): the eventfd is left alone then. It looks
// once more when it has said that it is so no longer, as a ringer looks at `awake` when it has raised the summary.

#define _GNU_SOURCE
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MEMBARRIER_GLOBAL_EXPEDITED = 1 << 1, MEMBARRIER_REGISTER_GLOBAL_EXPEDITED = 1 << 2 };

#define BELL_WORDS 64
#define BELL_PORTS (BELL_WORDS * 64)

struct bell {
    uint64_t summary;
    uint64_t words[BELL_WORDS];
    uint32_t awake;  // the taker's
    uint32_t called; // there is something for the taker elsewhere
};

// Mark a port. 1: the caller must now write the eventfd; 0: somebody else's mark is still to be taken, or the taker looks.
int xenpy_bell_ring(struct bell *bell, uint32_t port)
{
    if (port >= BELL_PORTS)
        return 0;
    uint64_t bit = UINT64_C(1) << (port % 64);
    if (__atomic_fetch_or(&bell->words[port / 64], bit, __ATOMIC_SEQ_CST) & bit)
        return 0;
    __atomic_fetch_or(&bell->summary, UINT64_C(1) << (port / 64), __ATOMIC_SEQ_CST);
    return !__atomic_load_n(&bell->awake, __ATOMIC_SEQ_CST);
}

// Have an awake taker look, though there is no mark.
void xenpy_bell_stir(struct bell *bell) { __atomic_fetch_or(&bell->summary, 1, __ATOMIC_SEQ_CST); }

// Have it look elsewhere. The eventfd is to be written as well: it may sleep.
void xenpy_bell_call(struct bell *bell)
{
    __atomic_store_n(&bell->called, 1, __ATOMIC_SEQ_CST);
    xenpy_bell_stir(bell);
}

// Whether the taker is to look elsewhere; asked when the marks have been taken, and with them what told of the call.
int xenpy_bell_called(struct bell *bell) { return (int)__atomic_exchange_n(&bell->called, 0, __ATOMIC_SEQ_CST); }

// The taker looks by itself from now on, or no longer.
void xenpy_bell_awake(struct bell *bell, int on) { __atomic_store_n(&bell->awake, (uint32_t)on, __ATOMIC_SEQ_CST); }

// Take every mark; `ports` has room for all BELL_PORTS. The number taken.
int xenpy_bell_take(struct bell *bell, uint32_t *ports)
{
    int count = 0;
    uint64_t summary = __atomic_exchange_n(&bell->summary, 0, __ATOMIC_SEQ_CST);
    while (summary) {
        uint32_t word = (uint32_t)__builtin_ctzll(summary);
        summary &= summary - 1;
        uint64_t bits = __atomic_exchange_n(&bell->words[word], 0, __ATOMIC_SEQ_CST);
        while (bits) {
            ports[count++] = word * 64 + (uint32_t)__builtin_ctzll(bits);
            bits &= bits - 1;
        }
    }
    return count;
}

// Is there anything to take?
int xenpy_bell_waiting(const struct bell *bell)
{
    return __atomic_load_n(&bell->summary, __ATOMIC_SEQ_CST) != 0;
}

// The emulator leaves a guest's barriers out: no instruction of the host's stands for an mfence or a locked addition. A
// guest that stores its index and then looks whether we sleep may thus look first. So whoever decides by what such a
// guest wrote has the kernel put a barrier into every thread of the processes that have asked to be part of it, which
// all VM processes have; that costs a few microseconds where we sleep, and nothing where guests run.
int xenpy_join_fences(void)
{
    return (int)syscall(SYS_membarrier, MEMBARRIER_REGISTER_GLOBAL_EXPEDITED, 0);
}

void xenpy_fence_all(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    syscall(SYS_membarrier, MEMBARRIER_GLOBAL_EXPEDITED, 0);
}

// Between a ring's data and its index, for hosts whose memory model needs it.
void xenpy_fence(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
