// SPDX-License-Identifier: GPL-2.0-only
/*
 * Page-table walks that read the domain's memory where it lies.
 *
 * The emulator finds out for each of the four entries of a walk what there is at its address, which takes longer than all
 * the rest of filling the TLB. A domain's tables are in its own memory, with few exceptions, and that is one piece. The
 * function takes the place of the emulator's by its name, as look.c's does. The domain's thread's.
 */
#define _GNU_SOURCE
#include "internal.h"

static uint64_t (*emulators_own)(void *, uint64_t);

void xpy_take_over_walks(uint64_t (*own)(void *, uint64_t)) { emulators_own = own; }

uint64_t x86_ldq_phys_x86_64(void *cpu_object, uint64_t machine_address);
uint64_t x86_ldq_phys_x86_64(void *cpu_object, uint64_t machine_address)
{
    const struct xpy_engine *e = xpy_running_here;

    if (e && e->fast.memory) {
        uint64_t offset = machine_address - (e->fast.mfn_base << 12);
        if (offset >> 12 < e->fast.frames && !(offset & 7))
            return *(const uint64_t *)(e->fast.memory + offset);
    }
    return emulators_own(cpu_object, machine_address);
}
