// SPDX-License-Identifier: GPL-2.0-only
// memory_op (public/memory.h).
#ifndef XEN_MEMORY_H
#define XEN_MEMORY_H

#include <xen/types.h>

#define XENMEM_increase_reservation 0
#define XENMEM_decrease_reservation 1
#define XENMEM_maximum_ram_page 2
#define XENMEM_current_reservation 3
#define XENMEM_maximum_reservation 4
#define XENMEM_machphys_mfn_list 5
#define XENMEM_populate_physmap 6
#define XENMEM_add_to_physmap 7
#define XENMEM_memory_map 9
#define XENMEM_exchange 11
#define XENMEM_machphys_mapping 12
#define XENMEM_maximum_gpfn 14

struct xen_memory_reservation {
    u64 *extent_start;
    u64 nr_extents;
    u32 extent_order;
    u32 mem_flags;
    u16 domid;
};
struct xen_machphys_mapping {
    u64 v_start, v_end;
    u64 max_mfn;
};
struct xen_memory_map {
    u32 nr_entries;
    void *buffer;
};
struct e820_entry {
    u64 addr;
    u64 size;
    u32 type;
} __attribute__((packed));
#define E820_RAM 1

#endif
