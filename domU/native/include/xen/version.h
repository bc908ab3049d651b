// SPDX-License-Identifier: GPL-2.0-only
// xen_version sub-operations and feature bits (public/version.h, public/features.h).
#ifndef XEN_VERSION_H
#define XEN_VERSION_H

#include <xen/types.h>

#define XENVER_version 0
#define XENVER_extraversion 1 // char[16]
#define XENVER_compile_info 2
#define XENVER_capabilities 3 // char[1024]
#define XENVER_changeset 4    // char[64]
#define XENVER_platform_parameters 5
#define XENVER_get_features 6
#define XENVER_pagesize 7
#define XENVER_guest_handle 8 // u8[16]
#define XENVER_commandline 9  // char[1024]
#define XENVER_build_id 10

struct xen_compile_info {
    char compiler[64];
    char compile_by[16];
    char compile_domain[32];
    char compile_date[32];
};

struct xen_platform_parameters {
    u64 virt_start;
};

struct xen_feature_info {
    u32 submap_idx;
    u32 submap;
};
#define XENFEAT_writable_page_tables 0
#define XENFEAT_auto_translated_physmap 2
#define XENFEAT_pae_pgdir_above_4gb 4
#define XENFEAT_mmu_pt_update_preserve_ad 5
#define XENFEAT_highmem_assist 6
#define XENFEAT_gnttab_map_avail_bits 7
#define XENFEAT_hvm_callback_vector 8
#define XENFEAT_dom0 11

#endif
