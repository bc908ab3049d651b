// SPDX-License-Identifier: GPL-2.0-only
/*
 * A running guest that looks for its events by itself.
 *
 * A signal brings a thread out of translated code (stop.c), but a signal, a watcher thread that sends it and the way out
 * of the emulator and in again cost tens of microseconds, most of all where the machine is a virtual one. So while a
 * guest runs, whoever rings its inbox leaves it at that (`awake`, link.c), and the guest looks: translated code asks a
 * function of the emulator where each indirect jump goes, and that function is ours. Every return is such a jump, and
 * every jump to another page. There the registers are all in their place; an event is delivered as after a hypercall.
 * Jumps that go where they are expected to do not come here (sites.c), unless there is something to look at.
 * A guest that goes round without any such jump is stopped by the watcher, a millisecond or two later.
 *
 * The function is put before the emulator's own by its name, as the dynamic linker does for any function of a library
 * that one loaded before it has, too: so this library has to be loaded for all to see before Unicorn is. Where it is not
 * (Unicorn was there already), events come by signals. All of it is the domain's thread's.
 */
#define _GNU_SOURCE
#include "sites.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

int xenpy_bell_waiting(const void *bell);
int xenpy_bell_called(void *bell);
void xenpy_bell_awake(void *bell, int on);

static const uint64_t no_marks;
static void *(*emulators_own)(void *);

void xpy_take_over_jumps(struct xpy_engine *e, void *(*own)(void *))
{
    emulators_own = own;
    e->marks = &no_marks;
}

/*
 * The emulator's cache of jumps is small, and empty after each change of the address space. Behind it lies a search that
 * takes ten times as long; so we keep a larger cache which such a change does not empty. What is in it is believed only
 * if the block is still good and its page is mapped where it was when it was translated. When the emulator has thrown
 * all blocks away, what we have points anywhere.
 */
static uint32_t block_flags(const struct cpu_state *cpu)
{
    return cpu->hflags | ((uint32_t)cpu->eflags & BLOCK_EFLAGS);
}

static bool is_for_here(const struct cpu_state *cpu, const struct block *b, uint64_t pc, uint64_t base)
{
    return b && b->pc == pc && b->cs_base == base && b->kind == PLAIN_BLOCK && b->flags == block_flags(cpu);
}

static bool goes_there(const struct xpy_engine *e, const struct block *b, uint64_t pc)
{
    uint64_t ram_page;

    if (!is_for_here(e->cpu, b, pc, 0) || b->page_addr[1] != ~0ull)
        return false;
    const struct tlb_entry *entry = xpy_tlb_entry(e, TLB_USED, pc, &ram_page);
    return entry->code == (pc & ~0xfffull) && ram_page == b->page_addr[0] >> 12;
}

__attribute__((noinline)) static void *look_further(struct xpy_engine *e, struct site *site)
{
    uint64_t base = e->cpu->segs[XPY_CS].base, pc = e->cpu->eip + base;
    struct block **known = xpy_known_jump(e->cpu, pc);
    struct block **kept = e->jumps + ((pc ^ e->cpu->hflags) * 0x9e3779b97f4a7c15ull >> (64 - JUMPS_KEPT_BITS));

    if (e->jumps_of_flush != *e->flush_count) {
        memset(e->jumps, 0, sizeof *e->jumps << JUMPS_KEPT_BITS);
        e->jumps_of_flush = *e->flush_count;
    } else if (!base && goes_there(e, *kept, pc)) {
        *known = *kept;
        xpy_set_site(e, site, *kept);
        return (*kept)->code;
    }
    void *code = emulators_own(e->cpu);
    if (is_for_here(e->cpu, *known, pc, base)) {
        *kept = *known;
        xpy_set_site(e, site, *known);
    }
    return code;
}

/* The guest has marks to take, and is between two instructions. What the jump's function is to answer. */
__attribute__((noinline)) static void *look(struct xpy_engine *e)
{
    e->fast.looks++;
    xpy_take_inbox(e);
    if (xenpy_bell_called(e->paths.inbox)) {
        e->uc_emu_stop(e->uc);
        return (void *)e->way_out;
    }
    xpy_run_timers(e);
    return xpy_deliver_events(e) ? look_further(e, NULL) : (void *)e->way_out;
}

/*
 * Where an indirect jump goes on: the code of the block at eip, or the way out to the main loop. A guest asks for each
 * page of a disk request a hundred times, so what is found in the emulator's cache of such jumps is answered here.
 */
void *helper_lookup_tb_ptr_x86_64(struct cpu_state *cpu);
void *helper_lookup_tb_ptr_x86_64(struct cpu_state *cpu)
{
    struct xpy_engine *e = xpy_running_here;

    if (__builtin_expect(!e, 0))
        return emulators_own(cpu);
    struct site *site = e->asks;
    e->asks = NULL;
    if (__builtin_expect(__atomic_load_n(e->marks, __ATOMIC_RELAXED) != 0, 0))
        return look(e);
    void *code = site ? xpy_ask_site(e, site) : NULL;
    if (code)
        return code;
    uint64_t base = cpu->segs[XPY_CS].base, pc = cpu->eip + base;
    struct block *b = *xpy_known_jump(cpu, pc);
    if (is_for_here(cpu, b, pc, base)) {
        xpy_set_site(e, site, b);
        return b->code;
    }
    return look_further(e, site);
}

/* Around a stay in native code, whenever the guest of an engine with jumps of ours sees to its events here. */
void xpy_begin_looking(struct xpy_engine *e)
{
    bool able = e->jumps_are_ours && xpy_sees_to_events(e);

    if (e->paths.inbox && able == e->inbox_watched)
        xpy_watch_inbox(e, !able);
    if (!able)
        return;
    e->marks = e->paths.inbox;
    __atomic_store_n(&e->looking, 1, __ATOMIC_SEQ_CST);
    xenpy_bell_awake(e->paths.inbox, 1);
    xpy_rouse_watcher(e);
}

void xpy_end_looking(struct xpy_engine *e)
{
    uint64_t one = 1;

    if (!e->looking)
        return;
    xenpy_bell_awake(e->paths.inbox, 0);
    e->marks = &no_marks;
    __atomic_store_n(&e->looking, 0, __ATOMIC_SEQ_CST);
    /* whoever marked a port while we were awake has woken nobody; a count that is full will wake */
    if (xenpy_bell_waiting(e->paths.inbox) && write(e->paths.inbox_fd, &one, sizeof one) < 0 && errno != EAGAIN)
        e->kicked = 1;
}
