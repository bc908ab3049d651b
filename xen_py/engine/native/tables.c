// SPDX-License-Identifier: GPL-2.0-only
/*
 * Changes of L1 entries, changes of the root, and flushes, as in xen_py/mmu.py and hypercalls/mmu.py. See fast.h.
 */
#define _GNU_SOURCE
#include "fast.h"

/* n bytes in one page to be written by the kernel's tables, whichever mode the guest is in. */
void *xpy_kernel_range(const struct xpy_engine *e, uint64_t va, uint64_t n)
{
    return (va & 0xfff) + n > 4096 ? NULL : guest_under(e, e->fast.vcpu->root << 12, va, true);
}

static bool set_l1(struct xpy_engine *e, uint64_t at, uint64_t new, bool preserve_ad)
{
    struct xpy_fast *d = &e->fast;
    uint64_t old = words(e)[at], i = d->frames, k = d->frames;
    uint64_t keep = preserve_ad && (new & M_PRESENT) ? old & (M_ACCESSED | M_DIRTY) : 0;

    if (new & M_PRESENT) {
        if (new & L1_DISALLOWED)
            return false;
        if (!(new & M_USER))
            new |= M_GUEST_KERNEL | M_USER;
        if (!(new & M_GUEST_KERNEL))
            new |= M_GLOBAL;
        if (!((old ^ new) & ~FREE_BITS)) {
            if ((old ^ new) & M_NX)
                return false;
            words(e)[at] = new | keep;
            return true;
        }
        i = frame_of(e, new);
        if (i == d->frames || !(d->flags[i] & FLAG_ALLOCATED))
            return false;
        if ((new & M_RW) && d->types[i] != TYPE_WRITABLE && d->type_counts[i])
            return false;
        if (!(new & M_NX) && (!d->code_maps[i] || d->flags[i] & FLAG_UNWATCHED))
            return false;
    }
    if (old & M_PRESENT) {
        k = frame_of(e, old);
        if (k == d->frames || d->refs[k] < 2 || (!(old & M_NX) && d->code_maps[k] < 2))
            return false;
    }
    if (new & M_PRESENT) {
        d->refs[i]++;
        if (new & M_RW) {
            d->types[i] = TYPE_WRITABLE;
            d->flags[i] |= FLAG_VALIDATED;
            d->type_counts[i]++;
        }
        if (!(new & M_NX))
            d->code_maps[i]++;
    }
    words(e)[at] = new | keep;
    if (old & M_PRESENT) {
        d->refs[k]--;
        if (old & M_RW)
            d->type_counts[k]--;
        if (!(old & M_NX))
            d->code_maps[k]--;
    }
    return true;
}

bool xpy_mmu_update(struct xpy_engine *e, uint64_t requests, uint64_t count, uint64_t done, uint64_t foreign)
{
    struct xpy_fast *d = &e->fast;

    if (done || foreign != DOMID_SELF || count > 128)
        return false;
    for (uint64_t n = 0; n < count; n++) {
        const uint64_t *request = guest_range(e, requests + 16 * n, 16, false);
        uint64_t target, value, command, i, at;

        if (!request)
            return false;
        target = request[0], value = request[1];
        command = target & 7;
        if (command != 0 && command != 2)
            return false;
        i = (target >> 12) - d->mfn_base;
        if (i >= d->frames || !(d->flags[i] & FLAG_ALLOCATED))
            return false;
        at = i * 512 + (target >> 3 & 511);
        if (!d->type_counts[i]) {
            d->types[i] = TYPE_WRITABLE;
            d->flags[i] |= FLAG_VALIDATED;
            words(e)[at] = value;
        } else if (d->types[i] == TYPE_WRITABLE) {
            words(e)[at] = value;
        } else if (d->types[i] != TYPE_L1 || !set_l1(e, at, value, command == 2)) {
            return false;
        }
    }
    return true;
}

static void flush_all(struct xpy_engine *e)
{
    xpy_flush_tlb_modes(e, 7);
    e->c.tlb_flushes++;
}

bool xpy_update_va_mapping(struct xpy_engine *e, uint64_t va, uint64_t value, uint64_t flags)
{
    int64_t at = l1_entry(e, va, M_PRESENT);
    uint64_t i = (uint64_t)at / 512;

    if (at < 0 || e->fast.types[i] != TYPE_L1 || !e->fast.type_counts[i] || !set_l1(e, (uint64_t)at, value, false))
        return false;
    if ((flags & 3) == 2)
        xpy_flush_page(e, va);
    else if ((flags & 3) == 1)
        flush_all(e);
    return true;
}

/* A further reference to an L4 table that is one already; its frame index, or `frames`. */
static uint64_t take_root(struct xpy_engine *e, uint64_t mfn)
{
    struct xpy_fast *d = &e->fast;
    uint64_t i = mfn - d->mfn_base;

    if (i >= d->frames || d->types[i] != TYPE_L4 || !d->type_counts[i] || !(d->flags[i] & FLAG_VALIDATED))
        return d->frames;
    d->type_counts[i]++;
    d->refs[i]++;
    return i;
}

/* Whether the old root stays a table when this reference to it goes. */
static bool can_drop_root(const struct xpy_engine *e, uint64_t mfn)
{
    uint64_t i = mfn - e->fast.mfn_base;

    return i < e->fast.frames && e->fast.type_counts[i] > 1 && e->fast.refs[i] > 1;
}

static void drop_root(struct xpy_engine *e, uint64_t mfn)
{
    e->fast.type_counts[mfn - e->fast.mfn_base]--;
    e->fast.refs[mfn - e->fast.mfn_base]--;
}

static bool new_root(struct xpy_engine *e, uint64_t mfn)
{
    struct xpy_vcpu *v = e->fast.vcpu;
    uint64_t i;

    if (mfn != v->root) {
        if (v->ldt_pages || !can_drop_root(e, v->root))
            return false;
        i = take_root(e, mfn);
        if (i == e->fast.frames)
            return false;
        words(e)[i * 512 + 256] = e->fast.m2p_entry;
        drop_root(e, v->root);
        v->root = mfn;
    }
    e->tlb_stale = true;
    xpy_use_root(e, mfn << 12);
    return true;
}

static bool new_user_root(struct xpy_engine *e, uint64_t mfn)
{
    struct xpy_vcpu *v = e->fast.vcpu;
    uint64_t i;

    if (mfn == v->user_root)
        return true;
    if (v->user_root && !can_drop_root(e, v->user_root))
        return false;
    if (mfn) {
        i = take_root(e, mfn);
        if (i == e->fast.frames)
            return false;
        if (e->fast.m2p_strict)
            words(e)[i * 512 + 256] = 0;
    }
    if (v->user_root)
        drop_root(e, v->user_root);
    v->user_root = mfn;
    return true;
}

bool xpy_mmuext_op(struct xpy_engine *e, uint64_t ops, uint64_t count, uint64_t done, uint64_t foreign)
{
    enum { NEW_BASEPTR = 5, TLB_FLUSH_LOCAL = 6, INVLPG_LOCAL = 7, TLB_FLUSH_ALL = 10, INVLPG_ALL = 11,
           NEW_USER_BASEPTR = 15 };

    if (done || foreign != DOMID_SELF || count > 16)
        return false;
    for (uint64_t n = 0; n < count; n++) {
        const uint64_t *op = guest_range(e, ops + 24 * n, 24, false);
        uint64_t argument;

        if (!op)
            return false;
        argument = op[1];
        switch ((uint32_t)op[0]) {
        case NEW_BASEPTR:
            if (!new_root(e, argument))
                return false;
            break;
        case NEW_USER_BASEPTR:
            if (!new_user_root(e, argument))
                return false;
            break;
        case TLB_FLUSH_LOCAL:
        case TLB_FLUSH_ALL:
            flush_all(e);
            break;
        case INVLPG_LOCAL:
        case INVLPG_ALL:
            xpy_flush_page(e, argument);
            break;
        default:
            return false;
        }
    }
    return true;
}
