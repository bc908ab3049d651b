// SPDX-License-Identifier: GPL-2.0-only
// System time = system_time + scaled (TSC - tsc_timestamp), read under the version counter.
#include <guest/clock.h>
#include <guest/events.h>
#include <guest/hypercall.h>
#include <guest/machine.h>
#include <xen/sched.h>

volatile u64 timer_ticks;

static u64 scale(u64 ticks, u32 mul, s8 shift)
{
    if (shift < 0)
        ticks >>= -shift;
    else
        ticks <<= shift;
    return (u64)((unsigned __int128)ticks * mul >> 32);
}

u64 clock_now(void)
{
    volatile struct vcpu_time_info *time = &vcpu_info->time;
    u32 version;
    u64 now;

    do {
        version = time->version;
        barrier();
        now = time->system_time + scale(read_tsc() - time->tsc_timestamp, time->tsc_to_system_mul, time->tsc_shift);
        barrier();
    } while ((version & 1) || version != time->version);
    return now;
}

u64 clock_wall_ns(void)
{
    u32 version;
    u64 boot;

    do {
        version = shared_info->wc_version;
        barrier();
        boot = ((u64)shared_info->wc_sec_hi << 32 | shared_info->wc_sec) * NS_PER_S + shared_info->wc_nsec;
        barrier();
    } while ((version & 1) || version != shared_info->wc_version);
    return boot + clock_now();
}

u64 tsc_frequency_khz(void)
{
    // mul/2^32 * 2^shift ns a tick
    u64 khz = (NS_PER_MS << 32) / vcpu_info->time.tsc_to_system_mul;

    return vcpu_info->time.tsc_shift < 0 ? khz << -vcpu_info->time.tsc_shift : khz >> vcpu_info->time.tsc_shift;
}

static void on_timer(u32 port, void *data)
{
    (void)port;
    (void)data;
    timer_ticks++;
}

void timer_init(void)
{
    struct evtchn_bind_virq bind = {VIRQ_TIMER, 0, 0};

    hyp_vcpu_op(VCPUOP_stop_periodic_timer, 0, NULL);
    if (hyp_event_channel_op(EVTCHNOP_bind_virq, &bind) == 0)
        event_bind(bind.port, on_timer, NULL);
}

static bool is_past(void *deadline)
{
    return clock_now() >= *(u64 *)deadline;
}

void clock_sleep(u64 ns)
{
    u64 deadline = clock_now() + ns;
    struct vcpu_set_singleshot_timer timer = {deadline, 0};

    hyp_vcpu_op(VCPUOP_set_singleshot_timer, 0, &timer);
    events_wait_until(is_past, &deadline);
}
