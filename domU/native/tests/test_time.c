// SPDX-License-Identifier: GPL-2.0-only
// Tests: system time from the time page and the TSC: it never goes back, agrees with timers and the runstate clock, and
// the wall clock is sane.
// SUCCESS: so it is. FAILURE: the named check. ERROR: never.
#include <guest/clock.h>
#include <guest/test.h>
#include <xen/sched.h>

XEN_NOTES

void test_main(void)
{
    u64 last = clock_now(), start = last, back = 0, wall = clock_wall_ns();

    CHECK_EQUAL(vcpu_info->time.version & 1, 0);
    CHECK(vcpu_info->time.tsc_to_system_mul != 0);
    CHECK(start > 0);
    timer_init();
    for (u32 round = 0; round < 20; round++) {
        u64 deadline = clock_now() + 5 * NS_PER_MS;
        struct vcpu_set_singleshot_timer timer = {deadline, 0};

        for (u32 i = 0; i < 2000; i++) {
            u64 now = clock_now();

            if (now < last)
                back++;
            last = now;
        }
        hyp_vcpu_op(VCPUOP_set_singleshot_timer, 0, &timer);
        clock_sleep(2 * NS_PER_MS);
        CHECK_EQUAL(vcpu_info->time.version & 1, 0);
    }
    CHECK_EQUAL(back, 0);
    CHECK(last - start >= 40 * NS_PER_MS);
    CHECK(wall / NS_PER_S > 1600000000);
    CHECK(clock_wall_ns() > wall);
    CHECK(clock_wall_ns() - wall >= last - start);
}
