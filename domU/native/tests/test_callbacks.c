// SPDX-License-Identifier: GPL-2.0-only
// Tests: callback_op, the older set_callbacks, set_trap_table: registering, replacing, unregistering, bad arguments.
// SUCCESS: as Xen does it. FAILURE: the named check. ERROR: never.
#include <guest/test.h>

XEN_NOTES

static long reg(u16 type, u64 address)
{
    struct callback_register callback = {type, CALLBACKF_mask_events, address};

    return hyp_callback_op(CALLBACKOP_register, &callback);
}

static long unreg(u16 type)
{
    struct callback_unregister callback = {type, 0};

    return hyp_callback_op(CALLBACKOP_unregister, &callback);
}

static void undefined(void *arg)
{
    (void)arg;
    __asm__ volatile("ud2");
}

static u32 events;

static void count(u32 port, void *data)
{
    (void)port;
    (void)data;
    events++;
}

void test_main(void)
{
    static const u16 types[] = {CALLBACKTYPE_event, CALLBACKTYPE_failsafe, CALLBACKTYPE_syscall, CALLBACKTYPE_sysenter,
                                CALLBACKTYPE_syscall32};
    struct trap_info table[3] = {{TRAP_INVALID_OPCODE, 0, FLAT_KERNEL_CS, 0x0000800000000000}, {0, 0, 0, 0}};
    struct evtchn_bind_ipi ipi = {0, 0};
    extern char trap_6[];

    for (u32 i = 0; i < ARRAY_LENGTH(types); i++) {
        CHECK_EQUAL(reg(types[i], 0x0000800000000000), -EINVAL);
        CHECK_EQUAL(reg(types[i], 0x8000000000000000), -EINVAL);
        CHECK_EQUAL(unreg(types[i]), -EINVAL); // these are for life
    }
    CHECK_EQUAL(reg(CALLBACKTYPE_sysenter, (u64)syscall_entry), 0);
    CHECK_EQUAL(reg(CALLBACKTYPE_syscall32, (u64)syscall_entry), 0);
    CHECK_EQUAL(reg(99, (u64)syscall_entry), -ENOSYS);
    CHECK_EQUAL(unreg(99), -ENOSYS);
    CHECK_EQUAL(reg(CALLBACKTYPE_nmi, (u64)syscall_entry), 0);
    CHECK_EQUAL(unreg(CALLBACKTYPE_nmi), 0);

    // The older form sets three at once.
    CHECK_EQUAL(hypercall3(HYPERCALL_set_callbacks, (u64)event_entry, (u64)failsafe_entry, (u64)syscall_entry), 0);
    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_bind_ipi, &ipi), 0);
    event_bind(ipi.port, count, NULL);
    CHECK_EQUAL(event_notify(ipi.port), 0);
    CHECK_EQUAL(events, 1);

    // A bad entry stops the table; what came before it is in force.
    CHECK_EQUAL(hyp_set_trap_table(table), -EINVAL);
    CHECK_TRAP(guarded(undefined, NULL), TRAP_INVALID_OPCODE, 0); // the old gate
    table[0] = (struct trap_info){TRAP_INVALID_OPCODE, TRAP_MASK_EVENTS, FLAT_KERNEL_CS, (u64)trap_6};
    table[1] = (struct trap_info){TRAP_BREAKPOINT, 0, FLAT_KERNEL_CS, 0x8000000000000000};
    CHECK_EQUAL(hyp_set_trap_table(table), -EINVAL);
    CHECK_EQUAL(guarded(undefined, NULL).mask_in_handler, 1);
    // Any code selector will do: Xen raises it to the guest's ring.
    table[0].cs = FLAT_KERNEL_CS & ~3;
    table[0].flags = 0;
    table[1] = (struct trap_info){0, 0, 0, 0};
    CHECK_EQUAL(hyp_set_trap_table(table), 0);
    CHECK_EQUAL(guarded(undefined, NULL).mask_in_handler, 0);
}
