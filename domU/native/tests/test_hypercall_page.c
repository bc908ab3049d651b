// SPDX-License-Identifier: GPL-2.0-only
// Tests: the hypercall page that the HYPERCALL_PAGE note asks for: a stub of 32 bytes for each call, and its iret.
// SUCCESS: calls through the page work. FAILURE: the named check. ERROR: never.
#include <guest/test.h>
#include <guest/user.h>
#include <xen/version.h>

XEN_NOTES_WITH_HYPERCALL_PAGE

extern char hypercall_page[];

static long call_stub(u32 number, u64 a, u64 b)
{
    long result;

    __asm__ volatile("call *%3"
                     : "=a"(result), "+D"(a), "+S"(b)
                     : "r"(hypercall_page + number * 32)
                     : "rcx", "rdx", "r8", "r9", "r10", "r11", "memory");
    return result;
}

extern char iret_target[];
__asm__(".pushsection .text\niret_target: ud2\n.popsection");

static void iret_by_stub(void *arg)
{
    struct iret_frame *frame = arg;

    // The stub pushes rcx, r11 and rax itself: what it finds at RSP begins with the flags.
    __asm__ volatile("movq %0, %%rsp\n\tmovl $0x4444, %%eax\n\tmovq %2, %%r11\n\tjmp *%1"
                     :
                     : "r"(&frame->flags), "r"(hypercall_page + HYPERCALL_iret * 32), "r"(frame->r11), "c"(frame->rcx)
                     : "memory", "rax", "r11");
}

void test_main(void)
{
    static char stack[256] __attribute__((aligned(16)));
    struct iret_frame frame = {.r11 = 0x2222,
                               .rcx = 0x3333,
                               .rip = (u64)iret_target,
                               .cs = FLAT_KERNEL_CS & ~3UL,
                               .rflags = FLAG_INTERRUPT,
                               .rsp = (u64)stack + sizeof(stack),
                               .ss = FLAT_KERNEL_SS};
    struct trap_record r;
    volatile u64 *entry = entry_of(hypercall_page, 1);

    CHECK_EQUAL(call_stub(HYPERCALL_xen_version, XENVER_version, 0), hyp_xen_version(XENVER_version, NULL));
    CHECK_EQUAL(call_stub(HYPERCALL_xen_version, XENVER_pagesize, 0), 4096);
    CHECK_EQUAL(call_stub(63, 0, 0), -ENOSYS);
    CHECK_EQUAL(PTE_MFN(*entry), virt_to_mfn(hypercall_page)); // a page of ours, filled in
    r = guarded(iret_by_stub, &frame);
    CHECK_TRAP(r, TRAP_INVALID_OPCODE, 0);
    CHECK_EQUAL(r.rip, (u64)iret_target);
    CHECK_EQUAL(r.registers.rax, 0x4444);
    CHECK_EQUAL(r.registers.rcx, 0x3333);
    CHECK_EQUAL(r.registers.r11, 0x2222);
}
