// SPDX-License-Identifier: GPL-2.0-only
// Tests: the iret hypercall with its frame in an unmapped page.
// Outcome: the domain crashes (shutdown reason 3), the host lives. FAILURE: it goes on. ERROR: it could not be tried.
#include <guest/test.h>
#include <guest/user.h>
XEN_NOTES

static char hole[PAGE_SIZE] PAGE_ALIGNED;

void test_main(void)
{
    if (hyp_update_va_mapping((u64)hole, 0, UVMF_INVLPG) != 0)
        test_error("cannot unmap");
    test_expect_crash("iret with an unmapped frame");
    iret_hypercall((void *)(hole + 512));
    CHECK(!"the domain goes on");
}
