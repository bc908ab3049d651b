// SPDX-License-Identifier: GPL-2.0-only
// Time: system time from the vCPU's time page and the TSC, wall clock, one-shot timer.
#ifndef GUEST_CLOCK_H
#define GUEST_CLOCK_H

#include <xen/types.h>

#define NS_PER_MS 1000000UL
#define NS_PER_S 1000000000UL

u64 clock_now(void);       // ns since the host booted
u64 clock_wall_ns(void);   // ns since 1970
u64 tsc_frequency_khz(void);
void timer_init(void);     // binds VIRQ_TIMER, stops the periodic timer
extern volatile u64 timer_ticks;
void clock_sleep(u64 ns);  // blocks

static inline u64 read_tsc(void)
{
    u32 low, high;

    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (u64)high << 32 | low;
}

#endif
