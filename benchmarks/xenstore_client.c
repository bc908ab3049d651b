// SPDX-License-Identifier: GPL-2.0-only
// The client's side of benchmarks/bench_xenstore.py: loops that a Python client would be too slow for.
// Every function gives elapsed nanoseconds, -1 when the connection is lost, -2 when a request was refused.
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

struct message {
    uint32_t type, req_id, tx_id, length;
    char payload[4096];
};
enum { TRANSACTION_START = 6, TRANSACTION_END = 7, WATCH_EVENT = 15, ERROR = 16, HEADER = 16, REFUSED = -2, LOST = -1 };

// What has arrived on one connection and was not looked at yet.
struct reader {
    int fd;
    size_t start, end;
    char data[1 << 17];
};

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static struct reader *reader(int fd) {
    struct reader *r = malloc(sizeof *r);
    r->fd = fd;
    r->start = r->end = 0;
    return r;
}

static int put(int fd, const char *data, size_t size) {
    while (size) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent < 0)
            return LOST;
        data += sent;
        size -= sent;
    }
    return 0;
}

// A message that is here whole, or NULL.
static struct message *ready(struct reader *r) {
    struct message *m = (struct message *)(r->data + r->start);
    size_t size = r->end - r->start;
    if (size < HEADER || size < HEADER + m->length)
        return NULL;
    r->start += HEADER + m->length;
    return m;
}

static struct message *next(struct reader *r) {
    struct message *m;
    while (!(m = ready(r))) {
        memmove(r->data, r->data + r->start, r->end - r->start);
        r->end -= r->start;
        r->start = 0;
        ssize_t got = recv(r->fd, r->data + r->end, sizeof r->data - r->end, 0);
        if (got <= 0)
            return NULL;
        r->end += got;
    }
    return m;
}

static int reply(struct reader *r, struct message **found) {
    do
        *found = next(r);
    while (*found && (*found)->type == WATCH_EVENT);
    return !*found ? LOST : (*found)->type == ERROR ? REFUSED : 0;
}

// `count` requests, taken in turn from `kinds` of them at `offsets` into `requests`, `window` of them under way.
int64_t run_requests(int fd, const char *requests, const int64_t *offsets, int64_t kinds, int64_t count, int64_t window,
                     int64_t *latencies) {
    struct reader *r = reader(fd);
    struct message *m;
    int64_t sent = 0, answered = 0, error = 0, start = now();
    while (answered < count && !error) {
        int64_t began = latencies ? now() : 0;
        while (sent < count && sent - answered < window && !error) {
            int64_t kind = sent % kinds, many = window - (sent - answered);
            if (many > count - sent)
                many = count - sent;
            if (many > kinds - kind)
                many = kinds - kind;
            error = put(fd, requests + offsets[kind], offsets[kind + many] - offsets[kind]);
            sent += many;
        }
        if (!error)
            error = reply(r, &m);
        if (latencies && !error)
            latencies[answered] = now() - began;
        answered++;
        while (!error && (m = ready(r)))
            if (m->type != WATCH_EVENT) {
                answered++;
                error = m->type == ERROR ? REFUSED : 0;
            }
    }
    free(r);
    return error ? error : now() - start;
}

// `count` transactions of `kinds` requests each; with `batched` they and the end go in one send.
int64_t run_transactions(int fd, char *requests, const int64_t *offsets, int64_t kinds, int64_t count, int batched) {
    struct reader *r = reader(fd);
    struct message *m, begin = { TRANSACTION_START, 0, 0, 1, { 0 } }, end = { TRANSACTION_END, 0, 0, 2, "T" };
    char together[65536];
    size_t size = offsets[kinds];
    int64_t error = 0, start = now();
    for (int64_t done = 0; done < count && !error; done++) {
        error = put(fd, (char *)&begin, HEADER + 1);
        if (!error)
            error = reply(r, &m);
        if (error)
            break;
        end.tx_id = atoi(m->payload);
        for (int64_t kind = 0; kind < kinds; kind++)
            ((struct message *)(requests + offsets[kind]))->tx_id = end.tx_id;
        if (batched) {
            memcpy(together, requests, size);
            memcpy(together + size, &end, HEADER + 2);
            error = put(fd, together, size + HEADER + 2);
            for (int64_t kind = 0; kind <= kinds && !error; kind++)
                error = reply(r, &m);
            continue;
        }
        for (int64_t kind = 0; kind < kinds && !error; kind++) {
            error = put(fd, requests + offsets[kind], offsets[kind + 1] - offsets[kind]);
            if (!error)
                error = reply(r, &m);
        }
        if (!error)
            error = put(fd, (char *)&end, HEADER + 2);
        if (!error)
            error = reply(r, &m);
    }
    free(r);
    return error ? error : now() - start;
}

// `count` writes on `fd`; how long until the event arrives at `watcher`.
int64_t run_watch(int fd, int watcher, const char *request, int64_t size, int64_t count, int64_t *latencies) {
    struct reader *r = reader(fd), *w = reader(watcher);
    struct message *m;
    int64_t error = 0, start = now();
    for (int64_t done = 0; done < count && !error; done++) {
        int64_t began = now();
        error = put(fd, request, size);
        if (!error && !next(w))
            error = LOST;
        latencies[done] = now() - began;
        if (!error)
            error = reply(r, &m);
    }
    free(r);
    free(w);
    return error ? error : now() - start;
}

struct job {
    pthread_t thread;
    int fd;
    const char *requests;
    const int64_t *offsets;
    int64_t kinds, count, window, elapsed;
};

static void *work(void *argument) {
    struct job *job = argument;
    job->elapsed = run_requests(job->fd, job->requests, job->offsets, job->kinds, job->count, job->window, NULL);
    return NULL;
}

// The same requests on several connections at once, a thread each.
int64_t run_together(const int *fds, int64_t connections, const char *requests, const int64_t *offsets, int64_t kinds,
                     int64_t count, int64_t window) {
    struct job *jobs = calloc(connections, sizeof *jobs);
    int64_t error = 0, start = now();
    for (int64_t i = 0; i < connections; i++) {
        jobs[i] = (struct job){ 0, fds[i], requests, offsets, kinds, count, window, 0 };
        pthread_create(&jobs[i].thread, NULL, work, &jobs[i]);
    }
    for (int64_t i = 0; i < connections; i++) {
        pthread_join(jobs[i].thread, NULL);
        if (jobs[i].elapsed < 0)
            error = jobs[i].elapsed;
    }
    free(jobs);
    return error ? error : now() - start;
}
