/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the parts of the compiled engine share: the public interface of Unicorn as far as it is used, what is known of
 * its inside, and struct xpy_engine. Everything belongs to the domain's thread unless it is said to be otherwise.
 *
 * find.c finds and proves the private parts, engine.c enters and leaves the guest, stop.c makes it stop, fast.c handles
 * the most frequent exits without leaving (with entry.c and tables.c), events.c has it sleep and wake, look.c has it look
 * for events, sites.c has jumps remembered, stores.c makes stores to pages that might hold code cheap, walks.c walks
 * through page tables.
 */
#ifndef XPY_INTERNAL_H
#define XPY_INTERNAL_H

#include "engine.h"
#include "linger.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* The public interface of Unicorn 2, as far as it is used here. */
typedef struct uc_struct uc_engine;
typedef size_t uc_hook;
enum { UC_ARCH_X86 = 4, UC_MODE_64 = 1 << 3, UC_PROT_ALL = 7 };
enum { UC_HOOK_INTR = 1, UC_HOOK_INSN = 2, UC_HOOK_BLOCK = 8 };
enum { UC_X86_INS_CPUID = 113, UC_X86_INS_IN = 218, UC_X86_INS_OUT = 500, UC_X86_INS_SYSCALL = 699 };
enum { UC_X86_REG_CR0 = 50, UC_X86_REG_CR3 = 53, UC_X86_REG_CR4 = 54, UC_X86_REG_RAX = 35, UC_X86_REG_RIP = 41,
       UC_X86_REG_R8 = 106, UC_X86_REG_GDTR = 243, UC_X86_REG_MSR = 248, UC_X86_REG_FS_BASE = 250,
       UC_X86_REG_CS = 11, UC_X86_REG_RFLAGS = 253 };
enum { UC_CTL_UC_USE_EXITS = 4, UC_CTL_CPU_MODEL = 7, UC_CTL_TB_REMOVE_CACHE = 9, UC_CTL_TB_FLUSH = 10,
       UC_CTL_TLB_FLUSH = 11, UC_CTL_TCG_BUFFER_SIZE = 13 };
/* Flags of a frame, as in xen_py/frames.py. */
enum { FLAG_VALIDATED = 1, FLAG_ALLOCATED = 4, FLAG_UNWATCHED = 64 };
enum { UC_CPU_X86_EPYC = 35, UC_ERR_INSN_INVALID = 10 };
#define UC_CTL_WRITE(type, nargs) ((uint32_t)(type) | ((uint32_t)(nargs) << 26) | (1u << 30))

/*
 * The start of the emulator's CPU state: public facts of the x86 architecture in the order QEMU keeps them.
 * find_cpu() proves every field of it before it is believed.
 */
struct segment_cache {
    uint32_t selector;
    uint64_t base;
    uint32_t limit;
    uint32_t flags;
};

struct cpu_state {
    uint64_t regs[16];
    uint64_t eip;
    uint64_t eflags; /* complete while the emulator is not running */
    uint64_t cc_dst, cc_src, cc_src2;
    uint32_t cc_op;
    int32_t df;
    uint32_t hflags, hflags2;
    struct segment_cache segs[6];
    struct segment_cache ldt, tr, gdt, idt;
    uint64_t cr[9];
};

/*
 * The software TLB of one MMU mode, and where it lies before the register file. There are three modes; a PV guest is
 * always in the user one, so the first, unused one serves to park the TLB of whichever of guest kernel and guest user
 * is not running: changing between the two need not flush anything then.
 */
struct tlb_entry {
    uint64_t read, write, code; /* virtual page and flags, or ~0 for what is not allowed */
    uint64_t physical;
    uint64_t addend; /* to a virtual address, for the host's */
    uint64_t padding[3];
};

struct tlb_ram { /* kept apart from the entry of the same number */
    uint64_t from_virtual; /* to a virtual page, for the emulator's own number of the page */
    uint64_t attributes;
};

struct tlb {
    uint8_t windows_and_victims[688];
    struct tlb_ram *ram;
};

struct tlb_fast {
    uint64_t mask; /* of the place in the table: 64 times the number of entries, less 64 */
    struct tlb_entry *table;
};

#define TLB_WATCHED 0x400ull /* in `write`: stores go through a function, which looks for translated code */

/* What the translator knows of a page. */
struct page_of_code {
    uint64_t first_block;
    void *bitmap;
    uint64_t writes;
};

#define TLB_BEFORE_CPU 2192
#define CPU_OBJECT_BEFORE_CPU 0x8a50
#define TLB_PARKED 0
#define TLB_USED 1

struct tlbs {
    uint16_t dirty;
    uint64_t flush_counts[3];
    struct tlb d[3];
    struct tlb_fast f[3] __attribute__((aligned(16)));
};

/* The head of a translated block (QEMU's TranslationBlock). */
struct block {
    uint64_t pc, cs_base;
    uint32_t flags;
    uint16_t size, icount;
    union {
        uint32_t cflags;
        uint64_t kind;
    };
    uint8_t *code;
    uint64_t code_size;
    void *orig;
    uint64_t page_next[2], page_addr[2];
    uint16_t jmp_reset_offset[2]; /* where in the code an unlinked jump goes: out of the block to the main loop */
    uint64_t jmp_target_arg[2];   /* where in the code the 32-bit displacement of the jump is */
    uint64_t jmp_list_head, jmp_list_next[2], jmp_dest[2];
};

/* The translator's pages, in the engine object: a tree of 1024-fold tables below a wider root. */
struct page_map {
    void **root;
    uint64_t unused;
    int32_t root_size, root_shift, levels;
};

#define PAGE_MAP_BITS 10
#define STORE_FUNCTIONS 12 /* of the table by size and byte order: 0-3 and 9-11 are used */

/* The emulator's cache of where jumps go: blocks by a hash of their address, before the register file. What a block
 * depends on besides the address: part of the flags, and a kind that is the same for all but a few. */
#define JUMPS_BEFORE_CPU 0x8918
#define BLOCK_EFLAGS 0x73100u
#define PLAIN_BLOCK 0xff000000ull
#define JUMPS_KEPT_BITS 14

static inline struct block **xpy_known_jump(struct cpu_state *cpu, uint64_t pc)
{
    uint64_t mixed = pc ^ pc >> 6;

    return (struct block **)((char *)cpu - JUMPS_BEFORE_CPU) + ((mixed >> 6 & 0xfc0) | (mixed & 0x3f));
}

#define NO_JUMP 0xffff
#define CF_INVALID 0x40000u
#define TCG_CALL_NO_SIDE_EFFECTS 4u
#define HF_NOWHERE (1u << 31) /* no block has it in its flags */
#define HF_KERNEL (1u << 30)  /* blocks of guest kernel mode: user mode must not find them by their address */

struct helper_info { /* one row of the translator's table of C functions */
    void *func;
    const char *name;
    uint32_t flags, sizemask;
};

/* Of a variable of each thread that a signal or every jump of a guest looks at: found without a call. */
#define INITIAL_EXEC __attribute__((tls_model("initial-exec")))

#define DF_FLAG 0x400u
#define TF_FLAG 0x100u
#define HF_CPL 3u
#define HF_CS32 (1u << 4)
#define HF_SS32 (1u << 5)
#define HF_ADDSEG (1u << 6)
#define HF_CS64 (1u << 15)

/* Descriptor cache flags: the second word of a descriptor. */
#define FLAT_CODE64 0x00affb00u
#define FLAT_CODE32 0x00cffb00u
#define FLAT_DATA 0x00cff300u

#define CR0_VALUE 0x80000033ull /* PG NE ET MP PE */
#define CR0_TS 8ull
#define CR4_VALUE 0x6a0ull /* PAE PGE OSFXSR OSXMMEXCPT */
#define CR4_TSD 4ull
#define CR4_DE 8ull
#define MSR_EFER 0xc0000080u
#define EFER_VALUE 0xd01ull /* SCE LME LMA NXE */

struct xpy_engine {
    struct xpy_regs r;
    struct xpy_counters c;
    struct xpy_fast fast;
    uc_engine *uc;
    struct cpu_state *cpu;
    int32_t *old_exception;
    int32_t *error_code;
    int32_t *exception_is_int;
    int64_t *tsc_offset;
    uint64_t *dr;
    size_t context_size;   /* of the public blob */
    size_t context_header; /* bytes of it before the CPU state */
    void *scratch;
    struct tlbs *tlbs;
    void *cpu_object;
    uint64_t loaded_cr3[2]; /* what the TLB of kernel and user mode was filled from */
    unsigned mode;          /* whose TLB is in use: 0 kernel, 1 user */
    bool tlb_stale;
    struct xpy_cpuid *cpuid;
    size_t n_cpuid;
    /* preemption */
    volatile int kicked;  /* sticky; set by any thread, cleared by the domain's own */
    volatile int asked;   /* ... and it is Python that is wanted */
    volatile int asleep;  /* in events.c, which sees to the inbox and the timer */
    struct xenpy_linger linger;
    volatile int stopped; /* the stop signal has come, since this was last cleared */
    struct xpy_paths paths;
    bool inbox_watched;
    /* looking for events (look.c) */
    bool jumps_are_ours;
    volatile int looking;   /* inside xpy_run, and marks in the inbox will be seen */
    volatile int resting;   /* the watcher is to be told when that begins */
    const uint64_t *marks;  /* not 0 where there is something to look at */
    uintptr_t way_out;      /* of translated code */
    struct block **jumps;   /* of the flush of that number */
    uint32_t jumps_of_flush;
    const uint32_t *flush_count;
    /* where jumps are expected to go (sites.c) */
    struct site *sites;  /* null: none are kept */
    struct site *asks;   /* whose jump it is that the function is asked for */
    struct others *others;
    uint32_t sites_used, others_used, sites_of_flush;
    uint64_t sites_set;
    uint64_t generations[2]; /* of the sites of kernel and user mode that count */
    uint64_t changes_seen;
    volatile int running; /* inside uc_emu_start */
    volatile int closing;
    int epoll_fd, event_fd, timer_fd;
    volatile uint64_t deadline, armed; /* 0: none; what the timer is set to, never later */
    pthread_t watcher;
    bool watching;
    pid_t thread; /* the one inside uc_emu_start */
    struct block *cut; /* the block whose jumps were bent out of the way by a stop */
    struct {
        int32_t *at;
        int32_t was;
        uint64_t dest;
    } bent[2];
    void *tcg;
    const struct page_map *pages;
    struct helper_info *block_check;
    uintptr_t code_start, code_end;
    uint64_t budget, blocks; /* counted blocks, only with a block hook */
    uc_hook block_hook;
    /* the library */
    void *dl;
    int (*uc_open)(int, int, uc_engine **);
    int (*uc_close)(uc_engine *);
    int (*uc_reg_read)(uc_engine *, int, void *);
    int (*uc_reg_write)(uc_engine *, int, const void *);
    int (*uc_emu_start)(uc_engine *, uint64_t, uint64_t, uint64_t, size_t);
    int (*uc_emu_stop)(uc_engine *);
    int (*uc_hook_add)(uc_engine *, uc_hook *, int, void *, void *, uint64_t, uint64_t, ...);
    int (*uc_hook_del)(uc_engine *, uc_hook);
    int (*uc_mem_map_ptr)(uc_engine *, uint64_t, uint64_t, uint32_t, void *);
    int (*uc_mem_unmap)(uc_engine *, uint64_t, uint64_t);
    int (*uc_ctl)(uc_engine *, uint32_t, ...);
    size_t (*uc_context_size)(uc_engine *);
    int (*uc_context_alloc)(uc_engine *, void **);
    int (*uc_context_save)(uc_engine *, void *);
    int (*uc_context_restore)(uc_engine *, void *);
    int (*uc_free)(void *);
    void *(*own_jumps)(void *);
    uint64_t (*own_walks)(void *, uint64_t);
    struct block *(*block_at)(void *, uintptr_t);
    void (*each_block)(void *, int (*)(void *, void *, void *), void *);
    void (*leave)(uc_engine *, uint32_t);
    void *store_functions[STORE_FUNCTIONS];
};

/* find.c */
struct xpy_wanted { /* a function of the library, and where its address is to go */
    const char *name;
    void *slot;
};
bool xpy_look_up(void *library, const struct xpy_wanted *wanted, size_t count, char *why, size_t n);
bool xpy_find(struct xpy_engine *e, const char *libunicorn, uint32_t translation_buffer, char *why, size_t n);
bool xpy_prove(struct xpy_engine *e, char *why, size_t n);
void xpy_flat_segments(struct xpy_engine *e);

/* stop.c */
bool xpy_start_watcher(struct xpy_engine *e);
void xpy_stop_watcher(struct xpy_engine *e);
void xpy_enter(struct xpy_engine *e);
void xpy_leave(struct xpy_engine *e);
void xpy_watch_inbox(struct xpy_engine *e, bool on);
void xpy_rouse_watcher(struct xpy_engine *e);
extern __thread struct xpy_engine *volatile xpy_running_here INITIAL_EXEC;

/* look.c */
void xpy_take_over_jumps(struct xpy_engine *e, void *(*own)(void *));
void xpy_begin_looking(struct xpy_engine *e);
void xpy_end_looking(struct xpy_engine *e);

/* sites.c (see sites.h) */
bool xpy_find_sites(struct xpy_engine *e, char *why, size_t n);
bool xpy_open_sites(struct xpy_engine *e);
void xpy_close_sites(struct xpy_engine *e);
void xpy_outdate_sites(struct xpy_engine *e);
void xpy_outdate_sites_for_others(struct xpy_engine *e);
void xpy_flush_tlb_page(struct xpy_engine *e, uint64_t va);
void xpy_flush_tlb_modes(struct xpy_engine *e, uint16_t modes);

/* walks.c */
void xpy_take_over_walks(uint64_t (*own)(void *, uint64_t));

/* events.c */
bool xpy_sees_to_events(const struct xpy_engine *e);
void xpy_take_inbox(struct xpy_engine *e);
void xpy_run_timers(struct xpy_engine *e);
bool xpy_attend(struct xpy_engine *e);
bool xpy_block(struct xpy_engine *e);
bool xpy_send(const struct xpy_engine *e, uint32_t port);
bool xpy_set_singleshot(struct xpy_engine *e, uint64_t when);

/* engine.c */
void xpy_change_mode(struct xpy_engine *e);
void xpy_use_root(struct xpy_engine *e, uint64_t cr3);

/* stores.c */
bool xpy_take_over_stores(struct xpy_engine *e);
const struct page_of_code *xpy_page_of_code(const struct xpy_engine *e, uint64_t ram_page);
struct tlb_entry *xpy_tlb_entry(const struct xpy_engine *e, unsigned mode, uint64_t va, uint64_t *ram_page);

/* tables.c */
void *xpy_kernel_range(const struct xpy_engine *e, uint64_t va, uint64_t n);

/* entry.c */
bool xpy_upcall(struct xpy_engine *e);
bool xpy_deliver_events(struct xpy_engine *e);

/* fast.c */
/* true when the exit was dealt with and the guest can go on */
bool xpy_fast_syscall(struct xpy_engine *e);
bool xpy_fast_page_fault(struct xpy_engine *e);
bool xpy_fast_privileged(struct xpy_engine *e);
bool xpy_fast_io(const struct xpy_engine *e);

#endif
