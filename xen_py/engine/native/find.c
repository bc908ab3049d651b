// SPDX-License-Identifier: GPL-2.0-only
/*
 * Finding the way in the Unicorn library, and proving it.
 *
 * Nothing private is believed because of a number alone: places are found by what is in them, and xpy_prove makes the
 * emulator use each and looks at what happens. Runs once, when an engine is opened; needs neither files nor /proc.
 */
#define _GNU_SOURCE
#include "sites.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

void xenpy_bell_call(void *bell);

bool xpy_look_up(void *library, const struct xpy_wanted *wanted, size_t count, char *why, size_t n)
{
    for (size_t i = 0; i < count; i++) {
        void *f = dlsym(library, wanted[i].name);
        if (!f) {
            snprintf(why, n, "the Unicorn library lacks %s", wanted[i].name);
            return false;
        }
        memcpy(wanted[i].slot, &f, sizeof f);
    }
    return true;
}

static bool resolve(struct xpy_engine *e, char *why, size_t n)
{
    const struct xpy_wanted wanted[] = {
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
        {"helper_lookup_tb_ptr_x86_64", &e->own_jumps},
        {"x86_ldq_phys_x86_64", &e->own_walks},
        {"tcg_tb_lookup_x86_64", &e->block_at},
        {"tcg_tb_foreach_x86_64", &e->each_block},
        {"helper_check_exit_request_x86_64", &e->leave},
        {"helper_ret_stb_mmu_x86_64", &e->store_functions[0]},
        {"helper_le_stw_mmu_x86_64", &e->store_functions[1]},
        {"helper_le_stl_mmu_x86_64", &e->store_functions[2]},
        {"helper_le_stq_mmu_x86_64", &e->store_functions[3]},
        {"helper_be_stw_mmu_x86_64", &e->store_functions[9]},
        {"helper_be_stl_mmu_x86_64", &e->store_functions[10]},
        {"helper_be_stq_mmu_x86_64", &e->store_functions[11]},
    };

    return xpy_look_up(e->dl, wanted, sizeof wanted / sizeof *wanted, why, n);
}

/* Reads our own memory without risk: a wrong pointer is an error, not a crash. */
static bool peek(const void *from, void *to, size_t n)
{
    struct iovec local = {to, n}, remote = {(void *)from, n};

    return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == (ssize_t)n;
}

/*
 * Where the engine object names the two objects we need. Searching it for something that looks like them is not safe:
 * memory that an earlier engine has given back looks the same.
 */
#define AT_CPU_OBJECT 440
#define AT_PAGES 736
#define AT_TRANSLATOR 768
#define ENGINE_OBJECT_MAX 4096 /* how far into the engine object we look for its flags */
#define AT_REGISTERS 0x8a50    /* where in the CPU object the register file is */

/* The CPU object: the one in which the 16 numbers just written can be read. */
static struct cpu_state *find_cpu(struct xpy_engine *e)
{
    uint64_t magic[16], there[16];
    char *object;

    for (int i = 0; i < 16; i++) {
        static const int ids[8] = {35, 38, 40, 37, 44, 36, 43, 39}; /* RAX RCX RDX RBX RSP RBP RSI RDI */
        magic[i] = 0x5eedc0de00000000ull + (uint64_t)i * 0x01010101u;
        if (e->uc_reg_write(e->uc, i < 8 ? ids[i] : UC_X86_REG_R8 + i - 8, &magic[i]))
            return NULL;
    }
    if (!peek((char *)e->uc + AT_CPU_OBJECT, &object, sizeof object) ||
        !peek(object + AT_REGISTERS, there, sizeof there) || memcmp(there, magic, sizeof magic))
        return NULL;
    e->cpu_object = object;
    return (struct cpu_state *)(object + AT_REGISTERS);
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

/* The tree of pages with translated code: as wide and deep as the emulator's addresses need. */
static bool find_pages(struct xpy_engine *e)
{
    const struct page_map *m = (const struct page_map *)((char *)e->uc + AT_PAGES);
    struct page_map copy;
    void *tables[2];

    if (!peek(m, &copy, sizeof copy) || copy.levels < 0 || copy.levels > 5 || copy.root_size < 2 ||
        copy.root_size > 1 << 14 || copy.root_shift != (copy.levels + 1) * PAGE_MAP_BITS ||
        !peek(copy.root, tables, sizeof tables) || !peek(copy.root + copy.root_size - 2, tables, sizeof tables))
        return false;
    e->pages = m;
    return true;
}

#define AT_PROLOGUE 0x90
#define AT_FLUSH_COUNT 0x98d0

/* The translator's state: prologue, epilogue and code buffer follow each other in it. */
static bool find_translator(struct xpy_engine *e, uint32_t translation_buffer)
{
    uint64_t k[7];
    char *object;

    if (!peek((char *)e->uc + AT_TRANSLATOR, &object, sizeof object) || !peek(object + AT_PROLOGUE, k, sizeof k))
        return false;
    uint64_t prologue = k[0], epilogue = k[1], buffer = k[2], size = k[5], next = k[6];
    if (prologue < 4096 || prologue >= epilogue || epilogue - prologue > 4096 || buffer < prologue ||
        buffer - prologue > 1 << 20 || size > translation_buffer || size < translation_buffer / 2 || next < buffer ||
        next > buffer + size)
        return false;
    e->tcg = object;
    e->way_out = epilogue;
    e->flush_count = (const uint32_t *)(object + AT_FLUSH_COUNT);
    e->code_start = prologue;
    e->code_end = buffer + size;
    return true;
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

/*
 * Stores to pages that may be executed. VA 0x401000 has no code at first: the TLB entry of such a store is watched as
 * long as there is no frame table, is not when there is one that has a single executable mapping, and is again when
 * code has been translated; a store to that code takes effect.
 */
static bool prove_stores(struct xpy_engine *e, char *mem)
{
    uint32_t code_maps[SCRATCH >> 12];
    uint8_t flags[SCRATCH >> 12] = {0};
    uint64_t ram_page;
    struct block *code = NULL;
    bool good = false;

    for (size_t i = 0; i < sizeof flags; i++)
        code_maps[i] = 1;
    memcpy(mem + 0x5000, "\x89\x07\x0f\x05", 4); /* mov %eax,(%rdi) ; syscall */
    e->uc_ctl(e->uc, UC_CTL_WRITE(UC_CTL_TB_FLUSH, 0));
    e->r.user = 0;
    e->r.cr3 = 0;
    e->tlb_stale = true;
    for (int step = 0; step < 6; step++) {
        bool run = step == 3 || step == 5; /* the code that has been stored */
        e->fast.code_maps = code_maps;
        e->fast.flags = flags;
        e->fast.frames = step ? sizeof flags : 0;
        e->r.gpr[0] = step < 3 ? 0x050f : 0x80cd; /* syscall, then int $0x80 */
        e->r.gpr[7] = 0x401000;
        e->r.rip = run ? 0x401000 : 0x400000;
        if (xpy_run(e) != (step == 5 ? XPY_SOFTINT : XPY_SYSCALL))
            goto out;
        struct tlb_entry *entry = xpy_tlb_entry(e, TLB_USED, 0x401000, &ram_page);
        const struct page_of_code *page = xpy_page_of_code(e, ram_page);
        bool has_code = page && page->first_block;
        if (entry->code != 0x401000 || entry->physical != 0x7000 || has_code != run ||
            entry->write != (0x401000 | (step == 1 || step == 2 ? 0 : TLB_WATCHED)) || !flags[7] != !step)
            goto out;
    }
    xpy_tlb_entry(e, TLB_USED, 0x400000, &ram_page);
    e->each_block(e->tcg, find_block, &code);
    good = code && (xpy_page_of_code(e, ram_page)->first_block & ~3ull) == (uint64_t)code;
out:
    memset(&e->fast, 0, sizeof e->fast);
    return good;
}

/*
 * Whether indirect jumps ask us where they go: a guest that does nothing else for a while is left at the first, because
 * its inbox calls. It goes on to its end where the library was loaded before ours; `good`: it did one of the two.
 */
static bool prove_jumps(struct xpy_engine *e, char *mem, bool *good)
{
    uint64_t bell[128] = {0};

    memcpy(mem + 0x5000, "\xff\xc9\x74\x02\xff\xe0\x0f\x05", 8); /* dec %ecx ; jz 1f ; jmp *%rax ; 1: syscall */
    uint32_t flushes = *e->flush_count;
    e->uc_ctl(e->uc, UC_CTL_WRITE(UC_CTL_TB_FLUSH, 0));
    *good = *e->flush_count == flushes + 1;
    e->r.user = 0;
    e->r.cr3 = 0;
    e->tlb_stale = true;
    e->r.rip = e->r.gpr[0] = 0x400000;
    e->r.gpr[1] = 100;
    e->paths.inbox = bell;
    e->marks = bell;
    xenpy_bell_call(bell);
    bool left = xpy_run(e) == XPY_KICKED;
    *good &= left ? e->r.gpr[1] == 99 && e->r.rip == 0x400000 && !bell[0] : e->r.kind == XPY_SYSCALL;
    e->marks = bell + 1;
    *good &= xpy_run(e) == XPY_SYSCALL;
    struct block *known = *xpy_known_jump(e->cpu, 0x400000), *there = NULL;
    e->each_block(e->tcg, find_block, &there);
    *good &= known && known == there && known->kind == PLAIN_BLOCK && !known->cs_base &&
             known->flags == (e->cpu->hflags | (e->cpu->eflags & BLOCK_EFLAGS));
    uint64_t ram_page;
    *good &= xpy_tlb_entry(e, TLB_USED, 0x400000, &ram_page)->code == 0x400000 &&
             known->page_addr[0] == ram_page << 12 && known->page_addr[1] == ~0ull;
    memset(&e->paths, 0, sizeof e->paths);
    memset(&e->fast, 0, sizeof e->fast);
    xpy_take_over_jumps(e, e->own_jumps);
    return left;
}

/*
 * The same jump, with a site: once it is known where it goes, it goes there by itself. It asks again after a flush, and
 * when there is something to look at.
 */
static bool prove_sites(struct xpy_engine *e, char *mem)
{
    static const uint8_t other[] = {0x48, 0x89, 0xc7, 0x0f, 0x05}; /* mov %rax,%rdi ; syscall */
    uint64_t bell[128] = {0}, sets = e->sites_set;
    const uint64_t *none = e->marks;
    bool good = xpy_open_sites(e);

    e->uc_ctl(e->uc, UC_CTL_WRITE(UC_CTL_TB_FLUSH, 0));
    e->r.user = 1; /* whose lower half is remembered, too */
    e->r.cr3 = 0x8000;
    for (int step = 0; good && step < 4; step++) {
        bool known = step > 1;

        if (step == 1)
            xpy_flush_page(e, 0x400000);
        if (step == 2) {
            e->marks = e->paths.inbox = bell;
            xenpy_bell_call(bell);
        }
        if (step == 3) {
            e->marks = none;
            memcpy(mem + 0x5000, other, sizeof other);
            xpy_drop_code(e, 0x400000, sizeof other);
        }
        e->r.rip = e->r.gpr[0] = 0x400000;
        e->r.gpr[1] = 100;
        e->r.gpr[7] = 0;
        xpy_run(e);
        good = e->r.kind == (step == 2 ? XPY_KICKED : XPY_SYSCALL) && e->r.gpr[7] == (step == 3 ? 0x400000 : 0) &&
               e->sites_used && (step != 2 || e->r.gpr[1] == 99);
        good &= e->sites->next.pc == 0x400000 && e->sites_set - sets == (known ? 0 : 1);
        sets = e->sites_set;
    }
    memset(&e->paths, 0, sizeof e->paths);
    memset(&e->fast, 0, sizeof e->fast);
    if (!good)
        xpy_close_sites(e);
    return good;
}

bool xpy_prove(struct xpy_engine *e, char *why, size_t n)
{
    /* Two scratch address spaces with the same page of code at VA 0x400000 and different data at VA 0x401000. */
    uint64_t *mem = NULL;
    bool good = false;
    uint64_t rip = 0, flags = 0;
    struct cpu_state *cpu = e->cpu;

    if (posix_memalign((void **)&mem, 4096, SCRATCH)) {
        snprintf(why, n, "out of memory");
        return false;
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
    if (!prove_stores(e, (char *)mem)) {
        snprintf(why, n, "stores to pages that may be executed are not as they should be");
        goto unmap;
    }
    e->jumps_are_ours = prove_jumps(e, (char *)mem, &good);
    if (!good)
        snprintf(why, n, "indirect jumps do not go through the function for it");
    if (good && e->jumps_are_ours && !(good = prove_sites(e, (char *)mem)))
        snprintf(why, n, "indirect jumps are not translated as they should be");
unmap:
    e->uc_mem_unmap(e->uc, 0, SCRATCH);
    e->uc_ctl(e->uc, UC_CTL_WRITE(UC_CTL_TB_FLUSH, 0));
    e->tlb_stale = true;
    memset(&e->r, 0, sizeof e->r);
    memset(&e->c, 0, sizeof e->c);
out:
    free(mem);
    return good;
}

void xpy_flat_segments(struct xpy_engine *e)
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

bool xpy_find(struct xpy_engine *e, const char *libunicorn, uint32_t translation_buffer, char *why, size_t n)
{
    uint64_t v;
    uint8_t *no_exit_request;
    struct {
        uint32_t rid;
        uint64_t value;
    } msr = {MSR_EFER, EFER_VALUE};

    e->dl = dlopen(libunicorn, RTLD_NOW | RTLD_LOCAL);
    if (!e->dl) {
        snprintf(why, n, "%s", dlerror());
        return false;
    }
    if (!resolve(e, why, n) || !xpy_find_sites(e, why, n))
        return false;
    if (e->uc_open(UC_ARCH_X86, UC_MODE_64, &e->uc)) {
        snprintf(why, n, "uc_open failed");
        return false;
    }
    e->uc_ctl(e->uc, UC_CTL_WRITE(UC_CTL_CPU_MODEL, 1), UC_CPU_X86_EPYC);
    e->uc_ctl(e->uc, UC_CTL_WRITE(UC_CTL_TCG_BUFFER_SIZE, 1), translation_buffer);
    e->uc_ctl(e->uc, UC_CTL_WRITE(UC_CTL_UC_USE_EXITS, 1), 1);
    v = CR4_VALUE;
    if (e->uc_reg_write(e->uc, UC_X86_REG_CR4, &v) || e->uc_reg_write(e->uc, UC_X86_REG_MSR, &msr)) {
        snprintf(why, n, "control registers cannot be set");
        return false;
    }
    v = CR0_VALUE;
    if (e->uc_reg_write(e->uc, UC_X86_REG_CR0, &v)) {
        snprintf(why, n, "CR0 cannot be set");
        return false;
    }
    e->cpu = find_cpu(e);
    if (!e->cpu) {
        snprintf(why, n, "the register file of the emulator was not found");
        return false;
    }
    if (e->cpu->cr[0] != CR0_VALUE || e->cpu->cr[4] != CR4_VALUE) {
        snprintf(why, n, "the control registers are not where they should be");
        return false;
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
        return false;
    }
    *no_exit_request = 1;
    if (!find_translator(e, translation_buffer)) {
        snprintf(why, n, "the translator's state was not found");
        return false;
    }
    if (!find_pages(e)) {
        snprintf(why, n, "the translator's pages were not found");
        return false;
    }
    xpy_take_over_jumps(e, e->own_jumps);
    xpy_take_over_walks(e->own_walks);
    if (!xpy_take_over_stores(e)) {
        snprintf(why, n, "the functions that store to watched pages were not found");
        return false;
    }
    if (!take_out_block_check(e)) {
        snprintf(why, n, "the check at the start of blocks cannot be taken out");
        return false;
    }
    return true;
}
