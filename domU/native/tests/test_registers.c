// SPDX-License-Identifier: GPL-2.0-only
// Tests: what a hypercall and an event leave in the registers: all as they were, but rax, and rcx and r11 as the
// `syscall` instruction sets them; flags; SSE and x87 state.
// SUCCESS: nothing else changes. FAILURE: the named check. ERROR: never.
#include <guest/test.h>
#include <xen/version.h>

XEN_NOTES

struct state {
    u64 rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rflags, xmm0, xmm15, after;
};

// Loads all of `state`, makes the hypercall, and stores all of it again.
void call_with(struct state *state);
__asm__(".pushsection .text\n"
        "call_with:\n"
        "pushq %rbx\npushq %rbp\npushq %r12\npushq %r13\npushq %r14\npushq %r15\npushq %rdi\n"
        "movq 8(%rdi), %rbx\nmovq 16(%rdi), %rcx\nmovq 24(%rdi), %rdx\nmovq 32(%rdi), %rsi\nmovq 48(%rdi), %rbp\n"
        "movq 56(%rdi), %r8\nmovq 64(%rdi), %r9\nmovq 72(%rdi), %r10\nmovq 80(%rdi), %r11\nmovq 88(%rdi), %r12\n"
        "movq 96(%rdi), %r13\nmovq 104(%rdi), %r14\nmovq 112(%rdi), %r15\n"
        "movq 128(%rdi), %xmm0\nmovq 136(%rdi), %xmm15\n"
        "movq (%rdi), %rax\npushq 120(%rdi)\nmovq 40(%rdi), %rdi\npopfq\n"
        "syscall\n"
        "call_with_after:\n"
        "pushfq\npushq %rdi\nmovq 16(%rsp), %rdi\n"
        "movq %rax, (%rdi)\nmovq %rbx, 8(%rdi)\nmovq %rcx, 16(%rdi)\nmovq %rdx, 24(%rdi)\nmovq %rsi, 32(%rdi)\n"
        "popq 40(%rdi)\nmovq %rbp, 48(%rdi)\nmovq %r8, 56(%rdi)\nmovq %r9, 64(%rdi)\nmovq %r10, 72(%rdi)\n"
        "movq %r11, 80(%rdi)\nmovq %r12, 88(%rdi)\nmovq %r13, 96(%rdi)\nmovq %r14, 104(%rdi)\nmovq %r15, 112(%rdi)\n"
        "popq 120(%rdi)\nmovq %xmm0, 128(%rdi)\nmovq %xmm15, 136(%rdi)\n"
        "cld\npopq %rdi\npopq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbp\npopq %rbx\nret\n"
        ".popsection");
extern char call_with_after[];

static u32 events;

static void count(u32 port, void *data)
{
    (void)port;
    (void)data;
    events++;
}

static struct state fill(u64 rax, u64 rdi, u64 rsi)
{
    struct state s;

    for (u32 i = 0; i < sizeof(s) / 8; i++)
        ((u64 *)&s)[i] = 0x1111111111111111 * (i + 1);
    s.rax = rax;
    s.rdi = rdi;
    s.rsi = rsi;
    s.rflags = 0xed7 & ~(u64)FLAG_TRAP; // all arithmetic flags, direction, interrupts
    return s;
}

static void compare(const struct state *before, const struct state *after)
{
    CHECK_EQUAL(after->rbx, before->rbx);
    CHECK_EQUAL(after->rdx, before->rdx);
    CHECK_EQUAL(after->rsi, before->rsi);
    CHECK_EQUAL(after->rdi, before->rdi);
    CHECK_EQUAL(after->rbp, before->rbp);
    CHECK_EQUAL(after->r8, before->r8);
    CHECK_EQUAL(after->r9, before->r9);
    CHECK_EQUAL(after->r10, before->r10);
    CHECK_EQUAL(after->r12, before->r12);
    CHECK_EQUAL(after->r13, before->r13);
    CHECK_EQUAL(after->r14, before->r14);
    CHECK_EQUAL(after->r15, before->r15);
    CHECK_EQUAL(after->rflags & 0xcd5, before->rflags & 0xcd5);
    CHECK_EQUAL(after->xmm0, before->xmm0);
    CHECK_EQUAL(after->xmm15, before->xmm15);
    CHECK_EQUAL(after->rcx, (u64)call_with_after);
    CHECK_EQUAL(after->r11 & 0xcd5, before->rflags & 0xcd5);
}

void test_main(void)
{
    struct evtchn_bind_ipi ipi = {0, 0};
    struct evtchn_port send;
    struct state before, after;

    before = after = fill(HYPERCALL_xen_version, XENVER_pagesize, 0);
    call_with(&after);
    CHECK_EQUAL(after.rax, 4096);
    compare(&before, &after);
    before = after = fill(63, 1, 2);
    call_with(&after);
    CHECK_EQUAL(after.rax, -ENOSYS);
    compare(&before, &after);

    // With an event on the way out: its handler and the iret back come in between.
    CHECK_EQUAL(hyp_event_channel_op(EVTCHNOP_bind_ipi, &ipi), 0);
    event_bind(ipi.port, count, NULL);
    send.port = ipi.port;
    before = after = fill(HYPERCALL_event_channel_op, EVTCHNOP_send, (u64)&send);
    call_with(&after);
    CHECK_EQUAL(after.rax, 0);
    CHECK_EQUAL(events, 1);
    compare(&before, &after);
}
