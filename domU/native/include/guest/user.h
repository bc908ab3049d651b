// SPDX-License-Identifier: GPL-2.0-only
// User mode: an address space of its own with one code page and one stack page, and the way into it by iret.
#ifndef GUEST_USER_H
#define GUEST_USER_H

#include <guest/traps.h>

#define USER_CODE 0x400000UL
#define USER_STACK 0x600000UL // one page, writable
#define USER_STACK_TOP (USER_STACK + 4096)
#define USER_HOLE 0x800000UL // never mapped

// What the iret hypercall finds at RSP.
struct iret_frame {
    u64 rax, r11, rcx, flags, rip, cs, rflags, rsp, ss;
};
#define IRET_IN_SYSCALL 0x100 // flags: rcx and r11 keep their values

// Makes the hypercall with RSP at `frame`; other registers are whatever they are.
__attribute__((noreturn)) void iret_hypercall(const struct iret_frame *frame);

// Builds and pins the user tables, sets kernel stack and user base pointer. 0 or -errno. Once.
long user_init(void);
extern u64 user_l4_mfn;

// Given to stack_switch: frames of traps from user mode start at its end.
#define USER_TRAP_STACK_SIZE 16384
extern char user_trap_stack[USER_TRAP_STACK_SIZE];

// User code is written as assembly in section .user_text; this is its address in user mode.
extern char user_text_start[];
#define USER_ADDRESS(symbol) (USER_CODE + (u64)((char *)(symbol)-user_text_start))

// Runs user code at `symbol` until it traps, with rdi = argument.
struct trap_record user_run(char *symbol, u64 argument);

#define USER_ASM(text) __asm__(".pushsection .user_text, \"ax\", @progbits\n" text "\n.popsection")

#endif
