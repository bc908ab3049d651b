// SPDX-License-Identifier: GPL-2.0-only
// Tests: vcpu_op: is_up, runstate and time areas, moving vcpu_info, and calls about other vCPUs.
// SUCCESS: as Xen does it. FAILURE: the named check. ERROR: never.
#include <guest/clock.h>
#include <guest/test.h>
#include <xen/sched.h>

XEN_NOTES

static struct vcpu_runstate_info runstate __attribute__((aligned(64)));
static struct vcpu_time_info time_area __attribute__((aligned(64)));
static char info_page[PAGE_SIZE] PAGE_ALIGNED;

static void runstates(void)
{
    struct vcpu_register_area area = {(u64)&runstate};
    struct vcpu_runstate_info asked;
    u64 before;

    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_get_runstate_info, 0, &asked), 0);
    CHECK_EQUAL(asked.state, RUNSTATE_running);
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_register_runstate_memory_area, 0, &area), 0);
    CHECK_EQUAL(runstate.state, RUNSTATE_running); // filled at once
    CHECK(runstate.state_entry_time != 0);
    CHECK(runstate.state_entry_time <= clock_now());

    before = runstate.time[RUNSTATE_blocked];
    timer_init();
    clock_sleep(20 * NS_PER_MS);
    CHECK(((volatile struct vcpu_runstate_info *)&runstate)->time[RUNSTATE_blocked] > before);
    CHECK_EQUAL(((volatile struct vcpu_runstate_info *)&runstate)->state, RUNSTATE_running);
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_get_runstate_info, 0, &asked), 0);
    CHECK(asked.time[RUNSTATE_blocked] >= before + 10 * NS_PER_MS);
    CHECK(asked.time[RUNSTATE_offline] >= runstate.time[RUNSTATE_offline]);

    // With the update flag, the time of entry carries a mark while it is written, and none when it is not.
    CHECK_EQUAL(hyp_vm_assist(VMASST_enable, VMASST_runstate_update_flag), 0);
    clock_sleep(5 * NS_PER_MS);
    CHECK_EQUAL(((volatile struct vcpu_runstate_info *)&runstate)->state_entry_time & XEN_RUNSTATE_UPDATE, 0);
    area.address = HYPERVISOR_START;
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_register_runstate_memory_area, 0, &area) < 0, true);
}

static void time_areas(void)
{
    struct vcpu_register_area area = {(u64)&time_area};
    volatile struct vcpu_time_info *time = &time_area;

    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_register_vcpu_time_memory_area, 0, &area), 0);
    CHECK_EQUAL(time->version & 1, 0);
    CHECK_EQUAL(time->tsc_to_system_mul, vcpu_info->time.tsc_to_system_mul);
    CHECK_EQUAL(time->tsc_shift, vcpu_info->time.tsc_shift);
    area.address = HYPERVISOR_START;
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_register_vcpu_time_memory_area, 0, &area) < 0, true);
}

static void move_info(void)
{
    struct vcpu_register_vcpu_info info = {virt_to_mfn(info_page), 0, 0};
    volatile struct vcpu_info *there;
    u32 port = start_info->console_evtchn;

    // Across a page's end, misaligned, a page that is no writable one.
    info.offset = PAGE_SIZE - 32;
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_register_vcpu_info, 0, &info), -ENXIO);
    info.offset = 3 * 64 + 4;
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_register_vcpu_info, 0, &info) < 0, true);
    info.offset = 0;
    info.mfn = virt_to_mfn((void *)start_info->pt_base);
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_register_vcpu_info, 0, &info) < 0, true);
    info.mfn = virt_to_mfn(info_page);
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_register_vcpu_info, 7, &info), -ENOENT);

    // All is marked pending at the new place, so that no event is lost; old contents come along.
    info.offset = 3 * 64;
    there = (void *)(info_page + info.offset);
    upcalls_disable();
    event_mask(port);
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_register_vcpu_info, 0, &info), 0);
    CHECK_EQUAL(there->evtchn_upcall_pending, 1);
    CHECK_EQUAL(there->evtchn_upcall_mask, 1);
    CHECK_EQUAL(there->evtchn_pending_sel, ~0UL);
    CHECK(there->time.version != 0);
    vcpu_info = there;
    upcalls_enable();
    event_unmask(port);
    CHECK_EQUAL(there->evtchn_upcall_pending, 0);
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_register_vcpu_info, 0, &info) < 0, true); // once only
    CHECK(clock_now() > 0);
    // Page faults report to the new place, too.
    CHECK_EQUAL(probe_read_record((void *)0x4242).cr2, 0x4242);
}

void test_main(void)
{
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_is_up, 0, NULL), 1);
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_is_up, 1, NULL), -ENOENT); // the domain has one
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_is_up, 8191, NULL), -ENOENT);
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_is_up, 0xffffffff, NULL), -ENOENT);
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_up, 1, NULL), -ENOENT);
    CHECK_EQUAL(hyp_vcpu_op(VCPUOP_stop_singleshot_timer, 1, NULL), -ENOENT);
    runstates();
    time_areas();
    move_info();
}
