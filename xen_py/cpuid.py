# SPDX-License-Identifier: GPL-2.0-only
"""What CPU a guest sees. Pure data.

The features are those the translator implements and a PV guest may use. It is presented as what it is, a CPU that does
not speculate and whose string instructions are not fast: guests then leave out their mitigations and copy with plain
loops, which is by far quicker here. Xen's own leaves say that this is Xen (arch-x86/cpuid.h).
"""

from __future__ import annotations

from xen_py.abi.version import XEN_MAJOR, XEN_MINOR

_FAMILY_6_WESTMERE_EP = 0x000206C2

_1_EDX = sum(1 << b for b in (0, 2, 4, 5, 6, 8, 9, 11, 15, 16, 19, 23, 24, 25, 26, 27))
# FPU DE TSC MSR PAE CX8 APIC SEP CMOV PAT CLFLUSH MMX FXSR SSE SSE2 SS
_1_ECX = sum(1 << b for b in (0, 1, 9, 13, 19, 20, 22, 23, 25, 31))
# SSE3 PCLMULQDQ SSSE3 CX16 SSE4.1 SSE4.2 MOVBE POPCNT AES HYPERVISOR
_RDRAND = 1 << 30
_7_EBX = sum(1 << b for b in (3, 8, 19))
# BMI1 BMI2 ADX
_7_EDX = 1 << 26 | 1 << 27 | 1 << 29 | 1 << 31
# IBRSB STIBP ARCH_CAPS SSBD
_EXT_EDX = 1 << 11 | 1 << 20 | 1 << 29
# SYSCALL NX LM
_EXT_ECX = 1 << 0 | 1 << 5
# LAHF_LM ABM

ARCH_CAPABILITIES = sum(1 << b for b in (0, 1, 3, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27, 62))
"""IA32_ARCH_CAPABILITIES: RDCL_NO IBRS_ALL SKIP_L1DFL SSB_NO MDS_NO IF_PSCHANGE_MC_NO TAA_NO SBDR_SSDP_NO FBSDP_NO
PSDP_NO BHI_NO PBRSB_NO GDS_NO RFDS_NO ITS_NO."""
MISC_ENABLE = 0
"""IA32_MISC_ENABLE: fast-string operations off."""

_BRAND = b"Xen-py virtual CPU (no speculation)"
_VENDOR = b"GenuineIntel"
XEN_LEAVES = 0x40000000


def _words(text: bytes, count: int) -> list[int]:
    padded = text.ljust(count * 4, b"\0")
    return [int.from_bytes(padded[4 * n : 4 * n + 4], "little") for n in range(count)]


def cpuid_table(tsc_khz: int, random: bool) -> list[tuple[int, int | None, int, int, int, int]]:
    """Rows (leaf, subleaf or None, eax, ebx, ecx, edx). `random`: offer RDRAND (not in deterministic runs)."""
    vendor = _words(_VENDOR, 3)
    brand = _words(_BRAND, 12)
    xen = _words(b"XenVMMXenVMM", 3)
    return [
        (0, None, 0xD, vendor[0], vendor[2], vendor[1]),
        (1, None, _FAMILY_6_WESTMERE_EP, 0x00010800, _1_ECX | (_RDRAND if random else 0), _1_EDX),
        (7, 0, 0, _7_EBX, 0, _7_EDX),
        (0x80000000, None, 0x80000008, 0, 0, 0),
        (0x80000001, None, 0, 0, _EXT_ECX, _EXT_EDX),
        *((0x80000002 + n, None, brand[4 * n], brand[4 * n + 1], brand[4 * n + 2], brand[4 * n + 3]) for n in range(3)),
        (0x80000008, None, 40 | 48 << 8, 0, 0, 0),
        (XEN_LEAVES, None, XEN_LEAVES + 5, xen[0], xen[1], xen[2]),
        (XEN_LEAVES + 1, None, XEN_MAJOR << 16 | XEN_MINOR, 0, 0, 0),
        (XEN_LEAVES + 2, None, 1, 0x40000000, 1, 0),
        (XEN_LEAVES + 3, 0, 0, 0, tsc_khz, 0),
        (XEN_LEAVES + 3, 2, tsc_khz, 0, 0, 0),
        (XEN_LEAVES + 5, 0, 0, 40, 0, 0),
    ]
