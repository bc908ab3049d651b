// SPDX-License-Identifier: GPL-2.0-only
// Tests: set_debugreg and get_debugreg, and which values are refused.
// SUCCESS: as Xen does it. FAILURE: the named check. ERROR: never.
#include <guest/test.h>

XEN_NOTES

void test_main(void)
{
    for (u32 i = 0; i < 4; i++) {
        CHECK_EQUAL(hyp_get_debugreg(i), 0);
        CHECK_EQUAL(hyp_set_debugreg(i, 0x1000 * (i + 1)), 0);
    }
    for (u32 i = 0; i < 4; i++)
        CHECK_EQUAL(hyp_get_debugreg(i), 0x1000 * (i + 1));
    CHECK_EQUAL(hyp_set_debugreg(0, 0xffffffff80000000), 0); // the guest's half of high addresses
    CHECK_EQUAL(hyp_get_debugreg(0), 0xffffffff80000000);
    CHECK_EQUAL(hyp_set_debugreg(0, HYPERVISOR_START), -EPERM);
    CHECK_EQUAL(hyp_set_debugreg(0, 0xffff820000000000), -EPERM);
    CHECK_EQUAL(hyp_get_debugreg(0), 0xffffffff80000000);

    CHECK_EQUAL(hyp_get_debugreg(6), 0xffff0ff0);
    CHECK_EQUAL(hyp_get_debugreg(7), 0x400);
    CHECK_EQUAL(hyp_set_debugreg(7, 0x400), 0);
    CHECK_EQUAL(hyp_set_debugreg(7, 0), 0); // the bit that is always one stays
    CHECK_EQUAL(hyp_get_debugreg(7), 0x400);
    CHECK_EQUAL(hyp_set_debugreg(7, 0x2400), -EPERM); // general detect
    CHECK_EQUAL(hyp_set_debugreg(6, 0), 0);
    CHECK_EQUAL(hyp_get_debugreg(6), 0xffff0ff0);
    CHECK_EQUAL(hyp_set_debugreg(8, 0), -ENODEV);
    CHECK_EQUAL(hyp_get_debugreg(8), -ENODEV);
    CHECK_EQUAL(hyp_set_debugreg(0xffffffff, 0), -ENODEV);
}
