// SPDX-License-Identifier: GPL-2.0-only
// C start-up: maps shared_info, sets traps and callbacks, opens console and store, then runs the program.
#include <guest/console.h>
#include <guest/events.h>
#include <guest/hypercall.h>
#include <guest/machine.h>
#include <guest/pages.h>
#include <guest/store.h>
#include <guest/text.h>
#include <guest/traps.h>
#include <xen/sched.h>

struct start_info *start_info;
volatile struct shared_info *shared_info;
volatile struct vcpu_info *vcpu_info;

// Its frame is given up in favour of the shared_info frame at this address.
static char shared_info_place[PAGE_SIZE] PAGE_ALIGNED;

void machine_shutdown(u32 reason)
{
    struct sched_shutdown shutdown = {reason};

    console_flush();
    for (;;)
        hyp_sched_op(SCHEDOP_shutdown, &shutdown);
}

__attribute__((noreturn)) void guest_start(struct start_info *info)
{
    start_info = info;
    traps_init();
    if (hyp_update_va_mapping((u64)shared_info_place, info->shared_info | PTE_RW | PTE_NX, UVMF_INVLPG) != 0)
        __asm__ volatile("ud2");
    shared_info = (void *)shared_info_place;
    vcpu_info = &shared_info->vcpu_info[0];
    events_init();
    console_init();
    store_init();
    upcalls_enable();
    guest_main();
    machine_shutdown(SHUTDOWN_poweroff);
}
