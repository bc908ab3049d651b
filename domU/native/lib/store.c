// SPDX-License-Identifier: GPL-2.0-only
// XenStore client. Replies come in order, watch events may come at any point between them.
#include <guest/events.h>
#include <guest/machine.h>
#include <guest/pages.h>
#include <guest/store.h>
#include <guest/text.h>
#include <xen/rings.h>

#define PAYLOAD 1024
#define QUEUE 16

char store_error[32];

struct watch_event {
    char path[256];
    char token[64];
};

static volatile struct store_ring *ring;
static char payload[PAYLOAD + 1];
static struct watch_event queue[QUEUE];
static u32 queue_first, queue_count;
static u32 next_id;

static void on_event(u32 port, void *data)
{
    (void)port;
    (void)data;
}

void store_init(void)
{
    ring = mfn_to_virt(start_info->store_mfn);
    event_bind(start_info->store_evtchn, on_event, NULL);
}

static bool can_write(void *unused)
{
    (void)unused;
    return ring->req_prod - ring->req_cons < sizeof(ring->req);
}

static bool can_read(void *unused)
{
    (void)unused;
    return ring->rsp_cons != ring->rsp_prod;
}

static void put(const void *bytes, u64 length)
{
    const char *from = bytes;

    for (u64 i = 0; i < length; i++) {
        if (!can_write(NULL)) {
            event_notify(start_info->store_evtchn);
            events_wait_until(can_write, NULL);
        }
        ring->req[ring->req_prod % sizeof(ring->req)] = from[i];
        barrier();
        ring->req_prod++;
    }
}

static void get(void *bytes, u64 length)
{
    char *to = bytes;

    for (u64 i = 0; i < length; i++) {
        if (!can_read(NULL)) {
            event_notify(start_info->store_evtchn); // what was taken so far made room
            events_wait_until(can_read, NULL);
        }
        to[i] = ring->rsp[ring->rsp_cons % sizeof(ring->rsp)];
        barrier();
        ring->rsp_cons++;
    }
}

static void copy_text(char *to, u64 size, const char *from)
{
    format_text(to, size, "%s", from);
}

// One whole message into `payload`; a watch event is queued (the oldest is lost when the queue is full).
static void receive(struct store_message *message)
{
    get(message, sizeof(*message));
    for (u32 i = 0; i < message->len; i++) {
        char byte;

        get(&byte, 1);
        if (i < PAYLOAD)
            payload[i] = byte;
    }
    event_notify(start_info->store_evtchn); // there is room again
    payload[message->len < PAYLOAD ? message->len : PAYLOAD] = 0;
    if (message->type == XS_WATCH_EVENT) {
        struct watch_event *event = &queue[(queue_first + queue_count) % QUEUE];

        copy_text(event->path, sizeof(event->path), payload);
        copy_text(event->token, sizeof(event->token), payload + text_length(payload) + 1);
        if (queue_count < QUEUE)
            queue_count++;
        else
            queue_first = (queue_first + 1) % QUEUE;
    }
}

// Sends `first` with its end mark, then `second` (with its own when `terminate`). Returns the reply's length or -1.
static long request(u32 type, const char *first, const char *second, bool terminate)
{
    u32 second_length = second ? (u32)text_length(second) + terminate : 0;
    struct store_message message = {type, ++next_id, 0, (u32)text_length(first) + 1 + second_length};

    put(&message, sizeof(message));
    put(first, text_length(first) + 1);
    put(second, second_length);
    event_notify(start_info->store_evtchn);
    do {
        receive(&message);
    } while (message.type == XS_WATCH_EVENT);
    if (message.type == XS_ERROR) {
        copy_text(store_error, sizeof(store_error), payload);
        return -1;
    }
    return message.len;
}

long store_read(const char *path, char *value, u64 size)
{
    long length = request(XS_READ, path, NULL, false);

    if (length >= 0)
        copy_text(value, size, payload);
    return length;
}

long store_write(const char *path, const char *value)
{
    return request(XS_WRITE, path, value, false) < 0 ? -1 : 0;
}

long store_remove(const char *path)
{
    return request(XS_RM, path, NULL, false) < 0 ? -1 : 0;
}

long store_watch(const char *path, const char *token)
{
    return request(XS_WATCH, path, token, true) < 0 ? -1 : 0;
}

bool store_has_event(void)
{
    return queue_count > 0 || can_read(NULL);
}

bool store_next_event(char *path, u64 path_size, char *token, u64 token_size)
{
    struct store_message message;

    while (!queue_count) {
        if (!can_read(NULL))
            return false;
        receive(&message);
    }
    copy_text(path, path_size, queue[queue_first].path);
    copy_text(token, token_size, queue[queue_first].token);
    queue_first = (queue_first + 1) % QUEUE;
    queue_count--;
    return true;
}
