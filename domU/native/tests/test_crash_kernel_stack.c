// SPDX-License-Identifier: GPL-2.0-only
// Tests: an exception in user mode when the kernel stack given by stack_switch is not mapped.
// Outcome: the domain crashes (shutdown reason 3), the host lives. FAILURE: it goes on. ERROR: it could not be tried.
#include <guest/test.h>
#include <guest/user.h>
XEN_NOTES

static char hole[PAGE_SIZE] PAGE_ALIGNED;

USER_ASM("user_ud2: ud2");
extern char user_ud2[];

void test_main(void)
{
    if (user_init() != 0 || hyp_update_va_mapping((u64)hole, 0, UVMF_INVLPG) != 0)
        test_error("no user address space");
    hyp_stack_switch(FLAT_KERNEL_SS, (u64)hole + 2048);
    test_expect_crash("ud2 in user mode with an unmapped kernel stack");
    user_run(user_ud2, 0);
    CHECK(!"the domain goes on");
}
