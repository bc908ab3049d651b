// SPDX-License-Identifier: GPL-2.0-only
// Event channel operations (public/event_channel.h), 2-level ABI.
#ifndef XEN_EVENT_CHANNEL_H
#define XEN_EVENT_CHANNEL_H

#include <xen/types.h>

#define EVTCHNOP_bind_interdomain 0
#define EVTCHNOP_bind_virq 1
#define EVTCHNOP_bind_pirq 2
#define EVTCHNOP_close 3
#define EVTCHNOP_send 4
#define EVTCHNOP_status 5
#define EVTCHNOP_alloc_unbound 6
#define EVTCHNOP_bind_ipi 7
#define EVTCHNOP_bind_vcpu 8
#define EVTCHNOP_unmask 9
#define EVTCHNOP_reset 10

#define NR_EVENT_CHANNELS 4096

#define VIRQ_TIMER 0
#define VIRQ_DEBUG 1
#define VIRQ_CONSOLE 2
#define VIRQ_DOM_EXC 3
#define VIRQ_ARGO 11
#define VIRQ_XENPMU 13
#define NR_VIRQS 24

struct evtchn_alloc_unbound {
    u16 dom, remote_dom;
    u32 port; // out
};
struct evtchn_bind_interdomain {
    u16 remote_dom;
    u32 remote_port;
    u32 local_port; // out
};
struct evtchn_bind_virq {
    u32 virq;
    u32 vcpu;
    u32 port; // out
};
struct evtchn_bind_ipi {
    u32 vcpu;
    u32 port; // out
};
struct evtchn_port {
    u32 port;
}; // close, send, unmask
struct evtchn_bind_vcpu {
    u32 port;
    u32 vcpu;
};
struct evtchn_reset {
    u16 dom;
};
struct evtchn_status {
    u16 dom;
    u32 port;
    u32 status; // out
    u32 vcpu;   // out
    union {
        struct {
            u16 dom;
        } unbound;
        struct {
            u16 dom;
            u32 port;
        } interdomain;
        u32 virq;
    } u;
};
#define EVTCHNSTAT_closed 0
#define EVTCHNSTAT_unbound 1
#define EVTCHNSTAT_interdomain 2
#define EVTCHNSTAT_pirq 3
#define EVTCHNSTAT_virq 4
#define EVTCHNSTAT_ipi 5

#endif
