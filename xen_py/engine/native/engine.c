// SPDX-License-Identifier: GPL-2.0-only
/*
 * The run loop, the register batch, and the repairs that Unicorn needs to run a PV guest precisely.
 *
 * Why C: a guest leaves the emulator 100,000 times in a boot, and each way through Unicorn's public interface from
 * Python costs microseconds. Why so much knowledge of the inside of Unicorn: three things cannot be had otherwise
 * (docs/engine.md tells the story of each):
 *   - an exception leaves `old_exception` set, and the next one would be a double fault;
 *   - a stop asked for by another thread is taken after any memory access, and the access is then done again;
 *     with the private flag `no_exit_request` it is taken at the start of a block only;
 *   - PV guests always run at CPL 3 with segments that the hypervisor sets.
 *   - Unicorn calls a function at the start of every block to see whether it should stop, a quarter of all time. That
 *     call is taken out, and a stop is made by a signal to the thread instead: see "Stopping".
 * All of it is looked for at run time and checked against the public interface; when anything is not as expected,
 * xpy_open refuses with a reason. Nothing is guessed.
 */
#define _GNU_SOURCE
#include "engine.h"

#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

/* The public interface of Unicorn 2, as far as it is used here. */
typedef struct uc_struct uc_engine;
typedef size_t uc_hook;
enum { UC_ARCH_X86 = 4, UC_MODE_64 = 1 << 3, UC_PROT_ALL = 7 };
enum { UC_HOOK_INTR = 1, UC_HOOK_INSN = 2, UC_HOOK_BLOCK = 8 };
enum { UC_X86_INS_CPUID = 113, UC_X86_INS_SYSCALL = 699 };
enum { UC_X86_REG_CR0 = 50, UC_X86_REG_CR3 = 53, UC_X86_REG_CR4 = 54, UC_X86_REG_RAX = 35, UC_X86_REG_RIP = 41,
       UC_X86_REG_R8 = 106, UC_X86_REG_GDTR = 243, UC_X86_REG_MSR = 248, UC_X86_REG_FS_BASE = 250,
       UC_X86_REG_CS = 11, UC_X86_REG_RFLAGS = 253 };
enum { UC_CTL_UC_USE_EXITS = 4, UC_CTL_CPU_MODEL = 7, UC_CTL_TB_REMOVE_CACHE = 9, UC_CTL_TB_FLUSH = 10,
       UC_CTL_TLB_FLUSH = 11, UC_CTL_TCG_BUFFER_SIZE = 13 };
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
struct tlb {
    uint8_t descriptor[696];
};

struct tlb_fast {
    uint64_t mask, table;
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
    uint32_t cflags, trace;
    uint8_t *code;
    uint64_t code_size;
    void *orig;
    uint64_t page_next[2], page_addr[2];
    uint16_t jmp_reset_offset[2]; /* where in the code an unlinked jump goes: out of the block to the main loop */
    uint64_t jmp_target_arg[2];   /* where in the code the 32-bit displacement of the jump is */
    uint64_t jmp_list_head, jmp_list_next[2], jmp_dest[2];
};

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

#define CR0_VALUE 0x80000033ull /* PG NE ET MP PE; WP clear, see xpy_step_supervisor */
#define CR0_TS 8ull
#define CR4_VALUE 0x6a0ull /* PAE PGE OSFXSR OSXMMEXCPT */
#define CR4_TSD 4ull
#define CR4_DE 8ull
#define MSR_EFER 0xc0000080u
#define EFER_VALUE 0xd01ull /* SCE LME LMA NXE */

struct xpy_engine {
    struct xpy_regs r;
    struct xpy_counters c;
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
    volatile int running; /* inside uc_emu_start */
    volatile int closing;
    int epoll_fd, event_fd, timer_fd;
    uint64_t deadline;
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
    struct block *(*block_at)(void *, uintptr_t);
    void (*each_block)(void *, int (*)(void *, void *, void *), void *);
    void (*leave)(uc_engine *, uint32_t);
    void (*flush_page)(void *, uint64_t);
    void (*flush_modes)(void *, uint16_t);
};

int xpy_abi(void) { return XPY_ABI; }

/* ---- hooks: they run on the domain's thread, inside the emulator ---- */

static void on_exception(uc_engine *uc, uint32_t vector, void *user)
{
    struct xpy_engine *e = user;

    *e->old_exception = -1;
    e->r.kind = *e->exception_is_int ? XPY_SOFTINT : XPY_EXCEPTION;
    e->r.vector = vector;
    e->uc_emu_stop(uc);
}

static void on_syscall(uc_engine *uc, void *user)
{
    struct xpy_engine *e = user;

    e->r.kind = XPY_SYSCALL;
    e->uc_emu_stop(uc);
}

static int on_cpuid(uc_engine *uc, void *user)
{
    struct xpy_engine *e = user;
    uint32_t leaf = (uint32_t)e->cpu->regs[0], sub = (uint32_t)e->cpu->regs[1];
    uint32_t v[4] = {0, 0, 0, 0};

    (void)uc;
    for (size_t i = 0; i < e->n_cpuid; i++) {
        const struct xpy_cpuid *c = &e->cpuid[i];
        if (c->leaf == leaf && (c->subleaf == sub || c->subleaf == 0xffffffffu)) {
            v[0] = c->eax, v[1] = c->ebx, v[2] = c->ecx, v[3] = c->edx;
            break;
        }
    }
    e->cpu->regs[0] = v[0];
    e->cpu->regs[3] = v[1];
    e->cpu->regs[1] = v[2];
    e->cpu->regs[2] = v[3];
    return 1;
}

static void on_block(uc_engine *uc, uint64_t address, uint32_t size, void *user)
{
    struct xpy_engine *e = user;

    (void)size;
    if (++e->blocks >= e->budget) {
        e->cpu->eip = address;
        e->uc_emu_stop(uc);
        e->leave(uc, 0); /* out of the generated code, to the main loop; does not return */
    }
}

/* ---- stopping ---- */

/*
 * The wish to stop is kept in `kicked`, which is tested before each run; a request that uc_emu_start clears on entry is
 * made again, because the watcher repeats it until the run has ended.
 *
 * The request itself is a signal to the thread that runs the guest. Where it finds that thread in translated code, the
 * block it is in still has to be left for the main loop, which sees the request: its direct jumps to other blocks are
 * bent to its own exits, and a flag that no block has makes look-ups of indirect jumps fail. So the guest stops at the
 * end of the block. Both are put back when the run has ended, on the same thread, before anything else can happen to
 * the block. Where it finds the thread elsewhere (in a helper, say), the next signal comes a few microseconds later.
 */
static __thread struct xpy_engine *volatile running_here;

static int stop_signal(void) { return SIGRTMIN + 6; }

static void bend(struct xpy_engine *e, struct block *b)
{
    e->cut = b;
    for (int n = 0; n < 2; n++) {
        int32_t *at = (int32_t *)(b->code + b->jmp_target_arg[n]);

        e->bent[n].at = NULL;
        if (b->jmp_reset_offset[n] == NO_JUMP)
            continue;
        e->bent[n].at = at;
        e->bent[n].was = *at;
        e->bent[n].dest = b->jmp_dest[n];
        __atomic_store_n(at, (int32_t)(b->code + b->jmp_reset_offset[n] - ((uint8_t *)at + 4)), __ATOMIC_RELAXED);
    }
}

static void straighten(struct xpy_engine *e)
{
    struct block *b = e->cut;

    e->cut = NULL;
    e->cpu->hflags &= ~HF_NOWHERE;
    if (!b)
        return;
    /* A jump that was unlinked meanwhile, because its target or the block itself went, stays so. */
    for (int n = 0; n < 2; n++)
        if (e->bent[n].at && !(b->cflags & CF_INVALID) && b->jmp_dest[n] == e->bent[n].dest)
            *e->bent[n].at = e->bent[n].was;
}

static void on_stop_signal(int signal, siginfo_t *info, void *context)
{
    struct xpy_engine *e = running_here;
    uintptr_t pc = (uintptr_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];

    (void)signal;
    (void)info;
    if (!e)
        return;
    e->uc_emu_stop(e->uc);
    if (pc < e->code_start || pc >= e->code_end)
        return;
    e->cpu->hflags |= HF_NOWHERE;
    struct block *b = e->block_at(e->tcg, pc);
    if (b && b != e->cut) {
        struct block *before = e->cut;
        if (before) {
            straighten(e);
            e->cpu->hflags |= HF_NOWHERE;
        }
        bend(e, b);
    }
}

static void signal_runner(struct xpy_engine *e)
{
    syscall(SYS_tgkill, getpid(), e->thread, stop_signal());
}

/* Marks the wish; true when a run is under way that has to be told. */
static bool want_stop(struct xpy_engine *e)
{
    __atomic_store_n(&e->kicked, 1, __ATOMIC_SEQ_CST);
    return __atomic_load_n(&e->running, __ATOMIC_SEQ_CST);
}

static void *watch_loop(void *arg)
{
    struct xpy_engine *e = arg;
    struct epoll_event events[4];
    uint64_t n;
    long pause_ns = 0;

    while (!__atomic_load_n(&e->closing, __ATOMIC_SEQ_CST)) {
        bool unanswered = __atomic_load_n(&e->kicked, __ATOMIC_SEQ_CST) && __atomic_load_n(&e->running, __ATOMIC_SEQ_CST);

        if (unanswered) {
            struct timespec t = {0, pause_ns};
            nanosleep(&t, NULL);
            pause_ns = pause_ns < 500000 ? pause_ns * 2 : pause_ns;
        } else {
            pause_ns = 20000;
        }
        int got = epoll_wait(e->epoll_fd, events, 4, unanswered ? 0 : -1);

        for (int i = 0; i < got; i++) {
            /* The timer and our own eventfd are read here; a foreign eventfd is its reader's, hence edge-triggered. */
            if (events[i].data.fd == e->timer_fd || events[i].data.fd == e->event_fd)
                if (read(events[i].data.fd, &n, sizeof n) < 0 && errno != EAGAIN)
                    return NULL;
        }
        if ((got > 0 || unanswered) && want_stop(e))
            signal_runner(e);
    }
    return NULL;
}

void xpy_kick(struct xpy_engine *e)
{
    uint64_t one = 1;

    /* Through the watcher, which goes on until the stop has taken effect. */
    if (want_stop(e) && write(e->event_fd, &one, sizeof one) < 0)
        signal_runner(e);
}

int xpy_kick_pending(struct xpy_engine *e) { return __atomic_load_n(&e->kicked, __ATOMIC_SEQ_CST); }

void xpy_clear_kick(struct xpy_engine *e) { __atomic_store_n(&e->kicked, 0, __ATOMIC_SEQ_CST); }

int xpy_watch(struct xpy_engine *e, int eventfd_)
{
    struct epoll_event ev = {.events = EPOLLIN | EPOLLET, .data.fd = eventfd_};

    return epoll_ctl(e->epoll_fd, EPOLL_CTL_ADD, eventfd_, &ev) ? -errno : 0;
}

void xpy_set_deadline(struct xpy_engine *e, uint64_t ns)
{
    struct itimerspec t = {.it_value = {.tv_sec = ns / 1000000000u, .tv_nsec = ns % 1000000000u}};

    if (ns == e->deadline)
        return;
    e->deadline = ns;
    timerfd_settime(e->timer_fd, TFD_TIMER_ABSTIME, &t, NULL);
}

static bool start_watcher(struct xpy_engine *e)
{
    struct epoll_event ev = {.events = EPOLLIN};
    sigset_t all, old;

    e->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    e->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    e->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (e->epoll_fd < 0 || e->event_fd < 0 || e->timer_fd < 0)
        return false;
    ev.data.fd = e->event_fd;
    if (epoll_ctl(e->epoll_fd, EPOLL_CTL_ADD, e->event_fd, &ev))
        return false;
    ev.data.fd = e->timer_fd;
    if (epoll_ctl(e->epoll_fd, EPOLL_CTL_ADD, e->timer_fd, &ev))
        return false;
    struct sigaction act = {.sa_sigaction = on_stop_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigemptyset(&act.sa_mask);
    if (sigaction(stop_signal(), &act, NULL))
        return false;
    /* Signals are for Python's main thread. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    e->watching = pthread_create(&e->watcher, NULL, watch_loop, e) == 0;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return e->watching;
}

/* ---- finding our way in the library ---- */

static int resolve(struct xpy_engine *e, char *why, size_t n)
{
    const struct {
        const char *name;
        void *slot;
    } wanted[] = {
        {"uc_open", &e->uc_open},
        {"uc_close", &e->uc_close},
        {"uc_reg_read", &e->uc_reg_read},
        {"uc_reg_write", &e->uc_reg_write},
        {"uc_emu_start", &e->uc_emu_start},
        {"uc_emu_stop", &e->uc_emu_stop},
        {"uc_hook_add", &e->uc_hook_add},
        {"uc_hook_del", &e->uc_hook_del},
        {"uc_mem_map_ptr", &e->uc_mem_map_ptr},
        {"uc_mem_unmap", &e->uc_mem_unmap},
        {"uc_ctl", &e->uc_ctl},
        {"uc_context_size", &e->uc_context_size},
        {"uc_context_alloc", &e->uc_context_alloc},
        {"uc_context_save", &e->uc_context_save},
        {"uc_context_restore", &e->uc_context_restore},
        {"uc_free", &e->uc_free},
        {"tcg_tb_lookup_x86_64", &e->block_at},
        {"tcg_tb_foreach_x86_64", &e->each_block},
        {"helper_check_exit_request_x86_64", &e->leave},
        {"tlb_flush_page_x86_64", &e->flush_page},
        {"tlb_flush_by_mmuidx_x86_64", &e->flush_modes},
    };

    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        void *f = dlsym(e->dl, wanted[i].name);
        if (!f) {
            snprintf(why, n, "the Unicorn library lacks %s", wanted[i].name);
            return -1;
        }
        memcpy(wanted[i].slot, &f, sizeof f);
    }
    return 0;
}

/* Reads our own memory without risk: a wrong pointer is an error, not a crash. */
static bool peek(const void *from, void *to, size_t n)
{
    struct iovec local = {to, n}, remote = {(void *)from, n};

    return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == (ssize_t)n;
}

#define ENGINE_OBJECT_MAX 4096 /* how far into the engine object we look */
#define AT_REGISTERS 0x8a50    /* where in the CPU object the register file is */

/* The CPU object: the one reached from the engine object in which the 16 numbers just written can be read. */
static struct cpu_state *find_cpu(struct xpy_engine *e)
{
    uint64_t engine[ENGINE_OBJECT_MAX / 8], magic[16], there[16];

    for (int i = 0; i < 16; i++) {
        static const int ids[8] = {35, 38, 40, 37, 44, 36, 43, 39}; /* RAX RCX RDX RBX RSP RBP RSI RDI */
        magic[i] = 0x5eedc0de00000000ull + (uint64_t)i * 0x01010101u;
        if (e->uc_reg_write(e->uc, i < 8 ? ids[i] : UC_X86_REG_R8 + i - 8, &magic[i]))
            return NULL;
    }
    if (!peek(e->uc, engine, sizeof engine))
        return NULL;
    for (size_t i = 0; i < ENGINE_OBJECT_MAX / 8; i++) {
        uint64_t p = engine[i];

        if (p < 4096 || (p & 7) || p >> 47 || !peek((void *)(p + AT_REGISTERS), there, sizeof there) ||
            memcmp(there, magic, sizeof magic))
            continue;
        e->cpu_object = (void *)p;
        return (struct cpu_state *)(p + AT_REGISTERS);
    }
    return NULL;
}

/* `no_exit_request` follows `cpu_context_size` in the engine object; its neighbours are known. */
static uint8_t *find_no_exit_request(struct xpy_engine *e, size_t cpu_size)
{
    uint8_t engine[ENGINE_OBJECT_MAX];
    uint8_t *found = NULL;
    uint32_t size = (uint32_t)cpu_size;

    if (!peek(e->uc, engine, sizeof engine))
        return NULL;
    for (size_t at = 0; at + 24 <= sizeof engine; at += 4) {
        size_t next_pc = (at + 4 + 7) & ~(size_t)7;
        const uint8_t *flags = engine + next_pc + 8; /* hook_insert first_tb no_exit_request init_done */

        if (memcmp(engine + at, &size, 4) || flags[0] > 1 || flags[1] > 1 || flags[2] != 0 || flags[3] != 1)
            continue;
        if (found)
            return NULL; /* not unique */
        found = (uint8_t *)e->uc + next_pc + 10;
    }
    return found;
}

#define AT_PROLOGUE 0x90

/* The translator's state: the object in which prologue, epilogue and code buffer follow each other. */
static bool find_translator(struct xpy_engine *e, uint32_t translation_buffer)
{
    uint64_t engine[ENGINE_OBJECT_MAX / 8], object[ENGINE_OBJECT_MAX / 8];

    if (!peek(e->uc, engine, sizeof engine))
        return false;
    for (size_t i = 0; i < ENGINE_OBJECT_MAX / 8; i++) {
        uint64_t p = engine[i];

        if (p < 4096 || (p & 7) || p >> 47 || !peek((void *)p, object, sizeof object))
            continue;
        const uint64_t *k = object + AT_PROLOGUE / 8;
        uint64_t prologue = k[0], epilogue = k[1], buffer = k[2], size = k[5], next = k[6];
        if (prologue < 4096 || prologue >= epilogue || epilogue - prologue > 4096 || buffer < prologue ||
            buffer - prologue > 1 << 20 || size > translation_buffer || size < translation_buffer / 2 ||
            next < buffer || next > buffer + size)
            continue;
        e->tcg = (void *)p;
        e->code_start = prologue;
        e->code_end = buffer + size;
        return true;
    }
    return false;
}

/*
 * Tells the translator that the function it calls at the start of each block has no effect, so that it leaves the call
 * out. The row of its table is in a part of the library that is read-only after loading; once a process is enough, and
 * a process forked later has it done.
 */
static int find_block_check(struct dl_phdr_info *library, size_t size, void *data)
{
    struct xpy_engine *e = data;

    (void)size;
    if (!strstr(library->dlpi_name, "libunicorn"))
        return 0;
    for (int i = 0; i < library->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &library->dlpi_phdr[i];
        uintptr_t from = library->dlpi_addr + part->p_vaddr, to = from + part->p_memsz;

        if (part->p_type != PT_LOAD || (part->p_flags & PF_X))
            continue;
        for (uintptr_t at = (from + 7) & ~(uintptr_t)7; at + sizeof(struct helper_info) <= to; at += 8) {
            struct helper_info *row = (struct helper_info *)at;
            char name[24] = "";
            if (row->func == (void *)e->leave && peek(row->name, name, 18) && !strcmp(name, "check_exit_request")) {
                e->block_check = row;
                return 1;
            }
        }
    }
    return 0;
}

static bool take_out_block_check(struct xpy_engine *e)
{
    uintptr_t page = sysconf(_SC_PAGESIZE);

    if (!dl_iterate_phdr(find_block_check, e))
        return false;
    if (!(e->block_check->flags & TCG_CALL_NO_SIDE_EFFECTS)) {
        uintptr_t first = (uintptr_t)e->block_check & -page;
        size_t n = (uintptr_t)(e->block_check + 1) - first;
        if (mprotect((void *)first, n, PROT_READ | PROT_WRITE))
            return false;
        e->block_check->flags |= TCG_CALL_NO_SIDE_EFFECTS;
        mprotect((void *)first, n, PROT_READ);
    }
    return true;
}

static int find_block(void *key, void *value, void *data)
{
    struct block *b = value, **found = data;

    (void)key;
    if (b->pc == (*found ? 0 : 0x400000))
        *found = b;
    return 0;
}

/*
 * The private fields behind the register file. Offsets are those of Unicorn 2.1.4 relative to the register file;
 * each is proved by making the emulator change it.
 */
#define AT_ERROR_CODE 5384
#define AT_EXCEPTION_DR 5400
#define AT_OLD_EXCEPTION 5496
#define AT_TSC_OFFSET 5512

#define SCRATCH 0x10000

static int prove(struct xpy_engine *e, char *why, size_t n)
{
    /* Two scratch address spaces with the same page of code at VA 0x400000 and different data at VA 0x401000. */
    uint64_t *mem = NULL;
    int bad = -1;
    uint64_t rip = 0, flags = 0;
    struct cpu_state *cpu = e->cpu;

    if (posix_memalign((void **)&mem, 4096, SCRATCH)) {
        snprintf(why, n, "out of memory");
        return -1;
    }
    memset(mem, 0, SCRATCH);
    for (uint64_t root = 0; root < 2; root++) {
        uint64_t at = root * 0x8000;
        mem[at / 8] = at + 0x1007;
        mem[at / 8 + 0x200] = at + 0x2007;
        mem[at / 8 + 0x402] = at + 0x3007;
        mem[at / 8 + 0x600] = 0x5007;
        mem[at / 8 + 0x601] = 0x6007 + root * 0x1000;
        mem[0x6000 / 8 + root * 0x200] = 0x1111 + root;
    }
    /* mov (%rdi),%rax ; jmp . -- a fault with a known error code, again and again */
    memcpy((char *)mem + 0x5000, "\x48\x89\x07\xeb\xfe", 5);
    if (e->uc_mem_map_ptr(e->uc, 0, SCRATCH, UC_PROT_ALL, mem)) {
        snprintf(why, n, "uc_mem_map_ptr failed");
        goto out;
    }
    e->r.cr3 = 0;
    e->tlb_stale = true;
    e->r.rip = 0x400000;
    e->r.rflags = 0x202 | DF_FLAG | 0x41;
    e->r.gpr[7] = 0x402230;
    e->r.fs_base = 0x1122334455667788ull;
    e->r.gs_base = 0x7fff12345678ull;
    for (int i = 0; i < 5; i++) {
        e->r.vector = 0;
        if (xpy_run(e) != XPY_EXCEPTION || e->r.vector != 14 || e->r.rip != 0x400000 || e->r.error != 6 ||
            e->r.cr2 != 0x402230) {
            snprintf(why, n, "exception state is not where it should be (exit %d vector %d error %#x rip %#llx)",
                     (int)e->r.kind, (int)e->r.vector, (unsigned)e->r.error, (unsigned long long)e->r.rip);
            goto unmap;
        }
    }
    e->uc_reg_read(e->uc, UC_X86_REG_RIP, &rip);
    e->uc_reg_read(e->uc, UC_X86_REG_RFLAGS, &flags);
    if (rip != cpu->eip || (flags & 0xcd5) != (DF_FLAG | 0x41) || (e->r.rflags & 0xcd5) != (DF_FLAG | 0x41)) {
        snprintf(why, n, "rip or rflags are not where they should be ");
        goto unmap;
    }
    {
        uint64_t base = 0;
        uint16_t sel = 0;
        e->uc_reg_read(e->uc, UC_X86_REG_FS_BASE, &base);
        if (base != e->r.fs_base) {
            snprintf(why, n, "segment bases are not where they should be");
            goto unmap;
        }
        e->uc_reg_read(e->uc, UC_X86_REG_CS, &sel);
        if (sel != (uint16_t)e->r.sel[XPY_CS]) {
            snprintf(why, n, "segment selectors are not where they should be");
            goto unmap;
        }
    }
    {
        struct block *b = NULL;
        int jumps = 0;
        e->each_block(e->tcg, find_block, &b);
        if (!b || (uintptr_t)b->code < e->code_start || (uintptr_t)b->code + b->code_size > e->code_end ||
            b->size != 5 || e->block_at(e->tcg, (uintptr_t)b->code + 1) != b) {
            snprintf(why, n, "translated blocks are not as they should be");
            goto unmap;
        }
        for (int i = 0; i < 2; i++)
            if (b->jmp_reset_offset[i] != NO_JUMP)
                jumps += b->jmp_reset_offset[i] <= b->code_size && b->jmp_target_arg[i] + 4 <= b->code_size ? 1 : 9;
        if (jumps != 1) {
            snprintf(why, n, "jumps between translated blocks are not as they should be");
            goto unmap;
        }
    }
    /* int $0x80 */
    memcpy((char *)mem + 0x5000, "\xcd\x80", 2);
    e->uc_ctl(e->uc, UC_CTL_WRITE(UC_CTL_TB_FLUSH, 0));
    e->r.rip = 0x400000;
    if (xpy_run(e) != XPY_SOFTINT || e->r.vector != 0x80 || e->r.rip != 0x400002) {
        snprintf(why, n, "software interrupts are not told from exceptions");
        goto unmap;
    }
    /* rdtsc ; syscall : the offset must move it */
    memcpy((char *)mem + 0x5000, "\x0f\x31\x0f\x05", 4);
    e->uc_ctl(e->uc, UC_CTL_WRITE(UC_CTL_TB_FLUSH, 0));
    {
        uint64_t t[2];
        for (int i = 0; i < 2; i++) {
            *e->tsc_offset = i ? 1ll << 60 : 0;
            e->r.rip = 0x400000;
            if (xpy_run(e) != XPY_SYSCALL || e->r.rip != 0x400004) {
                snprintf(why, n, "syscall does not exit as it should");
                goto unmap;
            }
            t[i] = e->r.gpr[0] | e->r.gpr[2] << 32;
        }
        *e->tsc_offset = 0;
        if (t[1] - t[0] < 1ull << 60 || t[1] - t[0] > (1ull << 60) + (1ull << 40)) {
            snprintf(why, n, "the TSC offset is not where it should be");
            goto unmap;
        }
    }
    /* mov (%rdi),%rax ; syscall : each mode keeps the translations of its own root until it is told not to */
    memcpy((char *)mem + 0x5000, "\x48\x8b\x07\x0f\x05", 5);
    e->uc_ctl(e->uc, UC_CTL_WRITE(UC_CTL_TB_FLUSH, 0));
    for (int step = 0; step < 5; step++) {
        static const uint64_t expected[5] = {0x1111, 0x1112, 0x1111, 0x1112, 0x1112};
        e->r.user = step == 1 || step == 3;
        e->r.cr3 = e->r.user ? 0x8000 : 0;
        e->r.rip = 0x400000;
        e->r.gpr[7] = 0x401000;
        if (step == 2)
            mem[0x601] = 0x7007;
        if (step == 4)
            xpy_flush_page(e, 0x401000);
        if (xpy_run(e) != XPY_SYSCALL || e->r.gpr[0] != expected[step]) {
            snprintf(why, n, "the TLBs are not where they should be (step %d)", step);
            goto unmap;
        }
    }
    bad = 0;
unmap:
    e->uc_mem_unmap(e->uc, 0, SCRATCH);
    e->uc_ctl(e->uc, UC_CTL_WRITE(UC_CTL_TB_FLUSH, 0));
    e->tlb_stale = true;
    memset(&e->r, 0, sizeof e->r);
    memset(&e->c, 0, sizeof e->c);
out:
    free(mem);
    return bad;
}

static void flat_segments(struct xpy_engine *e)
{
    static const uint16_t selectors[6] = {0, 0xe033, 0xe02b, 0, 0, 0};

    for (int i = 0; i < 6; i++) {
        struct segment_cache *s = &e->cpu->segs[i];
        s->selector = selectors[i];
        s->base = 0;
        s->limit = 0xffffffffu;
        s->flags = i == XPY_CS ? FLAT_CODE64 : FLAT_DATA;
        e->r.sel[i] = selectors[i];
    }
    e->cpu->hflags |= HF_CPL | HF_CS32 | HF_SS32 | HF_CS64;
    e->cpu->hflags &= ~HF_ADDSEG;
}

static int set_up(struct xpy_engine *e, uint32_t translation_buffer, char *why, size_t n)
{
    uint64_t v;
    uint8_t *no_exit_request;
    struct {
        uint32_t rid;
        uint64_t value;
    } msr = {MSR_EFER, EFER_VALUE};
    uc_hook hook;

    v = CR4_VALUE;
    if (e->uc_reg_write(e->uc, UC_X86_REG_CR4, &v) || e->uc_reg_write(e->uc, UC_X86_REG_MSR, &msr)) {
        snprintf(why, n, "control registers cannot be set");
        return -1;
    }
    v = CR0_VALUE;
    if (e->uc_reg_write(e->uc, UC_X86_REG_CR0, &v)) {
        snprintf(why, n, "CR0 cannot be set");
        return -1;
    }
    e->cpu = find_cpu(e);
    if (!e->cpu) {
        snprintf(why, n, "the register file of the emulator was not found");
        return -1;
    }
    if (e->cpu->cr[0] != CR0_VALUE || e->cpu->cr[4] != CR4_VALUE) {
        snprintf(why, n, "the control registers are not where they should be");
        return -1;
    }
    e->tlbs = (struct tlbs *)((char *)e->cpu - TLB_BEFORE_CPU);
    e->error_code = (int32_t *)((char *)e->cpu + AT_ERROR_CODE);
    e->exception_is_int = e->error_code + 1;
    e->dr = (uint64_t *)((char *)e->cpu + AT_EXCEPTION_DR);
    e->old_exception = (int32_t *)((char *)e->cpu + AT_OLD_EXCEPTION);
    e->tsc_offset = (int64_t *)((char *)e->cpu + AT_TSC_OFFSET);
    e->context_size = e->uc_context_size(e->uc);
    e->context_header = 40;
    no_exit_request = find_no_exit_request(e, e->context_size - e->context_header);
    if (!no_exit_request) {
        snprintf(why, n, "the flag for precise stops was not found");
        return -1;
    }
    *no_exit_request = 1;
    if (!find_translator(e, translation_buffer)) {
        snprintf(why, n, "the translator's state was not found");
        return -1;
    }
    if (!take_out_block_check(e)) {
        snprintf(why, n, "the check at the start of blocks cannot be taken out");
        return -1;
    }
    flat_segments(e);
    if (e->uc_hook_add(e->uc, &hook, UC_HOOK_INTR, on_exception, e, 1, 0) ||
        e->uc_hook_add(e->uc, &hook, UC_HOOK_INSN, on_syscall, e, 1, 0, UC_X86_INS_SYSCALL) ||
        e->uc_hook_add(e->uc, &hook, UC_HOOK_INSN, on_cpuid, e, 1, 0, UC_X86_INS_CPUID)) {
        snprintf(why, n, "hooks cannot be set");
        return -1;
    }
    return prove(e, why, n);
}

struct xpy_engine *xpy_open(const char *libunicorn, uint32_t translation_buffer, char *why, size_t n)
{
    struct xpy_engine *e = calloc(1, sizeof *e);

    if (!e) {
        snprintf(why, n, "out of memory");
        return NULL;
    }
    e->epoll_fd = e->event_fd = e->timer_fd = -1;
    e->tlb_stale = true;
    e->dl = dlopen(libunicorn, RTLD_NOW | RTLD_LOCAL);
    if (!e->dl) {
        snprintf(why, n, "%s", dlerror());
        goto fail;
    }
    if (resolve(e, why, n))
        goto fail;
    if (e->uc_open(UC_ARCH_X86, UC_MODE_64, &e->uc)) {
        snprintf(why, n, "uc_open failed");
        goto fail;
    }
    e->uc_ctl(e->uc, UC_CTL_WRITE(UC_CTL_CPU_MODEL, 1), UC_CPU_X86_EPYC);
    e->uc_ctl(e->uc, UC_CTL_WRITE(UC_CTL_TCG_BUFFER_SIZE, 1), translation_buffer);
    e->uc_ctl(e->uc, UC_CTL_WRITE(UC_CTL_UC_USE_EXITS, 1), 1);
    if (set_up(e, translation_buffer, why, n))
        goto fail;
    flat_segments(e);
    if (e->uc_context_alloc(e->uc, &e->scratch) || !start_watcher(e)) {
        snprintf(why, n, "the watcher thread cannot start: %s", strerror(errno));
        goto fail;
    }
    return e;
fail:
    xpy_close(e);
    return NULL;
}

void xpy_close(struct xpy_engine *e)
{
    uint64_t one = 1;

    if (e->watching) {
        __atomic_store_n(&e->closing, 1, __ATOMIC_SEQ_CST);
        if (write(e->event_fd, &one, sizeof one) == sizeof one)
            pthread_join(e->watcher, NULL);
    }
    if (e->scratch)
        e->uc_free(e->scratch);
    if (e->uc)
        e->uc_close(e->uc);
    for (int *fd = (int[]){e->epoll_fd, e->event_fd, e->timer_fd, -2}; *fd != -2; fd++)
        if (*fd >= 0)
            close(*fd);
    free(e->cpuid);
    free(e);
}

/* ---- what Python calls ---- */

int xpy_map(struct xpy_engine *e, uint64_t at, uint64_t size, void *host)
{
    return e->uc_mem_map_ptr(e->uc, at, size, UC_PROT_ALL, host);
}

int xpy_unmap(struct xpy_engine *e, uint64_t at, uint64_t size) { return e->uc_mem_unmap(e->uc, at, size); }

struct xpy_regs *xpy_regs(struct xpy_engine *e) { return &e->r; }

struct xpy_counters *xpy_counters(struct xpy_engine *e) { return &e->c; }

void xpy_set_gdt(struct xpy_engine *e, uint64_t base, uint32_t limit)
{
    e->cpu->gdt.base = base;
    e->cpu->gdt.limit = limit;
}

void xpy_set_ldt(struct xpy_engine *e, uint64_t base, uint32_t limit)
{
    e->cpu->ldt.selector = limit ? 0xe048 : 0;
    e->cpu->ldt.base = base;
    e->cpu->ldt.limit = limit;
    e->cpu->ldt.flags = 0x8200;
}

void xpy_set_cr0_ts(struct xpy_engine *e, int ts)
{
    uint64_t v = CR0_VALUE | (ts ? CR0_TS : 0);

    e->uc_reg_write(e->uc, UC_X86_REG_CR0, &v);
}

int xpy_set_cpuid(struct xpy_engine *e, const struct xpy_cpuid *table, size_t n)
{
    struct xpy_cpuid *copy = malloc(n * sizeof *table);

    if (!copy)
        return -1;
    memcpy(copy, table, n * sizeof *table);
    free(e->cpuid);
    e->cpuid = copy;
    e->n_cpuid = n;
    return 0;
}

void xpy_set_debugreg(struct xpy_engine *e, int n, uint64_t value) { e->dr[n & 7] = value; }

void xpy_set_tsc(struct xpy_engine *e, int64_t offset, int trap)
{
    uint64_t v = CR4_VALUE | (trap ? CR4_TSD : 0);

    *e->tsc_offset = offset;
    e->uc_reg_write(e->uc, UC_X86_REG_CR4, &v);
}

void xpy_flush_tlb(struct xpy_engine *e) { e->tlb_stale = true; }

void xpy_flush_page(struct xpy_engine *e, uint64_t va)
{
    e->c.page_flushes++;
    e->flush_page(e->cpu_object, va);
}

void xpy_drop_code(struct xpy_engine *e, uint64_t va, size_t n)
{
    e->c.code_drops++;
    e->cpu->cr[3] = e->r.cr3;
    e->uc_ctl(e->uc, UC_CTL_WRITE(UC_CTL_TB_REMOVE_CACHE, 2), va, va + n);
}

static void change_mode(struct xpy_engine *e)
{
    struct tlbs *t = e->tlbs;
    struct tlb d = t->d[TLB_USED];
    struct tlb_fast f = t->f[TLB_USED];
    uint16_t both = (1 << TLB_USED) | (1 << TLB_PARKED), dirty = t->dirty & both;

    t->d[TLB_USED] = t->d[TLB_PARKED];
    t->f[TLB_USED] = t->f[TLB_PARKED];
    t->d[TLB_PARKED] = d;
    t->f[TLB_PARKED] = f;
    if (dirty && dirty != both)
        t->dirty ^= both;
    e->mode ^= 1;
}

static void load(struct xpy_engine *e)
{
    struct cpu_state *cpu = e->cpu;
    const struct xpy_regs *r = &e->r;

    *e->old_exception = -1; /* invalidating code may have raised and swallowed a page fault */
    memcpy(cpu->regs, r->gpr, sizeof cpu->regs);
    cpu->eflags = (r->rflags & 0x3fffffu) | 2; /* all of them: the emulator takes the flags apart on entry */
    for (int i = 0; i < 6; i++)
        cpu->segs[i].selector = (uint16_t)r->sel[i];
    cpu->segs[XPY_FS].base = r->fs_base;
    cpu->segs[XPY_GS].base = r->gs_base;
    if (r->compat) {
        cpu->segs[XPY_CS].flags = FLAT_CODE32;
        cpu->hflags &= ~HF_CS64;
    } else {
        cpu->segs[XPY_CS].flags = FLAT_CODE64;
        cpu->hflags |= HF_CS64;
    }
    cpu->hflags |= HF_CPL | HF_CS32 | HF_SS32;
    if (r->user != e->mode)
        change_mode(e);
    if (e->mode)
        cpu->hflags &= ~HF_KERNEL;
    else
        cpu->hflags |= HF_KERNEL;
    if (e->tlb_stale) {
        e->flush_modes(e->cpu_object, 7);
        e->tlb_stale = false;
        e->c.tlb_flushes++;
    } else if (r->cr3 != e->loaded_cr3[e->mode]) {
        e->flush_modes(e->cpu_object, 1 << TLB_USED);
        e->c.tlb_flushes++;
    }
    e->loaded_cr3[e->mode] = cpu->cr[3] = r->cr3;
}

static void save(struct xpy_engine *e)
{
    struct cpu_state *cpu = e->cpu;
    struct xpy_regs *r = &e->r;

    memcpy(r->gpr, cpu->regs, sizeof cpu->regs);
    r->rip = cpu->eip;
    r->rflags = cpu->eflags; /* and puts them together when it leaves */
    for (int i = 0; i < 6; i++)
        r->sel[i] = (uint16_t)cpu->segs[i].selector;
    r->fs_base = cpu->segs[XPY_FS].base;
    r->gs_base = cpu->segs[XPY_GS].base;
    r->compat = !(cpu->hflags & HF_CS64);
}

int xpy_run(struct xpy_engine *e)
{
    struct xpy_regs *r = &e->r;
    int err;

    r->kind = XPY_KICKED;
    if (__atomic_load_n(&e->kicked, __ATOMIC_SEQ_CST) || (e->budget && e->blocks >= e->budget)) {
        e->c.kicks++;
        return XPY_KICKED;
    }
    load(e);
    e->c.runs++;
    e->thread = (pid_t)syscall(SYS_gettid);
    running_here = e;
    __atomic_store_n(&e->running, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&e->kicked, __ATOMIC_SEQ_CST)) {
        __atomic_store_n(&e->running, 0, __ATOMIC_SEQ_CST);
        running_here = NULL;
        e->c.kicks++;
        return XPY_KICKED;
    }
    err = e->uc_emu_start(e->uc, r->rip, 0, 0, 0);
    __atomic_store_n(&e->running, 0, __ATOMIC_SEQ_CST);
    running_here = NULL;
    straighten(e);
    save(e);
    if (r->kind == XPY_SYSCALL) {
        e->c.syscalls++;
    } else if (r->kind == XPY_EXCEPTION || r->kind == XPY_SOFTINT) {
        r->error = (uint32_t)*e->error_code;
        r->cr2 = e->cpu->cr[2];
        e->c.exceptions++;
    } else if (err == UC_ERR_INSN_INVALID) {
        r->kind = XPY_EXCEPTION;
        r->vector = 6;
        r->error = 0;
        e->c.exceptions++;
    } else if (err) {
        r->kind = XPY_BROKEN;
        r->error = (uint64_t)err;
        r->cr2 = e->cpu->cr[2];
    } else {
        e->c.kicks++;
    }
    return (int)r->kind;
}

/*
 * Executes the one instruction at rip with the rights of the hypervisor: at CPL 0 with CR0.WP clear (it always is:
 * it means nothing at CPL 3), so that a store to a read-only page goes through. This is how a trapped page-table
 * write is carried out whatever instruction it is; the caller checks what it wrote. Comes back as XPY_EXCEPTION with
 * vector 1 when the instruction is done.
 */
int xpy_step_supervisor(struct xpy_engine *e)
{
    struct xpy_regs *r = &e->r;
    int err;

    e->c.steps++;
    r->kind = XPY_KICKED;
    r->rflags |= TF_FLAG;
    load(e);
    e->cpu->hflags &= ~HF_CPL;
    err = e->uc_emu_start(e->uc, r->rip, 0, 0, 0);
    e->cpu->hflags |= HF_CPL;
    save(e);
    r->rflags &= ~(uint64_t)TF_FLAG;
    if (r->kind == XPY_EXCEPTION) {
        r->error = (uint32_t)*e->error_code;
        r->cr2 = e->cpu->cr[2];
    } else if (err) {
        r->kind = XPY_BROKEN;
        r->error = (uint64_t)err;
    }
    return (int)r->kind;
}

size_t xpy_fpu_size(struct xpy_engine *e) { return e->context_size; }

void xpy_fpu_save(struct xpy_engine *e, void *blob)
{
    e->uc_context_save(e->uc, e->scratch);
    memcpy(blob, e->scratch, e->context_size);
}

void xpy_fpu_restore(struct xpy_engine *e, const void *blob)
{
    memcpy((char *)e->scratch + e->context_header, (const char *)blob + e->context_header,
           e->context_size - e->context_header);
    e->uc_context_restore(e->uc, e->scratch);
    e->tlb_stale = true;
    *e->old_exception = -1;
}

void xpy_set_block_budget(struct xpy_engine *e, uint64_t blocks)
{
    if (blocks && !e->block_hook)
        e->uc_hook_add(e->uc, &e->block_hook, UC_HOOK_BLOCK, on_block, e, 1, 0);
    e->budget = blocks ? e->blocks + blocks : 0;
}

uint64_t xpy_blocks(struct xpy_engine *e) { return e->blocks; }

uint64_t xpy_rdtsc(void)
{
    uint32_t lo, hi;

    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
    return (uint64_t)hi << 32 | lo;
}
