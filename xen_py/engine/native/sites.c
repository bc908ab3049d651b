// SPDX-License-Identifier: GPL-2.0-only
/*
 * Where each indirect jump is expected to go, kept beside the jump.
 *
 * A kernel makes an indirect jump every few dozen instructions: each return is one, and so is each call to another page.
 * Asking a function for each (look.c) takes a quarter of a guest's time, most of it for the caches that the question
 * goes through. So the translator is made to put a comparison before the question: each such place in translated code
 * has a site, which says where it is expected to go; if it goes there, and nothing has changed since, it jumps at once. That
 * is where it has always gone, or where it went next when it was at the same place before. If it goes elsewhere, the
 * function looks among the site's other targets before it looks among all blocks, which are in no cache of the processor.
 *
 * What may change is where an address is mapped, and what is translated: whatever flushes a TLB or throws a block away
 * begins a new generation, and sites of an older one do not count. The stop signal does so too, so that a guest that is
 * to stop asks. Kernel and user mode have a generation each: what happens to the addresses of processes, in the lower
 * half, is nothing to the kernel's. The flags a block depends on need no comparison: a site belongs to one block, whose own
 * flags are those it was translated for, and a block that may change them does not end in such a jump.
 *
 * The functions of the emulator that are replaced here, the translator's part for such jumps and all that flush and
 * throw away, are put before its own by their names, as in look.c, and call those. xpy_prove (find.c) tries the sites
 * before they are used. All of it is the domain's thread's; flushes while no guest runs, which may be another engine's,
 * are counted for all.
 */
#define _GNU_SOURCE
#include "sites.h"

#include <string.h>
#include <sys/mman.h>

/* More are not kept; all are free again when the emulator throws all blocks away. */
#define SITES (1u << 18)
#define OTHERS (1u << 15)
#define SIZE (SITES * sizeof(struct site) + OTHERS * sizeof(struct others))

/* The translator's language, as far as it is spoken here. A value is named by where it is in the translator's state. */
enum { SET_LABEL = 1, LOAD_64 = 73, STORE_64 = 77, OR_64 = 88, XOR_64 = 89, JUMP_TO = 132 };
enum { NOT_EQUAL = 9, TYPE_64 = 1, LABEL_IS_PLACED = 1 };
#define AT_NAME_OF_CPU 0x98f0

static struct {
    uintptr_t (*constant)(void *tcg, int64_t value);
    void *(*fresh)(void *tcg, int type, bool local);
    void (*release)(void *tcg, void *value);
    uint8_t *(*label)(void *tcg);
    void (*branch_by_number)(void *tcg, int condition, uintptr_t a, int64_t b, void *label);
    void (*one)(void *tcg, int operation, void *a);
    void (*three)(void *tcg, int operation, void *a, void *b, uint64_t c);
    void (*ask)(void *tcg);
    void (*flush_modes)(void *cpu, uint16_t modes);
    void (*flush_page)(void *cpu, uint64_t va, uint16_t modes);
    void (*drop_block)(void *tcg, void *block, uint64_t page);
    void (*drop_stored)(void *uc, void *pages, uint64_t start, int size, uintptr_t from);
    void (*drop_range)(void *uc, uint64_t start, uint64_t end);
    void (*drop_in_page)(void *uc, uint64_t start, uint64_t end);
    void (*drop_all)(void *cpu);
    size_t (*dropped)(void *tcg);
} emulators;

static uint64_t changes_outside;

bool xpy_find_sites(struct xpy_engine *e, char *why, size_t n)
{
    const struct xpy_wanted wanted[] = {
        {"tcg_const_i64_x86_64", &emulators.constant},
        {"tcg_temp_new_internal_x86_64", &emulators.fresh},
        {"tcg_temp_free_internal_x86_64", &emulators.release},
        {"gen_new_label_x86_64", &emulators.label},
        {"tcg_gen_brcondi_i64_x86_64", &emulators.branch_by_number},
        {"tcg_gen_op1_x86_64", &emulators.one},
        {"tcg_gen_op3_x86_64", &emulators.three},
        {"tcg_gen_lookup_and_goto_ptr_x86_64", &emulators.ask},
        {"tlb_flush_by_mmuidx_x86_64", &emulators.flush_modes},
        {"tlb_flush_page_by_mmuidx_x86_64", &emulators.flush_page},
        {"tb_phys_invalidate_x86_64", &emulators.drop_block},
        {"tb_invalidate_phys_page_fast_x86_64", &emulators.drop_stored},
        {"tb_invalidate_phys_range_x86_64", &emulators.drop_range},
        {"tb_invalidate_phys_page_range_x86_64", &emulators.drop_in_page},
        {"tb_flush_x86_64", &emulators.drop_all},
        {"tcg_tb_phys_invalidate_count_x86_64", &emulators.dropped},
    };

    return xpy_look_up(e->dl, wanted, sizeof wanted / sizeof *wanted, why, n);
}

/* ---- what makes sites old ---- */

static void outdate_mode(struct xpy_engine *e, unsigned mode)
{
    __atomic_fetch_add(&e->generations[mode], 1, __ATOMIC_RELAXED); /* the stop signal comes in between */
}

void xpy_outdate_sites(struct xpy_engine *e)
{
    outdate_mode(e, 0);
    outdate_mode(e, 1);
}

static void outdate(void)
{
    struct xpy_engine *e = xpy_running_here;

    if (e)
        xpy_outdate_sites(e);
    else
        __atomic_fetch_add(&changes_outside, 1, __ATOMIC_SEQ_CST);
}

/* A guest is entered. */
void xpy_outdate_sites_for_others(struct xpy_engine *e)
{
    uint64_t changes = __atomic_load_n(&changes_outside, __ATOMIC_SEQ_CST);

    if (changes != e->changes_seen) {
        e->changes_seen = changes;
        xpy_outdate_sites(e);
    }
}

void xpy_flush_tlb_modes(struct xpy_engine *e, uint16_t modes)
{
    xpy_outdate_sites(e);
    emulators.flush_modes(e->cpu_object, modes);
}

void xpy_flush_tlb_page(struct xpy_engine *e, uint64_t va)
{
    if (va >> 63)
        outdate_mode(e, 0);
    outdate_mode(e, 1);
    emulators.flush_page(e->cpu_object, va & ~0xfffull, 7);
}

void tlb_flush_by_mmuidx_x86_64(void *cpu, uint16_t modes);
void tlb_flush_by_mmuidx_x86_64(void *cpu, uint16_t modes)
{
    outdate();
    emulators.flush_modes(cpu, modes);
}

void tlb_flush_page_by_mmuidx_x86_64(void *cpu, uint64_t va, uint16_t modes);
void tlb_flush_page_by_mmuidx_x86_64(void *cpu, uint64_t va, uint16_t modes)
{
    outdate();
    emulators.flush_page(cpu, va, modes);
}

void tb_phys_invalidate_x86_64(void *tcg, void *block, uint64_t page);
void tb_phys_invalidate_x86_64(void *tcg, void *block, uint64_t page)
{
    outdate();
    emulators.drop_block(tcg, block, page);
}

void tb_invalidate_phys_range_x86_64(void *uc, uint64_t start, uint64_t end);
void tb_invalidate_phys_range_x86_64(void *uc, uint64_t start, uint64_t end)
{
    outdate();
    emulators.drop_range(uc, start, end);
}

void tb_invalidate_phys_page_range_x86_64(void *uc, uint64_t start, uint64_t end);
void tb_invalidate_phys_page_range_x86_64(void *uc, uint64_t start, uint64_t end)
{
    outdate();
    emulators.drop_in_page(uc, start, end);
}

void tb_flush_x86_64(void *cpu);
void tb_flush_x86_64(void *cpu)
{
    outdate();
    emulators.drop_all(cpu);
}

/* The guest has stored into a page with code, thousands of times a second, mostly beside it: then it was no change. It
 * is one from the beginning, because there is no return from this if the guest stored into the block that runs. */
void tb_invalidate_phys_page_fast_x86_64(void *uc, void *pages, uint64_t start, int size, uintptr_t from);
void tb_invalidate_phys_page_fast_x86_64(void *uc, void *pages, uint64_t start, int size, uintptr_t from)
{
    struct xpy_engine *e = xpy_running_here;

    if (!e) {
        outdate();
        emulators.drop_stored(uc, pages, start, size, from);
        return;
    }
    size_t dropped = emulators.dropped(e->tcg);
    uint64_t before[2] = {e->generations[0], e->generations[1]};
    xpy_outdate_sites(e);
    emulators.drop_stored(uc, pages, start, size, from);
    if (emulators.dropped(e->tcg) != dropped)
        return;
    for (int mode = 0; mode < 2; mode++) { /* the guest has not run meanwhile: no site is of a later generation */
        uint64_t now = before[mode] + 1;
        __atomic_compare_exchange_n(&e->generations[mode], &now, before[mode], false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    }
}

/* ---- what is translated ---- */

static uintptr_t name(void *tcg, void *value) { return (uintptr_t)value - (uintptr_t)tcg; }
static void *value(void *tcg, uintptr_t name) { return (char *)tcg + name; }

static void *number(void *tcg, const void *address)
{
    return value(tcg, emulators.constant(tcg, (intptr_t)address));
}

static void *load(void *tcg, void *from, uint64_t offset)
{
    void *v = emulators.fresh(tcg, TYPE_64, false);

    emulators.three(tcg, LOAD_64, v, from, offset);
    return v;
}

/* Into the first of the two; the other one is no longer needed. */
static void combine(void *tcg, int operation, void *a, void *b)
{
    emulators.three(tcg, operation, a, a, (uintptr_t)b);
    emulators.release(tcg, b);
}

static struct site *new_site(struct xpy_engine *e)
{
    if (e->sites_of_flush != *e->flush_count) {
        e->sites_of_flush = *e->flush_count;
        e->sites_used = e->others_used = 0;
    }
    if (e->sites_used == SITES)
        return NULL;
    struct site *site = &e->sites[e->sites_used++];
    memset(site, 0, sizeof *site);
    return site;
}

/* The end of a block in an indirect jump to eip. */
void tcg_gen_lookup_and_goto_ptr_x86_64(void *tcg);
void tcg_gen_lookup_and_goto_ptr_x86_64(void *tcg)
{
    struct xpy_engine *e = xpy_running_here;
    struct site *site = e && e->sites ? new_site(e) : NULL;

    if (!site) {
        emulators.ask(tcg);
        return;
    }
    uint8_t *ask = emulators.label(tcg);
    void *here = number(tcg, site), *of_engine = number(tcg, e);
    void *differs = load(tcg, value(tcg, *(uintptr_t *)((char *)tcg + AT_NAME_OF_CPU)), offsetof(struct cpu_state, eip));
    combine(tcg, XOR_64, differs, load(tcg, here, offsetof(struct site, next.pc)));
    void *age = load(tcg, of_engine, offsetof(struct xpy_engine, generations) + e->mode * sizeof *e->generations);
    combine(tcg, XOR_64, age, load(tcg, here, offsetof(struct site, generation)));
    combine(tcg, OR_64, differs, age);
    void *marks = load(tcg, of_engine, offsetof(struct xpy_engine, marks));
    combine(tcg, OR_64, differs, load(tcg, marks, 0));
    emulators.branch_by_number(tcg, NOT_EQUAL, name(tcg, differs), 0, ask);
    emulators.release(tcg, marks);
    emulators.release(tcg, differs);
    emulators.release(tcg, of_engine);
    emulators.release(tcg, here);

    here = number(tcg, site); /* values do not outlive a branch */
    void *code = load(tcg, here, offsetof(struct site, next.code));
    emulators.one(tcg, JUMP_TO, code);
    emulators.release(tcg, code);
    emulators.release(tcg, here);

    *ask |= LABEL_IS_PLACED;
    emulators.one(tcg, SET_LABEL, ask);
    here = number(tcg, site);
    of_engine = number(tcg, e);
    emulators.three(tcg, STORE_64, here, of_engine, offsetof(struct xpy_engine, asks));
    emulators.release(tcg, of_engine);
    emulators.release(tcg, here);
    emulators.ask(tcg);
}

/* ---- where jumps went ---- */

static struct others *new_others(struct xpy_engine *e)
{
    if (e->others_used == OTHERS)
        return NULL;
    struct others *others = &e->others[e->others_used++];
    others->count = 0;
    return others;
}

static uint32_t add_target(struct others *o, struct target target)
{
    uint32_t n = o->count < MOST_TARGETS ? o->count++ : o->replaced++ % MOST_TARGETS;

    o->targets[n] = target;
    o->follower[n] = MOST_TARGETS;
    return n;
}

/* The jump goes to that block, which its site, if it has one, does not know. It is remembered for 64-bit code, whose
 * segments have no base; in kernel mode only for the upper half, so that what happens to the addresses of processes does not
 * matter there. */
void xpy_set_site(struct xpy_engine *e, struct site *site, const struct block *b)
{
    uint64_t generation = e->generations[e->mode];
    struct target target = {b->pc, b->code};

    if (!site || b->cs_base || !(b->flags & HF_CS64) || (!e->mode && !(b->pc >> 63)))
        return;
    e->sites_set++;
    if (site->generation == generation) {
        struct others *o = site->others ? site->others : (site->others = new_others(e));
        if (o) {
            if (!o->count) {
                o->asked = (uint8_t)add_target(o, site->next);
                o->learning = false;
            }
            xpy_expect_next(e, site, add_target(o, target));
            return;
        }
    } else if (site->others) {
        site->others->count = 0; /* of an older generation */
    }
    site->next = target;
    site->generation = generation;
}

/* ---- opening ---- */

/* Sites from the next block on that is translated. */
bool xpy_open_sites(struct xpy_engine *e)
{
    void *p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED)
        return false;
    madvise(p, SIZE, MADV_HUGEPAGE); /* every jump looks into it */
    e->generations[0] = e->generations[1] = 1;
    e->sites = p;
    e->others = (struct others *)(e->sites + SITES);
    e->sites_of_flush = *e->flush_count;
    return true;
}

void xpy_close_sites(struct xpy_engine *e)
{
    if (e->sites)
        munmap(e->sites, SIZE);
    e->sites = NULL;
}
