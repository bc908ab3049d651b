// SPDX-License-Identifier: GPL-2.0-only
// A user address space and entry into it.
#include <guest/hypercall.h>
#include <guest/pages.h>
#include <guest/user.h>

u64 user_l4_mfn;
char user_trap_stack[USER_TRAP_STACK_SIZE] PAGE_ALIGNED;

static u64 *new_table(void)
{
    return page_alloc();
}

static void enter_in_table(u64 *table, u64 address, int level, u64 pte)
{
    table[(address >> (PAGE_SHIFT + 9 * (level - 1))) & 511] = pte;
}

long user_init(void)
{
    u64 *l4 = new_table(), *l3 = new_table(), *l2 = new_table();
    u64 *l1[2] = {new_table(), new_table()};
    void *stack = page_alloc();
    u64 *tables[] = {l4, l3, l2, l1[0], l1[1]};
    long error = 0;

    enter_in_table(l4, USER_CODE, 4, make_pte(virt_to_mfn(l3), PTE_TABLE));
    enter_in_table(l3, USER_CODE, 3, make_pte(virt_to_mfn(l2), PTE_TABLE));
    enter_in_table(l2, USER_CODE, 2, make_pte(virt_to_mfn(l1[0]), PTE_TABLE));
    enter_in_table(l2, USER_STACK, 2, make_pte(virt_to_mfn(l1[1]), PTE_TABLE));
    enter_in_table(l1[0], USER_CODE, 1, make_pte(virt_to_mfn(user_text_start), PTE_RO));
    enter_in_table(l1[1], USER_STACK, 1, make_pte(virt_to_mfn(stack), PTE_RW | PTE_NX));
    for (u32 i = 0; i < ARRAY_LENGTH(tables); i++)
        error = error ? error : page_make_readonly(tables[i]);
    user_l4_mfn = virt_to_mfn(l4);
    error = error ? error : mmuext_one(MMUEXT_PIN_L4_TABLE, user_l4_mfn, 0);
    error = error ? error : mmuext_one(MMUEXT_NEW_USER_BASEPTR, user_l4_mfn, 0);
    return error ? error : hyp_stack_switch(FLAT_KERNEL_SS, (u64)user_trap_stack + USER_TRAP_STACK_SIZE);
}

__attribute__((noreturn)) void iret_hypercall(const struct iret_frame *frame)
{
    __asm__ volatile("movq %0, %%rsp\n\tmovl $23, %%eax\n\tsyscall\n\tud2" : : "r"(frame) : "memory");
    __builtin_unreachable();
}

struct entry {
    struct iret_frame frame;
    u64 argument;
};

static void enter(void *arg)
{
    struct entry *entry = arg;

    __asm__ volatile("movq %0, %%rsp\n\tmovl $23, %%eax\n\tsyscall\n\tud2"
                     :
                     : "r"(&entry->frame), "D"(entry->argument)
                     : "memory");
    __builtin_unreachable();
}

struct trap_record user_run(char *symbol, u64 argument)
{
    struct entry entry = {
        .frame = {.rip = USER_ADDRESS(symbol),
                  .cs = FLAT_USER_CS,
                  .rflags = FLAG_INTERRUPT,
                  .rsp = USER_STACK_TOP,
                  .ss = FLAT_USER_SS},
        .argument = argument,
    };

    return guarded(enter, &entry);
}
