// SPDX-License-Identifier: GPL-2.0-only
// Tests: selectors that are loaded while the descriptor behind them goes away. When Xen has to reload them (it may, at
// any switch between domains, and need not) and cannot, the failsafe callback is told which they were.
// SUCCESS: either the selectors are as they were and no callback came, or the callback came with their values.
// FAILURE: the named check. ERROR: no LDT.
#include <guest/clock.h>
#include <guest/test.h>

XEN_NOTES

#define DATA_SEGMENT 0x00cff3000000ffffUL

extern volatile u64 failsafe_count;
extern volatile u64 failsafe_selectors[4]; // ds es fs gs

static void load_selectors(u16 selector)
{
    __asm__ volatile("movw %0, %%ds\n\tmovw %0, %%es\n\tmovw %0, %%fs\n\tmovw %0, %%gs" : : "r"(selector));
}

static u64 sum_of_selectors(void)
{
    u16 ds, es, fs, gs;

    __asm__ volatile("movw %%ds, %0\n\tmovw %%es, %1\n\tmovw %%fs, %2\n\tmovw %%gs, %3"
                     : "=r"(ds), "=r"(es), "=r"(fs), "=r"(gs));
    return (u64)ds + es + fs + gs;
}

void test_main(void)
{
    u64 *ldt = page_alloc();

    timer_init();
    ldt[2] = DATA_SEGMENT;
    CHECK_EQUAL(page_make_readonly(ldt), 0);
    if (mmuext_one(MMUEXT_SET_LDT, (u64)ldt, 8) != 0)
        test_error("no LDT");
    load_selectors(2 << 3 | 7);
    CHECK_EQUAL(sum_of_selectors(), 4 * (2 << 3 | 7));
    // Others run in between; the descriptor is still there.
    for (u32 i = 0; i < 10; i++)
        clock_sleep(2 * NS_PER_MS);
    CHECK_EQUAL(sum_of_selectors(), 4 * (2 << 3 | 7));
    CHECK_EQUAL(failsafe_count, 0);
    // And now it is not.
    CHECK_EQUAL(mmuext_one(MMUEXT_SET_LDT, 0, 0), 0);
    for (u32 i = 0; i < 10 && !failsafe_count; i++) {
        clock_sleep(2 * NS_PER_MS);
        console_write("", 0); // makes another domain run
    }
    if (failsafe_count) {
        print("failsafe callback: ds %lx es %lx fs %lx gs %lx\n", failsafe_selectors[0], failsafe_selectors[1],
              failsafe_selectors[2], failsafe_selectors[3]);
        CHECK_EQUAL(failsafe_count, 1);
        for (u32 i = 0; i < 4; i++)
            CHECK(failsafe_selectors[i] == (2 << 3 | 7) || failsafe_selectors[i] == 0);
        CHECK_EQUAL(failsafe_selectors[0], 2 << 3 | 7);
    } else {
        CHECK_EQUAL(sum_of_selectors(), 4 * (2 << 3 | 7));
    }
    load_selectors(0);
    CHECK(upcalls_are_enabled());
}
