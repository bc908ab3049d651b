/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The compiled half of the Unicorn engine: what Python sees of it.
 *
 * One xpy_engine runs the instructions of one domain. Everything here belongs to the domain's own thread, but for
 * xpy_kick, which any thread may call. The Python half is xen_py/engine/unicorn.py, which repeats these declarations
 * for cffi's ABI mode; xpy_abi() guards against a stale library.
 */
#ifndef XPY_ENGINE_H
#define XPY_ENGINE_H

#include <stddef.h>
#include <stdint.h>

#define XPY_ABI 10

/* Why xpy_run came back. */
enum {
    XPY_KICKED = 0,    /* another thread, the timer, or the block budget asked for the thread */
    XPY_SYSCALL = 1,   /* a `syscall` instruction; rip is behind it and in rcx, rflags in r11 */
    XPY_EXCEPTION = 2, /* vector and error are set; faults leave rip on the instruction, traps behind it */
    XPY_EVENT = 5,     /* an event waits for Python to deliver it */
    XPY_SOFTINT = 4,   /* `int n` or `int3`: vector is set, rip behind it */
    XPY_BROKEN = 3,    /* the emulator gave up: uc_err in error, address in cr2 */
};

/* Segment registers in the order the instruction encoding has them. */
enum { XPY_ES, XPY_CS, XPY_SS, XPY_DS, XPY_FS, XPY_GS };

struct xpy_regs {
    uint64_t gpr[16]; /* in encoding order: rax rcx rdx rbx rsp rbp rsi rdi r8..r15 */
    uint64_t rip;
    uint64_t rflags;
    uint64_t sel[6]; /* selectors, XPY_ES.. */
    uint64_t fs_base;
    uint64_t gs_base; /* the active one */
    uint64_t cr3;     /* machine address of the L4 table to run on */
    uint64_t compat;  /* 1: 32-bit code segment */
    uint64_t user;    /* 1: guest user mode, 0: guest kernel mode; each has a TLB of its own */
    /* out only */
    uint64_t kind;
    uint64_t vector;
    uint64_t error;
    uint64_t cr2;
};

struct xpy_cpuid {
    uint32_t leaf, subleaf; /* subleaf 0xffffffff: any */
    uint32_t eax, ebx, ecx, edx;
};

struct xpy_counters {
    uint64_t runs, syscalls, exceptions, kicks, tlb_flushes, page_flushes, code_drops;
};

/* What of a vCPU both this code and Python's Vcpu work on; 64-bit words, see xen_py/vcpu.py for what they mean. */
struct xpy_vcpu {
    uint64_t kernel_mode, root, user_root, gs_base_kernel, gs_base_user, kernel_sp, kernel_ss, iopl;
    uint64_t info_offset, event_callback, syscall_callback, syscall_masks_events, ldt_pages, user_selectors;
    uint64_t blocked, singleshot, periodic_period, periodic_next;
    uint64_t runstate, runstate_since, runstate_times[4], runstate_area, time_area, time_version, spare[5];
    struct {
        uint64_t address, flags; /* flags: as in the guest's table; its selector is not used */
    } traps[256];
};

/*
 * What fast.c and events.c need of a domain: its memory and frame table (xen_py/frames.py), the vCPU that runs, its ports
 * (xen_py/evtchn.py, PendingEvents).
 */
struct xpy_fast {
    uint8_t *memory;
    uint64_t mfn_base, frames;
    uint32_t *refs, *type_counts, *code_maps;
    uint8_t *types, *flags;
    struct xpy_vcpu *vcpu; /* null: leave everything to Python */
    uint64_t m2p_entry;    /* L4 slot 256 */
    uint64_t version;      /* Xen's, as XENVER_version answers */
    uint64_t writable_pagetables, architectural_iopl, m2p_strict;
    uint64_t shared_info; /* offset in memory */
    uint64_t tsc_mul, tsc_shift;
    uint64_t alone; /* one vCPU and a real clock: its sleep, timers and kicks are dealt with in events.c */
    uint8_t *ports;
    uint64_t *events; /* how many were raised; the port of vCPU 0's timer */
    uint64_t *allocated;
    /* counted here, told by Python */
    uint64_t calls[64], guest_syscalls, page_faults, upcalls, kicks, sleeps, lingered, looks;
};

/* How events get in and out of the process: two bells of a doorbell page with their eventfds, the link, and the state
 * that the host reads (xen_py/doorbell.py). A port whose route is not -1 rings that eventfd instead of the outbox. */
struct xpy_paths {
    void *inbox, *outbox;
    int inbox_fd, outbox_fd, link_fd;
    int *routes;
    uint64_t *published;
};

struct xpy_engine;

int xpy_abi(void);
struct xpy_engine *xpy_open(const char *libunicorn, uint32_t translation_buffer, char *why, size_t why_size);
void xpy_close(struct xpy_engine *e);
int xpy_map(struct xpy_engine *e, uint64_t machine_address, uint64_t size, void *host);
int xpy_unmap(struct xpy_engine *e, uint64_t machine_address, uint64_t size);
struct xpy_regs *xpy_regs(struct xpy_engine *e);
struct xpy_fast *xpy_fast(struct xpy_engine *e);
struct xpy_counters *xpy_counters(struct xpy_engine *e);
void xpy_set_gdt(struct xpy_engine *e, uint64_t base, uint32_t limit);
void xpy_set_ldt(struct xpy_engine *e, uint64_t base, uint32_t limit);
void xpy_set_cr0_ts(struct xpy_engine *e, int ts);
int xpy_set_cpuid(struct xpy_engine *e, const struct xpy_cpuid *table, size_t n);
void xpy_set_debugreg(struct xpy_engine *e, int n, uint64_t value);
void xpy_set_tsc(struct xpy_engine *e, int64_t offset, int trap);
void xpy_flush_tlb(struct xpy_engine *e);
void xpy_flush_page(struct xpy_engine *e, uint64_t va);
void xpy_drop_code(struct xpy_engine *e, uint64_t va, size_t n);
int xpy_run(struct xpy_engine *e);
size_t xpy_fpu_size(struct xpy_engine *e);
void xpy_fpu_save(struct xpy_engine *e, void *blob);
void xpy_fpu_restore(struct xpy_engine *e, const void *blob);
void xpy_kick(struct xpy_engine *e);
int xpy_kick_pending(struct xpy_engine *e);
void xpy_clear_kick(struct xpy_engine *e);
int xpy_connect(struct xpy_engine *e, const struct xpy_paths *paths);
void xpy_set_deadline(struct xpy_engine *e, uint64_t monotonic_ns);
void xpy_set_block_budget(struct xpy_engine *e, uint64_t blocks);
uint64_t xpy_blocks(struct xpy_engine *e);
uint64_t xpy_rdtsc(void);

#endif
