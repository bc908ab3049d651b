// SPDX-License-Identifier: GPL-2.0-only
// Tests: user mode: the way in by iret, the frames of exceptions and system calls from it, the kernel stack they use,
// error codes with the USER bit, gates' privilege levels, and that privileged instructions stay privileged.
// SUCCESS: as the ABI says. FAILURE: the named check. ERROR: the user address space could not be made.
#include <guest/test.h>
#include <guest/user.h>

XEN_NOTES

#define USER_CODE_SYMBOL(name) extern char name[]

USER_ASM("user_ud2: ud2");
USER_ASM("user_int3: int3\nuser_int3_after: ud2");
USER_ASM("user_int_66: int $66\nuser_int_66_after: ud2");
USER_ASM("user_read: movq (%rdi), %rax\nud2");
USER_ASM("user_write: movq %rax, (%rdi)\nud2");
USER_ASM("user_jump: jmp *%rdi");
USER_ASM("user_syscall: movl $17, %eax\nsyscall\nuser_syscall_after: ud2");
USER_ASM("user_two_syscalls: movl $1, %eax\nmovl $0x77, %ebx\nsyscall\nmovq %rax, %rdx\nmovl $2, %eax\nsyscall\nud2");
USER_ASM("user_cli: cli\nud2");
USER_ASM("user_in: inb $0x80, %al\nud2");
USER_ASM("user_rdmsr: movl $0xc0000080, %ecx\nrdmsr\nud2");
USER_ASM("user_read_cr0: movq %cr0, %rax\nud2");
USER_ASM("user_hlt: hlt\nud2");
USER_ASM("user_cpuid: movl $0x40000000, %eax\nud2\n.ascii \"xen\"\ncpuid\nuser_cpuid_after: ud2");
USER_ASM("user_step: nop\nuser_step_after: nop\nud2");
USER_ASM("user_bad_stack: xorl %esp, %esp\nuser_bad_stack_at: ud2");
USER_ASM("user_direction: std\nsyscall\nuser_direction_after: ud2");

USER_CODE_SYMBOL(user_ud2);
USER_CODE_SYMBOL(user_int3);
USER_CODE_SYMBOL(user_int3_after);
USER_CODE_SYMBOL(user_int_66);
USER_CODE_SYMBOL(user_int_66_after);
USER_CODE_SYMBOL(user_read);
USER_CODE_SYMBOL(user_write);
USER_CODE_SYMBOL(user_jump);
USER_CODE_SYMBOL(user_syscall);
USER_CODE_SYMBOL(user_syscall_after);
USER_CODE_SYMBOL(user_two_syscalls);
USER_CODE_SYMBOL(user_cli);
USER_CODE_SYMBOL(user_in);
USER_CODE_SYMBOL(user_rdmsr);
USER_CODE_SYMBOL(user_read_cr0);
USER_CODE_SYMBOL(user_hlt);
USER_CODE_SYMBOL(user_cpuid);
USER_CODE_SYMBOL(user_cpuid_after);
USER_CODE_SYMBOL(user_step);
USER_CODE_SYMBOL(user_step_after);
USER_CODE_SYMBOL(user_bad_stack);
USER_CODE_SYMBOL(user_bad_stack_at);
USER_CODE_SYMBOL(user_direction);
USER_CODE_SYMBOL(user_direction_after);

static struct trap_record expect(char *symbol, u64 argument, u32 vector, u32 error, u64 rip, int line)
{
    struct trap_record r = user_run(symbol, argument);

    test_equal(r.trapped ? r.vector : -1, vector, __FILE_NAME__, line, "vector");
    test_equal(r.error, error, __FILE_NAME__, line, "error code");
    test_equal((long)r.rip, (long)rip, __FILE_NAME__, line, "rip");
    test_equal((long)r.cs, FLAT_USER_CS, __FILE_NAME__, line, "cs");
    test_equal((long)r.ss, FLAT_USER_SS, __FILE_NAME__, line, "ss");
    test_check((r.rflags & (FLAG_INTERRUPT | FLAG_IOPL)) == FLAG_INTERRUPT, __FILE_NAME__, line, "rflags");
    return r;
}
#define EXPECT(symbol, argument, vector, error, rip) expect(symbol, argument, vector, error, USER_ADDRESS(rip), __LINE__)

static u64 frame_end, second_rdx, second_rbx;
static u32 syscalls;

static bool on_syscall(struct registers *r)
{
    frame_end = (u64)(&r->ss + 1);
    if (++syscalls == 2) {
        second_rdx = r->rdx;
        second_rbx = r->rbx;
    }
    r->rax = 0x1000 + r->rax;
    return true;
}

static void faults(void)
{
    struct trap_record r;

    EXPECT(user_ud2, 0, TRAP_INVALID_OPCODE, 0, user_ud2);
    r = EXPECT(user_int3, 0, TRAP_BREAKPOINT, 0, user_int3_after);
    CHECK_EQUAL(r.rsp, USER_STACK_TOP);
    r = EXPECT(user_read, USER_HOLE, TRAP_PAGE_FAULT, PF_USER, user_read);
    CHECK_EQUAL(r.cr2, USER_HOLE);
    EXPECT(user_write, USER_HOLE, TRAP_PAGE_FAULT, PF_USER | PF_WRITE, user_write);
    EXPECT(user_write, USER_CODE, TRAP_PAGE_FAULT, PF_USER | PF_WRITE | PF_PRESENT, user_write);
    EXPECT(user_read, VIRT_BASE + 0x100000, TRAP_PAGE_FAULT, PF_USER, user_read); // the kernel is not mapped here
    EXPECT(user_read, 0x8000000000000000, TRAP_GENERAL_PROTECTION, 0, user_read);
    r = user_run(user_jump, USER_STACK);
    CHECK_TRAP(r, TRAP_PAGE_FAULT, PF_USER | PF_FETCH | PF_PRESENT);
    CHECK_EQUAL(r.rip, USER_STACK);
    r = user_run(user_jump, USER_HOLE);
    CHECK_TRAP(r, TRAP_PAGE_FAULT, PF_USER | PF_FETCH);
    EXPECT(user_read, USER_STACK, TRAP_INVALID_OPCODE, 0, user_read + 3); // readable: on to the ud2
    // The user's own stack pointer does not matter to anyone.
    r = EXPECT(user_bad_stack, 0, TRAP_INVALID_OPCODE, 0, user_bad_stack_at);
    CHECK_EQUAL(r.rsp, 0);
}

static void gates(void)
{
    extern char trap_66[];
    struct trap_info gate[2] = {{66, 1, FLAT_KERNEL_CS, (u64)trap_66}, {0, 0, 0, 0}};

    EXPECT(user_int_66, 0, TRAP_GENERAL_PROTECTION, 66 << 3 | 2, user_int_66);
    CHECK_EQUAL(hyp_set_trap_table(gate), 0);
    EXPECT(user_int_66, 0, TRAP_GENERAL_PROTECTION, 66 << 3 | 2, user_int_66);
    gate[0].flags = 3;
    CHECK_EQUAL(hyp_set_trap_table(gate), 0);
    EXPECT(user_int_66, 0, 66, 0, user_int_66_after);
}

static void system_calls(void)
{
    struct trap_record r = EXPECT(user_syscall, 0, VECTOR_SYSCALL, 0, user_syscall_after);

    CHECK_EQUAL(r.registers.rax, 17); // not taken for a hypercall
    CHECK_EQUAL(r.registers.rcx, USER_ADDRESS(user_syscall_after));
    CHECK_EQUAL(r.registers.r11 & (FLAG_INTERRUPT | FLAG_IOPL), FLAG_INTERRUPT);
    CHECK_EQUAL(r.mask_in_handler, 1); // its callback masks events

    r = EXPECT(user_direction, 0, VECTOR_SYSCALL, 0, user_direction_after);
    CHECK_EQUAL(r.registers.r11 & FLAG_DIRECTION, FLAG_DIRECTION);

    // Answered system calls: the frame is at the end of the kernel stack, aligned down; registers survive.
    trap_set_handler(VECTOR_SYSCALL, on_syscall);
    r = user_run(user_two_syscalls, 0);
    CHECK_TRAP(r, TRAP_INVALID_OPCODE, 0);
    CHECK_EQUAL(syscalls, 2);
    CHECK_EQUAL(second_rdx, 0x1001);
    CHECK_EQUAL(second_rbx, 0x77);
    CHECK_EQUAL(r.registers.rax, 0x1002);
    CHECK_EQUAL(frame_end, (u64)user_trap_stack + USER_TRAP_STACK_SIZE);
    CHECK_EQUAL(hyp_stack_switch(FLAT_KERNEL_SS, (u64)user_trap_stack + USER_TRAP_STACK_SIZE - 21), 0);
    CHECK_TRAP(user_run(user_two_syscalls, 0), TRAP_INVALID_OPCODE, 0);
    CHECK_EQUAL(frame_end, (u64)user_trap_stack + USER_TRAP_STACK_SIZE - 32);
    trap_set_handler(VECTOR_SYSCALL, NULL);
}

static void no_callback(void)
{
    struct callback_register none = {CALLBACKTYPE_syscall, 0, 0};

    // Without a callback, `syscall` is an invalid instruction.
    CHECK_EQUAL(hyp_callback_op(CALLBACKOP_register, &none), 0);
    EXPECT(user_syscall, 0, TRAP_INVALID_OPCODE, 0, user_syscall_after - 2);
    none.address = (u64)syscall_entry;
    CHECK_EQUAL(hyp_callback_op(CALLBACKOP_register, &none), 0);
    CHECK_EQUAL(user_run(user_syscall, 0).mask_in_handler, 0); // this time it does not mask
}

static void privileges(void)
{
    struct trap_record r;

    EXPECT(user_cli, 0, TRAP_GENERAL_PROTECTION, 0, user_cli);
    EXPECT(user_in, 0, TRAP_GENERAL_PROTECTION, 0, user_in);
    EXPECT(user_rdmsr, 0, TRAP_GENERAL_PROTECTION, 0, user_rdmsr + 5);
    EXPECT(user_read_cr0, 0, TRAP_GENERAL_PROTECTION, 0, user_read_cr0);
    EXPECT(user_hlt, 0, TRAP_GENERAL_PROTECTION, 0, user_hlt);
    r = EXPECT(user_cpuid, 0, TRAP_INVALID_OPCODE, 0, user_cpuid_after);
    CHECK_EQUAL((u32)r.registers.rbx, 0x566e6558); // "XenV"
}

static void single_step(void)
{
    struct iret_frame frame = {.rip = USER_ADDRESS(user_step),
                               .cs = FLAT_USER_CS,
                               .rflags = FLAG_INTERRUPT | FLAG_TRAP,
                               .rsp = USER_STACK_TOP,
                               .ss = FLAT_USER_SS};
    struct trap_record r = guarded((void (*)(void *))iret_hypercall, &frame);

    CHECK_TRAP(r, TRAP_DEBUG, 0);
    CHECK_EQUAL(r.rip, USER_ADDRESS(user_step_after));
}

void test_main(void)
{
    if (user_init() != 0)
        test_error("no user address space");
    faults();
    gates();
    system_calls();
    no_callback();
    privileges();
    single_step();
}
