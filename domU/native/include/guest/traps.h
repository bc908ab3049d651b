// SPDX-License-Identifier: GPL-2.0-only
// Exceptions: the table of handlers, and guarded calls that survive a fault and say what it was.
#ifndef GUEST_TRAPS_H
#define GUEST_TRAPS_H

#include <xen/xen.h>

#define TRAP_DIVIDE 0
#define TRAP_DEBUG 1
#define TRAP_BREAKPOINT 3
#define TRAP_OVERFLOW 4
#define TRAP_INVALID_OPCODE 6
#define TRAP_NO_DEVICE 7
#define TRAP_SEGMENT_NOT_PRESENT 11
#define TRAP_STACK 12
#define TRAP_GENERAL_PROTECTION 13
#define TRAP_PAGE_FAULT 14
#define TRAP_ALIGNMENT 17
#define VECTOR_EVENT 256 // pseudo vector of the event callback
#define VECTOR_SYSCALL 257 // pseudo vector of the guest's own system calls

#define PF_PRESENT 1
#define PF_WRITE 2
#define PF_USER 4
#define PF_RESERVED 8
#define PF_FETCH 16

#define FLAG_CARRY 0x1
#define FLAG_TRAP 0x100
#define FLAG_INTERRUPT 0x200
#define FLAG_DIRECTION 0x400
#define FLAG_IOPL 0x3000
#define FLAG_NESTED 0x4000
#define FLAG_ALIGN 0x40000

// As entry.S lays it out. Handlers may change it; the iret hypercall takes it back.
struct registers {
    u64 r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi;
    u64 vector;
    u64 error;
    u64 rip;
    u64 cs; // bits 32-39: the upcall mask at the time of the trap
    u64 rflags;
    u64 rsp;
    u64 ss;
};
#define SAVED_MASK(registers) (((registers)->cs >> 32) & 0xff)

// A handler returns true when it has dealt with the trap.
typedef bool (*trap_handler)(struct registers *registers);
void trap_set_handler(u32 vector, trap_handler handler);

// The table given to set_trap_table at start: every exception with privilege level 0, 3 and 4 with level 3.
extern struct trap_info trap_table[];
void traps_init(void);

struct trap_record {
    bool trapped;
    u32 vector;
    u32 error;
    u64 rip;
    u64 cr2;
    u64 cs;
    u64 ss;
    u64 rflags;
    u64 rsp;
    u8 mask_in_handler; // evtchn_upcall_mask as the handler found it
    struct registers registers;
};

// Calls fn(arg); a trap that no handler takes ends the call and is described by the result. Leaves user mode, too.
struct trap_record guarded(void (*fn)(void *arg), void *arg);

// A word read or written under guard.
bool probe_read(const volatile void *address, u64 *value);
bool probe_write(volatile void *address, u64 value);
struct trap_record probe_write_record(volatile void *address, u64 value);
struct trap_record probe_read_record(const volatile void *address);

// Entry points in entry.S.
extern char event_entry[], failsafe_entry[], syscall_entry[], guard_resume[];

#endif
