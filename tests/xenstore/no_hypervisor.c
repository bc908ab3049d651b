// SPDX-License-Identifier: GPL-2.0-only
// Lets Debian's C xenstored 4.17 run where there is no Xen (LD_PRELOAD), to compare with and to measure against.
//
// $STANDIN_DIR holds what a hypervisor would: page.0 is dom0's own store page, page.<domid> that of a guest, which
// exists as long as the file does; doorbell is a FIFO: one byte in it is one event on that port (2: a domain died).
// Notifications to guests go nowhere: they look at their pages.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

enum { PAGE = 4096, VIRQ_PORT = 2, DOM0_PORT = 3 };

// xc_dominfo_t begins with these; the rest of it is not looked at.
struct dominfo {
    uint32_t domid, ssidref;
    uint32_t dying : 1, crashed : 1, shutdown : 1, paused : 1, blocked : 1, running : 1;
    uint32_t shutdown_reason;
};

static int handle, doorbell = -1;

static char *name(char *path, const char *format, ...) {
    va_list arguments;
    int used = snprintf(path, 256, "%s/", getenv("STANDIN_DIR"));
    va_start(arguments, format);
    vsnprintf(path + used, 256 - used, format, arguments);
    va_end(arguments);
    return path;
}

static int exists(uint32_t domid) {
    char path[256];
    return access(name(path, "page.%u", domid), F_OK) == 0;
}

// -- domains

void *xc_interface_open(void *logger, void *dombuild, unsigned flags) { return &handle; }
int xc_interface_close(void *xc) { return 0; }

int xc_domain_getinfo(void *xc, uint32_t first, unsigned max, struct dominfo *info) {
    if (!max || !exists(first))
        return 0;
    memset(info, 0, sizeof *info);
    info->domid = first;
    info->running = 1;
    return 1;
}

// -- event channels

void *xenevtchn_open(void *logger, unsigned flags) {
    char path[256];
    doorbell = open(name(path, "doorbell"), O_RDWR | O_NONBLOCK | O_CLOEXEC);
    return doorbell < 0 ? NULL : &handle;
}
int xenevtchn_close(void *xce) { return 0; }
int xenevtchn_fd(void *xce) { return doorbell; }
int xenevtchn_bind_virq(void *xce, unsigned virq) { return VIRQ_PORT; }
int xenevtchn_bind_interdomain(void *xce, uint32_t domid, uint32_t port) { return DOM0_PORT + domid; }
int xenevtchn_unbind(void *xce, uint32_t port) { return 0; }
int xenevtchn_notify(void *xce, uint32_t port) { return 0; }
int xenevtchn_unmask(void *xce, uint32_t port) { return 0; }
int xenevtchn_pending(void *xce) {
    unsigned char port;
    return read(doorbell, &port, 1) == 1 ? port : -1;
}

// -- grants

void *xengnttab_open(void *logger, unsigned flags) { return &handle; }
int xengnttab_close(void *xgt) { return 0; }
int xengnttab_set_max_grants(void *xgt, uint32_t count) { return 0; }
int xengnttab_unmap(void *xgt, void *address, uint32_t count) { return munmap(address, PAGE); }
void *xengnttab_map_grant_ref(void *xgt, uint32_t domid, uint32_t ref, int prot) {
    char path[256];
    int fd = open(name(path, "page.%u", domid), O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return page == MAP_FAILED ? NULL : page;
}

// -- dom0's own page and port, which the daemon asks the kernel for

static const char *redirect(const char *path, char *buffer) {
    if (strstr(path, "xsd_port"))
        return name(buffer, "port");
    if (strstr(path, "xsd_kva") || !strcmp(path, "/dev/xen/xenbus"))
        return name(buffer, "page.0");
    return path;
}

#define OPEN(function)                                                     \
    int function(const char *path, int flags, ...) {                       \
        static int (*real)(const char *, int, ...);                        \
        char buffer[256];                                                  \
        va_list arguments;                                                 \
        va_start(arguments, flags);                                        \
        int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, int) : 0; \
        va_end(arguments);                                                 \
        if (!real)                                                         \
            real = dlsym(RTLD_NEXT, #function);                            \
        return real(redirect(path, buffer), flags, mode);                  \
    }
OPEN(open)
OPEN(open64)

int setrlimit(__rlimit_resource_t resource, const struct rlimit *limit) { return 0; }
