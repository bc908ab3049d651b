// SPDX-License-Identifier: GPL-2.0-only
/*
 * Cheap stores to pages that may be executed but hold no code.
 *
 * The emulator sends every store through a mapping with execute permission to a function that looks for translated code,
 * each time, some 40 ns; only for other mappings does it find once that there is none and then stores directly. A guest
 * that maps all of its memory executable (GRUB, small kernels, Linux at its start) runs several times slower for that.
 *
 * So the functions that translated code calls for such stores are ours. Where the page has no translated code and its
 * one executable mapping is the one stored through, the mark of a watched page is taken off the TLB entry and the frame is
 * flagged. Two things bring it back: translating code from the page, where the emulator marks the entries of its address
 * again by itself, and another executable mapping of the frame, for which xen_py/mmu.py flushes the TLB.
 *
 * All of it on the domain's thread. xpy_prove shows that it works, both ways.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <dlfcn.h>
#include <link.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void *originals[STORE_FUNCTIONS]; /* the same for all engines: there is one library */

struct tlb_entry *xpy_tlb_entry(const struct xpy_engine *e, unsigned mode, uint64_t va, uint64_t *ram_page)
{
    const struct tlb_fast *f = &e->tlbs->f[mode];
    uint64_t n = (va >> 12) & (f->mask / sizeof(struct tlb_entry));

    *ram_page = (e->tlbs->d[mode].ram[n].from_virtual + va) >> 12;
    return f->table + n;
}

const struct page_of_code *xpy_page_of_code(const struct xpy_engine *e, uint64_t ram_page)
{
    const struct page_map *m = e->pages;
    void **at = m->root + ((ram_page >> m->root_shift) & (uint64_t)(m->root_size - 1));
    const struct page_of_code *page;

    for (int level = m->levels; level > 0; level--) {
        at = *at;
        if (!at)
            return NULL;
        at += (ram_page >> (level * PAGE_MAP_BITS)) & ((1u << PAGE_MAP_BITS) - 1);
    }
    page = *at;
    return page ? page + (ram_page & ((1u << PAGE_MAP_BITS) - 1)) : NULL;
}

static void look(uint64_t va, uint32_t mode)
{
    struct xpy_engine *e = xpy_running_here;
    uint64_t ram_page, i;

    if (!e || !e->fast.frames || mode > 2)
        return;
    struct tlb_entry *entry = xpy_tlb_entry(e, mode, va, &ram_page);
    if (entry->write != ((va & ~0xfffull) | TLB_WATCHED) || entry->code == ~0ull)
        return;
    i = (entry->physical >> 12) - e->fast.mfn_base;
    if (i >= e->fast.frames || e->fast.code_maps[i] != 1)
        return;
    const struct page_of_code *page = xpy_page_of_code(e, ram_page);
    if (page && page->first_block)
        return;
    e->fast.flags[i] |= FLAG_UNWATCHED;
    entry->write &= ~TLB_WATCHED;
}

#define STORE(number, type)                                                                                            \
    static void store_##number(void *cpu, uint64_t va, type value, uint32_t how, uintptr_t from)                       \
    {                                                                                                                  \
        look(va, how & 15);                                                                                            \
        ((void (*)(void *, uint64_t, type, uint32_t, uintptr_t))originals[number])(cpu, va, value, how, from);         \
    }
STORE(0, uint8_t)
STORE(1, uint16_t)
STORE(2, uint32_t)
STORE(3, uint64_t)
STORE(9, uint16_t)
STORE(10, uint32_t)
STORE(11, uint64_t)

static void *const ours[STORE_FUNCTIONS] = {
    [0] = (void *)store_0, [1] = (void *)store_1,   [2] = (void *)store_2,   [3] = (void *)store_3,
    [9] = (void *)store_9, [10] = (void *)store_10, [11] = (void *)store_11,
};

struct search {
    const struct xpy_engine *e;
    void **table;
    bool taken; /* by us, for an earlier engine */
};

static int find_table(struct dl_phdr_info *library, size_t size, void *data)
{
    struct search *s = data;

    (void)size;
    if (!strstr(library->dlpi_name, "libunicorn"))
        return 0;
    for (int i = 0; i < library->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &library->dlpi_phdr[i];
        uintptr_t from = library->dlpi_addr + part->p_vaddr, to = from + part->p_memsz;

        if (part->p_type != PT_LOAD || (part->p_flags & PF_X))
            continue;
        for (uintptr_t at = (from + 7) & ~(uintptr_t)7; at + sizeof ours <= to; at += 8) {
            s->taken = !memcmp((void *)at, ours, sizeof ours);
            if (s->taken || !memcmp((void *)at, s->e->store_functions, sizeof ours)) {
                s->table = (void **)at;
                return 1;
            }
        }
    }
    return 0;
}

/*
 * Puts our functions where the translator takes those from that it has translated code call. The table is in a part of
 * the library that is read-only after loading; once a process is enough, and a process forked later has it done.
 */
bool xpy_take_over_stores(struct xpy_engine *e)
{
    struct search s = {.e = e};
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);

    if (!dl_iterate_phdr(find_table, &s))
        return false;
    if (s.taken)
        return true;
    uintptr_t first = (uintptr_t)s.table & -page;
    size_t n = (uintptr_t)(s.table + STORE_FUNCTIONS) - first;
    memcpy(originals, e->store_functions, sizeof originals);
    if (mprotect((void *)first, n, PROT_READ | PROT_WRITE))
        return false;
    memcpy(s.table, ours, sizeof ours);
    mprotect((void *)first, n, PROT_READ);
    return true;
}
