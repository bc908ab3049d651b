// SPDX-License-Identifier: GPL-2.0-only
// Tests: xen_version's sub-operations, their sizes, and what bad arguments get.
// SUCCESS: all answer as Xen does for an unprivileged guest. FAILURE: the named check. ERROR: never.
#include <guest/test.h>
#include <xen/version.h>

XEN_NOTES

static char buffer[2048];

void test_main(void)
{
    struct xen_feature_info features = {0, 0};
    struct xen_platform_parameters platform = {0};
    struct xen_compile_info *compile = (void *)buffer;
    long version = hyp_xen_version(XENVER_version, NULL);

    CHECK(version >> 16 == 4);
    CHECK((version & 0xffff) >= 17);
    CHECK_EQUAL(hyp_xen_version(XENVER_extraversion, buffer), 0);
    CHECK(text_length(buffer) < 16);
    memset(buffer, 'x', sizeof(buffer));
    CHECK_EQUAL(hyp_xen_version(XENVER_capabilities, buffer), 0);
    CHECK(text_starts(buffer, "xen-3.0-x86_64 "));
    CHECK_EQUAL(buffer[1024], 'x'); // never more than the structure
    memset(buffer, 'x', sizeof(buffer));
    CHECK_EQUAL(hyp_xen_version(XENVER_changeset, buffer), 0);
    CHECK_EQUAL(buffer[64], 'x');
    memset(buffer, 'x', sizeof(buffer));
    CHECK_EQUAL(hyp_xen_version(XENVER_compile_info, buffer), 0);
    CHECK(text_length(compile->compiler) < sizeof(compile->compiler));
    CHECK_EQUAL(buffer[sizeof(*compile)], 'x');
    CHECK_EQUAL(hyp_xen_version(XENVER_commandline, buffer), 0);
    CHECK_EQUAL(hyp_xen_version(XENVER_platform_parameters, &platform), 0);
    CHECK_EQUAL(platform.virt_start, HYPERVISOR_START);
    CHECK_EQUAL(hyp_xen_version(XENVER_pagesize, NULL), 4096);
    CHECK_EQUAL(hyp_xen_version(XENVER_guest_handle, buffer), 0);

    CHECK_EQUAL(hyp_xen_version(XENVER_get_features, &features), 0);
    CHECK(features.submap >> XENFEAT_mmu_pt_update_preserve_ad & 1);
    CHECK(features.submap >> XENFEAT_gnttab_map_avail_bits & 1);
    CHECK(!(features.submap >> XENFEAT_auto_translated_physmap & 1));
    CHECK(!(features.submap >> XENFEAT_hvm_callback_vector & 1));
    CHECK(!(features.submap >> XENFEAT_dom0 & 1));
    CHECK(!(features.submap >> XENFEAT_pae_pgdir_above_4gb & 1)); // not before vm_assist asked for it
    CHECK_EQUAL(hyp_vm_assist(VMASST_enable, VMASST_pae_extended_cr3), 0);
    CHECK_EQUAL(hyp_xen_version(XENVER_get_features, &features), 0);
    CHECK(features.submap >> XENFEAT_pae_pgdir_above_4gb & 1);
    features.submap_idx = 1;
    CHECK_EQUAL(hyp_xen_version(XENVER_get_features, &features), -EINVAL);

    CHECK_EQUAL(hyp_xen_version(XENVER_extraversion, NULL), -EFAULT);
    CHECK_EQUAL(hyp_xen_version(XENVER_capabilities, (void *)HYPERVISOR_START), -EFAULT);
    CHECK_EQUAL(hyp_xen_version(XENVER_get_features, (void *)0x1000), -EFAULT);
    CHECK_EQUAL(hyp_xen_version(99, buffer), -ENOSYS);
}
