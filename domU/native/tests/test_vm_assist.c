// SPDX-License-Identifier: GPL-2.0-only
// Tests: vm_assist: what may be enabled and disabled.
// SUCCESS: as Xen does it for a 64-bit guest. FAILURE: the named check. ERROR: never.
#include <guest/test.h>

XEN_NOTES

void test_main(void)
{
    static const u32 types[] = {VMASST_writable_pagetables, VMASST_pae_extended_cr3, VMASST_architectural_iopl,
                                VMASST_runstate_update_flag, VMASST_m2p_strict};

    for (u32 i = 0; i < ARRAY_LENGTH(types); i++) {
        CHECK_EQUAL(hyp_vm_assist(VMASST_enable, types[i]), 0);
        CHECK_EQUAL(hyp_vm_assist(VMASST_enable, types[i]), 0);
        CHECK_EQUAL(hyp_vm_assist(VMASST_disable, types[i]), 0);
        CHECK_EQUAL(hyp_vm_assist(VMASST_disable, types[i]), 0);
    }
    // Bits without a meaning here: they are not for this kind of guest.
    CHECK_EQUAL(hyp_vm_assist(VMASST_enable, 6), -EINVAL);
    CHECK_EQUAL(hyp_vm_assist(VMASST_enable, 31), -EINVAL);
    CHECK_EQUAL(hyp_vm_assist(VMASST_enable, 64), -EINVAL);
    CHECK_EQUAL(hyp_vm_assist(VMASST_enable, 0xffffffff), -EINVAL);
    CHECK_EQUAL(hyp_vm_assist(2, VMASST_writable_pagetables), -ENOSYS);
}
