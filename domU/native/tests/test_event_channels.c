// SPDX-License-Identifier: GPL-2.0-only
// Tests: every event channel operation of the 2-level ABI (but pirq) on channels of our own.
// SUCCESS: ports, states and errors as Xen has them. FAILURE: the named check. ERROR: never.
#include <guest/test.h>

XEN_NOTES

static u32 events;

static void count(u32 port, void *data)
{
    (void)port;
    *(u32 *)data += 1;
    events++;
}

static struct evtchn_status status_of(u32 port)
{
    struct evtchn_status status = {.dom = DOMID_SELF, .port = port};

    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_status, &status), 0);
    return status;
}

static long close_port(u32 port)
{
    struct evtchn_port close = {port};

    return hyp_event_channel_op(EVTCHNOP_close, &close);
}

static void loopback(void)
{
    struct evtchn_alloc_unbound unbound = {DOMID_SELF, DOMID_SELF, 0};
    struct evtchn_bind_interdomain bind = {DOMID_SELF, 0, 0};
    u32 near_events = 0, far_events = 0, near_port, far_port;

    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_alloc_unbound, &unbound), 0);
    near_port = unbound.port;
    CHECK(near_port > start_info->console_evtchn || near_port > start_info->store_evtchn);
    CHECK_EQUAL(status_of(near_port).status, EVTCHNSTAT_unbound);
    CHECK_EQUAL(event_notify(near_port), 0); // nobody there: no error, no event
    CHECK(!event_is_pending(near_port));

    bind.remote_port = near_port;
    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_bind_interdomain, &bind), 0);
    far_port = bind.local_port;
    CHECK(far_port != near_port);
    CHECK_EQUAL(status_of(near_port).status, EVTCHNSTAT_interdomain);
    CHECK_EQUAL(status_of(near_port).u.interdomain.port, far_port);
    CHECK_EQUAL(status_of(far_port).u.interdomain.port, near_port);
    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_bind_interdomain, &bind), -EINVAL); // taken
    CHECK(event_is_pending(far_port)); // something may have been sent before
    event_bind(far_port, count, &far_events);
    event_bind(near_port, count, &near_events);
    CHECK_EQUAL(far_events, 1);
    CHECK_EQUAL(near_events, 0);
    CHECK_EQUAL(event_notify(near_port), 0);
    CHECK_EQUAL(far_events, 2);
    CHECK_EQUAL(event_notify(far_port), 0);
    CHECK_EQUAL(near_events, 1);

    // One end closes: the other is unbound again, and may be bound anew.
    CHECK_EQUAL(close_port(far_port), 0);
    CHECK_EQUAL(status_of(far_port).status, EVTCHNSTAT_closed);
    CHECK_EQUAL(status_of(near_port).status, EVTCHNSTAT_unbound);
    CHECK_EQUAL(event_notify(near_port), 0);
    CHECK_EQUAL(event_notify(far_port), -EINVAL);
    CHECK_EQUAL(close_port(far_port), -EINVAL);
    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_bind_interdomain, &bind), 0);
    CHECK_EQUAL(bind.local_port, far_port); // the lowest free port
    CHECK_EQUAL(close_port(near_port), 0);
    CHECK_EQUAL(close_port(bind.local_port), 0);
    event_unbind(near_port);
    event_unbind(far_port);
}

static void unbound_errors(void)
{
    struct evtchn_alloc_unbound unbound = {DOMID_SELF, 1234, 0};
    struct evtchn_bind_interdomain bind = {DOMID_SELF, 0, 0};

    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_alloc_unbound, &unbound), 0); // for a domain yet to come
    bind.remote_port = unbound.port;
    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_bind_interdomain, &bind), -EINVAL); // not for us
    CHECK_EQUAL(close_port(unbound.port), 0);
    unbound.dom = 1234;
    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_alloc_unbound, &unbound), -ESRCH);
    bind.remote_dom = 1234;
    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_bind_interdomain, &bind), -ESRCH);
    bind.remote_dom = DOMID_SELF;
    bind.remote_port = 0;
    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_bind_interdomain, &bind), -EINVAL);
    bind.remote_port = 5000;
    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_bind_interdomain, &bind), -EINVAL);
}

static void virqs(void)
{
    struct evtchn_bind_virq bind = {VIRQ_TIMER, 0, 0}, again;

    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_bind_virq, &bind), 0);
    CHECK_EQUAL(status_of(bind.port).status, EVTCHNSTAT_virq);
    CHECK_EQUAL(status_of(bind.port).u.virq, VIRQ_TIMER);
    CHECK_EQUAL(status_of(bind.port).vcpu, 0);
    again = bind;
    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_bind_virq, &again), -EEXIST);
    CHECK_EQUAL(close_port(bind.port), 0);
    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_bind_virq, &bind), 0);
    CHECK_EQUAL(close_port(bind.port), 0);
    bind.virq = VIRQ_DEBUG;
    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_bind_virq, &bind), 0);
    CHECK_EQUAL(close_port(bind.port), 0);
    bind.vcpu = 1;
    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_bind_virq, &bind), -ENOENT);
    bind.vcpu = 0;
    bind.virq = NR_VIRQS;
    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_bind_virq, &bind), -EINVAL);
    bind.virq = 0xffffffff;
    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_bind_virq, &bind), -EINVAL);
}

static void ipis(void)
{
    struct evtchn_bind_ipi bind = {0, 0};
    struct evtchn_bind_vcpu vcpu;
    u32 mine = 0;

    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_bind_ipi, &bind), 0);
    CHECK_EQUAL(status_of(bind.port).status, EVTCHNSTAT_ipi);
    event_bind(bind.port, count, &mine);
    CHECK_EQUAL(mine, 0);
    CHECK_EQUAL(event_notify(bind.port), 0);
    CHECK_EQUAL(mine, 1);
    vcpu = (struct evtchn_bind_vcpu){bind.port, 0};
    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_bind_vcpu, &vcpu), -EINVAL); // an IPI stays where it is
    CHECK_EQUAL(close_port(bind.port), 0);
    event_unbind(bind.port);
    bind.vcpu = 1;
    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_bind_ipi, &bind), -ENOENT);

    vcpu = (struct evtchn_bind_vcpu){start_info->console_evtchn, 0};
    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_bind_vcpu, &vcpu), 0);
    vcpu.vcpu = 1;
    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_bind_vcpu, &vcpu), -ENOENT);
    vcpu = (struct evtchn_bind_vcpu){0, 0};
    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_bind_vcpu, &vcpu), -EINVAL);
}

static void bad_ports(void)
{
    static const u32 ports[] = {0, 1000, 4095, 4096, 0x7fffffff, 0xffffffff};

    for (u32 i = 0; i < ARRAY_LENGTH(ports); i++) {
        struct evtchn_port port = {ports[i]};
        struct evtchn_status status = {.dom = DOMID_SELF, .port = ports[i]};
        long known = hyp_event_channel_op(EVTCHNOP_status, &status);

        CHECK_EQUAL(close_port(ports[i]), -EINVAL);
        CHECK_EQUAL(event_notify(ports[i]), -EINVAL);
        CHECK_EQUAL(known == -EINVAL || (known == 0 && status.status == EVTCHNSTAT_closed), true);
        // Unmasking looks at the number only.
        if (ports[i] >= 4096)
            CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_unmask, &port), -EINVAL);
    }
}

static void well_known(void)
{
    CHECK_EQUAL(status_of(start_info->console_evtchn).status, EVTCHNSTAT_interdomain);
    CHECK_EQUAL(status_of(start_info->console_evtchn).u.interdomain.dom, 0);
    CHECK_EQUAL(status_of(start_info->store_evtchn).status, EVTCHNSTAT_interdomain);
}

static void many(void)
{
    u32 count_of_ports = 0, first = 0, last = 0;
    long error;

    for (;;) {
        struct evtchn_alloc_unbound unbound = {DOMID_SELF, DOMID_SELF, 0};

        error = hyp_event_channel_op(EVTCHNOP_alloc_unbound, &unbound);
        if (error)
            break;
        first = first ? first : unbound.port;
        last = unbound.port;
        count_of_ports++;
    }
    // xl gives a domain 1023 ports unless the config says otherwise.
    CHECK_EQUAL(error, -ENOSPC);
    CHECK_EQUAL(last, 1023);
    for (u32 port = first; port <= last; port++)
        close_port(port);
    CHECK(count_of_ports > 1000);
}

void test_main(void)
{
    loopback();
    unbound_errors();
    virqs();
    ipis();
    bad_ports();
    well_known();
    many();
}
