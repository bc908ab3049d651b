// SPDX-License-Identifier: GPL-2.0-only
// Tests: an event when the registered callback is address 0.
// Outcome: the domain crashes (shutdown reason 3), the host lives. FAILURE: it goes on. ERROR: it could not be tried.
#include <guest/test.h>

XEN_NOTES

void test_main(void)
{
    struct callback_register callback = {CALLBACKTYPE_event, 0, 0};
    struct evtchn_bind_ipi ipi = {0, 0};

    if (hyp_event_channel_op(EVTCHNOP_bind_ipi, &ipi) != 0)
        test_error("no event");
    test_expect_crash("an event without a callback");
    upcalls_disable();
    hyp_callback_op(CALLBACKOP_register, &callback);
    event_unmask(ipi.port);
    event_notify(ipi.port);
    upcalls_enable();
    CHECK(!"the domain goes on");
}
