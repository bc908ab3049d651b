// SPDX-License-Identifier: GPL-2.0-only
// Tests: set_segment_base in its four forms, the swap of GS bases between kernel and user mode, what loading a selector
// does to a base, and bad arguments.
// SUCCESS: bases are where they should be. FAILURE: the named check. ERROR: no user address space.
#include <guest/test.h>
#include <guest/user.h>

XEN_NOTES

static u64 kernel_word = 0x1111, other_word = 0x2222;

USER_ASM("user_read_gs: movq %gs:0, %rax\nmovq %fs:0, %rdx\nmovw %gs, %cx\nud2");
USER_ASM("user_load_gs: movw %di, %gs\nmovw %gs, %ax\nud2");
extern char user_read_gs[], user_load_gs[];

static u64 read_fs(void)
{
    u64 value;

    __asm__ volatile("movq %%fs:0, %0" : "=r"(value));
    return value;
}

static u64 read_gs(void)
{
    u64 value;

    __asm__ volatile("movq %%gs:0, %0" : "=r"(value));
    return value;
}

static u16 gs_selector(void)
{
    u16 value;

    __asm__ volatile("movw %%gs, %0" : "=r"(value));
    return value;
}

void test_main(void)
{
    struct trap_record r;

    if (user_init() != 0)
        test_error("no user address space");

    CHECK_EQUAL(hyp_set_segment_base(SEGBASE_FS, (u64)&kernel_word), 0);
    CHECK_EQUAL(read_fs(), 0x1111);
    CHECK_EQUAL(hyp_set_segment_base(SEGBASE_GS_KERNEL, (u64)&kernel_word), 0);
    CHECK_EQUAL(read_gs(), 0x1111);
    CHECK_EQUAL(hyp_set_segment_base(SEGBASE_GS_KERNEL, (u64)&other_word), 0);
    CHECK_EQUAL(read_gs(), 0x2222);
    // The user's GS base is the inactive one now, and the active one in user mode. FS is the same in both.
    CHECK_EQUAL(hyp_set_segment_base(SEGBASE_GS_USER, USER_STACK + 64), 0);
    CHECK_EQUAL(read_gs(), 0x2222);
    CHECK_EQUAL(hyp_set_segment_base(SEGBASE_FS, USER_STACK + 128), 0);
    r = user_run(user_read_gs, 0);
    CHECK_TRAP(r, TRAP_INVALID_OPCODE, 0);
    CHECK_EQUAL(r.registers.rax, 0); // the user page is all zero
    CHECK_EQUAL(read_gs(), 0x2222);
    CHECK_EQUAL(hyp_set_segment_base(SEGBASE_GS_USER, USER_HOLE), 0);
    r = user_run(user_read_gs, 0);
    CHECK_TRAP(r, TRAP_PAGE_FAULT, PF_USER);
    CHECK_EQUAL(r.cr2, USER_HOLE);
    CHECK_EQUAL(read_gs(), 0x2222);

    // The user's GS selector: the active base stays, whatever the selector is.
    CHECK_EQUAL(hyp_set_segment_base(SEGBASE_GS_USER_SEL, FLAT_DS32), 0);
    CHECK_EQUAL(read_gs(), 0x2222);
    r = user_run(user_read_gs, 0);
    CHECK_TRAP(r, TRAP_PAGE_FAULT, PF_USER); // flat: address 0 is not mapped
    CHECK_EQUAL(r.cr2, 0);
    CHECK_EQUAL(hyp_set_segment_base(SEGBASE_GS_USER_SEL, 0x1230), 0); // a stray one becomes null
    CHECK_EQUAL(read_gs(), 0x2222);
    CHECK_EQUAL(gs_selector(), 0);
    CHECK_EQUAL(hyp_set_segment_base(SEGBASE_GS_USER_SEL, 0), 0);
    CHECK_EQUAL(read_gs(), 0x2222);

    r = user_run(user_load_gs, 0x1230);
    CHECK_TRAP(r, TRAP_GENERAL_PROTECTION, 0x1230);
    r = user_run(user_load_gs, FLAT_DS32);
    CHECK_TRAP(r, TRAP_INVALID_OPCODE, 0);
    CHECK_EQUAL(r.registers.rax & 0xffff, FLAT_DS32);
    CHECK_EQUAL(read_gs(), 0x2222);

    for (u32 which = SEGBASE_FS; which <= SEGBASE_GS_KERNEL; which++) {
        CHECK_EQUAL(hyp_set_segment_base(which, 0x0000800000000000), -EINVAL);
        CHECK_EQUAL(hyp_set_segment_base(which, 0x8000000000000000), -EINVAL);
    }
    CHECK_EQUAL(read_gs(), 0x2222);
    CHECK_EQUAL(hyp_set_segment_base(4, 0), -EINVAL);
    CHECK_EQUAL(hyp_set_segment_base(99, 0), -EINVAL);
}
