// SPDX-License-Identifier: GPL-2.0-only
// Tests: a guest that reports its own crash by SCHEDOP_shutdown.
// Outcome: the domain crashes (shutdown reason 3), the host lives. FAILURE: it goes on. ERROR: it could not be tried.
#include <guest/test.h>
#include <xen/sched.h>
XEN_NOTES

void test_main(void)
{
    struct sched_shutdown crash = {SHUTDOWN_crash};

    test_expect_crash("SHUTDOWN_crash");
    hyp_sched_op(SCHEDOP_shutdown, &crash);
    CHECK(!"the domain goes on");
}
