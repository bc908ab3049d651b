// SPDX-License-Identifier: GPL-2.0-only
// Tests: fpu_taskswitch: #NM on first use, once, and registers that survive events and sleeping.
// SUCCESS: as Xen does it: delivering #NM clears the flag. FAILURE: the named check. ERROR: never.
#include <guest/clock.h>
#include <guest/test.h>

XEN_NOTES

static void use_fpu(void *arg)
{
    (void)arg;
    __asm__ volatile("fninit\n\tfldpi\n\tfstp %st(0)");
}

static void use_sse(void *arg)
{
    (void)arg;
    __asm__ volatile("pxor %xmm1, %xmm1");
}

static u64 cr0(void)
{
    u64 value;

    __asm__ volatile("mov %%cr0, %0" : "=r"(value));
    return value;
}

void test_main(void)
{
    u64 in = 0x123456789abcdef, out = 0;

    CHECK_EQUAL(cr0() & 8, 0);
    CHECK_NO_TRAP(guarded(use_fpu, NULL));
    CHECK_EQUAL(hyp_fpu_taskswitch(true), 0);
    CHECK_EQUAL(cr0() & 8, 8);
    CHECK_TRAP(guarded(use_fpu, NULL), TRAP_NO_DEVICE, 0);
    CHECK_EQUAL(cr0() & 8, 0);
    CHECK_NO_TRAP(guarded(use_fpu, NULL));
    CHECK_EQUAL(hyp_fpu_taskswitch(true), 0);
    CHECK_TRAP(guarded(use_sse, NULL), TRAP_NO_DEVICE, 0);
    CHECK_NO_TRAP(guarded(use_sse, NULL));
    CHECK_EQUAL(hyp_fpu_taskswitch(true), 0);
    CHECK_EQUAL(hyp_fpu_taskswitch(false), 0);
    CHECK_NO_TRAP(guarded(use_sse, NULL));

    timer_init();
    __asm__ volatile("movq %0, %%xmm5\n\tmovq %0, %%xmm15\n\tmovq %0, %%mm3" : : "r"(in));
    clock_sleep(10 * NS_PER_MS);
    console_flush();
    __asm__ volatile("movq %%xmm5, %0" : "=r"(out));
    CHECK_EQUAL(out, in);
    __asm__ volatile("movq %%xmm15, %0" : "=r"(out));
    CHECK_EQUAL(out, in);
    __asm__ volatile("movq %%mm3, %0\n\temms" : "=r"(out));
    CHECK_EQUAL(out, in);
}
