// SPDX-License-Identifier: GPL-2.0-only
/*
 * The most frequent exits, dealt with inside the emulator's loop (fast.h): guest syscalls and page faults, hypercalls and
 * multicalls of these (see events.c for events sent, the singleshot timer and sleep), and what a guest with the I/O
 * privilege may do: ports (none is there), cli and sti.
 */
#define _GNU_SOURCE
#include "fast.h"

#include <string.h>

enum { PF_PRESENT = 1, PF_WRITE = 2, PF_USER = 4, PF_RESERVED = 8, PF_FETCH = 16 };


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
        return xpy_mmu_update(e, a[0], (uint32_t)a[1], a[2], (uint32_t)a[3]);
    case STACK_SWITCH:
        e->fast.vcpu->kernel_ss = (a[0] | 3) & 0xffff;
        e->fast.vcpu->kernel_sp = a[1];
        return true;
    case UPDATE_VA_MAPPING:
        return xpy_update_va_mapping(e, a[0], a[1], a[2]);
    case SET_SEGMENT_BASE:
        return set_segment_base(e, a[0], a[1]);
    case MMUEXT_OP:
        return xpy_mmuext_op(e, a[0], (uint32_t)a[1], a[2], (uint32_t)a[3]);
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
    enum { MULTICALL = 13, XEN_VERSION = 17, IRET = 23 };
    struct cpu_state *cpu = e->cpu;
    uint64_t number = cpu->regs[0];
    const uint64_t a[4] = {cpu->regs[7], cpu->regs[6], cpu->regs[2], cpu->regs[10]};
    bool done;

    if (!e->fast.vcpu->kernel_mode) {
        if (!xpy_guest_syscall(e))
            return false;
    } else {
        if (number == IRET) {
            done = xpy_iret(e);
        } else {
            uint64_t result = 0;
            if (number == XEN_VERSION) { /* asked by who wants its events and nothing else */
                done = (uint32_t)a[0] == 0;
                result = e->fast.version;
            } else {
                done = number == MULTICALL ? multicall(e, a[0], (uint32_t)a[1]) : call(e, number, a);
            }
            if (done) {
                cpu->regs[0] = result;
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
    if (!xpy_bounce(e, e->cpu->eip, flags, v->traps[14].address, v->traps[14].flags & 4, error))
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
