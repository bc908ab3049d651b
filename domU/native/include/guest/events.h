// SPDX-License-Identifier: GPL-2.0-only
// Event channels: upcall mask, dispatch to handlers, and waiting.
#ifndef GUEST_EVENTS_H
#define GUEST_EVENTS_H

#include <xen/event_channel.h>
#include <xen/xen.h>

typedef void (*event_handler)(u32 port, void *data);

void events_init(void);
void event_bind(u32 port, event_handler handler, void *data); // and unmasks the port
void event_unbind(u32 port);                                  // masks it and forgets the handler
void event_mask(u32 port);
void event_unmask(u32 port);
bool event_is_pending(u32 port);
void event_clear(u32 port);
long event_notify(u32 port);

void upcalls_disable(void);
void upcalls_enable(void); // and takes what came in the meantime
bool upcalls_are_enabled(void);
extern volatile u64 upcall_count;

// Blocks until `condition` holds; handlers run meanwhile, and only an event can make it true.
void events_wait_until(bool (*condition)(void *arg), void *arg);

// Handles pending events without an upcall. Called by the upcall, too.
void events_dispatch(void);

#endif
