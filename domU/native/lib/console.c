// SPDX-License-Identifier: GPL-2.0-only
// Driver of the console ring. Indices run freely and are taken modulo the ring size; each has one writer.
#include <guest/console.h>
#include <guest/events.h>
#include <guest/machine.h>
#include <guest/pages.h>
#include <guest/text.h>
#include <xen/rings.h>

static volatile struct console_ring *ring;

// The upcall is all that is wanted: whoever waits looks at the ring again.
static void on_event(u32 port, void *data)
{
    (void)port;
    (void)data;
}

void console_init(void)
{
    ring = mfn_to_virt(start_info->console_mfn);
    event_bind(start_info->console_evtchn, on_event, NULL);
}

static u32 room(void)
{
    return sizeof(ring->out) - (ring->out_prod - ring->out_cons);
}

static bool has_room(void *unused)
{
    (void)unused;
    return room() > 0;
}

static bool is_empty(void *unused)
{
    (void)unused;
    return ring->out_prod == ring->out_cons;
}

static void put(char byte)
{
    if (room() == 0) {
        event_notify(start_info->console_evtchn);
        events_wait_until(has_room, NULL);
    }
    ring->out[ring->out_prod % sizeof(ring->out)] = byte;
    barrier();
    ring->out_prod++;
}

void console_write(const char *bytes, u64 length)
{
    if (!ring)
        return;
    for (u64 i = 0; i < length; i++) {
        if (bytes[i] == '\n')
            put('\r');
        put(bytes[i]);
    }
    event_notify(start_info->console_evtchn);
}

bool console_has_input(void)
{
    return ring->in_cons != ring->in_prod;
}

bool console_read(char *byte)
{
    if (!console_has_input())
        return false;
    *byte = ring->in[ring->in_cons % sizeof(ring->in)];
    barrier();
    ring->in_cons++;
    if (!console_has_input())
        event_notify(start_info->console_evtchn);
    return true;
}

void console_flush(void)
{
    if (!ring)
        return;
    event_notify(start_info->console_evtchn);
    events_wait_until(is_empty, NULL);
}

void print(const char *format, ...)
{
    char line[512];
    __builtin_va_list arguments;
    u64 length;

    __builtin_va_start(arguments, format);
    length = format_list(line, sizeof(line), format, arguments);
    __builtin_va_end(arguments);
    console_write(line, length);
}
