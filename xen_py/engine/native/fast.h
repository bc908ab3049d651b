/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the fast path stands on: guest addresses and page-table entries, flags, and what its files have of each other.
 * Exits come in by fast.c; entry.c goes into the guest kernel and back, tables.c changes page tables.
 *
 * The readable reference is Python: xen_py/traps.py, xen_py/mmu.py, xen_py/guestmem.py, xen_py/privop.py and
 * hypercalls/mmu.py, and a test compares the two. This code works on the same arrays. It does the plain cases only: at
 * anything else, an error above all, it answers false having changed nothing that doing the whole call again in Python
 * would not set right (writing an entry that is there already, or loading the root that is loaded, changes nothing), and
 * Python does it. All of it is the domain's thread's.
 */
#ifndef XENPY_FAST_H
#define XENPY_FAST_H

#include "internal.h"

#define M_PRESENT 1ull
#define M_RW 2ull
#define M_USER 4ull
#define M_ACCESSED 0x20ull
#define M_DIRTY 0x40ull
#define M_GLOBAL 0x100ull
#define M_AVAIL 0xe00ull
#define M_AVAIL_HIGH (0x7ffull << 52)
#define M_GUEST_KERNEL (1ull << 52)
#define M_NX (1ull << 63)
#define M_FRAME 0x000ffffffffff000ull
#define L1_DISALLOWED (0x98ull | 1ull << 62)
#define FREE_BITS (M_NX | M_AVAIL_HIGH | M_AVAIL | M_GLOBAL | M_DIRTY | M_ACCESSED | M_USER)

enum { TYPE_L1 = 1, TYPE_L4 = 4, TYPE_WRITABLE = 7 };

enum { F_TF = 0x100, F_IF = 0x200, F_DF = 0x400, F_IOPL = 0x3000, F_NT = 0x4000, F_RF = 0x10000, F_VM = 0x20000,
       F_AC = 0x40000, F_ALL = 0x3f7fd5, F_ARITHMETIC = 0x8d5 };
#define HYPERVISOR_START 0xffff800000000000ull
#define HYPERVISOR_END 0xffff880000000000ull
#define FLAT_KERNEL_CS 0xe033
#define FLAT_KERNEL_SS 0xe02b
#define DOMID_SELF 0x7ff0
#define CC_OP_EFLAGS 1

/* ---- guest addresses ---- */

static inline bool canonical(uint64_t a) { return a < 1ull << 47 || a >= -(1ull << 47); }

static inline uint64_t *words(const struct xpy_engine *e) { return (uint64_t *)e->fast.memory; }

/* Frame index of what a page-table entry names; `frames` when it is none of the domain's. */
static inline uint64_t frame_of(const struct xpy_engine *e, uint64_t entry)
{
    uint64_t i = ((entry & M_FRAME) >> 12) - e->fast.mfn_base;

    return i < e->fast.frames ? i : e->fast.frames;
}

/* Word index of the L1 entry for a guest address under the root at that machine address, or -1. */
static inline int64_t l1_entry_under(const struct xpy_engine *e, uint64_t root, uint64_t va, uint64_t need)
{
    uint64_t i = frame_of(e, root);

    if (va >= HYPERVISOR_START && va < HYPERVISOR_START + (16ull << 39))
        return -1;
    for (int shift = 39; shift > 12; shift -= 9) {
        uint64_t entry;
        if (i == e->fast.frames)
            return -1;
        entry = words(e)[i * 512 + (va >> shift & 511)];
        if ((entry & need) != need)
            return -1;
        i = frame_of(e, entry);
    }
    return i == e->fast.frames ? -1 : (int64_t)(i * 512 + (va >> 12 & 511));
}

/* The same under the root in force. */
static inline int64_t l1_entry(const struct xpy_engine *e, uint64_t va, uint64_t need)
{
    return l1_entry_under(e, e->cpu->cr[3], va, need);
}

/* Where a guest address lies in our memory, with accessed and dirty bits set as by a CPU; NULL if it may not be used. */
static inline void *guest_under(const struct xpy_engine *e, uint64_t root, uint64_t va, bool write)
{
    uint64_t need = write ? M_PRESENT | M_RW : M_PRESENT, used = write ? M_ACCESSED | M_DIRTY : M_ACCESSED;
    int64_t at = canonical(va) ? l1_entry_under(e, root, va, need) : -1;
    uint64_t i;

    if (at < 0 || (words(e)[at] & need) != need)
        return NULL;
    i = frame_of(e, words(e)[at]);
    if (i == e->fast.frames)
        return NULL;
    words(e)[at] |= used;
    return e->fast.memory + (i << 12) + (va & 0xfff);
}

static inline void *guest(const struct xpy_engine *e, uint64_t va, bool write)
{
    return guest_under(e, e->cpu->cr[3], va, write);
}

/* The same for n bytes, which must lie in one page. */
static inline void *guest_range(const struct xpy_engine *e, uint64_t va, uint64_t n, bool write)
{
    return (va & 0xfff) + n > 4096 ? NULL : guest(e, va, write);
}

/* ---- flags, as they are kept while the emulator is running ---- */

static inline uint64_t read_flags(struct xpy_engine *e)
{
    uint64_t flags = 0;

    e->uc_reg_read(e->uc, UC_X86_REG_RFLAGS, &flags);
    return flags;
}

static inline void write_flags(struct xpy_engine *e, uint64_t flags)
{
    struct cpu_state *cpu = e->cpu;

    cpu->cc_src = flags & F_ARITHMETIC;
    cpu->cc_op = CC_OP_EFLAGS;
    cpu->df = flags & F_DF ? -1 : 1;
    cpu->eflags = (flags & ~(uint64_t)(F_ARITHMETIC | F_DF)) | 2;
}

/* entry.c */
bool xpy_bounce(struct xpy_engine *e, uint64_t rip, uint64_t flags, uint64_t target, bool mask_events, int64_t error);
bool xpy_guest_syscall(struct xpy_engine *e);
bool xpy_iret(struct xpy_engine *e);

/* tables.c */
bool xpy_mmu_update(struct xpy_engine *e, uint64_t requests, uint64_t count, uint64_t done, uint64_t foreign);
bool xpy_update_va_mapping(struct xpy_engine *e, uint64_t va, uint64_t value, uint64_t flags);
bool xpy_mmuext_op(struct xpy_engine *e, uint64_t ops, uint64_t count, uint64_t done, uint64_t foreign);

#endif
