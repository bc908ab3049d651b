// SPDX-License-Identifier: GPL-2.0-only
// Tests: privileged instructions in kernel mode: the emulated ones (control and debug registers, clts, wbinvd, port
// I/O, cli and sti) and those that are not.
// SUCCESS: emulated ones have their effect on what Xen keeps for the guest; others raise #GP. FAILURE: the named check.
// ERROR: never.
#include <guest/test.h>

XEN_NOTES

#define READ_CONTROL(n)                                                                                                \
    static u64 read_cr##n(void)                                                                                        \
    {                                                                                                                  \
        u64 value;                                                                                                     \
        __asm__ volatile("mov %%cr" #n ", %0" : "=r"(value));                                                          \
        return value;                                                                                                  \
    }                                                                                                                  \
    static void write_cr##n(void *value) { __asm__ volatile("mov %0, %%cr" #n : : "r"(value) : "memory"); }
READ_CONTROL(0)
READ_CONTROL(2)
READ_CONTROL(3)
READ_CONTROL(4)

#define SNIPPET(name, text) static void name(void *arg) { __asm__ volatile(text : : "d"(arg) : "rax", "rcx", "rsi", "rdi", "memory"); }
SNIPPET(clts, "clts")
SNIPPET(wbinvd, "wbinvd")
SNIPPET(invd, "invd")
SNIPPET(cli, "cli")
SNIPPET(sti, "sti")
SNIPPET(invlpg, "invlpg (%%rsp)")
SNIPPET(lgdt, "lgdt (%%rsp)")
SNIPPET(lidt, "lidt (%%rsp)")
SNIPPET(lldt, "xorl %%eax, %%eax\n\tlldt %%ax")
SNIPPET(ltr, "xorl %%eax, %%eax\n\tltr %%ax")
SNIPPET(swapgs, "swapgs")
SNIPPET(sysret, "xorl %%ecx, %%ecx\n\tsysretq")
SNIPPET(read_cr8, "mov %%cr8, %%rax")
SNIPPET(in_8, "inb %%dx, %%al")
SNIPPET(out_8, "outb %%al, %%dx")
SNIPPET(in_immediate, "inb $0x99, %%al")
SNIPPET(in_string, "leaq string_buffer(%%rip), %%rdi\n\tmovl $5, %%ecx\n\trep insb")
SNIPPET(out_string, "leaq string_buffer(%%rip), %%rsi\n\tmovl $5, %%ecx\n\trep outsb")

u8 string_buffer[8];

static u64 in(u32 size, u16 port)
{
    u64 value = 0x1122334455667788;

    if (size == 1)
        __asm__ volatile("inb %%dx, %%al" : "+a"(value) : "d"(port));
    if (size == 2)
        __asm__ volatile("inw %%dx, %%ax" : "+a"(value) : "d"(port));
    if (size == 4)
        __asm__ volatile("inl %%dx, %%eax" : "+a"(value) : "d"(port));
    return value;
}

static void control_registers(void)
{
    u64 value;

    CHECK_EQUAL(read_cr0() & 0x80010009, 0x80010001); // PG, WP, PE; not TS
    CHECK_EQUAL(read_cr3(), virt_to_mfn((void *)start_info->pt_base) << 12);
    CHECK_EQUAL(read_cr4() & 0x20, 0x20); // PAE
    CHECK_NO_TRAP(guarded(write_cr0, (void *)(read_cr0() | 8)));
    CHECK_EQUAL(read_cr0() & 8, 8);
    CHECK_NO_TRAP(guarded(clts, NULL));
    CHECK_EQUAL(read_cr0() & 8, 0);
    CHECK_TRAP(guarded(write_cr0, (void *)(read_cr0() & ~0x10000UL)), TRAP_GENERAL_PROTECTION, 0);
    CHECK_EQUAL(read_cr0() & 0x10000, 0x10000);

    CHECK_NO_TRAP(guarded(write_cr2, (void *)0x123456));
    CHECK_EQUAL(read_cr2(), 0x123456);
    CHECK_EQUAL(vcpu_info->cr2, 0x123456);

    CHECK_NO_TRAP(guarded(write_cr3, (void *)read_cr3()));
    CHECK_TRAP(guarded(write_cr3, (void *)(virt_to_mfn((void *)start_info) << 12)), TRAP_GENERAL_PROTECTION, 0);
    CHECK_EQUAL(read_cr3(), virt_to_mfn((void *)start_info->pt_base) << 12);

    value = read_cr4();
    CHECK_NO_TRAP(guarded(write_cr4, (void *)value));
    CHECK_EQUAL(read_cr4(), value);
    CHECK_TRAP(guarded(read_cr8, NULL), TRAP_GENERAL_PROTECTION, 0);
}

static void debug_registers(void)
{
    u64 value;

    __asm__ volatile("mov %0, %%dr0" : : "r"(0x5678UL));
    CHECK_EQUAL(hyp_get_debugreg(0), 0x5678);
    hyp_set_debugreg(1, 0x9abc);
    __asm__ volatile("mov %%dr1, %0" : "=r"(value));
    CHECK_EQUAL(value, 0x9abc);
    __asm__ volatile("mov %%dr7, %0" : "=r"(value));
    CHECK_EQUAL(value, 0x400);
}

static void ports(void)
{
    struct physdev_set_iopl iopl = {1};
    static u8 bitmap[8192];
    struct physdev_set_iobitmap permission = {bitmap, 65536};

    CHECK_TRAP(guarded(in_8, (void *)0x1234), TRAP_GENERAL_PROTECTION, 0);
    CHECK_TRAP(guarded(out_8, (void *)0x1234), TRAP_GENERAL_PROTECTION, 0);
    CHECK_TRAP(guarded(in_immediate, NULL), TRAP_GENERAL_PROTECTION, 0);
    CHECK_TRAP(guarded(in_string, (void *)0x1234), TRAP_GENERAL_PROTECTION, 0);
    CHECK_TRAP(guarded(out_string, (void *)0x1234), TRAP_GENERAL_PROTECTION, 0);
    CHECK_TRAP(guarded(cli, NULL), TRAP_GENERAL_PROTECTION, 0);

    // A permission bitmap opens ports one by one, to kernel and user mode alike.
    memset(bitmap, 0xff, sizeof(bitmap));
    bitmap[0x1234 / 8] &= (u8) ~(1 << (0x1234 % 8));
    CHECK_EQUAL(hyp_physdev_op(PHYSDEVOP_set_iobitmap, &permission), 0);
    CHECK_NO_TRAP(guarded(in_8, (void *)0x1234));
    CHECK_TRAP(guarded(in_8, (void *)0x1235), TRAP_GENERAL_PROTECTION, 0);
    permission.nr_ports = 65537;
    CHECK_EQUAL(hyp_physdev_op(PHYSDEVOP_set_iobitmap, &permission), -EINVAL);
    permission.nr_ports = 0;
    CHECK_EQUAL(hyp_physdev_op(PHYSDEVOP_set_iobitmap, &permission), 0);

    iopl.iopl = 4;
    CHECK_EQUAL(hyp_physdev_op(PHYSDEVOP_set_iopl, &iopl), -EINVAL);
    iopl.iopl = 1;
    CHECK_EQUAL(hyp_physdev_op(PHYSDEVOP_set_iopl, &iopl), 0);
    // Allowed by the guest's own level, but no port is given to it: reads are all ones, writes go nowhere.
    CHECK_EQUAL(in(1, 0x1234), 0x11223344556677ff);
    CHECK_EQUAL(in(2, 0x1234), 0x112233445566ffff);
    CHECK_EQUAL(in(4, 0x1234), 0xffffffff);
    CHECK_NO_TRAP(guarded(out_8, (void *)0x1234));
    CHECK_NO_TRAP(guarded(in_immediate, NULL));
    CHECK_NO_TRAP(guarded(out_string, (void *)0x1234));
    CHECK_NO_TRAP(guarded(in_string, (void *)0x1234));
    for (u32 i = 0; i < sizeof(string_buffer); i++)
        CHECK_EQUAL(string_buffer[i], i < 5 ? 0xff : 0);
    // cli and sti are let through, and do nothing.
    CHECK_NO_TRAP(guarded(cli, NULL));
    CHECK(upcalls_are_enabled());
    upcalls_disable();
    CHECK_NO_TRAP(guarded(sti, NULL));
    CHECK(!upcalls_are_enabled());
    upcalls_enable();
}

static void flags(void)
{
    u64 value;

    // pushf shows the real flags: interrupts on whatever the upcall mask is, and no I/O privilege.
    upcalls_disable();
    __asm__ volatile("pushfq\n\tpopq %0" : "=r"(value));
    upcalls_enable();
    CHECK_EQUAL(value & (FLAG_INTERRUPT | FLAG_IOPL), FLAG_INTERRUPT);
    __asm__ volatile("pushq $0x3002\n\tpopfq\n\tpushfq\n\tpopq %0" : "=r"(value) : : "cc", "memory");
    CHECK_EQUAL(value & (FLAG_INTERRUPT | FLAG_IOPL), FLAG_INTERRUPT);
}

void test_main(void)
{
    control_registers();
    debug_registers();
    CHECK_NO_TRAP(guarded(wbinvd, NULL));
    CHECK_TRAP(guarded(invd, NULL), TRAP_GENERAL_PROTECTION, 0);
    CHECK_TRAP(guarded(invlpg, NULL), TRAP_GENERAL_PROTECTION, 0);
    CHECK_TRAP(guarded(lgdt, NULL), TRAP_GENERAL_PROTECTION, 0);
    CHECK_TRAP(guarded(lidt, NULL), TRAP_GENERAL_PROTECTION, 0);
    CHECK_TRAP(guarded(lldt, NULL), TRAP_GENERAL_PROTECTION, 0);
    CHECK_TRAP(guarded(ltr, NULL), TRAP_GENERAL_PROTECTION, 0);
    CHECK_TRAP(guarded(swapgs, NULL), TRAP_GENERAL_PROTECTION, 0);
    CHECK_TRAP(guarded(sysret, NULL), TRAP_GENERAL_PROTECTION, 0);
    flags();
    ports();
}
