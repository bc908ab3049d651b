/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Writing a guest's frames from outside, and looking its grants up: the host's half of xen_py/outside.py, which has the
 * rules. Any thread of the host. The sequentially consistent operations here are the fences of those rules.
 */
#ifndef XENPY_OUTSIDE_H
#define XENPY_OUTSIDE_H

#include <stdbool.h>
#include <stdint.h>

enum { OUTSIDE_PAGE = 4096 };

/* A domain's memory file as the host has it mapped; dom0/backend/frames.py repeats this. */
struct xenpy_frames {
    uint8_t *memory;
    uint32_t *writers;
    const uint8_t *code_seen, *barred;
    const uint64_t *grants; /* the grant table, version 1 */
    uint32_t grant_count;
    uint32_t mfn_base;
    uint32_t count; /* frames of RAM */
};

enum {
    GRANT_PERMIT = 1,
    GRANT_READONLY = 1 << 2,
    GRANT_MARKS = 1 << 3 | 1 << 4, /* reading, writing */
    GRANT_SUB_PAGE = 1 << 8,
};
/* Of an entry: its kind, and to whom (domain 0). */
#define GRANT_READABLE (3u | GRANT_SUB_PAGE | 0xffffu << 16)

/* A granted frame: the entry as it was read, once, and the frame's index. */
struct xenpy_granted {
    uint64_t entry;
    uint32_t ref, index;
};

/* What `ref` grants to domain 0; false where that is nothing, or less than asked for. */
static inline bool xenpy_look_up(const struct xenpy_frames *f, uint32_t ref, bool to_write, struct xenpy_granted *g)
{
    if (ref >= f->grant_count)
        return false;
    g->ref = ref;
    g->entry = __atomic_load_n(&f->grants[ref], __ATOMIC_ACQUIRE);
    if ((g->entry & GRANT_READABLE) != GRANT_PERMIT || (to_write && (g->entry & GRANT_READONLY)))
        return false;
    g->index = (uint32_t)(g->entry >> 32) - f->mfn_base;
    return g->index < f->count;
}

/* Whether it is granted still; one that was taken back meanwhile was no grant. */
static inline bool xenpy_still_granted(const struct xenpy_frames *f, const struct xenpy_granted *g)
{
    return !((__atomic_load_n(&f->grants[g->ref], __ATOMIC_ACQUIRE) ^ g->entry) & ~(uint64_t)GRANT_MARKS);
}

static inline uint8_t *xenpy_bytes(const struct xenpy_frames *f, uint32_t index)
{
    return f->memory + (uint64_t)index * OUTSIDE_PAGE;
}

/* About to write a frame. False: it is not to be written. */
static inline bool xenpy_begin_write(const struct xenpy_frames *f, uint32_t index)
{
    __atomic_fetch_add(&f->writers[index], 1, __ATOMIC_SEQ_CST);
    if (!__atomic_load_n(&f->barred[index], __ATOMIC_SEQ_CST))
        return true;
    __atomic_fetch_sub(&f->writers[index], 1, __ATOMIC_SEQ_CST);
    return false;
}

/* It is written. False: the domain must be told before its guest is. */
static inline bool xenpy_end_write(const struct xenpy_frames *f, uint32_t index)
{
    __atomic_fetch_sub(&f->writers[index], 1, __ATOMIC_SEQ_CST);
    return !__atomic_load_n(&f->code_seen[index], __ATOMIC_SEQ_CST);
}

#endif
