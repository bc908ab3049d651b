// SPDX-License-Identifier: GPL-2.0-only
// sched_op and vcpu_op (public/sched.h, public/vcpu.h).
#ifndef XEN_SCHED_H
#define XEN_SCHED_H

#include <xen/types.h>

#define SCHEDOP_yield 0
#define SCHEDOP_block 1
#define SCHEDOP_shutdown 2
#define SCHEDOP_poll 3
#define SCHEDOP_remote_shutdown 4
#define SCHEDOP_shutdown_code 5
#define SCHEDOP_watchdog 6

struct sched_shutdown {
    u32 reason;
};
#define SHUTDOWN_poweroff 0
#define SHUTDOWN_reboot 1
#define SHUTDOWN_suspend 2
#define SHUTDOWN_crash 3
#define SHUTDOWN_watchdog 4
#define SHUTDOWN_MAX 5

struct sched_poll {
    u32 *ports;
    u32 nr_ports;
    u64 timeout; // absolute system time in ns, 0: none
};
struct sched_watchdog {
    u32 id;
    u32 timeout; // seconds
};

#define VCPUOP_initialise 0
#define VCPUOP_up 1
#define VCPUOP_down 2
#define VCPUOP_is_up 3
#define VCPUOP_get_runstate_info 4
#define VCPUOP_register_runstate_memory_area 5
#define VCPUOP_set_periodic_timer 6
#define VCPUOP_stop_periodic_timer 7
#define VCPUOP_set_singleshot_timer 8
#define VCPUOP_stop_singleshot_timer 9
#define VCPUOP_register_vcpu_info 10
#define VCPUOP_send_nmi 11
#define VCPUOP_get_physid 12
#define VCPUOP_register_vcpu_time_memory_area 13

struct vcpu_runstate_info {
    s32 state;
    u64 state_entry_time;
    u64 time[4];
};
#define RUNSTATE_running 0
#define RUNSTATE_runnable 1
#define RUNSTATE_blocked 2
#define RUNSTATE_offline 3
#define XEN_RUNSTATE_UPDATE (1UL << 63)

struct vcpu_register_area {
    u64 address;
}; // runstate and time memory areas
struct vcpu_set_periodic_timer {
    u64 period_ns;
};
struct vcpu_set_singleshot_timer {
    u64 timeout_abs_ns;
    u32 flags;
};
#define VCPU_SSHOTTMR_future 1
struct vcpu_register_vcpu_info {
    u64 mfn;
    u32 offset;
    u32 rsvd;
};

#endif
