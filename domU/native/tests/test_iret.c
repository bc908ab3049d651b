// SPDX-License-Identifier: GPL-2.0-only
// Tests: the iret hypercall: registers and flags it restores and filters, and targets that cannot be returned to.
// SUCCESS: good frames are followed; bad ones fault as if at the target. FAILURE: the named check. ERROR: never.
#include <guest/test.h>
#include <guest/user.h>

XEN_NOTES

static char stack[1024] __attribute__((aligned(16)));
#define STACK_TOP ((u64)stack + sizeof(stack))
#define KERNEL_CS (FLAT_KERNEL_CS & ~3UL)
static char hole[PAGE_SIZE] PAGE_ALIGNED;
static char no_execute[PAGE_SIZE] PAGE_ALIGNED;

extern char iret_target[];
__asm__(".pushsection .text\niret_target: ud2\n.popsection");

static struct trap_record run(const struct iret_frame *frame)
{
    return guarded((void (*)(void *))iret_hypercall, (void *)frame);
}

static struct iret_frame good_frame(void)
{
    return (struct iret_frame){.rax = 0x1111,
                               .r11 = 0x2222,
                               .rcx = 0x3333,
                               .rip = (u64)iret_target,
                               .cs = KERNEL_CS,
                               .rflags = FLAG_INTERRUPT,
                               .rsp = STACK_TOP,
                               .ss = FLAT_KERNEL_SS};
}

static void registers(void)
{
    struct iret_frame frame = good_frame();
    struct trap_record r = run(&frame);

    CHECK_TRAP(r, TRAP_INVALID_OPCODE, 0);
    CHECK_EQUAL(r.rip, (u64)iret_target);
    CHECK_EQUAL(r.rsp, STACK_TOP);
    CHECK_EQUAL(r.cs, KERNEL_CS);
    CHECK_EQUAL(r.ss, FLAT_KERNEL_SS);
    CHECK_EQUAL(r.registers.rax, 0x1111);
    CHECK_EQUAL(r.registers.r11, 0x2222);
    CHECK_EQUAL(r.registers.rcx, 0x3333);

    frame.flags = IRET_IN_SYSCALL;
    frame.rsp = STACK_TOP - 5; // any alignment is the guest's own business
    r = run(&frame);
    CHECK_TRAP(r, TRAP_INVALID_OPCODE, 0);
    CHECK_EQUAL(r.rip, (u64)iret_target);
    CHECK_EQUAL(r.rsp, STACK_TOP - 5);
    CHECK_EQUAL(r.registers.rax, 0x1111);
}

static void flags(void)
{
    struct iret_frame frame = good_frame();
    struct trap_record r;

    // I/O privilege and virtual-8086 are taken out; carry and direction go through.
    frame.rflags = FLAG_INTERRUPT | FLAG_IOPL | 0x20000 | FLAG_CARRY | FLAG_DIRECTION;
    r = run(&frame);
    CHECK_TRAP(r, TRAP_INVALID_OPCODE, 0);
    CHECK_EQUAL(r.rflags & (FLAG_IOPL | 0x20000), 0);
    CHECK_EQUAL(r.rflags & (FLAG_CARRY | FLAG_DIRECTION), FLAG_CARRY | FLAG_DIRECTION);
    // The trap flag: #DB after the first instruction, which is a fault here, so the fault comes.
    frame.rflags = FLAG_INTERRUPT | FLAG_TRAP;
    r = run(&frame);
    CHECK_TRAP(r, TRAP_INVALID_OPCODE, 0);
    CHECK_EQUAL(r.rip, (u64)iret_target);
}

static void bad_targets(void)
{
    struct iret_frame frame = good_frame();
    struct trap_record r;

    CHECK_EQUAL(hyp_update_va_mapping((u64)hole, 0, UVMF_INVLPG), 0);
    CHECK_EQUAL(page_make_writable(no_execute), 0);

    frame.rip = (u64)hole + 5;
    r = run(&frame);
    CHECK_TRAP(r, TRAP_PAGE_FAULT, PF_FETCH);
    CHECK_EQUAL(r.rip, (u64)hole + 5);
    CHECK_EQUAL(r.cr2, (u64)hole + 5);
    CHECK_EQUAL(r.rsp, STACK_TOP);
    frame.rip = (u64)no_execute;
    r = run(&frame);
    CHECK_TRAP(r, TRAP_PAGE_FAULT, PF_FETCH | PF_PRESENT);
    CHECK_EQUAL(r.rip, (u64)no_execute);

    frame.rip = 0x8000000000000000;
    r = run(&frame);
    CHECK_TRAP(r, TRAP_GENERAL_PROTECTION, 0);
    CHECK_EQUAL(r.rip, 0x8000000000000000);

    // Stray selectors: the fault names them, with the frame of the target.
    frame = good_frame();
    frame.cs = 0x1230;
    r = run(&frame);
    CHECK_TRAP(r, TRAP_GENERAL_PROTECTION, 0x1230);
    CHECK_EQUAL(r.rip, (u64)iret_target);
    frame = good_frame();
    frame.ss = 0x1230;
    r = run(&frame);
    CHECK_TRAP(r, TRAP_GENERAL_PROTECTION, 0x1230);
    CHECK_EQUAL(r.rip, (u64)iret_target);
    frame.ss = 0x1234; // in the LDT, and there is none
    r = run(&frame);
    CHECK_TRAP(r, TRAP_GENERAL_PROTECTION, 0x1234);
    frame = good_frame();
    frame.cs = FLAT_DS32 & ~3; // data is no code
    r = run(&frame);
    CHECK_TRAP(r, TRAP_GENERAL_PROTECTION, FLAT_DS32 & ~3);
    frame = good_frame();
    frame.ss = FLAT_KERNEL_CS; // code is no stack
    r = run(&frame);
    CHECK_TRAP(r, TRAP_GENERAL_PROTECTION, FLAT_KERNEL_CS & ~3);
    // A null stack selector is raised to ring 3, where it may not be loaded.
    frame = good_frame();
    frame.ss = 0;
    r = run(&frame);
    CHECK_TRAP(r, TRAP_GENERAL_PROTECTION, 0);
}

void test_main(void)
{
    registers();
    flags();
    bad_targets();
    CHECK(upcalls_are_enabled());
}
