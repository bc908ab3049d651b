// SPDX-License-Identifier: GPL-2.0-only
// Tests: hypercall numbers and sub-operations that do not exist, or are not for an unprivileged PV guest.
// SUCCESS: each answers with Xen's error and the guest goes on. FAILURE: the named call. ERROR: never.
#include <guest/test.h>
#include <xen/grant_table.h>
#include <xen/memory.h>
#include <xen/sched.h>

XEN_NOTES

static char buffer[4096];

void test_main(void)
{
    static const u64 numbers[] = {11, 38, 43, 47, 50, 63, 64, 100, 0xffffffff, 0x8000000000000000, ~0UL};

    for (u32 i = 0; i < ARRAY_LENGTH(numbers); i++)
        test_equal(hypercall5(numbers[i], 1, 2, 3, 4, 5), -ENOSYS, __FILE_NAME__, (int)numbers[i], "unknown hypercall");

    CHECK_EQUAL(hyp_sched_op(99, buffer), -ENOSYS);
    CHECK_EQUAL(hyp_event_channel_op(99, buffer), -ENOSYS);
    CHECK_EQUAL(hyp_vcpu_op(99, 0, buffer), -ENOSYS);
    CHECK_EQUAL(hyp_callback_op(99, buffer), -ENOSYS);
    CHECK_EQUAL(hyp_physdev_op(99, buffer), -ENOSYS);
    CHECK_EQUAL(hyp_grant_table_op(99, buffer, 1), -ENOSYS);
    CHECK_EQUAL(hyp_vm_assist(99, 0), -ENOSYS);
    CHECK_EQUAL(hyp_memory_op(63, buffer), -ENOSYS);
    CHECK_EQUAL(mmuext_one(99, 0, 0), -ENOSYS);

    // Bits above 32 of an `int` argument do not count.
    CHECK_EQUAL(hypercall2(HYPERCALL_sched_op, 0x100000000UL | SCHEDOP_yield, 0), 0);

    // Not for us.
    CHECK_EQUAL(hypercall1(HYPERCALL_domctl, (u64)buffer) < 0, true);
    CHECK_EQUAL(hypercall1(HYPERCALL_sysctl, (u64)buffer) < 0, true);
    CHECK_EQUAL(hypercall2(HYPERCALL_hvm_op, 0, (u64)buffer) < 0, true);
    CHECK_EQUAL(hypercall5(HYPERCALL_update_va_mapping_otherdomain, 0x1000, 0, 0, 0, 0) < 0, true);
}
