// SPDX-License-Identifier: GPL-2.0-only
// The guest's first instructions, the entry points of traps and callbacks, and the way back by the iret hypercall.
// A trap arrives with [rcx r11 (error) rip cs rflags rsp ss] on the stack (Xen's create_bounce_frame).

    .section .text.entry, "ax", @progbits
    .globl _start
_start:
    movq %rax, start_registers(%rip)
    movq %rsp, start_registers+8(%rip)
    movq %rsi, start_registers+16(%rip)
    pushfq
    popq start_registers+24(%rip)
    movq %cs, %rax
    movq %rax, start_registers+32(%rip)
    movq %ss, %rax
    movq %rax, start_registers+40(%rip)
    movq %ds, %rax
    movq %rax, start_registers+48(%rip)
    movq %rbx, start_registers+56(%rip)
    cld
    movq %rsi, %rdi
    leaq boot_stack_top(%rip), %rsp
    xorl %ebp, %ebp
    call guest_start
    ud2

    .section .bss.boot_stack, "aw", @nobits
    .balign 4096
    .globl boot_stack_bottom
boot_stack_bottom:
    .skip 32768
    .globl boot_stack_top
boot_stack_top:

    .bss
    .balign 8
    .globl start_registers
start_registers:                // rax rsp rsi rflags cs ss ds rbx, as the builder made them
    .skip 64

    .text

.macro entry_plain name, vector
    .globl \name
    .balign 16
\name:
    popq %rcx
    popq %r11
    pushq $0
    pushq $\vector
    jmp trap_common
.endm

.macro entry_error name, vector
    .globl \name
    .balign 16
\name:
    popq %rcx
    popq %r11
    pushq $\vector
    jmp trap_common
.endm

    entry_plain trap_0, 0
    entry_plain trap_1, 1
    entry_plain trap_2, 2
    entry_plain trap_3, 3
    entry_plain trap_4, 4
    entry_plain trap_5, 5
    entry_plain trap_6, 6
    entry_plain trap_7, 7
    entry_error trap_10, 10
    entry_error trap_11, 11
    entry_error trap_12, 12
    entry_error trap_13, 13
    entry_error trap_14, 14
    entry_plain trap_16, 16
    entry_error trap_17, 17
    entry_plain trap_18, 18
    entry_plain trap_19, 19
    entry_plain trap_66, 66
    entry_plain event_entry, 256
    entry_plain syscall_entry, 257

trap_common:
    pushq %rdi
    pushq %rsi
    pushq %rdx
    pushq %rcx
    pushq %rax
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    cld
    movq %rsp, %rdi
    movq %rsp, %rbp
    andq $-16, %rsp
    call trap_dispatch
    movq %rbp, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rax
    popq %rcx
    popq %rdx
    popq %rsi
    popq %rdi
    addq $16, %rsp              // vector and error code
    pushq $0                    // flags of the iret frame: restore rcx and r11, too
    pushq %rcx
    pushq %r11
    pushq %rax
    movl $23, %eax
    syscall
    ud2

// Failed reloads of segment registers: [rcx r11 ds es fs gs rip cs rflags rsp ss]. The selectors are dropped:
// whoever provokes one looks at failsafe_count, and goes on with null selectors.
    .globl failsafe_entry
    .balign 16
failsafe_entry:
    incq failsafe_count(%rip)
    movq 16(%rsp), %rcx
    movq %rcx, failsafe_selectors(%rip)
    movq 24(%rsp), %rcx
    movq %rcx, failsafe_selectors+8(%rip)
    movq 32(%rsp), %rcx
    movq %rcx, failsafe_selectors+16(%rip)
    movq 40(%rsp), %rcx
    movq %rcx, failsafe_selectors+24(%rip)
    popq %rcx
    popq %r11
    addq $32, %rsp
    pushq $0
    pushq %rcx
    pushq %r11
    pushq %rax
    movl $23, %eax
    syscall
    ud2

    .bss
    .balign 8
    .globl failsafe_count, failsafe_selectors
failsafe_count:
    .skip 8
failsafe_selectors:             // ds es fs gs
    .skip 32

    .text
// bool guard_call(void (*fn)(void *), void *arg, u64 *saved_rsp): true when a trap ended fn.
    .globl guard_call, guard_resume
guard_call:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushq %rdx                  // keeps the stack aligned for the call
    movq %rsp, (%rdx)
    movq %rdi, %rax
    movq %rsi, %rdi
    call *%rax
    xorl %eax, %eax
guard_out:
    popq %rdx
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
guard_resume:
    movl $1, %eax
    jmp guard_out

// u64 probe_load(const void *), void probe_store(void *, u64): single instructions for guarded access.
    .globl probe_load, probe_store
probe_load:
    movq (%rdi), %rax
    ret
probe_store:
    movq %rsi, (%rdi)
    ret

    .section .note.GNU-stack, "", @progbits
