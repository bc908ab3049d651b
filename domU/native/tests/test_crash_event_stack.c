// SPDX-License-Identifier: GPL-2.0-only
// Tests: an event that cannot be delivered because RSP is in an unmapped page.
// Outcome: the domain crashes (shutdown reason 3), the host lives. FAILURE: it goes on. ERROR: it could not be tried.
#include <guest/test.h>

XEN_NOTES

static char hole[PAGE_SIZE] PAGE_ALIGNED;

void test_main(void)
{
    struct evtchn_bind_ipi ipi = {0, 0};

    if (hyp_event_channel_op(EVTCHNOP_bind_ipi, &ipi) != 0 || hyp_update_va_mapping((u64)hole, 0, UVMF_INVLPG) != 0)
        test_error("no event");
    test_expect_crash("an event with an unmapped stack");
    upcalls_disable();
    event_unmask(ipi.port);
    event_notify(ipi.port);
    vcpu_info->evtchn_upcall_mask = 0;
    __asm__ volatile("movq %0, %%rsp\n\tmovl $17, %%eax\n\txorl %%edi, %%edi\n\tsyscall\n\tud2" : : "r"(hole + 2048) : "memory");
    CHECK(!"the domain goes on");
}
