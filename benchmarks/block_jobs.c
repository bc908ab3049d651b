// SPDX-License-Identifier: GPL-2.0-only
/*
 * Jobs for a disk inside a guest, each for some seconds, without the guest's page cache:
 *
 *     block_jobs DEVICE SECONDS
 *
 * A line a job, `job NAME FIGURE UNIT`: sequential 1 MiB in MB/s, random 4 KiB in operations a second. Requests are
 * kept at their depth by Linux's own asynchronous interface; offsets come from a fixed seed.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MOST 32

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static uint64_t seed = 88172645463325252ull;

static uint64_t draw(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

struct job {
    const char *name;
    int write, random;
    size_t size;
    int depth;
};

static void run(const struct job *job, int fd, uint64_t bytes, double seconds)
{
    static struct iocb blocks[MOST];
    struct iocb *pending[MOST];
    struct io_event events[MOST];
    aio_context_t context = 0;
    uint64_t at = 0, done = 0, places = bytes / job->size;
    char *buffers;

    if (posix_memalign((void **)&buffers, 4096, job->size * job->depth))
        fail("memory");
    memset(buffers, 0x5a, job->size * job->depth);
    if (syscall(SYS_io_setup, MOST, &context))
        fail("io_setup");
    int free_count = job->depth;
    for (int i = 0; i < job->depth; i++)
        pending[i] = &blocks[i];
    double began = now(), spent;
    do {
        for (int i = 0; i < free_count; i++) {
            struct iocb *b = pending[i];
            memset(b, 0, sizeof *b);
            b->aio_lio_opcode = job->write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
            b->aio_fildes = (uint32_t)fd;
            b->aio_buf = (uint64_t)(uintptr_t)(buffers + (size_t)(b - blocks) * job->size);
            b->aio_nbytes = job->size;
            b->aio_offset = (int64_t)((job->random ? draw() % places : at++ % places) * job->size);
        }
        if (free_count && syscall(SYS_io_submit, context, (long)free_count, pending) != free_count)
            fail("io_submit");
        long got = syscall(SYS_io_getevents, context, 1l, (long)job->depth, events, NULL);
        if (got < 1)
            fail("io_getevents");
        for (long i = 0; i < got; i++) {
            if (events[i].res != (int64_t)job->size)
                fail("a request");
            pending[i] = (struct iocb *)(uintptr_t)events[i].obj;
        }
        free_count = (int)got;
        done += (uint64_t)got;
        spent = now() - began;
    } while (spent < seconds);
    if (job->random)
        printf("job %s %.0f IOPS\n", job->name, done / spent);
    else
        printf("job %s %.1f MB/s\n", job->name, done * job->size / spent / 1e6);
    fflush(stdout);
    syscall(SYS_io_destroy, context);
    free(buffers);
}

int main(int argc, char **argv)
{
    static const struct job jobs[] = {
        {"sequential-read-1MiB", 0, 0, 1 << 20, 1},   {"sequential-write-1MiB", 1, 0, 1 << 20, 1},
        {"random-read-4KiB-depth1", 0, 1, 4096, 1},   {"random-write-4KiB-depth1", 1, 1, 4096, 1},
        {"random-read-4KiB-depth32", 0, 1, 4096, 32}, {"random-write-4KiB-depth32", 1, 1, 4096, 32},
    };
    uint64_t bytes = 0;

    if (argc != 3) {
        fprintf(stderr, "usage: block_jobs DEVICE SECONDS\n");
        return 2;
    }
    int fd = open(argv[1], O_RDWR | O_DIRECT);
    if (fd < 0)
        fail(argv[1]);
    if (ioctl(fd, BLKGETSIZE64, &bytes))
        fail("size");
    for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++)
        run(&jobs[i], fd, bytes, atof(argv[2]));
    puts("jobs done");
    return 0;
}
