# SPDX-License-Identifier: GPL-2.0-only
"""A built domain, read as its kernel would: through its page tables, from start_info on."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator

import pytest

from dom0.builder.build import Built, build, load_ramdisk
from dom0.builder.errors import BuildError
from dom0.builder.hypercall_page import HYPERCALL_PAGE
from dom0.builder.kernel import KernelImage, parse_kernel
from tests.builder.images import PF_R, PF_W, PF_X, VIRT_BASE, Load, elf, linux_notes, number
from xen_py.abi.elfnote import ElfNote
from xen_py.abi.start_info import StartFlags, StartInfo
from xen_py.memory import GuestMemory, MemoryGeometry
from xen_py.start import StartState
from xen_py.types import PAGE_SIZE, Mfn, Port

PAGES = 4096
PRESENT, RW, NX = 1, 2, 1 << 63
CODE = bytes(range(256)) * 20
DATA = b"data" * 1024 + bytes(300_000) + b"end"
LOADS = (
    Load(0x100000, CODE, memsz=0x2000, flags=PF_R | PF_X),
    Load(0x110000, DATA, memsz=0x60000, flags=PF_R | PF_W),
)


def image_of(**notes: bytes | None) -> KernelImage:
    return parse_kernel(elf(LOADS, linux_notes(**notes)), "test")


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory.create(MemoryGeometry.for_domain(2 * PAGES))
    yield memory
    memory.close()


def make(memory: GuestMemory, image: KernelImage, ramdisk: bytes | None = None, cmdline: str = "a=b") -> Built:
    return build(image, ramdisk, cmdline, memory, PAGES, store_port=Port(1), console_port=Port(2), vcpus=1)


def entry_for(memory: GuestMemory, built: Built, va: int) -> int:
    """The L1 entry of `va`, found as the MMU does; 0 if there is none."""
    mfn: int = built.start.cr3
    for level in range(3, -1, -1):
        entry = int.from_bytes(memory.frame(Mfn(mfn))[(va >> 12 + 9 * level & 511) * 8 :][:8], "little")
        if not entry & PRESENT or level == 0:
            return entry
        assert entry & RW and not entry & NX
        mfn = entry >> 12 & (1 << 40) - 1
    return 0


def read(memory: GuestMemory, built: Built, va: int, size: int) -> bytes:
    out = b""
    while len(out) < size:
        at = va + len(out)
        entry = entry_for(memory, built, at)
        assert entry & PRESENT, f"{at:#x} is not mapped"
        out += bytes(memory.frame(Mfn(entry >> 12 & (1 << 40) - 1))[at & PAGE_SIZE - 1 :])
    return out[:size]


def start_info(memory: GuestMemory, built: Built) -> StartInfo:
    return StartInfo.unpack(read(memory, built, built.start.rsi, PAGE_SIZE))


def test_a_kernel_finds_its_world(memory: GuestMemory) -> None:
    geometry = memory.geometry
    ramdisk = b"ramdisk" * 1000
    built = make(memory, image_of(), ramdisk, "console=hvc0 é")
    assert built.guest_os == "linux"
    assert built.start.rip == VIRT_BASE + 0x100010
    assert read(memory, built, VIRT_BASE + 0x100000, 0x2000) == CODE.ljust(0x2000, b"\0")
    assert read(memory, built, VIRT_BASE + 0x110000, 0x60000) == DATA.ljust(0x60000, b"\0")

    info = start_info(memory, built)
    assert info.magic == b"xen-3.0-x86_64"
    assert info.nr_pages == PAGES
    assert info.shared_info == geometry.shared_info_mfn << 12
    assert info.flags == StartFlags.MOD_START_PFN
    assert (info.store_evtchn, info.console_evtchn) == (1, 2)
    assert (info.store_mfn, info.console_mfn) == (built.store_mfn, built.console_mfn)
    assert info.cmd_line == "console=hvc0 é".encode()
    assert info.mod_len == 2 * PAGE_SIZE
    assert bytes(memory.frame(Mfn(geometry.mfn_base + info.mod_start)))[:7] == b"ramdisk"
    assert info.mfn_list == 0x8000000000
    p2m = struct.unpack(f"<{PAGES}Q", read(memory, built, info.mfn_list, PAGES * 8))
    assert p2m == tuple(range(geometry.mfn_base, geometry.mfn_base + PAGES))
    assert info.nr_p2m_frames == PAGES * 8 // PAGE_SIZE + 3
    assert p2m[info.first_p2m_pfn] == entry_for(memory, built, info.mfn_list) >> 12 & (1 << 40) - 1
    assert entry_for(memory, built, info.pt_base) >> 12 & (1 << 40) - 1 == built.start.cr3
    assert built.start.page_tables[0] == (built.start.cr3 - geometry.mfn_base, 1)
    assert sum(count for _, count in built.start.page_tables) == info.nr_pt_frames + 3
    assert entry_for(memory, built, built.start.rsp - 8) & (PRESENT | RW) == PRESENT | RW
    assert StartState.from_plain(built.start.to_plain()) == built.start


def test_rights_of_the_initial_mapping(memory: GuestMemory) -> None:
    """Tables read-only, code executable, all else neither; nothing outside, nothing in Xen's slots."""
    built = make(memory, image_of())
    layout = built.layout
    tables = range(layout["page tables"].vstart, layout["page tables"].vend)
    code = range(VIRT_BASE + 0x100000, VIRT_BASE + 0x102000)
    for va in range(VIRT_BASE, layout.virt_pgtab_end, PAGE_SIZE):
        entry = entry_for(memory, built, va)
        assert entry >> 12 & (1 << 40) - 1 == memory.geometry.mfn_base + (va - VIRT_BASE >> 12)
        assert bool(entry & RW) == (va not in tables)
        assert bool(entry & NX) == (va not in code)
        assert entry & 0xFFF & ~RW == 0x21
    p2m = layout.mappings[1]
    for va in range(p2m.va, p2m.va + p2m.pages * PAGE_SIZE, PAGE_SIZE):
        assert entry_for(memory, built, va) & (PRESENT | RW | NX) == PRESENT | RW | NX
    for va in (VIRT_BASE - 1, layout.virt_pgtab_end, p2m.va - 1, p2m.va + p2m.pages * PAGE_SIZE, 0):
        assert entry_for(memory, built, va) & PRESENT == 0
    assert bytes(memory.frame(built.start.cr3)[256 * 8 : 272 * 8]) == bytes(16 * 8)


def test_pages_shared_with_the_host(memory: GuestMemory) -> None:
    built = make(memory, image_of())
    grants = struct.unpack_from("<HHIHHIHHI", memory.frame(memory.geometry.grant_mfn(0)))
    assert grants == (1, 0, built.console_mfn, 1, 0, built.store_mfn, 0, 0, 0)
    shared = bytes(memory.frame(memory.geometry.shared_info_mfn))
    assert shared == (b"\0\1" + bytes(62)) * 32 + bytes(PAGE_SIZE - 32 * 64)
    assert bytes(memory.frame(built.store_mfn)) == bytes(memory.frame(built.console_mfn)) == bytes(PAGE_SIZE)


def test_a_kernel_without_the_newer_notes(memory: GuestMemory) -> None:
    """Ramdisk and p2m list in the initial mapping, addresses virtual."""
    ramdisk = b"ramdisk" * 1000
    built = make(memory, image_of(INIT_P2M=None, MOD_START_PFN=None), ramdisk)
    info = start_info(memory, built)
    assert info.flags == 0
    assert info.mod_len == len(ramdisk)
    assert read(memory, built, info.mod_start, info.mod_len) == ramdisk
    assert (info.first_p2m_pfn, info.nr_p2m_frames) == (0, 0)
    first, last = (read(memory, built, info.mfn_list + 8 * n, 8) for n in (0, PAGES - 1))
    assert struct.unpack("<QQ", first + last) == (memory.geometry.mfn_base, memory.geometry.mfn_base + PAGES - 1)


def test_no_ramdisk(memory: GuestMemory) -> None:
    info = start_info(memory, make(memory, image_of()))
    assert (info.mod_start, info.mod_len) == (0, 0)
    assert info.flags == 0


@pytest.mark.parametrize(
    ("packed", "unpacked"),
    [
        (gzip.compress(b"cpio" * 5000), b"cpio" * 5000),
        (gzip.compress(b"cpio" * 5000) + b"more", None),
        (gzip.compress(bytes(PAGES * PAGE_SIZE // 4 + 1)), None),
        (b"\x1f\x8b but no gzip file", None),
    ],
)
def test_gzipped_ramdisk_is_unpacked_if_that_is_safe(
    memory: GuestMemory, packed: bytes, unpacked: bytes | None
) -> None:
    built = make(memory, image_of(), packed)
    expected = packed if unpacked is None else unpacked
    at = built.layout["ramdisk"].pfn * PAGE_SIZE
    assert bytes(memory.bytes[at : at + len(expected)]) == expected
    assert start_info(memory, built).mod_len == -(-len(expected) // PAGE_SIZE) * PAGE_SIZE


def test_untouched_pages_cost_nothing(memory: GuestMemory) -> None:
    """Zeros of the image are not written: the data segment has 300,000 of them."""
    make(memory, image_of())
    assert memory.touched_bytes() < 40 * PAGE_SIZE


def test_hypercall_page(memory: GuestMemory) -> None:
    built = make(memory, image_of(HYPERCALL_PAGE=number(ElfNote.HYPERCALL_PAGE, VIRT_BASE + 0x112000)))
    assert read(memory, built, VIRT_BASE + 0x112000, PAGE_SIZE) == HYPERCALL_PAGE
    assert not entry_for(memory, built, VIRT_BASE + 0x112000) & NX
    assert entry_for(memory, built, VIRT_BASE + 0x111000) & NX


def test_hypercall_stubs() -> None:
    assert len(HYPERCALL_PAGE) == PAGE_SIZE
    for nr in range(128):
        slot = HYPERCALL_PAGE[nr * 32 : nr * 32 + 32]
        code = f"514153b8{nr:02x}0000000f05415b59c3" if nr != 23 else "51415350b8170000000f05"
        assert slot == bytes.fromhex(code).ljust(32, b"\xcc")


def test_hypercall_page_outside_the_kernel(memory: GuestMemory) -> None:
    for address in (VIRT_BASE, VIRT_BASE + 0x800000, 0x1000):
        with pytest.raises(BuildError, match="is not within the kernel"):
            make(memory, image_of(HYPERCALL_PAGE=number(ElfNote.HYPERCALL_PAGE, address)))


@pytest.mark.parametrize("cmdline", ["x" * 1024, "a\0b", "é" * 512])
def test_bad_command_lines(memory: GuestMemory, cmdline: str) -> None:
    with pytest.raises(BuildError, match="kernel command line of"):
        make(memory, image_of(), cmdline=cmdline)


def test_longest_command_line(memory: GuestMemory) -> None:
    assert start_info(memory, make(memory, image_of(), cmdline="x" * 1023)).cmd_line == b"x" * 1023


def test_too_little_memory(memory: GuestMemory) -> None:
    with pytest.raises(BuildError, match="need at least 22 MiB and the domain has 16 MiB"):
        make(memory, image_of(), b"\1" * (20 << 20))


def test_more_pages_than_memory(memory: GuestMemory) -> None:
    with pytest.raises(ValueError, match="pages in memory made for"):
        build(image_of(), None, "", memory, 3 * PAGES, store_port=Port(1), console_port=Port(2), vcpus=1)
    with pytest.raises(BuildError, match="33 vCPUs"):
        build(image_of(), None, "", memory, PAGES, store_port=Port(1), console_port=Port(2), vcpus=33)


def test_log_and_progress(memory: GuestMemory) -> None:
    seen: list[tuple[str, int, int]] = []
    built = build(
        image_of(),
        None,
        "",
        memory,
        PAGES,
        store_port=Port(1),
        console_port=Port(2),
        vcpus=1,
        progress=lambda *step: seen.append(step),
    )
    assert seen[-1] == ("Loading test", len(CODE) + len(DATA), len(CODE) + len(DATA))
    for line in ("kernel test: ELF", "phdr: paddr=0x100000 memsz=0x2000", "note: VIRT_BASE = 0xffffffff80000000"):
        assert line in built.log


def test_missing_ramdisk() -> None:
    with pytest.raises(BuildError, match="ramdisk /nonexistent/initrd: cannot be read: No such file"):
        load_ramdisk("/nonexistent/initrd")
