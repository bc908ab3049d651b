// SPDX-License-Identifier: GPL-2.0-only
// Grant tables, version 1 (public/grant_table.h).
#ifndef XEN_GRANT_TABLE_H
#define XEN_GRANT_TABLE_H

#include <xen/types.h>

struct grant_entry_v1 {
    u16 flags;
    u16 domid;
    u32 frame;
};
#define GTF_permit_access 1
#define GTF_readonly 4
#define GTF_reading 8
#define GTF_writing 16
#define GNTTAB_RESERVED_CONSOLE 0
#define GNTTAB_RESERVED_XENSTORE 1

#define GNTTABOP_map_grant_ref 0
#define GNTTABOP_unmap_grant_ref 1
#define GNTTABOP_setup_table 2
#define GNTTABOP_copy 5
#define GNTTABOP_query_size 6
#define GNTTABOP_set_version 8
#define GNTTABOP_get_version 10

#define GNTMAP_device_map 1
#define GNTMAP_host_map 2
#define GNTMAP_readonly 4
#define GNTCOPY_source_gref 1
#define GNTCOPY_dest_gref 2

#define GNTST_okay 0
#define GNTST_general_error (-1)
#define GNTST_bad_domain (-2)
#define GNTST_permission_denied (-8)

struct gnttab_setup_table {
    u16 dom;
    u32 nr_frames;
    s16 status; // out
    u64 *frame_list;
};
struct gnttab_query_size {
    u16 dom;
    u32 nr_frames;     // out
    u32 max_nr_frames; // out
    s16 status;        // out
};
struct gnttab_map_grant_ref {
    u64 host_addr;
    u32 flags;
    u32 ref;
    u16 dom;
    s16 status;       // out
    u32 handle;       // out
    u64 dev_bus_addr; // out
};
struct gnttab_unmap_grant_ref {
    u64 host_addr;
    u64 dev_bus_addr;
    u32 handle;
    s16 status; // out
};
struct gnttab_copy {
    struct {
        u64 frame_or_ref;
        u16 domid;
        u16 offset;
    } source, dest;
    u16 len;
    u16 flags;
    s16 status; // out
};

#endif
