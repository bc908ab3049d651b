// SPDX-License-Identifier: GPL-2.0-only
// Tests: multicall: order, results, unknown calls inside, nesting, and lists that cannot be read or written.
// SUCCESS: as Xen does it; a nested multicall is refused. FAILURE: the named check. ERROR: never.
#include <guest/test.h>
#include <xen/sched.h>
#include <xen/version.h>

XEN_NOTES

static char pages[3 * PAGE_SIZE] PAGE_ALIGNED; // the second becomes read-only, the third unmapped

void test_main(void)
{
    struct multicall_entry calls[4] = {
        {.op = HYPERCALL_xen_version, .args = {XENVER_version, 0}, .result = 77},
        {.op = 63, .result = 77},
        {.op = HYPERCALL_xen_version, .args = {XENVER_pagesize, 0}, .result = 77},
        {.op = HYPERCALL_sched_op, .args = {99, 0}, .result = 77},
    };
    struct multicall_entry inner[1] = {{.op = HYPERCALL_xen_version, .args = {XENVER_pagesize, 0}, .result = 77}};
    struct multicall_entry nested[2] = {
        {.op = HYPERCALL_multicall, .args = {(u64)inner, 1}, .result = 77},
        {.op = HYPERCALL_xen_version, .args = {XENVER_pagesize, 0}, .result = 77},
    };
    struct multicall_entry *list;

    CHECK_EQUAL(hyp_multicall(calls, 4), 0);
    CHECK_EQUAL(calls[0].result, hyp_xen_version(XENVER_version, NULL));
    CHECK_EQUAL(calls[1].result, -ENOSYS);
    CHECK_EQUAL(calls[2].result, 4096);
    CHECK_EQUAL(calls[3].result, -ENOSYS);

    CHECK_EQUAL(hyp_multicall(nested, 2), 0);
    CHECK_EQUAL(nested[0].result, -EINVAL);
    CHECK_EQUAL(inner[0].result, 77); // was not made
    CHECK_EQUAL(nested[1].result, 4096);
    CHECK_EQUAL(hyp_multicall(calls, 1), 0); // and outside it is allowed again

    CHECK_EQUAL(hyp_multicall(NULL, 0), 0);
    CHECK_EQUAL(hyp_multicall(NULL, 1), -EFAULT);
    CHECK_EQUAL(hyp_multicall((void *)HYPERVISOR_START, 1), -EFAULT);
    CHECK_EQUAL(hyp_multicall((void *)0x8000000000000000, 1), -EFAULT);

    // The second entry is beyond the mapped pages: the first is made, the call fails.
    CHECK_EQUAL(hyp_update_va_mapping((u64)pages + 2 * PAGE_SIZE, 0, UVMF_INVLPG), 0);
    list = (struct multicall_entry *)(pages + 2 * PAGE_SIZE) - 1;
    *list = calls[2];
    list->result = 77;
    CHECK_EQUAL(hyp_multicall(list, 2), -EFAULT);
    CHECK_EQUAL(list->result, 4096);

    // The result cannot be written: the call is made all the same, and the multicall fails.
    list = (struct multicall_entry *)(pages + PAGE_SIZE);
    list[0] = (struct multicall_entry){.op = HYPERCALL_vm_assist, .args = {VMASST_enable, VMASST_pae_extended_cr3}};
    list[1] = calls[2];
    CHECK_EQUAL(page_make_readonly(list), 0);
    CHECK_EQUAL(hyp_multicall(list, 2), -EFAULT);
}
