// SPDX-License-Identifier: GPL-2.0-only
/*
 * Into the guest kernel and back, as in xen_py/traps.py: guest syscalls, page faults and event upcalls that push a frame on
 * the kernel's stack, and iret. See fast.h.
 */
#define _GNU_SOURCE
#include "fast.h"

#include <string.h>

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
bool xpy_bounce(struct xpy_engine *e, uint64_t rip, uint64_t flags, uint64_t target, bool mask_events, int64_t error)
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
    made = xpy_bounce(e, e->cpu->eip, flags, e->fast.vcpu->event_callback, true, -1);
    e->cpu->eflags = made ? read_flags(e) : flags;
    e->fast.upcalls += made;
    return made;
}

/* With rip where the guest will go on: the upcall, if one is due. One that cannot be made is left to Python: false. */
bool xpy_deliver_events(struct xpy_engine *e)
{
    struct xpy_vcpu *v = e->fast.vcpu;

    if (!upcall_due(e))
        return true;
    if (xpy_bounce(e, e->cpu->eip, read_flags(e), v->event_callback, true, -1)) {
        e->fast.upcalls++;
        return true;
    }
    e->r.kind = XPY_EVENT;
    e->uc_emu_stop(e->uc);
    return false;
}

bool xpy_guest_syscall(struct xpy_engine *e)
{
    struct xpy_vcpu *v = e->fast.vcpu;
    struct cpu_state *cpu = e->cpu;
    uint64_t flags = cpu->regs[11], rip = cpu->regs[1]; /* where the instruction has put them */
    uint32_t cs = cpu->segs[XPY_CS].selector, ss = cpu->segs[XPY_SS].selector;

    if (!(cpu->hflags & HF_CS64) || !v->syscall_callback || (flags & F_TF))
        return false;
    cpu->segs[XPY_CS].selector = 0xe033;
    cpu->segs[XPY_SS].selector = 0xe02b;
    if (!xpy_bounce(e, rip, flags, v->syscall_callback, v->syscall_masks_events, -1)) {
        cpu->segs[XPY_CS].selector = cs;
        cpu->segs[XPY_SS].selector = ss;
        return false;
    }
    cpu->df = 1;
    e->fast.guest_syscalls++;
    return true;
}

bool xpy_iret(struct xpy_engine *e)
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
