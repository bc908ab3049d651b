// SPDX-License-Identifier: GPL-2.0-only
// Tests: addresses that belong to the hypervisor or to nobody: read, written, jumped to, in kernel and user mode.
// SUCCESS: each access is the guest's page fault or #GP, and the guest goes on. FAILURE: the named check.
// ERROR: no user address space.
#include <guest/test.h>
#include <guest/user.h>

XEN_NOTES

USER_ASM("user_read: movq (%rdi), %rax\nud2");
USER_ASM("user_write: movq %rax, (%rdi)\nud2");
USER_ASM("user_jump: jmp *%rdi");
extern char user_read[], user_write[], user_jump[];

static void jump(void *to)
{
    __asm__ volatile("jmp *%0" : : "r"(to));
}

void test_main(void)
{
    // Behind the machine-to-phys table: Xen's own linear maps, text, direct map.
    static const u64 hypervisor[] = {0xffff808000000000, 0xffff810000000000, 0xffff820000000000, 0xffff82d040200000,
                                     0xffff82e000000000, 0xffff830000000000, 0xffff87ffffffff00};
    static const u64 non_canonical[] = {0x0000800000000000, 0x8000000000000000, 0xffff7ffffffffff0};

    if (user_init() != 0)
        test_error("no user address space");
    for (u32 i = 0; i < ARRAY_LENGTH(hypervisor); i++) {
        u64 address = hypervisor[i];
        struct trap_record r = probe_read_record((void *)address);

        CHECK_EQUAL(r.vector, TRAP_PAGE_FAULT);
        CHECK_EQUAL(r.cr2, address);
        CHECK_EQUAL(r.error & (PF_WRITE | PF_USER | PF_FETCH), 0);
        r = probe_write_record((void *)address, 0);
        CHECK_EQUAL(r.vector, TRAP_PAGE_FAULT);
        CHECK_EQUAL(r.error & (PF_WRITE | PF_USER), PF_WRITE);
        r = guarded(jump, (void *)address);
        CHECK_EQUAL(r.vector, TRAP_PAGE_FAULT);
        CHECK_EQUAL(r.rip, address);
        r = user_run(user_read, address);
        CHECK_EQUAL(r.vector, TRAP_PAGE_FAULT);
        CHECK_EQUAL(r.error & (PF_WRITE | PF_USER), PF_USER);
        r = user_run(user_write, address);
        CHECK_EQUAL(r.vector, TRAP_PAGE_FAULT);
        r = user_run(user_jump, address);
        CHECK_EQUAL(r.vector, TRAP_PAGE_FAULT);
        CHECK_EQUAL(r.rip, address);
    }
    for (u32 i = 0; i < ARRAY_LENGTH(non_canonical); i++) {
        CHECK_TRAP(probe_read_record((void *)non_canonical[i]), TRAP_GENERAL_PROTECTION, 0);
        CHECK_TRAP(probe_write_record((void *)non_canonical[i], 0), TRAP_GENERAL_PROTECTION, 0);
        CHECK_TRAP(user_run(user_read, non_canonical[i]), TRAP_GENERAL_PROTECTION, 0);
        CHECK_EQUAL(guarded(jump, (void *)non_canonical[i]).vector, TRAP_GENERAL_PROTECTION);
    }
}
