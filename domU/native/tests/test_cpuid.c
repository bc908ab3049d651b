// SPDX-License-Identifier: GPL-2.0-only
// Tests: CPUID by the forced-emulation prefix: Xen's leaves, features a PV guest must and must not see, and prefixes
// that are not one.
// SUCCESS: as the ABI says. FAILURE: the named check. ERROR: never.
#include <guest/test.h>
#include <xen/version.h>

XEN_NOTES

struct leaf {
    u32 a, b, c, d;
};

static struct leaf cpuid(u32 number, u32 sub)
{
    struct leaf leaf;

    __asm__ volatile("ud2\n\t.ascii \"xen\"\n\tcpuid"
                     : "=a"(leaf.a), "=b"(leaf.b), "=c"(leaf.c), "=d"(leaf.d)
                     : "0"(number), "2"(sub));
    return leaf;
}

__asm__(".pushsection .text\n"
        "not_cpuid: ud2\n.ascii \"xen\"\nnop\nnop\nret\n"
        "not_xen: ud2\n.ascii \"xem\"\ncpuid\nret\n"
        ".popsection");
void not_cpuid(void *), not_xen(void *);

static char pages[2 * PAGE_SIZE] PAGE_ALIGNED;

static void call(void *address)
{
    __asm__ volatile("call *%0" : : "r"(address) : "rax", "rbx", "rcx", "rdx");
}

void test_main(void)
{
    struct leaf leaf = cpuid(0x40000000, 0);
    long version = hyp_xen_version(XENVER_version, NULL);
    struct trap_record r;
    char *code;

    CHECK_EQUAL(leaf.b, 0x566e6558); // "XenVMMXenVMM"
    CHECK_EQUAL(leaf.c, 0x65584d4d);
    CHECK_EQUAL(leaf.d, 0x4d4d566e);
    CHECK(leaf.a >= 0x40000003 && leaf.a < 0x40000010);
    CHECK_EQUAL(cpuid(0x40000001, 0).a, version);
    leaf = cpuid(0x40000002, 0);
    CHECK_EQUAL(leaf.a, 1);          // pages of hypercall stubs
    CHECK_EQUAL(leaf.b, 0x40000000); // the MSR that asks for them
    leaf = cpuid(0, 0);
    CHECK(leaf.a >= 1);
    leaf = cpuid(1, 0);
    CHECK(leaf.c >> 31 & 1);  // under a hypervisor
    CHECK(leaf.d >> 0 & 1);   // FPU
    CHECK(leaf.d >> 4 & 1);   // TSC
    CHECK(leaf.d >> 6 & 1);   // PAE
    CHECK(leaf.d >> 8 & 1);   // CX8
    CHECK(leaf.d >> 24 & 1);  // FXSR
    CHECK(leaf.d >> 26 & 1);  // SSE2
    CHECK(!(leaf.d >> 1 & 1));  // VME
    CHECK(!(leaf.d >> 3 & 1));  // PSE
    CHECK(!(leaf.d >> 12 & 1)); // MTRR
    CHECK(!(leaf.d >> 13 & 1)); // PGE
    CHECK(!(leaf.c >> 5 & 1));  // VMX
    CHECK(!(leaf.c >> 3 & 1));  // MONITOR
    CHECK(!(leaf.c >> 17 & 1)); // PCID
    leaf = cpuid(7, 0);
    CHECK(!(leaf.b >> 7 & 1));  // SMEP
    CHECK(!(leaf.b >> 20 & 1)); // SMAP
    CHECK(!(leaf.b >> 10 & 1)); // INVPCID
    leaf = cpuid(0x80000001, 0);
    CHECK(leaf.d >> 11 & 1); // SYSCALL
    CHECK(leaf.d >> 20 & 1); // NX
    CHECK(leaf.d >> 29 & 1); // long mode
    CHECK(!(leaf.d >> 26 & 1)); // 1 GB pages
    CHECK(!(leaf.c >> 2 & 1));  // SVM

    r = guarded(not_cpuid, NULL);
    CHECK_TRAP(r, TRAP_INVALID_OPCODE, 0);
    CHECK_EQUAL(r.rip, (u64)not_cpuid);
    r = guarded(not_xen, NULL);
    CHECK_TRAP(r, TRAP_INVALID_OPCODE, 0);
    CHECK_EQUAL(r.rip, (u64)not_xen);

    // The prefix goes over the end of the mapped code: a page fault where the rest should be.
    CHECK_EQUAL(page_set_flags(pages, PTE_RW), 0);
    CHECK_EQUAL(hyp_update_va_mapping((u64)pages + PAGE_SIZE, 0, UVMF_INVLPG), 0);
    for (u32 visible = 3; visible <= 6; visible++) {
        code = pages + PAGE_SIZE - visible;
        memcpy(code, "\x0f\x0bxen\x0f\xa2", visible);
        r = guarded(call, code);
        CHECK_TRAP(r, TRAP_PAGE_FAULT, 0);
        CHECK_EQUAL(r.cr2, (u64)pages + PAGE_SIZE);
        CHECK_EQUAL(r.rip, (u64)code);
    }
}
