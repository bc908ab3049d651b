// SPDX-License-Identifier: GPL-2.0-only
// 2-level event channels.
#include <guest/events.h>
#include <guest/hypercall.h>
#include <guest/machine.h>
#include <xen/sched.h>
#include <xen/version.h>

struct binding {
    event_handler handler;
    void *data;
};
static struct binding bindings[NR_EVENT_CHANNELS];
volatile u64 upcall_count;

static void atomic_clear_bit(volatile u64 *words, u32 bit)
{
    __asm__ volatile("lock btrq %1, %0" : "+m"(words[bit / 64]) : "r"((u64)bit % 64) : "memory", "cc");
}

static void atomic_set_bit(volatile u64 *words, u32 bit)
{
    __asm__ volatile("lock btsq %1, %0" : "+m"(words[bit / 64]) : "r"((u64)bit % 64) : "memory", "cc");
}

static u64 atomic_take(volatile u64 *word)
{
    u64 value = 0;

    __asm__ volatile("xchgq %0, %1" : "+r"(value), "+m"(*word) : : "memory");
    return value;
}

void events_init(void)
{
    for (u32 word = 0; word < 64; word++)
        shared_info->evtchn_mask[word] = ~0UL;
}

void events_dispatch(void)
{
    while (vcpu_info->evtchn_upcall_pending) {
        vcpu_info->evtchn_upcall_pending = 0;
        barrier();
        for (u64 words = atomic_take(&vcpu_info->evtchn_pending_sel); words; words &= words - 1) {
            u32 word = __builtin_ctzl(words);
            u64 ready;

            while ((ready = shared_info->evtchn_pending[word] & ~shared_info->evtchn_mask[word]) != 0) {
                u32 port = word * 64 + __builtin_ctzl(ready);

                event_clear(port);
                if (bindings[port].handler)
                    bindings[port].handler(port, bindings[port].data);
            }
        }
    }
}

void event_mask(u32 port)
{
    atomic_set_bit(shared_info->evtchn_mask, port);
}

void event_unmask(u32 port)
{
    struct evtchn_port unmask = {port};

    hyp_event_channel_op(EVTCHNOP_unmask, &unmask);
}

bool event_is_pending(u32 port)
{
    return shared_info->evtchn_pending[port / 64] >> (port % 64) & 1;
}

void event_clear(u32 port)
{
    atomic_clear_bit(shared_info->evtchn_pending, port);
}

void event_bind(u32 port, event_handler handler, void *data)
{
    bindings[port] = (struct binding){handler, data};
    event_unmask(port);
}

void event_unbind(u32 port)
{
    event_mask(port);
    bindings[port] = (struct binding){NULL, NULL};
}

long event_notify(u32 port)
{
    struct evtchn_port send = {port};

    return hyp_event_channel_op(EVTCHNOP_send, &send);
}

bool upcalls_are_enabled(void)
{
    return !vcpu_info->evtchn_upcall_mask;
}

void upcalls_disable(void)
{
    vcpu_info->evtchn_upcall_mask = 1;
    barrier();
}

void upcalls_enable(void)
{
    barrier();
    vcpu_info->evtchn_upcall_mask = 0;
    barrier();
    if (vcpu_info->evtchn_upcall_pending)
        hyp_xen_version(XENVER_version, NULL); // the way out of any hypercall delivers what is pending
}

void events_wait_until(bool (*condition)(void *arg), void *arg)
{
    bool were_enabled = upcalls_are_enabled();

    upcalls_disable();
    while (!condition(arg)) {
        hyp_sched_op(SCHEDOP_block, NULL); // enables upcalls, atomically with the decision to sleep
        upcalls_disable();
    }
    if (were_enabled)
        upcalls_enable();
}
