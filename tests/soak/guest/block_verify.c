// SPDX-License-Identifier: GPL-2.0-only
/*
 * Is what is read what was written?
 *
 *     block_verify check DEVICE SECONDS SEED     random reads and writes, sizes and depths, every sector checked
 *     block_verify journal DEVICE                numbered sectors, each flushed and then told, until killed
 *
 * `check` keeps in memory how often each sector was written; sector and count decide all of its 512 bytes. Requests
 * under way never overlap. It ends with a look at the whole disk, and with
 * "verify DEVICE: passed, ..." or with what is wrong.
 * `journal` goes on after the largest number it finds, and says "journal N" when N is on stable storage.
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

#define SECTOR 512
#define MOST_DEPTH 32
#define MOST_SECTORS 700 /* more than one request of the ring holds */
#define JOURNAL 64

static const char *device;
static uint64_t seed;

static void fail(const char *what)
{
    printf("verify %s: FAILED: %s: %m\n", device, what);
    exit(1);
}

static uint64_t draw(uint64_t n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed % n;
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void fill(uint64_t *words, uint64_t sector, uint32_t count)
{
    uint64_t x = sector * 0x9e3779b97f4a7c15ull ^ (uint64_t)count << 40 ^ 0x5bd1e995;

    words[0] = sector;
    words[1] = count;
    for (int n = 2; n < SECTOR / 8; n++) {
        x = x * 6364136223846793005ull + 1442695040888963407ull;
        words[n] = x;
    }
}

static void compare(const uint64_t *words, uint64_t sector, uint32_t count)
{
    uint64_t expected[SECTOR / 8];

    if (!count)
        return; /* never written by us */
    fill(expected, sector, count);
    for (int n = 0; n < SECTOR / 8; n++)
        if (words[n] != expected[n]) {
            printf("verify %s: FAILED: sector %llu word %d is %#llx, not %#llx; it says sector %llu, write %llu of %u\n",
                   device, (unsigned long long)sector, n, (unsigned long long)words[n],
                   (unsigned long long)expected[n], (unsigned long long)words[0], (unsigned long long)words[1], count);
            exit(1);
        }
}

struct request {
    struct iocb block;
    uint64_t first;
    uint32_t sectors;
    int write, busy;
    uint64_t *buffer;
};

static void check(int fd, uint64_t sectors, double seconds)
{
    static struct request requests[MOST_DEPTH];
    uint32_t *counts = calloc(sectors, sizeof *counts);
    uint8_t *used = calloc(sectors, 1);
    aio_context_t context = 0;
    uint64_t done = 0, moved = 0;
    int under_way = 0;

    if (!counts || !used || syscall(SYS_io_setup, MOST_DEPTH, &context))
        fail("setting up");
    for (int n = 0; n < MOST_DEPTH; n++)
        if (posix_memalign((void **)&requests[n].buffer, 4096, MOST_SECTORS * SECTOR))
            fail("memory");
    double end = now() + seconds;
    while (now() < end || under_way) {
        int depth = now() < end ? 1 + (int)draw(MOST_DEPTH) : 0;
        for (int n = 0; n < MOST_DEPTH && under_way < depth; n++) {
            struct request *r = &requests[n];
            if (r->busy)
                continue;
            r->sectors = 1 + (uint32_t)draw(draw(4) ? 16 : MOST_SECTORS);
            r->first = draw(sectors - r->sectors);
            if (draw(2))
                r->first &= ~7ull;
            if (memchr(used + r->first, 1, r->sectors))
                continue;
            memset(used + r->first, 1, r->sectors);
            r->write = draw(2) == 0;
            if (r->write)
                for (uint32_t k = 0; k < r->sectors; k++)
                    fill(r->buffer + k * (SECTOR / 8), r->first + k, ++counts[r->first + k]);
            else
                memset(r->buffer, 0xee, r->sectors * SECTOR);
            memset(&r->block, 0, sizeof r->block);
            r->block.aio_lio_opcode = r->write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
            r->block.aio_fildes = (uint32_t)fd;
            r->block.aio_buf = (uint64_t)(uintptr_t)r->buffer;
            r->block.aio_nbytes = r->sectors * SECTOR;
            r->block.aio_offset = (int64_t)r->first * SECTOR;
            struct iocb *one = &r->block;
            if (syscall(SYS_io_submit, context, 1l, &one) != 1)
                fail("io_submit");
            r->busy = 1;
            under_way++;
        }
        struct io_event events[MOST_DEPTH];
        long got = under_way ? syscall(SYS_io_getevents, context, 1l, (long)MOST_DEPTH, events, NULL) : 0;
        if (got < 0)
            fail("io_getevents");
        for (long n = 0; n < got; n++) {
            struct request *r = (struct request *)(uintptr_t)events[n].obj;
            if (events[n].res != (int64_t)r->sectors * SECTOR)
                fail("a request");
            if (!r->write)
                for (uint32_t k = 0; k < r->sectors; k++)
                    compare(r->buffer + k * (SECTOR / 8), r->first + k, counts[r->first + k]);
            memset(used + r->first, 0, r->sectors);
            r->busy = 0;
            under_way--;
            done++;
            moved += r->sectors;
        }
        if (!draw(200) && fdatasync(fd))
            fail("flush");
    }
    for (uint64_t at = 0; at < sectors; at += 256) {
        uint32_t n = sectors - at < 256 ? (uint32_t)(sectors - at) : 256;
        if (pread(fd, requests[0].buffer, n * SECTOR, (off_t)(at * SECTOR)) != (ssize_t)n * SECTOR)
            fail("the last look");
        for (uint32_t k = 0; k < n; k++)
            compare(requests[0].buffer + k * (SECTOR / 8), at + k, counts[at + k]);
    }
    printf("verify %s: passed, %llu requests, %llu MB\n", device, (unsigned long long)done,
           (unsigned long long)(moved * SECTOR >> 20));
}

static void journal(int fd)
{
    uint64_t *buffer, number = 0;

    if (posix_memalign((void **)&buffer, 4096, SECTOR))
        fail("memory");
    for (int n = 0; n < JOURNAL; n++) {
        if (pread(fd, buffer, SECTOR, n * SECTOR) != SECTOR)
            fail("read");
        if (buffer[0] > number)
            number = buffer[0];
    }
    printf("journal found %llu\n", (unsigned long long)number);
    for (;;) {
        number++;
        fill(buffer, number, 1);
        buffer[0] = number;
        if (pwrite(fd, buffer, SECTOR, (off_t)(number % JOURNAL * SECTOR)) != SECTOR)
            fail("write");
        if (fdatasync(fd))
            fail("flush");
        printf("journal %llu\n", (unsigned long long)number);
        fflush(stdout);
    }
}

int main(int argc, char **argv)
{
    uint64_t bytes = 0;

    if (argc != 3 && argc != 5)
        return 2;
    device = argv[2];
    int fd = open(device, O_RDWR | O_DIRECT);
    if (fd < 0 || ioctl(fd, BLKGETSIZE64, &bytes))
        fail("open");
    if (!strcmp(argv[1], "journal")) {
        journal(fd);
    } else {
        seed = strtoull(argv[4], NULL, 0) * 2654435761u + 88172645463325252ull;
        check(fd, bytes / SECTOR, atof(argv[3]));
    }
    return 0;
}
