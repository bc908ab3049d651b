// SPDX-License-Identifier: GPL-2.0-only
// Tests: iret to user mode when no user page tables were ever given.
// Outcome: the domain crashes (shutdown reason 3), the host lives. FAILURE: it goes on. ERROR: it could not be tried.
#include <guest/test.h>
#include <guest/user.h>
XEN_NOTES

void test_main(void)
{
    struct iret_frame frame = {.rip = USER_CODE, .cs = FLAT_USER_CS, .rflags = FLAG_INTERRUPT, .ss = FLAT_USER_SS};

    test_expect_crash("iret to user mode without user page tables");
    iret_hypercall(&frame);
    CHECK(!"the domain goes on");
}
