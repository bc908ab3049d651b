// SPDX-License-Identifier: GPL-2.0-only
// Tests: sched_op: yield, poll (its ports, its timeout, its limits), block.
// SUCCESS: as Xen does it. FAILURE: the named check. ERROR: never.
#include <guest/clock.h>
#include <guest/test.h>
#include <xen/sched.h>

XEN_NOTES

void test_main(void)
{
    struct evtchn_bind_ipi ipi = {0, 0};
    u32 ports[2];
    struct sched_poll poll = {ports, 1, 0};
    u64 before;

    CHECK_EQUAL(hyp_sched_op(SCHEDOP_yield, NULL), 0);
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_stop_periodic_timer, 0, NULL), 0);
    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_bind_ipi, &ipi), 0);
    ports[0] = ipi.port; // masked: poll wakes on pending, masked or not

    // Nothing comes: until the timeout.
    upcalls_disable();
    before = clock_now();
    poll.timeout = before + 20 * NS_PER_MS;
    CHECK_EQUAL(hyp_sched_op(SCHEDOP_poll, &poll), 0);
    CHECK(clock_now() >= poll.timeout);
    CHECK(!upcalls_are_enabled()); // unlike block, it leaves the mask alone
    // A timeout in the past: at once.
    poll.timeout = 1;
    CHECK_EQUAL(hyp_sched_op(SCHEDOP_poll, &poll), 0);
    // Pending already: at once, whatever the timeout.
    CHECK_EQUAL(event_notify(ipi.port), 0);
    CHECK(event_is_pending(ipi.port));
    poll.timeout = 0;
    CHECK_EQUAL(hyp_sched_op(SCHEDOP_poll, &poll), 0);
    CHECK(event_is_pending(ipi.port)); // and is not taken
    event_clear(ipi.port);
    // No ports: a plain sleep.
    poll = (struct sched_poll){NULL, 0, clock_now() + 5 * NS_PER_MS};
    CHECK_EQUAL(hyp_sched_op(SCHEDOP_poll, &poll), 0);
    CHECK(clock_now() >= poll.timeout);

    poll = (struct sched_poll){ports, 129, 1};
    CHECK_EQUAL(hyp_sched_op(SCHEDOP_poll, &poll), -EINVAL);
    poll = (struct sched_poll){(u32 *)HYPERVISOR_START, 1, 1};
    CHECK_EQUAL(hyp_sched_op(SCHEDOP_poll, &poll), -EFAULT);
    ports[1] = 5000;
    poll = (struct sched_poll){ports, 2, 1};
    CHECK_EQUAL(hyp_sched_op(SCHEDOP_poll, &poll), -EINVAL);
    upcalls_enable();

    // Block sleeps until an event; the timer is one.
    timer_init();
    before = clock_now();
    clock_sleep(15 * NS_PER_MS);
    CHECK(clock_now() - before >= 15 * NS_PER_MS);
    CHECK(upcalls_are_enabled());
}
