// SPDX-License-Identifier: GPL-2.0-only
// Tests: the upcall mask: across events, traps and iret; when pending events are looked at; per-port masks.
// SUCCESS: no event is lost, early, or delivered while masked. FAILURE: the named check. ERROR: no loopback channel.
#include <guest/test.h>
#include <guest/user.h>
#include <xen/sched.h>
#include <xen/version.h>

XEN_NOTES

static u32 near_port, far_port; // an event sent on `near_port` arrives on `far_port`
static u32 events;
static struct registers at_event;
static u8 mask_at_event;

USER_ASM("user_loop: jmp user_loop");
extern char user_loop[];

static void on_far(u32 port, void *data)
{
    (void)port;
    (void)data;
    events++;
}

static bool look_at_event(struct registers *r)
{
    at_event = *r;
    mask_at_event = vcpu_info->evtchn_upcall_mask;
    upcall_count++;
    events_dispatch();
    return true;
}

static void masked_upcalls(void)
{
    upcalls_disable();
    events = 0;
    CHECK_EQUAL(event_notify(near_port), 0);
    CHECK_EQUAL(events, 0);
    CHECK(event_is_pending(far_port));
    CHECK_EQUAL(vcpu_info->evtchn_upcall_pending, 1);
    CHECK_EQUAL(vcpu_info->evtchn_pending_sel >> (far_port / 64) & 1, 1);
    hyp_xen_version(XENVER_version, NULL); // a hypercall delivers nothing while masked
    CHECK_EQUAL(events, 0);
    CHECK_EQUAL(event_notify(near_port), 0); // pending already: no second event comes of it
    // Clearing the mask by hand does nothing by itself; the next hypercall does.
    vcpu_info->evtchn_upcall_mask = 0;
    barrier();
    hyp_xen_version(XENVER_version, NULL);
    CHECK_EQUAL(events, 1);
    CHECK(!event_is_pending(far_port));
    CHECK_EQUAL(vcpu_info->evtchn_upcall_mask, 0);
    CHECK_EQUAL(vcpu_info->evtchn_upcall_pending, 0);

    // Delivered on the way out of the call that sent it.
    CHECK_EQUAL(event_notify(near_port), 0);
    CHECK_EQUAL(events, 2);
}

static void masked_port(void)
{
    u64 upcalls = upcall_count;

    event_mask(far_port);
    events = 0;
    CHECK_EQUAL(event_notify(near_port), 0);
    CHECK(event_is_pending(far_port));
    CHECK_EQUAL(vcpu_info->evtchn_upcall_pending, 0);
    CHECK_EQUAL(vcpu_info->evtchn_pending_sel, 0);
    CHECK_EQUAL(upcall_count, upcalls);
    event_unmask(far_port); // the hypercall: finds it pending
    CHECK_EQUAL(events, 1);
    event_unmask(far_port);
    CHECK_EQUAL(events, 1);
}

static void frame_of_upcall(void)
{
    trap_set_handler(VECTOR_EVENT, look_at_event);
    CHECK_EQUAL(event_notify(near_port), 0);
    CHECK_EQUAL(mask_at_event, 1);
    CHECK_EQUAL(SAVED_MASK(&at_event), 0);
    CHECK_EQUAL(at_event.rflags & FLAG_INTERRUPT, FLAG_INTERRUPT);
    CHECK_EQUAL(at_event.cs & 0xffff, FLAT_KERNEL_CS & ~3);
}

static void undefined(void *arg)
{
    (void)arg;
    __asm__ volatile("ud2");
}

static void masks_of_traps(void)
{
    struct trap_record r;

    // The frame's IF is the inverse of the mask, and the mask itself lies beside CS.
    upcalls_disable();
    r = guarded(undefined, NULL);
    CHECK_EQUAL(r.rflags & FLAG_INTERRUPT, 0);
    CHECK_EQUAL(SAVED_MASK(&r.registers), 1);
    CHECK_EQUAL(r.mask_in_handler, 1);
    CHECK(!upcalls_are_enabled()); // restored by iret from the frame's IF
    upcalls_enable();
    r = guarded(undefined, NULL);
    CHECK_EQUAL(r.rflags & FLAG_INTERRUPT, FLAG_INTERRUPT);
    CHECK_EQUAL(SAVED_MASK(&r.registers), 0);
    CHECK_EQUAL(r.mask_in_handler, 0);
    CHECK(upcalls_are_enabled());
    r = probe_read_record((void *)0x1000); // its gate masks
    CHECK_EQUAL(r.mask_in_handler, 1);
    CHECK_EQUAL(SAVED_MASK(&r.registers), 0);
    CHECK(upcalls_are_enabled());
}

extern char iret_target[];
__asm__(".pushsection .text\niret_target: ud2\n.popsection");

static struct trap_record iret_with(u64 rflags)
{
    static char stack[512] __attribute__((aligned(16)));
    struct iret_frame frame = {.rip = (u64)iret_target,
                               .cs = FLAT_KERNEL_CS & ~3,
                               .rflags = rflags,
                               .rsp = (u64)stack + sizeof(stack),
                               .ss = FLAT_KERNEL_SS};

    return guarded((void (*)(void *))iret_hypercall, &frame);
}

static void iret_and_events(void)
{
    struct trap_record r;

    // IF clear: masked at the target, and what is pending waits.
    upcalls_disable();
    events = 0;
    CHECK_EQUAL(event_notify(near_port), 0);
    r = iret_with(0);
    CHECK_TRAP(r, TRAP_INVALID_OPCODE, 0);
    CHECK_EQUAL(SAVED_MASK(&r.registers), 1);
    CHECK_EQUAL(events, 0);
    // IF set: the event comes first, as if it had interrupted the target.
    at_event.rip = 0;
    r = iret_with(FLAG_INTERRUPT);
    CHECK_TRAP(r, TRAP_INVALID_OPCODE, 0);
    CHECK_EQUAL(events, 1);
    CHECK_EQUAL(at_event.rip, (u64)iret_target);
    CHECK_EQUAL(SAVED_MASK(&at_event), 0);
    CHECK(upcalls_are_enabled());
}

static bool leave_user_loop(struct registers *r)
{
    look_at_event(r);
    return false; // ends the guarded call
}

static void events_in_user_mode(void)
{
    struct trap_record r;

    trap_set_handler(VECTOR_EVENT, leave_user_loop);
    upcalls_disable();
    events = 0;
    CHECK_EQUAL(event_notify(near_port), 0);
    r = user_run(user_loop, 0);
    CHECK_EQUAL(r.vector, VECTOR_EVENT);
    CHECK_EQUAL(r.cs, FLAT_USER_CS);
    CHECK_EQUAL(r.rip, USER_ADDRESS(user_loop));
    CHECK_EQUAL(r.mask_in_handler, 1);
    CHECK_EQUAL(events, 1);
    trap_set_handler(VECTOR_EVENT, look_at_event);
}

static void block_unmasks(void)
{
    upcalls_disable();
    events = 0;
    CHECK_EQUAL(event_notify(near_port), 0);
    CHECK_EQUAL(hyp_sched_op(SCHEDOP_block, NULL), 0); // must not sleep
    CHECK_EQUAL(events, 1);
    CHECK(upcalls_are_enabled());
}

void test_main(void)
{
    struct evtchn_alloc_unbound unbound = {DOMID_SELF, DOMID_SELF, 0};
    struct evtchn_bind_interdomain bind = {DOMID_SELF, 0, 0};

    if (hyp_event_channel_op(EVTCHNOP_alloc_unbound, &unbound) != 0)
        test_error("alloc_unbound");
    bind.remote_port = near_port = unbound.port;
    if (hyp_event_channel_op(EVTCHNOP_bind_interdomain, &bind) != 0)
        test_error("bind_interdomain");
    far_port = bind.local_port;
    event_bind(far_port, on_far, NULL); // pending from birth: bind_interdomain makes it so
    CHECK_EQUAL(events, 1);
    if (user_init() != 0)
        test_error("no user address space");

    masked_upcalls();
    masked_port();
    frame_of_upcall();
    masks_of_traps();
    iret_and_events();
    events_in_user_mode();
    block_unmasks();
}
