// SPDX-License-Identifier: GPL-2.0-only
// Tests: every hypercall that takes a pointer is given ones that are unmapped, the hypervisor's, and not canonical.
// SUCCESS: each fails with -EFAULT (or the error Xen has instead) and nothing else happens. FAILURE: the named call.
// ERROR: never.
#include <guest/test.h>
#include <xen/grant_table.h>
#include <xen/memory.h>
#include <xen/sched.h>

XEN_NOTES

static char hole[PAGE_SIZE] PAGE_ALIGNED; // unmapped by the test

struct call {
    const char *name;
    u64 number;
    u64 args[4];
    u32 pointer; // index of the argument that is the pointer
    long want;
};

static const struct call calls[] = {
    {"set_trap_table", HYPERCALL_set_trap_table, {0}, 0, -EFAULT},
    {"mmu_update", HYPERCALL_mmu_update, {0, 1, 0, DOMID_SELF}, 0, -EFAULT},
    {"set_gdt", HYPERCALL_set_gdt, {0, 1}, 0, -EFAULT},
    {"memory_op current_reservation", HYPERCALL_memory_op, {XENMEM_current_reservation, 0}, 1, -EFAULT},
    {"memory_op populate_physmap", HYPERCALL_memory_op, {XENMEM_populate_physmap, 0}, 1, 0},
    {"memory_op decrease_reservation", HYPERCALL_memory_op, {XENMEM_decrease_reservation, 0}, 1, 0},
    {"memory_op memory_map", HYPERCALL_memory_op, {XENMEM_memory_map, 0}, 1, -EFAULT},
    {"memory_op machphys_mapping", HYPERCALL_memory_op, {XENMEM_machphys_mapping, 0}, 1, -EFAULT},
    {"multicall", HYPERCALL_multicall, {0, 1}, 0, -EFAULT},
    {"grant_table_op setup_table", HYPERCALL_grant_table_op, {GNTTABOP_setup_table, 0, 1}, 1, -EFAULT},
    {"grant_table_op query_size", HYPERCALL_grant_table_op, {GNTTABOP_query_size, 0, 1}, 1, -EFAULT},
    {"vcpu_op register_vcpu_info", HYPERCALL_vcpu_op, {VCPUOP_register_vcpu_info, 0, 0}, 2, -EFAULT},
    {"vcpu_op register_runstate", HYPERCALL_vcpu_op, {VCPUOP_register_runstate_memory_area, 0, 0}, 2, -EFAULT},
    {"vcpu_op singleshot", HYPERCALL_vcpu_op, {VCPUOP_set_singleshot_timer, 0, 0}, 2, -EFAULT},
    {"vcpu_op periodic", HYPERCALL_vcpu_op, {VCPUOP_set_periodic_timer, 0, 0}, 2, -EFAULT},
    {"vcpu_op runstate_info", HYPERCALL_vcpu_op, {VCPUOP_get_runstate_info, 0, 0}, 2, -EFAULT},
    {"mmuext_op", HYPERCALL_mmuext_op, {0, 1, 0, DOMID_SELF}, 0, -EFAULT},
    {"sched_op shutdown", HYPERCALL_sched_op, {SCHEDOP_shutdown, 0}, 1, -EFAULT},
    {"sched_op poll", HYPERCALL_sched_op, {SCHEDOP_poll, 0}, 1, -EFAULT},
    {"callback_op register", HYPERCALL_callback_op, {CALLBACKOP_register, 0}, 1, -EFAULT},
    {"evtchn alloc_unbound", HYPERCALL_event_channel_op, {EVTCHNOP_alloc_unbound, 0}, 1, -EFAULT},
    {"evtchn bind_interdomain", HYPERCALL_event_channel_op, {EVTCHNOP_bind_interdomain, 0}, 1, -EFAULT},
    {"evtchn bind_virq", HYPERCALL_event_channel_op, {EVTCHNOP_bind_virq, 0}, 1, -EFAULT},
    {"evtchn bind_ipi", HYPERCALL_event_channel_op, {EVTCHNOP_bind_ipi, 0}, 1, -EFAULT},
    {"evtchn close", HYPERCALL_event_channel_op, {EVTCHNOP_close, 0}, 1, -EFAULT},
    {"evtchn send", HYPERCALL_event_channel_op, {EVTCHNOP_send, 0}, 1, -EFAULT},
    {"evtchn status", HYPERCALL_event_channel_op, {EVTCHNOP_status, 0}, 1, -EFAULT},
    {"evtchn bind_vcpu", HYPERCALL_event_channel_op, {EVTCHNOP_bind_vcpu, 0}, 1, -EFAULT},
    {"evtchn unmask", HYPERCALL_event_channel_op, {EVTCHNOP_unmask, 0}, 1, -EFAULT},
    {"evtchn reset", HYPERCALL_event_channel_op, {EVTCHNOP_reset, 0}, 1, -EFAULT},
    {"physdev set_iopl", HYPERCALL_physdev_op, {PHYSDEVOP_set_iopl, 0}, 1, -EFAULT},
    {"physdev set_iobitmap", HYPERCALL_physdev_op, {PHYSDEVOP_set_iobitmap, 0}, 1, -EFAULT},
};

void test_main(void)
{
    const u64 pointers[] = {(u64)hole, (u64)hole + PAGE_SIZE - 1, 0x1000, HYPERVISOR_START + 8, HYPERVISOR_END - 4096,
                            0xffff820000000000, 0x0000800000000000, 0x8000000000000000};

    CHECK_EQUAL(hyp_update_va_mapping((u64)hole, 0, UVMF_INVLPG), 0);
    for (u32 c = 0; c < ARRAY_LENGTH(calls); c++) {
        for (u32 p = 0; p < ARRAY_LENGTH(pointers); p++) {
            u64 a[4];
            long got;
            char text[96];

            memcpy(a, calls[c].args, sizeof(a));
            a[calls[c].pointer] = pointers[p];
            got = hypercall5(calls[c].number, a[0], a[1], a[2], a[3], 0);
            format_text(text, sizeof(text), "%s at %lx", calls[c].name, pointers[p]);
            test_equal(got, calls[c].want, __FILE_NAME__, __LINE__, text);
        }
    }
    // NULL is a pointer like any other, except for set_trap_table and where sub-operations take none.
    for (u32 c = 1; c < ARRAY_LENGTH(calls); c++)
        test_equal(hypercall5(calls[c].number, calls[c].args[0], calls[c].args[1], calls[c].args[2], calls[c].args[3], 0),
                   calls[c].want, __FILE_NAME__, __LINE__, calls[c].name);
}
