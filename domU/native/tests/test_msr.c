// SPDX-License-Identifier: GPL-2.0-only
// Tests: rdmsr and wrmsr in kernel mode.
// SUCCESS: the few registers a PV guest has behave; all others raise #GP. FAILURE: the named check. ERROR: never.
#include <guest/clock.h>
#include <guest/test.h>

XEN_NOTES

struct access {
    u32 number;
    u64 value;
};

static void read_body(void *arg)
{
    struct access *access = arg;
    u32 low, high;

    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(access->number));
    access->value = (u64)high << 32 | low;
}

static void write_body(void *arg)
{
    struct access *access = arg;

    __asm__ volatile("wrmsr" : : "a"((u32)access->value), "d"((u32)(access->value >> 32)), "c"(access->number) : "memory");
}

static struct trap_record read_msr(u32 number, u64 *value)
{
    struct access access = {number, 0};
    struct trap_record r = guarded(read_body, &access);

    *value = access.value;
    return r;
}

static struct trap_record write_msr(u32 number, u64 value)
{
    struct access access = {number, value};

    return guarded(write_body, &access);
}

#define EFER 0xc0000080
#define FS_BASE 0xc0000100
#define GS_BASE 0xc0000101
#define KERNEL_GS_BASE 0xc0000102

void test_main(void)
{
    static const u32 absent[] = {0x12345678, 0xc0001234, 0x40000123};
    u64 value, efer, before, after;

    CHECK_NO_TRAP(read_msr(0x1b, &value)); // APIC_BASE
    CHECK_EQUAL(value, 0xfee00900);
    CHECK_NO_TRAP(read_msr(0x277, &value)); // PAT, Xen's layout
    CHECK_EQUAL(value, 0x0000050100070406);

    CHECK_NO_TRAP(read_msr(EFER, &efer));
    CHECK_EQUAL(efer & 0xd01, 0xd01); // SCE, LME, LMA, NXE
    CHECK_NO_TRAP(write_msr(EFER, efer));
    CHECK_TRAP(write_msr(EFER, efer ^ 1), TRAP_GENERAL_PROTECTION, 0);

    before = read_tsc();
    CHECK_NO_TRAP(read_msr(0x10, &value));
    after = read_tsc();
    CHECK(before <= value && value <= after);

    CHECK_NO_TRAP(write_msr(FS_BASE, 0x12345000));
    CHECK_NO_TRAP(read_msr(FS_BASE, &value));
    CHECK_EQUAL(value, 0x12345000);
    CHECK_NO_TRAP(write_msr(GS_BASE, 0x23456000));
    CHECK_NO_TRAP(write_msr(KERNEL_GS_BASE, 0x34567000));
    CHECK_NO_TRAP(read_msr(GS_BASE, &value));
    CHECK_EQUAL(value, 0x23456000);
    CHECK_NO_TRAP(read_msr(KERNEL_GS_BASE, &value));
    CHECK_EQUAL(value, 0x34567000);
    CHECK_TRAP(write_msr(FS_BASE, 0x8000000000000000), TRAP_GENERAL_PROTECTION, 0);
    CHECK_TRAP(write_msr(GS_BASE, 0x0000800000000000), TRAP_GENERAL_PROTECTION, 0);

    for (u32 i = 0; i < ARRAY_LENGTH(absent); i++) {
        CHECK_TRAP(read_msr(absent[i], &value), TRAP_GENERAL_PROTECTION, 0);
        CHECK_TRAP(write_msr(absent[i], 0), TRAP_GENERAL_PROTECTION, 0);
    }
}
