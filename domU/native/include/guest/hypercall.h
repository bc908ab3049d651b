// SPDX-License-Identifier: GPL-2.0-only
// Hypercalls by inline `syscall`: number in rax, arguments in rdi rsi rdx r10 r8, result in rax; rcx and r11 are lost.
#ifndef GUEST_HYPERCALL_H
#define GUEST_HYPERCALL_H

#include <xen/xen.h>

static inline long hypercall5(u64 number, u64 a, u64 b, u64 c, u64 d, u64 e)
{
    register u64 r10 __asm__("r10") = d;
    register u64 r8 __asm__("r8") = e;
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result), "+D"(a), "+S"(b), "+d"(c), "+r"(r10), "+r"(r8)
                     : "0"(number)
                     : "rcx", "r11", "memory");
    return result;
}

static inline long hypercall4(u64 number, u64 a, u64 b, u64 c, u64 d)
{
    return hypercall5(number, a, b, c, d, 0);
}

static inline long hypercall3(u64 number, u64 a, u64 b, u64 c)
{
    return hypercall5(number, a, b, c, 0, 0);
}

static inline long hypercall2(u64 number, u64 a, u64 b)
{
    return hypercall5(number, a, b, 0, 0, 0);
}

static inline long hypercall1(u64 number, u64 a)
{
    return hypercall5(number, a, 0, 0, 0, 0);
}

// Typed wrappers, one for each call the guests use by name.

static inline long hyp_set_trap_table(const struct trap_info *table)
{
    return hypercall1(HYPERCALL_set_trap_table, (u64)table);
}

static inline long hyp_mmu_update(const struct mmu_update *updates, u32 count, u32 *done, u32 domid)
{
    return hypercall4(HYPERCALL_mmu_update, (u64)updates, count, (u64)done, domid);
}

static inline long hyp_mmuext_op(const struct mmuext_op *ops, u32 count, u32 *done, u32 domid)
{
    return hypercall4(HYPERCALL_mmuext_op, (u64)ops, count, (u64)done, domid);
}

static inline long hyp_update_va_mapping(u64 va, u64 pte, u64 flags)
{
    return hypercall3(HYPERCALL_update_va_mapping, va, pte, flags);
}

static inline long hyp_stack_switch(u64 ss, u64 sp)
{
    return hypercall2(HYPERCALL_stack_switch, ss, sp);
}

static inline long hyp_set_segment_base(u32 which, u64 base)
{
    return hypercall2(HYPERCALL_set_segment_base, which, base);
}

static inline long hyp_set_gdt(const u64 *frames, u32 entries)
{
    return hypercall2(HYPERCALL_set_gdt, (u64)frames, entries);
}

static inline long hyp_update_descriptor(u64 machine_address, u64 descriptor)
{
    return hypercall2(HYPERCALL_update_descriptor, machine_address, descriptor);
}

static inline long hyp_fpu_taskswitch(bool set)
{
    return hypercall1(HYPERCALL_fpu_taskswitch, set);
}

static inline long hyp_set_debugreg(u32 which, u64 value)
{
    return hypercall2(HYPERCALL_set_debugreg, which, value);
}

static inline long hyp_get_debugreg(u32 which)
{
    return hypercall1(HYPERCALL_get_debugreg, which);
}

static inline long hyp_multicall(struct multicall_entry *calls, u32 count)
{
    return hypercall2(HYPERCALL_multicall, (u64)calls, count);
}

static inline long hyp_vm_assist(u32 command, u32 type)
{
    return hypercall2(HYPERCALL_vm_assist, command, type);
}

static inline long hyp_memory_op(u32 command, void *argument)
{
    return hypercall2(HYPERCALL_memory_op, command, (u64)argument);
}

static inline long hyp_xen_version(u32 command, void *argument)
{
    return hypercall2(HYPERCALL_xen_version, command, (u64)argument);
}

static inline long hyp_sched_op(u32 command, const void *argument)
{
    return hypercall2(HYPERCALL_sched_op, command, (u64)argument);
}

static inline long hyp_vcpu_op(u32 command, u32 vcpu, void *argument)
{
    return hypercall3(HYPERCALL_vcpu_op, command, vcpu, (u64)argument);
}

static inline long hyp_event_channel_op(u32 command, void *argument)
{
    return hypercall2(HYPERCALL_event_channel_op, command, (u64)argument);
}

static inline long hyp_callback_op(u32 command, const void *argument)
{
    return hypercall2(HYPERCALL_callback_op, command, (u64)argument);
}

static inline long hyp_grant_table_op(u32 command, void *argument, u32 count)
{
    return hypercall3(HYPERCALL_grant_table_op, command, (u64)argument, count);
}

static inline long hyp_physdev_op(u32 command, void *argument)
{
    return hypercall2(HYPERCALL_physdev_op, command, (u64)argument);
}

static inline long hyp_console_io(u32 command, u32 count, char *buffer)
{
    return hypercall3(HYPERCALL_console_io, command, count, (u64)buffer);
}

static inline long hyp_set_timer_op(u64 deadline_ns)
{
    return hypercall1(HYPERCALL_set_timer_op, deadline_ns);
}

#endif
