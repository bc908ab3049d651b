// SPDX-License-Identifier: GPL-2.0-only
// What the start code leaves for everyone: start_info, shared_info, and how a guest ends.
#ifndef GUEST_MACHINE_H
#define GUEST_MACHINE_H

#include <xen/xen.h>

#define VIRT_BASE 0xffffffff80000000UL

extern struct start_info *start_info;
extern volatile struct shared_info *shared_info;
extern volatile struct vcpu_info *vcpu_info; // of vCPU 0; moves when a program registers another place

// Each program's own code; returning powers the domain off.
void guest_main(void);

// Ends the domain after the console has been read empty.
__attribute__((noreturn)) void machine_shutdown(u32 reason);

#endif
