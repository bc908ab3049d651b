// SPDX-License-Identifier: GPL-2.0-only
/*
 * The most frequent exits, dealt with inside the emulator's loop: guest syscalls and page faults bounced to the guest
 * kernel, event upcalls, iret, changes of L1 entries, changes of the root, small flushes, events sent, the singleshot
 * timer, sleep (see events.c for these three), multicalls of these, and what a guest with the I/O privilege may do: ports (none is there), cli and sti.
 *
 * The readable reference is Python: xen_py/traps.py, xen_py/mmu.py, xen_py/guestmem.py, xen_py/privop.py and
 * hypercalls/mmu.py, and a test compares the two. This code works on the same arrays. It does the plain cases only: at anything else, an error above
 * all, it answers false having changed nothing that doing the whole call again in Python would not set right (writing
 * an entry that is there already, or loading the root that is loaded, changes nothing), and Python does it.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <string.h>

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

enum { TYPE_NONE = 0, TYPE_L1 = 1, TYPE_L4 = 4, TYPE_WRITABLE = 7 };

enum { F_TF = 0x100, F_IF = 0x200, F_DF = 0x400, F_IOPL = 0x3000, F_NT = 0x4000, F_RF = 0x10000, F_VM = 0x20000,
       F_AC = 0x40000, F_ALL = 0x3f7fd5, F_ARITHMETIC = 0x8d5 };
enum { PF_PRESENT = 1, PF_WRITE = 2, PF_USER = 4, PF_RESERVED = 8, PF_FETCH = 16 };

#define HYPERVISOR_START 0xffff800000000000ull
#define HYPERVISOR_END 0xffff880000000000ull
#define FLAT_KERNEL_CS 0xe033
#define FLAT_KERNEL_SS 0xe02b
#define DOMID_SELF 0x7ff0
#define CC_OP_EFLAGS 1

static bool canonical(uint64_t a) { return a < 1ull << 47 || a >= -(1ull << 47); }

static uint64_t *words(const struct xpy_engine *e) { return (uint64_t *)e->fast.memory; }

/* Frame index of what a page-table entry names; `frames` when it is none of the domain's. */
static uint64_t frame_of(const struct xpy_engine *e, uint64_t entry)
{
    uint64_t i = ((entry & M_FRAME) >> 12) - e->fast.mfn_base;

    return i < e->fast.frames ? i : e->fast.frames;
}

/* Word index of the L1 entry for a guest address under the root at that machine address, or -1. */
static int64_t l1_entry_under(const struct xpy_engine *e, uint64_t root, uint64_t va, uint64_t need)
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
static int64_t l1_entry(const struct xpy_engine *e, uint64_t va, uint64_t need)
{
    return l1_entry_under(e, e->cpu->cr[3], va, need);
}

/* Where a guest address lies in our memory, with accessed and dirty bits set as by a CPU; NULL if it may not be used. */
static void *guest_under(const struct xpy_engine *e, uint64_t root, uint64_t va, bool write)
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

static void *guest(const struct xpy_engine *e, uint64_t va, bool write)
{
    return guest_under(e, e->cpu->cr[3], va, write);
}

/* n bytes in one page to be written by the kernel's tables, whichever mode the guest is in. */
void *xpy_kernel_range(const struct xpy_engine *e, uint64_t va, uint64_t n)
{
    return (va & 0xfff) + n > 4096 ? NULL : guest_under(e, e->fast.vcpu->root << 12, va, true);
}

/* The same for n bytes that must lie in one page. */
static void *guest_range(const struct xpy_engine *e, uint64_t va, uint64_t n, bool write)
{
    return (va & 0xfff) + n > 4096 ? NULL : guest(e, va, write);
}

/* ---- flags, as they are kept while the emulator is running ---- */

static uint64_t read_flags(struct xpy_engine *e)
{
    uint64_t flags = 0;

    e->uc_reg_read(e->uc, UC_X86_REG_RFLAGS, &flags);
    return flags;
}

static void write_flags(struct xpy_engine *e, uint64_t flags)
{
    struct cpu_state *cpu = e->cpu;

    cpu->cc_src = flags & F_ARITHMETIC;
    cpu->cc_op = CC_OP_EFLAGS;
    cpu->df = flags & F_DF ? -1 : 1;
    cpu->eflags = (flags & ~(uint64_t)(F_ARITHMETIC | F_DF)) | 2;
}

/* ---- into the guest kernel and back ---- */

static void toggle_mode(struct xpy_engine *e)
{
    struct xpy_vcpu *v = e->fast.vcpu;
    uint64_t *active = &e->cpu->segs[XPY_GS].base;

    if (v->kernel_mode) {
        v->gs_base_kernel = *active;
        *active = v->gs_base_user;
        v->kernel_mode = 0;
        xpy_change_mode(e);
        xpy_use_root(e, v->user_root << 12);
    } else {
        v->gs_base_user = *active;
        *active = v->gs_base_kernel;
        v->kernel_mode = 1;
        xpy_change_mode(e);
        xpy_use_root(e, v->root << 12);
    }
}

/* Pushes a frame for `rip` and the present registers and goes to `target`; with a negative error code there is none. */
static bool bounce(struct xpy_engine *e, uint64_t rip, uint64_t flags, uint64_t target, bool mask_events, int64_t error)
{
    struct xpy_vcpu *v = e->fast.vcpu;
    struct cpu_state *cpu = e->cpu;
    uint8_t *info = e->fast.memory + v->info_offset;
    bool from_user = !v->kernel_mode;
    uint64_t n = error < 0 ? 7 : 8, cs = cpu->segs[XPY_CS].selector, rsp;
    uint64_t *frame;

    if (!target)
        return false;
    rsp = (from_user ? v->kernel_sp : cpu->regs[4]) & ~15ull;
    if (rsp > HYPERVISOR_START && rsp < HYPERVISOR_END + 64)
        return false;
    rsp -= n * 8;
    if (from_user)
        toggle_mode(e);
    else
        cs &= ~3ull;
    frame = guest_range(e, rsp, n * 8, true);
    if (!frame) {
        if (from_user)
            toggle_mode(e);
        return false;
    }
    frame[0] = cpu->regs[1];
    frame[1] = cpu->regs[11];
    if (error >= 0)
        frame[2] = (uint64_t)error;
    frame += n - 5;
    frame[0] = rip;
    frame[1] = cs | (uint64_t)info[1] << 32;
    frame[2] = (flags & ~(uint64_t)(F_IF | F_IOPL)) | (e->fast.architectural_iopl ? v->iopl : 0) |
               (info[1] ? 0 : F_IF);
    frame[3] = cpu->regs[4];
    frame[4] = cpu->segs[XPY_SS].selector;
    if (mask_events)
        info[1] |= 1;
    cpu->regs[4] = rsp;
    cpu->segs[XPY_SS].selector = FLAT_KERNEL_SS;
    cpu->segs[XPY_CS].selector = FLAT_KERNEL_CS;
    cpu->segs[XPY_CS].base = 0;
    cpu->segs[XPY_CS].flags = FLAT_CODE64;
    cpu->hflags |= HF_CS64;
    write_flags(e, (flags & ~(uint64_t)(F_AC | F_VM | F_RF | F_NT | F_TF | F_IOPL)) | F_IF);
    cpu->eip = target;
    return true;
}

static bool upcall_due(const struct xpy_engine *e)
{
    const uint8_t *info = e->fast.memory + e->fast.vcpu->info_offset;

    return info[0] && !info[1];
}

/* While the emulator is not running: the upcall, if one is due; false when it cannot be made, which is left to Python. */
bool xpy_upcall(struct xpy_engine *e)
{
    uint64_t flags = e->cpu->eflags;
    bool made;

    if (!upcall_due(e))
        return true;
    write_flags(e, flags); /* as they are kept while it runs, and afterwards whole again */
    made = bounce(e, e->cpu->eip, flags, e->fast.vcpu->event_callback, true, -1);
    e->cpu->eflags = made ? read_flags(e) : flags;
    e->fast.upcalls += made;
    return made;
}

/* With rip where the guest will go on: the upcall, if one is due. One that cannot be made is left to Python: false. */
bool xpy_deliver_events(struct xpy_engine *e)
{
    struct xpy_vcpu *v = e->fast.vcpu;

    if (!upcall_due(e) || !v->event_callback)
        return true;
    if (bounce(e, e->cpu->eip, read_flags(e), v->event_callback, true, -1)) {
        e->fast.upcalls++;
        return true;
    }
    e->r.kind = XPY_EVENT;
    e->uc_emu_stop(e->uc);
    return false;
}

static bool guest_syscall(struct xpy_engine *e)
{
    struct xpy_vcpu *v = e->fast.vcpu;
    struct cpu_state *cpu = e->cpu;
    uint64_t flags = cpu->regs[11], rip = cpu->regs[1]; /* where the instruction has put them */
    uint32_t cs = cpu->segs[XPY_CS].selector, ss = cpu->segs[XPY_SS].selector;

    if (!(cpu->hflags & HF_CS64) || !v->syscall_callback || (flags & F_TF))
        return false;
    cpu->segs[XPY_CS].selector = 0xe033;
    cpu->segs[XPY_SS].selector = 0xe02b;
    if (!bounce(e, rip, flags, v->syscall_callback, v->syscall_masks_events, -1)) {
        cpu->segs[XPY_CS].selector = cs;
        cpu->segs[XPY_SS].selector = ss;
        return false;
    }
    cpu->df = 1;
    e->fast.guest_syscalls++;
    return true;
}

static bool iret(struct xpy_engine *e)
{
    struct xpy_vcpu *v = e->fast.vcpu;
    struct cpu_state *cpu = e->cpu;
    const uint64_t *f = guest_range(e, cpu->regs[4], 72, false);
    uint64_t frame[9], flags;

    if (!f || e->fast.architectural_iopl)
        return false;
    memcpy(frame, f, sizeof frame);
    /* rax r11 rcx flags rip cs rflags rsp ss; selectors that need a look at the descriptor tables are Python's */
    if ((frame[5] | 3) != FLAT_KERNEL_CS || (frame[8] | 3) != FLAT_KERNEL_SS) {
        if ((frame[5] & 0xffff) != 0x33 || (frame[8] & 0xffff) != 0x2b || v->user_selectors != 1)
            return false;
    }
    if (!canonical(frame[4]) || (frame[6] & F_TF))
        return false;
    if ((frame[5] & 3) == 3) {
        if (!v->user_root)
            return false;
        toggle_mode(e);
    }
    flags = (frame[6] & F_ALL & ~(uint64_t)(F_IOPL | F_VM)) | F_IF | 2;
    cpu->eip = frame[4];
    cpu->segs[XPY_CS].selector = (uint32_t)((frame[5] | 3) & 0xffff);
    cpu->segs[XPY_SS].selector = (uint32_t)((frame[8] | 3) & 0xffff);
    cpu->segs[XPY_CS].base = 0;
    cpu->segs[XPY_CS].flags = FLAT_CODE64;
    cpu->hflags |= HF_CS64;
    write_flags(e, flags);
    cpu->regs[4] = frame[7];
    if (frame[3] & 0x100) {
        cpu->regs[1] = frame[4];
        cpu->regs[11] = flags;
    } else {
        cpu->regs[1] = frame[2];
        cpu->regs[11] = frame[1];
    }
    cpu->regs[0] = frame[0];
    e->fast.memory[v->info_offset + 1] = frame[6] & F_IF ? 0 : 1;
    return true;
}

/* ---- page tables ---- */

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

static bool mmu_update(struct xpy_engine *e, uint64_t requests, uint64_t count, uint64_t done, uint64_t foreign)
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
    e->flush_modes(e->cpu_object, 7);
    e->c.tlb_flushes++;
}

static bool update_va_mapping(struct xpy_engine *e, uint64_t va, uint64_t value, uint64_t flags)
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

static bool mmuext_op(struct xpy_engine *e, uint64_t ops, uint64_t count, uint64_t done, uint64_t foreign)
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

static bool set_segment_base(struct xpy_engine *e, uint64_t which, uint64_t base)
{
    if (!canonical(base))
        return false;
    switch ((uint32_t)which) {
    case 0:
        e->cpu->segs[XPY_FS].base = base;
        return true;
    case 1:
        e->fast.vcpu->gs_base_user = base;
        return true;
    case 2:
        e->cpu->segs[XPY_GS].base = base;
        return true;
    }
    return false;
}

static bool event_channel_op(const struct xpy_engine *e, uint32_t command, uint64_t argument)
{
    enum { SEND = 4 };
    const uint32_t *port = command == SEND ? guest_range(e, argument, 4, false) : NULL;

    return port && xpy_send(e, *port);
}

static bool vcpu_op(struct xpy_engine *e, uint32_t command, uint32_t vcpu, uint64_t argument)
{
    enum { SET_SINGLESHOT_TIMER = 8, STOP_SINGLESHOT_TIMER = 9 };
    const uint64_t *timeout;

    if (vcpu)
        return false;
    switch (command) {
    case SET_SINGLESHOT_TIMER:
        timeout = guest_range(e, argument, 12, false);
        return timeout && xpy_set_singleshot(e, *timeout ? *timeout : 1);
    case STOP_SINGLESHOT_TIMER:
        return xpy_set_singleshot(e, 0);
    }
    return false;
}

static bool sched_op(struct xpy_engine *e, uint32_t command)
{
    enum { BLOCK = 1 };

    return command == BLOCK && xpy_block(e);
}

/* One hypercall with result 0; false leaves it to Python. */
static bool call(struct xpy_engine *e, uint64_t number, const uint64_t a[4])
{
    enum { MMU_UPDATE = 1, STACK_SWITCH = 3, UPDATE_VA_MAPPING = 14, VCPU_OP = 24, SET_SEGMENT_BASE = 25,
           MMUEXT_OP = 26, SCHED_OP = 29, EVENT_CHANNEL_OP = 32 };

    switch (number) {
    case MMU_UPDATE:
        return mmu_update(e, a[0], (uint32_t)a[1], a[2], (uint32_t)a[3]);
    case STACK_SWITCH:
        e->fast.vcpu->kernel_ss = (a[0] | 3) & 0xffff;
        e->fast.vcpu->kernel_sp = a[1];
        return true;
    case UPDATE_VA_MAPPING:
        return update_va_mapping(e, a[0], a[1], a[2]);
    case SET_SEGMENT_BASE:
        return set_segment_base(e, a[0], a[1]);
    case MMUEXT_OP:
        return mmuext_op(e, a[0], (uint32_t)a[1], a[2], (uint32_t)a[3]);
    case EVENT_CHANNEL_OP:
        return event_channel_op(e, (uint32_t)a[0], a[1]);
    case VCPU_OP:
        return vcpu_op(e, (uint32_t)a[0], (uint32_t)a[1], a[2]);
    case SCHED_OP:
        return sched_op(e, (uint32_t)a[0]);
    }
    return false;
}

static bool multicall(struct xpy_engine *e, uint64_t calls, uint64_t count)
{
    if (count > 64)
        return false;
    for (uint64_t n = 0; n < count; n++) {
        uint64_t *entry = guest_range(e, calls + 64 * n, 64, true);
        uint64_t op, arguments[4];

        if (!entry)
            return false;
        op = entry[0];
        memcpy(arguments, entry + 2, sizeof arguments);
        if (!call(e, op, arguments))
            return false;
        /* the call may have changed the address space: find the entry again, as the result is written through it */
        entry = guest_range(e, calls + 64 * n, 64, true);
        if (!entry)
            return false;
        entry[1] = 0;
        e->fast.calls[op]++;
    }
    return true;
}

/* A `syscall` instruction; rip is still on it, and 2 is added when we return. */
bool xpy_fast_syscall(struct xpy_engine *e)
{
    enum { MULTICALL = 13, IRET = 23 };
    struct cpu_state *cpu = e->cpu;
    uint64_t number = cpu->regs[0];
    const uint64_t a[4] = {cpu->regs[7], cpu->regs[6], cpu->regs[2], cpu->regs[10]};
    bool done;

    if (!e->fast.vcpu->kernel_mode) {
        if (!guest_syscall(e))
            return false;
    } else {
        if (number == IRET) {
            done = iret(e);
        } else {
            done = number == MULTICALL ? multicall(e, a[0], (uint32_t)a[1]) : call(e, number, a);
            if (done) {
                cpu->regs[0] = 0;
                cpu->eip += 2;
            }
        }
        if (!done)
            return false;
        e->fast.calls[number]++;
    }
    xpy_deliver_events(e);
    cpu->eip -= 2;
    return true;
}

/* A page fault; rip is on the instruction. */
bool xpy_fast_page_fault(struct xpy_engine *e)
{
    struct xpy_vcpu *v = e->fast.vcpu;
    uint64_t address = e->cpu->cr[2], flags = read_flags(e);
    uint32_t error = (uint32_t)*e->error_code;

    if ((address >= HYPERVISOR_START && address < HYPERVISOR_END) || !v->traps[14].address || (flags & F_TF))
        return false;
    if ((error & (PF_PRESENT | PF_WRITE | PF_RESERVED | PF_FETCH)) == (PF_PRESENT | PF_WRITE) && v->kernel_mode &&
        e->fast.writable_pagetables) {
        /* a write to a page table is carried out by Python */
        int64_t at = l1_entry(e, address, M_PRESENT);
        uint64_t i = at < 0 ? e->fast.frames : frame_of(e, words(e)[at]);
        if (i < e->fast.frames && e->fast.types[i] == TYPE_L1 && e->fast.type_counts[i])
            return false;
    }
    error &= ~PF_USER;
    if (!v->kernel_mode)
        error |= PF_USER;
    if (!bounce(e, e->cpu->eip, flags, v->traps[14].address, v->traps[14].flags & 4, error))
        return false;
    words(e)[(v->info_offset + 16) / 8] = address;
    e->fast.page_faults++;
    return true;
}

/* Whether the guest's I/O privilege level lets it touch ports and the interrupt flag; its port bitmap is Python's. */
static bool iopl_allows(const struct xpy_engine *e)
{
    const struct xpy_vcpu *v = e->fast.vcpu;

    return v->iopl >> 12 >= (v->kernel_mode ? (e->fast.architectural_iopl ? 0 : 1) : 3);
}

bool xpy_fast_io(const struct xpy_engine *e) { return e->fast.vcpu && iopl_allows(e); }

/* A #GP: cli and sti, which do nothing, as events are masked elsewhere. rip is on the instruction. */
bool xpy_fast_privileged(struct xpy_engine *e)
{
    const uint8_t *code = *e->error_code ? NULL : guest(e, e->cpu->eip, false);

    if (!code || (*code != 0xfa && *code != 0xfb) || !iopl_allows(e) || (read_flags(e) & F_TF))
        return false;
    e->cpu->eip++;
    return true;
}
