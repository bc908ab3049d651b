// SPDX-License-Identifier: GPL-2.0-only
// Tests: EVTCHNOP_reset closes all of a domain's ports, the toolstack's console and store ports among them.
// Outcome: the domain asks for a reboot when all is as it should be, and crashes when not: its console is gone.
#include <guest/test.h>
#include <xen/sched.h>

XEN_NOTES

void test_main(void)
{
    struct evtchn_alloc_unbound unbound = {DOMID_SELF, DOMID_SELF, 0};
    struct evtchn_bind_virq virq = {VIRQ_TIMER, 0, 0};
    struct evtchn_reset reset = {DOMID_SELF};
    struct evtchn_reset other = {1234};
    struct evtchn_reset host = {0};
    struct sched_shutdown shutdown = {SHUTDOWN_reboot};
    struct evtchn_status status = {.dom = DOMID_SELF, .port = start_info->console_evtchn};

    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_alloc_unbound, &unbound), 0);
    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_bind_virq, &virq), 0);
    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_reset, &other), -ESRCH);
    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_reset, &host), -EPERM);
    print("--- Xen-py Test Expects: REBOOT: after the reset the console is gone\n");
    console_flush();
    if (hyp_event_channel_op(EVTCHNOP_reset, &reset) != 0)
        shutdown.reason = SHUTDOWN_crash;
    if (hyp_event_channel_op(EVTCHNOP_status, &status) != 0 || status.status != EVTCHNSTAT_closed)
        shutdown.reason = SHUTDOWN_crash;
    if (event_notify(start_info->store_evtchn) != -EINVAL)
        shutdown.reason = SHUTDOWN_crash;
    if (hyp_event_channel_op(EVTCHNOP_bind_virq, &virq) != 0 || virq.port != 1) // all are free again, the VIRQ too
        shutdown.reason = SHUTDOWN_crash;
    hyp_sched_op(SCHEDOP_shutdown, &shutdown);
}
