// SPDX-License-Identifier: GPL-2.0-only
// Tests: the periodic timer that runs from the start, setting and stopping it, one-shot timers by vcpu_op and
// set_timer_op, deadlines in the past, and bad arguments.
// SUCCESS: every timer that should fire does, none that was stopped. FAILURE: the named check. ERROR: no VIRQ_TIMER.
#include <guest/clock.h>
#include <guest/test.h>
#include <xen/sched.h>

XEN_NOTES

static u64 wanted;

static bool enough(void *unused)
{
    (void)unused;
    return timer_ticks >= wanted;
}

static void spin_until_ticks(u64 count)
{
    while (timer_ticks < count)
        hyp_sched_op(SCHEDOP_yield, NULL);
}

static bool is_past(void *deadline)
{
    return clock_now() >= *(u64 *)deadline;
}

static void on_timer(u32 port, void *data)
{
    (void)port;
    (void)data;
    timer_ticks++;
}

static void wait_until_ticks(u64 count)
{
    wanted = count;
    events_wait_until(enough, NULL);
}

void test_main(void)
{
    struct evtchn_bind_virq bind = {VIRQ_TIMER, 0, 0};
    struct vcpu_set_periodic_timer periodic = {5 * NS_PER_MS};
    struct vcpu_set_singleshot_timer single = {0, 0};
    u64 before, ticks;
    long result;

    if (hyp_event_channel_op(EVTCHNOP_bind_virq, &bind) != 0)
        test_error("no VIRQ_TIMER");
    event_bind(bind.port, on_timer, NULL);

    // 100 Hz from birth.
    before = clock_now();
    spin_until_ticks(timer_ticks + 3);
    CHECK(clock_now() - before >= 15 * NS_PER_MS);
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_set_periodic_timer, 0, &periodic), 0);
    before = clock_now();
    spin_until_ticks(timer_ticks + 4);
    CHECK(clock_now() - before >= 10 * NS_PER_MS);
    // It ticks for a vCPU that runs, and does not wake one that sleeps.
    ticks = timer_ticks;
    single.timeout_abs_ns = clock_now() + 100 * NS_PER_MS;
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_set_singleshot_timer, 0, &single), 0);
    events_wait_until(is_past, &single.timeout_abs_ns);
    CHECK(timer_ticks - ticks <= 5);
    periodic.period_ns = NS_PER_MS - 1;
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_set_periodic_timer, 0, &periodic), -EINVAL);
    periodic.period_ns = ~0UL;
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_set_periodic_timer, 0, &periodic), -EINVAL);
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_stop_periodic_timer, 0, NULL), 0);

    // One shot in the future; nothing more comes after it.
    ticks = timer_ticks;
    single.timeout_abs_ns = clock_now() + 20 * NS_PER_MS;
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_set_singleshot_timer, 0, &single), 0);
    wait_until_ticks(ticks + 1);
    CHECK(clock_now() >= single.timeout_abs_ns);
    ticks = timer_ticks;
    // In the past: at once.
    single.timeout_abs_ns = clock_now() - 1;
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_set_singleshot_timer, 0, &single), 0);
    wait_until_ticks(ticks + 1);
    CHECK_EQUAL(timer_ticks, ticks + 1);
    // With the flag "only in the future": refused up to 4.17, later versions take no notice of the flag.
    single.flags = VCPU_SSHOTTMR_future;
    single.timeout_abs_ns = clock_now() - 1;
    ticks = timer_ticks;
    result = hyp_vcpu_op(VCPUOP_set_singleshot_timer, 0, &single);
    CHECK(result == 0 || result == -ETIME);
    if (result == 0)
        wait_until_ticks(ticks + 1);
    single.flags = 0;

    // Set and stopped, set and moved.
    ticks = timer_ticks;
    single.timeout_abs_ns = clock_now() + 10 * NS_PER_MS;
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_set_singleshot_timer, 0, &single), 0);
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_stop_singleshot_timer, 0, NULL), 0);
    single.timeout_abs_ns = clock_now() + 40 * NS_PER_MS;
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_set_singleshot_timer, 0, &single), 0);
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_set_singleshot_timer, 1, &single), -ENOENT);
    wait_until_ticks(ticks + 1);
    CHECK_EQUAL(timer_ticks, ticks + 1);
    CHECK(clock_now() >= single.timeout_abs_ns);

    // The older call for the same timer; 0 stops it.
    single.timeout_abs_ns = clock_now() + 10 * NS_PER_MS;
    ticks = timer_ticks;
    CHECK_EQUAL(hyp_set_timer_op(single.timeout_abs_ns), 0);
    wait_until_ticks(ticks + 1);
    CHECK(clock_now() >= single.timeout_abs_ns);
    CHECK_EQUAL(hyp_set_timer_op(clock_now() + 5 * NS_PER_MS), 0);
    CHECK_EQUAL(hyp_set_timer_op(0), 0);
    ticks = timer_ticks;
    CHECK_EQUAL(hyp_set_timer_op(clock_now() + 30 * NS_PER_MS), 0);
    wait_until_ticks(ticks + 1);
    CHECK_EQUAL(timer_ticks, ticks + 1);
}
