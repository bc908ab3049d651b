// SPDX-License-Identifier: GPL-2.0-only
// The core of the 64-bit PV ABI: hypercall numbers, start_info, shared_info, traps and page-table calls.
// Layouts and numbers: Xen's public/xen.h, public/arch-x86/xen.h and public/arch-x86/xen-x86_64.h.
#ifndef XEN_XEN_H
#define XEN_XEN_H

#include <xen/errno.h>
#include <xen/types.h>

enum hypercall_number {
    HYPERCALL_set_trap_table = 0,
    HYPERCALL_mmu_update = 1,
    HYPERCALL_set_gdt = 2,
    HYPERCALL_stack_switch = 3,
    HYPERCALL_set_callbacks = 4,
    HYPERCALL_fpu_taskswitch = 5,
    HYPERCALL_set_debugreg = 8,
    HYPERCALL_get_debugreg = 9,
    HYPERCALL_update_descriptor = 10,
    HYPERCALL_memory_op = 12,
    HYPERCALL_multicall = 13,
    HYPERCALL_update_va_mapping = 14,
    HYPERCALL_set_timer_op = 15,
    HYPERCALL_xen_version = 17,
    HYPERCALL_console_io = 18,
    HYPERCALL_grant_table_op = 20,
    HYPERCALL_vm_assist = 21,
    HYPERCALL_update_va_mapping_otherdomain = 22,
    HYPERCALL_iret = 23,
    HYPERCALL_vcpu_op = 24,
    HYPERCALL_set_segment_base = 25,
    HYPERCALL_mmuext_op = 26,
    HYPERCALL_sched_op = 29,
    HYPERCALL_callback_op = 30,
    HYPERCALL_event_channel_op = 32,
    HYPERCALL_physdev_op = 33,
    HYPERCALL_hvm_op = 34,
    HYPERCALL_sysctl = 35,
    HYPERCALL_domctl = 36,
};

#define DOMID_SELF 0x7ff0
#define DOMID_IO 0x7ff1
#define DOMID_XEN 0x7ff2
#define DOMID_INVALID 0x7ff4

// Flat segments that Xen's own GDT offers every 64-bit guest.
#define FLAT_KERNEL_CS 0xe033
#define FLAT_KERNEL_SS 0xe02b
#define FLAT_USER_CS 0xe033
#define FLAT_USER_SS 0xe02b
#define FLAT_DS32 0xe02b
#define FLAT_CS32 0xe023

#define MACHINE_TO_PHYS ((volatile const u64 *)0xffff800000000000UL)
#define HYPERVISOR_START 0xffff800000000000UL
#define HYPERVISOR_END 0xffff880000000000UL

struct start_info {
    char magic[32];
    u64 nr_pages;
    u64 shared_info; // machine address
    u32 flags;
    u64 store_mfn;
    u32 store_evtchn;
    u64 console_mfn;
    u32 console_evtchn;
    u64 pt_base;
    u64 nr_pt_frames;
    u64 mfn_list;
    u64 mod_start;
    u64 mod_len;
    char cmd_line[1024];
    u64 first_p2m_pfn;
    u64 nr_p2m_frames;
};
#define SIF_PRIVILEGED 1
#define SIF_INITDOMAIN 2
#define SIF_MOD_START_PFN 8

struct vcpu_time_info {
    u32 version; // odd while the hypervisor writes
    u32 pad0;
    u64 tsc_timestamp;
    u64 system_time; // ns since boot at tsc_timestamp
    u32 tsc_to_system_mul;
    s8 tsc_shift;
    u8 flags;
    u8 pad1[2];
};

struct vcpu_info {
    u8 evtchn_upcall_pending;
    u8 evtchn_upcall_mask;
    u64 evtchn_pending_sel;
    u64 cr2;
    u64 pad;
    struct vcpu_time_info time;
};

struct shared_info {
    struct vcpu_info vcpu_info[32];
    u64 evtchn_pending[64];
    u64 evtchn_mask[64];
    u32 wc_version;
    u32 wc_sec;
    u32 wc_nsec;
    u32 wc_sec_hi;
    u64 max_pfn;
    u64 pfn_to_mfn_frame_list_list;
    u64 nmi_reason;
    u64 p2m_cr3;
    u64 p2m_vaddr;
    u64 p2m_generation;
};

struct trap_info {
    u8 vector;
    u8 flags; // 0-1: privilege level that may raise it by `int`; 2: mask events on entry
    u16 cs;
    u64 address;
};
#define TRAP_MASK_EVENTS 4

struct mmu_update {
    u64 ptr; // machine address of the entry | command
    u64 val;
};
#define MMU_NORMAL_PT_UPDATE 0
#define MMU_MACHPHYS_UPDATE 1
#define MMU_PT_UPDATE_PRESERVE_AD 2
#define MMU_PT_UPDATE_NO_TRANSLATE 3

struct mmuext_op {
    u32 cmd;
    u64 arg1; // mfn or linear address
    u64 arg2; // number of entries, pointer to vcpu mask, or source mfn
};
#define MMUEXT_PIN_L1_TABLE 0
#define MMUEXT_PIN_L2_TABLE 1
#define MMUEXT_PIN_L3_TABLE 2
#define MMUEXT_PIN_L4_TABLE 3
#define MMUEXT_UNPIN_TABLE 4
#define MMUEXT_NEW_BASEPTR 5
#define MMUEXT_TLB_FLUSH_LOCAL 6
#define MMUEXT_INVLPG_LOCAL 7
#define MMUEXT_TLB_FLUSH_MULTI 8
#define MMUEXT_INVLPG_MULTI 9
#define MMUEXT_TLB_FLUSH_ALL 10
#define MMUEXT_INVLPG_ALL 11
#define MMUEXT_FLUSH_CACHE 12
#define MMUEXT_SET_LDT 13
#define MMUEXT_NEW_USER_BASEPTR 15
#define MMUEXT_CLEAR_PAGE 16
#define MMUEXT_COPY_PAGE 17

#define UVMF_NONE 0
#define UVMF_TLB_FLUSH 1
#define UVMF_INVLPG 2
#define UVMF_ALL 4

struct multicall_entry {
    u64 op;
    u64 result;
    u64 args[6];
};

#define VMASST_enable 0
#define VMASST_disable 1
#define VMASST_4gb_segments 0
#define VMASST_4gb_segments_notify 1
#define VMASST_writable_pagetables 2
#define VMASST_pae_extended_cr3 3
#define VMASST_architectural_iopl 4
#define VMASST_runstate_update_flag 5
#define VMASST_m2p_strict 32

#define SEGBASE_FS 0
#define SEGBASE_GS_USER 1
#define SEGBASE_GS_KERNEL 2
#define SEGBASE_GS_USER_SEL 3

#define CALLBACKOP_register 0
#define CALLBACKOP_unregister 1
#define CALLBACKTYPE_event 0
#define CALLBACKTYPE_failsafe 1
#define CALLBACKTYPE_syscall 2
#define CALLBACKTYPE_nmi 4
#define CALLBACKTYPE_sysenter 5
#define CALLBACKTYPE_syscall32 7
#define CALLBACKF_mask_events 1
struct callback_register {
    u16 type;
    u16 flags;
    u64 address;
};
struct callback_unregister {
    u16 type;
    u16 unused;
};

#define CONSOLEIO_write 0
#define CONSOLEIO_read 1

#define PHYSDEVOP_set_iopl 6
#define PHYSDEVOP_set_iobitmap 7
struct physdev_set_iopl {
    u32 iopl;
};
struct physdev_set_iobitmap {
    u8 *bitmap;
    u32 nr_ports;
};

#endif
