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
#include "internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int xpy_abi(void) { return XPY_ABI; }

/* ---- hooks: they run on the domain's thread, inside the emulator ---- */

static void on_exception(uc_engine *uc, uint32_t vector, void *user)
{
    struct xpy_engine *e = user;

    *e->old_exception = -1;
    if (vector == 14 && !*e->exception_is_int && e->fast.vcpu && xpy_fast_page_fault(e))
        return;
    if (vector == 13 && !*e->exception_is_int && e->fast.vcpu && xpy_fast_privileged(e))
        return;
    e->r.kind = *e->exception_is_int ? XPY_SOFTINT : XPY_EXCEPTION;
    e->r.vector = vector;
    e->uc_emu_stop(uc);
}

static void on_syscall(uc_engine *uc, void *user)
{
    struct xpy_engine *e = user;

    /* what the instruction itself does */
    e->cpu->regs[1] = e->cpu->eip + 2;
    e->uc_reg_read(uc, UC_X86_REG_RFLAGS, &e->cpu->regs[11]);
    if (e->fast.vcpu && xpy_fast_syscall(e))
        return;
    e->r.kind = XPY_SYSCALL;
    e->uc_emu_stop(uc);
}

/*
 * Port I/O: the translator carries it out whatever the privilege. To the hypervisor it is a #GP at the instruction.
 * rip is exact here; the way out is straight to the main loop, before the instruction has had any effect.
 */
static void port_io(struct xpy_engine *e)
{
    e->r.kind = XPY_EXCEPTION;
    e->r.vector = 13;
    *e->error_code = 0;
    e->uc_emu_stop(e->uc);
    e->leave(e->uc, 0);
}

static uint32_t on_in(uc_engine *uc, uint32_t port, int size, void *user)
{
    (void)uc, (void)port, (void)size;
    if (!xpy_fast_io(user))
        port_io(user);
    return 0xffffffffu; /* no port is there */
}

static void on_out(uc_engine *uc, uint32_t port, int size, uint32_t value, void *user)
{
    (void)uc, (void)port, (void)size, (void)value;
    if (!xpy_fast_io(user))
        port_io(user);
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
struct xpy_engine *xpy_open(const char *libunicorn, uint32_t translation_buffer, char *why, size_t n)
{
    struct xpy_engine *e = calloc(1, sizeof *e);
    uc_hook hook;

    if (!e) {
        snprintf(why, n, "out of memory");
        return NULL;
    }
    e->epoll_fd = e->event_fd = e->timer_fd = -1;
    e->tlb_stale = true;
    e->jumps = calloc(1 << JUMPS_KEPT_BITS, sizeof *e->jumps);
    if (!e->jumps) {
        snprintf(why, n, "out of memory");
        goto fail;
    }
    if (!xpy_find(e, libunicorn, translation_buffer, why, n))
        goto fail;
    xpy_flat_segments(e);
    if (e->uc_hook_add(e->uc, &hook, UC_HOOK_INTR, on_exception, e, 1, 0) ||
        e->uc_hook_add(e->uc, &hook, UC_HOOK_INSN, on_syscall, e, 1, 0, UC_X86_INS_SYSCALL) ||
        e->uc_hook_add(e->uc, &hook, UC_HOOK_INSN, on_cpuid, e, 1, 0, UC_X86_INS_CPUID) ||
        e->uc_hook_add(e->uc, &hook, UC_HOOK_INSN, on_in, e, 1, 0, UC_X86_INS_IN) ||
        e->uc_hook_add(e->uc, &hook, UC_HOOK_INSN, on_out, e, 1, 0, UC_X86_INS_OUT)) {
        snprintf(why, n, "hooks cannot be set");
        goto fail;
    }
    if (!xpy_prove(e, why, n))
        goto fail;
    xpy_flat_segments(e);
    if (e->uc_context_alloc(e->uc, &e->scratch) || !xpy_start_watcher(e)) {
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
    xpy_stop_watcher(e);
    if (e->scratch)
        e->uc_free(e->scratch);
    if (e->uc)
        e->uc_close(e->uc);
    xpy_close_sites(e);
    free(e->jumps);
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

struct xpy_fast *xpy_fast(struct xpy_engine *e) { return &e->fast; }

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
    xpy_flush_tlb_page(e, va);
}

void xpy_drop_code(struct xpy_engine *e, uint64_t va, size_t n)
{
    e->c.code_drops++;
    e->cpu->cr[3] = e->r.cr3;
    e->uc_ctl(e->uc, UC_CTL_WRITE(UC_CTL_TB_REMOVE_CACHE, 2), va, va + n);
}

static void mark_mode(struct xpy_engine *e)
{
    if (e->mode)
        e->cpu->hflags &= ~HF_KERNEL;
    else
        e->cpu->hflags |= HF_KERNEL;
}

/* From guest kernel to guest user mode or back: the other TLB, and other blocks. */
void xpy_change_mode(struct xpy_engine *e)
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
    mark_mode(e);
}

/* Translate by that L4 table in the present mode. */
void xpy_use_root(struct xpy_engine *e, uint64_t cr3)
{
    if (e->tlb_stale) {
        xpy_flush_tlb_modes(e, 7);
        e->tlb_stale = false;
        e->c.tlb_flushes++;
    } else if (cr3 != e->loaded_cr3[e->mode]) {
        xpy_flush_tlb_modes(e, 1 << TLB_USED);
        e->c.tlb_flushes++;
    }
    e->loaded_cr3[e->mode] = e->cpu->cr[3] = cr3;
}

static void load(struct xpy_engine *e)
{
    struct cpu_state *cpu = e->cpu;
    const struct xpy_regs *r = &e->r;

    *e->old_exception = -1; /* invalidating code may have raised and swallowed a page fault */
    memcpy(cpu->regs, r->gpr, sizeof cpu->regs);
    cpu->eip = r->rip;
    cpu->eflags = (r->rflags & 0x3fffffu) | 2; /* all of them: the emulator takes the flags apart on entry */
    /* a base that the guest has loaded with the code segment is that segment's only */
    if (cpu->segs[XPY_CS].selector != (uint16_t)r->sel[XPY_CS])
        cpu->segs[XPY_CS].base = 0;
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
        xpy_change_mode(e);
    xpy_use_root(e, r->cr3);
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
    r->user = e->mode;
    r->cr3 = cpu->cr[3];
}

/* Once in and out of the guest. */
static void run_once(struct xpy_engine *e)
{
    struct xpy_regs *r = &e->r;
    int err;

    r->kind = XPY_KICKED;
    load(e);
    e->c.runs++;
    xpy_enter(e);
    if (__atomic_load_n(&e->kicked, __ATOMIC_SEQ_CST) || (e->looking && *e->marks)) {
        xpy_leave(e);
        e->c.kicks++;
        return;
    }
    err = e->uc_emu_start(e->uc, r->rip, 0, 0, 0);
    xpy_leave(e);
    save(e);
    if (r->kind == XPY_SYSCALL || r->kind == XPY_EVENT) {
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
}

int xpy_run(struct xpy_engine *e)
{
    xpy_begin_looking(e);
    do {
        if (e->budget && e->blocks >= e->budget) {
            e->r.kind = XPY_KICKED;
            e->c.kicks++;
            break;
        }
        run_once(e);
        /* a kick, or a guest that wants to sleep: it may be able to go on without Python */
    } while (e->r.kind == XPY_KICKED && xpy_attend(e) && (save(e), true));
    xpy_end_looking(e);
    return (int)e->r.kind;
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
    mark_mode(e);
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
