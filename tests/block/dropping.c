// SPDX-License-Identifier: GPL-2.0-only
/*
 * A file layer that can drop what was not synced. Preloaded into whatever writes the disks that DROPPING names
 * (their paths, with : between them), the host and qemu-nbd.
 *
 * A disk is written and read as ever. Beside it there is DISK.durable, what a loss of power would leave: a sync of the
 * disk brings to it what had been written before, and nothing else does. Each sync adds a byte to DISK.syncs.
 *
 * What was written is marked by blocks, when the call that wrote it has ended and nobody has been told yet. Any thread
 * writes; one at a time syncs a disk, so that no sync ends before another has brought what both promise.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define BLOCK 4096
#define BLOCKS (1 << 20)
#define DISKS 8

struct disk {
    dev_t device;
    ino_t inode;
    char durable[4096], syncs[4096];
    atomic_uchar *written; /* one a block */
    pthread_mutex_t turn;
};

static struct disk disks[DISKS];
static int count;
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_pwritev)(int, const struct iovec *, int, off_t);
static ssize_t (*real_pwritev2)(int, const struct iovec *, int, off_t, int);
static int (*real_fallocate)(int, int, off_t, off_t);
static int (*real_ftruncate)(int, off_t);
static int (*real_fdatasync)(int);
static int (*real_fsync)(int);

static void die(const char *what)
{
    fprintf(stderr, "dropping: %s: %s\n", what, strerror(errno));
    abort();
}

static void *real(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);

    if (!found)
        die(name);
    return found;
}

__attribute__((constructor)) static void begin(void)
{
    char *names = strdup(getenv("DROPPING") ? getenv("DROPPING") : ""), *rest = names;

    real_pwrite = (ssize_t(*)(int, const void *, size_t, off_t))real("pwrite64");
    real_pwritev = (ssize_t(*)(int, const struct iovec *, int, off_t))real("pwritev64");
    real_pwritev2 = (ssize_t(*)(int, const struct iovec *, int, off_t, int))real("pwritev64v2");
    real_fallocate = (int (*)(int, int, off_t, off_t))real("fallocate64");
    real_ftruncate = (int (*)(int, off_t))real("ftruncate64");
    real_fdatasync = (int (*)(int))real("fdatasync");
    real_fsync = (int (*)(int))real("fsync");
    for (char *name; (name = strsep(&rest, ":")) && *name;) {
        struct disk *disk = &disks[count];
        struct stat status;
        if (count == DISKS || stat(name, &status))
            die(name);
        disk->device = status.st_dev;
        disk->inode = status.st_ino;
        snprintf(disk->durable, sizeof disk->durable, "%s.durable", name);
        snprintf(disk->syncs, sizeof disk->syncs, "%s.syncs", name);
        disk->written = mmap(NULL, BLOCKS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (disk->written == MAP_FAILED)
            die("memory");
        pthread_mutex_init(&disk->turn, NULL);
        count++;
    }
    free(names);
}

static struct disk *disk_of(int fd)
{
    int error = errno;
    struct stat status;
    struct disk *found = NULL;

    if (count && !fstat(fd, &status))
        for (int n = 0; n < count && !found; n++)
            if (disks[n].inode == status.st_ino && disks[n].device == status.st_dev)
                found = &disks[n];
    errno = error;
    return found;
}

static void wrote(int fd, off_t from, off_t length)
{
    struct disk *disk = length > 0 ? disk_of(fd) : NULL;

    if (!disk)
        return;
    if ((from + length - 1) / BLOCK >= BLOCKS)
        die("this disk is too large");
    for (off_t block = from / BLOCK; block <= (from + length - 1) / BLOCK; block++)
        atomic_store(&disk->written[block], 1);
}

static void bring(struct disk *disk, int fd)
{
    char data[BLOCK];
    struct stat status;
    int durable = open(disk->durable, O_WRONLY | O_CLOEXEC);
    int syncs = open(disk->syncs, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);

    if (durable < 0 || syncs < 0 || fstat(fd, &status) || real_ftruncate(durable, status.st_size))
        die(disk->durable);
    for (off_t block = 0; block < BLOCKS && block * BLOCK < status.st_size; block++)
        if (atomic_load(&disk->written[block]) && atomic_exchange(&disk->written[block], 0)) {
            ssize_t there = pread(fd, data, BLOCK, block * BLOCK);
            if (there < 0 || real_pwrite(durable, data, (size_t)there, block * BLOCK) != there)
                die(disk->durable);
        }
    if (write(syncs, "s", 1) != 1)
        die(disk->syncs);
    close(durable);
    close(syncs);
}

static int sync_of(int fd, int (*how)(int))
{
    struct disk *disk = disk_of(fd);

    if (disk) {
        pthread_mutex_lock(&disk->turn);
        bring(disk, fd);
        pthread_mutex_unlock(&disk->turn);
    }
    return how(fd);
}

ssize_t pwrite64(int fd, const void *data, size_t length, off_t from)
{
    ssize_t done = real_pwrite(fd, data, length, from);

    wrote(fd, from, done);
    return done;
}

ssize_t pwritev64(int fd, const struct iovec *pieces, int many, off_t from)
{
    ssize_t done = real_pwritev(fd, pieces, many, from);

    wrote(fd, from, done);
    return done;
}

ssize_t pwritev64v2(int fd, const struct iovec *pieces, int many, off_t from, int flags)
{
    ssize_t done = real_pwritev2(fd, pieces, many, from, flags);

    wrote(fd, from, done);
    return done;
}

int fallocate64(int fd, int mode, off_t from, off_t length)
{
    int failed = real_fallocate(fd, mode, from, length);

    if (!failed)
        wrote(fd, from, length);
    return failed;
}

int ftruncate64(int fd, off_t size)
{
    struct stat before;
    int known = !fstat(fd, &before), failed = real_ftruncate(fd, size);

    if (!failed && known && before.st_size > size)
        wrote(fd, size, before.st_size - size);
    return failed;
}

int fdatasync(int fd)
{
    return sync_of(fd, real_fdatasync);
}

int fsync(int fd)
{
    return sync_of(fd, real_fsync);
}

/* On this machine an off_t has 64 bits either way. */
ssize_t pwrite(int, const void *, size_t, off_t) __attribute__((alias("pwrite64")));
ssize_t pwritev(int, const struct iovec *, int, off_t) __attribute__((alias("pwritev64")));
ssize_t pwritev2(int, const struct iovec *, int, off_t, int) __attribute__((alias("pwritev64v2")));
int fallocate(int, int, off_t, off_t) __attribute__((alias("fallocate64")));
int ftruncate(int, off_t) __attribute__((alias("ftruncate64")));
