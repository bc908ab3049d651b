// SPDX-License-Identifier: GPL-2.0-only
// Trap table, dispatch, guarded calls.
#include <guest/events.h>
#include <guest/hypercall.h>
#include <guest/machine.h>
#include <guest/text.h>
#include <guest/traps.h>
#include <xen/sched.h>

#define VECTORS 258

extern char trap_0[], trap_1[], trap_2[], trap_3[], trap_4[], trap_5[], trap_6[], trap_7[], trap_10[], trap_11[],
    trap_12[], trap_13[], trap_14[], trap_16[], trap_17[], trap_18[], trap_19[], trap_66[];

bool guard_call(void (*fn)(void *), void *arg, u64 *saved_rsp);
u64 probe_load(const volatile void *address);
void probe_store(volatile void *address, u64 value);

#define TRAP(number, flags) {number, flags, FLAT_KERNEL_CS, (u64)trap_##number}

struct trap_info trap_table[] = {
    TRAP(0, 0),  TRAP(1, 0),  TRAP(2, 0),  TRAP(3, 3),  TRAP(4, 3),  TRAP(5, 0),  TRAP(6, 0),
    TRAP(7, 0),  TRAP(10, 0), TRAP(11, 0), TRAP(12, 0), TRAP(13, 0), TRAP(14, TRAP_MASK_EVENTS),
    TRAP(16, 0), TRAP(17, 0), TRAP(18, 0), TRAP(19, 0), {0, 0, 0, 0},
};

static trap_handler handlers[VECTORS];

// The innermost guarded call. Traps come to it with events masked or not; it belongs to the one vCPU.
struct guard {
    u64 rsp;
    struct trap_record record;
    struct guard *outer;
};
static struct guard *guard;

void trap_set_handler(u32 vector, trap_handler handler)
{
    handlers[vector] = handler;
}

static void die(struct registers *r)
{
    struct sched_shutdown crash = {SHUTDOWN_crash};

    print("unexpected trap %lu error %lx at %lx (cr2 %lx)\n", r->vector, r->error, r->rip, vcpu_info->cr2);
    print("rsp %lx rflags %lx cs %lx ss %lx\n", r->rsp, r->rflags, r->cs, r->ss);
    print("rax %lx rbx %lx rcx %lx rdx %lx rsi %lx rdi %lx rbp %lx\n", r->rax, r->rbx, r->rcx, r->rdx, r->rsi, r->rdi,
          r->rbp);
    hyp_sched_op(SCHEDOP_shutdown, &crash);
}

void trap_dispatch(struct registers *r)
{
    u8 mask = vcpu_info ? vcpu_info->evtchn_upcall_mask : 1;

    if (handlers[r->vector] && handlers[r->vector](r))
        return;
    if (!guard) {
        die(r);
        return;
    }
    guard->record = (struct trap_record){
        .trapped = true,
        .vector = r->vector,
        .error = r->error,
        .rip = r->rip,
        .cr2 = vcpu_info->cr2,
        .cs = r->cs & 0xffff,
        .ss = r->ss,
        .rflags = r->rflags,
        .rsp = r->rsp,
        .mask_in_handler = mask,
        .registers = *r,
    };
    r->rip = (u64)guard_resume;
    r->rsp = guard->rsp;
    r->cs = FLAT_KERNEL_CS & ~3UL;
    r->ss = FLAT_KERNEL_SS;
    r->rflags &= ~(u64)(FLAG_TRAP | FLAG_DIRECTION | FLAG_ALIGN);
}

struct trap_record guarded(void (*fn)(void *arg), void *arg)
{
    struct guard here = {.outer = guard};

    guard = &here;
    guard_call(fn, arg, &here.rsp);
    guard = here.outer;
    return here.record;
}

struct access {
    volatile void *address;
    u64 value;
};

static void load(void *arg)
{
    struct access *access = arg;

    access->value = probe_load(access->address);
}

static void store(void *arg)
{
    struct access *access = arg;

    probe_store(access->address, access->value);
}

struct trap_record probe_read_record(const volatile void *address)
{
    struct access access = {(volatile void *)address, 0};

    return guarded(load, &access);
}

struct trap_record probe_write_record(volatile void *address, u64 value)
{
    struct access access = {address, value};

    return guarded(store, &access);
}

bool probe_read(const volatile void *address, u64 *value)
{
    struct access access = {(volatile void *)address, 0};
    struct trap_record record = guarded(load, &access);

    *value = access.value;
    return !record.trapped;
}

bool probe_write(volatile void *address, u64 value)
{
    return !probe_write_record(address, value).trapped;
}

static bool on_event(struct registers *r)
{
    (void)r;
    upcall_count++;
    events_dispatch();
    return true;
}

void traps_init(void)
{
    struct callback_register event = {CALLBACKTYPE_event, CALLBACKF_mask_events, (u64)event_entry};
    struct callback_register failsafe = {CALLBACKTYPE_failsafe, CALLBACKF_mask_events, (u64)failsafe_entry};
    struct callback_register syscall = {CALLBACKTYPE_syscall, CALLBACKF_mask_events, (u64)syscall_entry};

    trap_set_handler(VECTOR_EVENT, on_event);
    hyp_set_trap_table(trap_table);
    hyp_callback_op(CALLBACKOP_register, &event);
    hyp_callback_op(CALLBACKOP_register, &failsafe);
    hyp_callback_op(CALLBACKOP_register, &syscall);
}
