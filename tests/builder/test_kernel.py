# SPDX-License-Identifier: GPL-2.0-only
"""Kernel files: what is accepted, what is refused and with which words, and that no file breaks the parser."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dom0.builder.errors import BUILD_EXIT_CODE, BuildError
from dom0.builder.kernel import KernelImage, load_kernel, parse_kernel
from tests.builder.images import (
    PF_R,
    PF_W,
    PF_X,
    VIRT_BASE,
    Load,
    Sect,
    bzimage,
    elf,
    linux_notes,
    note,
    number,
    text,
)
from xen_py.abi.elfnote import ElfNote


def parse(data: bytes) -> KernelImage:
    return parse_kernel(data, "test")


def xz(data: bytes) -> bytes:
    return lzma.compress(data) + struct.pack("<I", len(data))


@pytest.mark.parametrize(
    ("file", "packing"),
    [
        (elf(), "ELF"),
        (gzip.compress(elf()), "ELF (gzip)"),
        (bz2.compress(elf()), "ELF (bzip2)"),
        (bzimage(gzip.compress(elf())), "bzImage (gzip)"),
        (bzimage(xz(elf())), "bzImage (xz)"),
        (bzimage(elf()), "bzImage"),
        (bzimage(xz(elf()), setup_sects=30), "bzImage (xz)"),
        (gzip.compress(bzimage(xz(elf()))), "bzImage (xz) (gzip)"),
    ],
)
def test_packings(file: bytes, packing: str, tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(file)
    image = load_kernel(path)
    assert image.packing == packing
    assert image.data == elf()
    assert (image.start, image.end) == (0x100000, 0x100026)
    assert image.virt_base == VIRT_BASE
    assert image.entry == VIRT_BASE + 0x100010
    assert image.notes.guest_os == "linux"
    assert image.notes.init_p2m == 0x8000000000
    assert image.notes.unmapped_ramdisk


PVH_ONLY = linux_notes(
    VIRT_BASE=None, ENTRY=None, PADDR_OFFSET=None, INIT_P2M=None, PHYS32=number(ElfNote.PHYS32_ENTRY, 0x100000)
)
REFUSED = {
    "empty": (b"", "not a kernel"),
    "a script": (b"#!/bin/sh\n", "not a kernel"),
    "ELF header only": (elf()[:40], "cut off in its header"),
    "truncated ELF": (elf()[:-200], "cut off"),
    "32-bit": (elf(elf_class=1, machine=3), "a 32-bit x86 kernel; only 64-bit PV kernels can be booted"),
    "big-endian": (b"\x7fELF\x02\x02" + elf()[6:], "not a little-endian"),
    "ARM64": (elf(machine=183), "built for ARM64, not for x86-64"),
    "other machine": (elf(machine=9999), "machine type 9999"),
    "no program headers": (elf(())[:56] + bytes(8), "no usable program headers"),
    "nothing to load": (elf(()), "no segment to load"),
    "no notes": (elf(notes=None), "not a Xen kernel.*CONFIG_XEN_PV"),
    "other notes": (elf(notes=note(1, b"abcd", b"GNU\0")), "not a Xen kernel"),
    "PVH only": (elf(notes=PVH_ONLY), "built for PVH only"),
    "other loader": (
        elf(notes=linux_notes(LOADER=None, GUEST_OS=text(ElfNote.GUEST_OS, "plan9"))),
        "loader '' and system 'plan9'",
    ),
    "other Xen": (elf(notes=linux_notes(XEN_VERSION=text(ElfNote.XEN_VERSION, "xen-9"))), "'xen-9'"),
    "no Xen version": (elf(notes=linux_notes(XEN_VERSION=None)), "no version of Xen"),
    "dom0 only": (elf(notes=linux_notes(FEATURES=text(ElfNote.FEATURES, "!dom0"))), "can only be dom0"),
    "unknown feature": (elf(notes=linux_notes(FEATURES=text(ElfNote.FEATURES, "a|!levitation"))), "'levitation'"),
    "offset without base": (elf(notes=linux_notes(VIRT_BASE=None)), "PADDR_OFFSET note makes no sense"),
    "entry outside": (elf(notes=linux_notes(ENTRY=number(ElfNote.ENTRY, 0x1000))), "entry 0x1000 is not within"),
    "below offset": (elf(notes=linux_notes(PADDR_OFFSET=number(ElfNote.PADDR_OFFSET, 0x200000))), "below PADDR_OFFSET"),
    "unaligned": (elf([Load(0x100008)]), "page boundary"),
    "overlapping": (elf([Load(memsz=0x1000)] * 3), "its segments overlap"),
    "file larger than memory": (elf([Load(memsz=4)]), "impossible size"),
    "wraps": (elf([Load(paddr=(1 << 64) - 0x1000, memsz=0x2000)]), "impossible size"),
    "wraps virtually": (elf([Load(), Load(0x90000000)]), "not within"),
    "old bzImage": (bzimage(xz(elf()), version=0x0207), "boot protocol 2.07 is too old"),
    "cut bzImage": (bzimage(xz(elf()), tail=b"")[:-1], "bzImage is cut off"),
    "cut bzImage header": (bzimage(xz(elf()))[:0x210], "cut off in its header"),
    "lzo": (bzimage(b"\x89LZO\0\r\n\x1a\n"), "lzo compression is not supported"),
    "unknown payload": (bzimage(b"\x01\x02\x03\x04\x05\x06"), "unknown compression format"),
    "bzImage without ELF": (bzimage(xz(b"no kernel")), "does not hold an ELF file"),
    "gzip'd text": (gzip.compress(b"no kernel"), "unpacks to neither"),
    "too many notes": (elf(notes=note(1, b"") * 5000), "more than 4096 notes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    data, message = REFUSED[case]
    with pytest.raises(BuildError, match=message) as caught:
        parse(data)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == BUILD_EXIT_CODE == 3


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"kernel .*/none: cannot be read: No such file or directory"):
        load_kernel(tmp_path / "none")
    with pytest.raises(BuildError, match="cannot be read: Is a directory"):
        load_kernel(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(BuildError, match="not a regular file"):
        load_kernel(tmp_path / "fifo")
    with pytest.raises(BuildError, match="cannot be read: embedded null byte"):
        load_kernel("a\0b")
    with open(tmp_path / "huge", "wb") as huge:
        huge.truncate(1 << 40)
    with pytest.raises(BuildError, match="1048576 MiB, more than 1024 MiB"):
        load_kernel(tmp_path / "huge")


def test_notes_in_a_section() -> None:
    image = parse(elf(notes=None, sections=[Sect(".notes", 7, data=linux_notes())]))
    assert image.notes.guest_os == "linux"
    assert image.entry == VIRT_BASE + 0x100010


def test_segment_notes_come_before_section_notes() -> None:
    other = linux_notes(GUEST_OS=text(ElfNote.GUEST_OS, "other"))
    assert parse(elf(sections=[Sect(".notes", 7, data=other)])).notes.guest_os == "linux"


GUEST_STRING = (
    "GUEST_OS=linux,GUEST_VER=2.6,XEN_VER=xen-3.0,VIRT_BASE=0xffffffff80000000,ELF_PADDR_OFFSET=0x0,"
    "VIRT_ENTRY=0xffffffff80100010,HYPERCALL_PAGE=0x100,FEATURES=writable_page_tables|!pae_pgdir_above_4gb,"
    "LOADER=generic,BSD_SYMTAB"
)


def test_guest_section() -> None:
    image = parse(elf(notes=None, sections=[Sect("__xen_guest", data=GUEST_STRING.encode() + b"\0")]))
    assert image.entry == VIRT_BASE + 0x100010
    assert image.notes.hypercall_page == VIRT_BASE + 0x100000
    assert image.notes.paddr_offset == 0
    assert image.notes.supported_features == 1 << 0 | 1 << 4
    assert image.notes.required_features == 1 << 4
    assert not image.notes.unmapped_ramdisk


def test_guest_section_has_its_physical_offset_at_the_virtual_base() -> None:
    string = GUEST_STRING.replace("ELF_PADDR_OFFSET=0x0,", "")
    image = parse(elf([Load(VIRT_BASE + 0x100000)], None, [Sect("__xen_guest", data=string.encode())]))
    assert (image.start, image.end) == (0x100000, 0x100026)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("0x10", 16),
        ("010", 8),
        ("10", 10),
        ("0", 0),
        ("zz", 0),
        ("", 0),
        ("12zz", 12),
        ("0xFFFFFFFFFFFFFFFE", 2**64 - 2),
    ],
)
def test_guest_section_numbers(value: str, number: int) -> None:
    string = GUEST_STRING.replace("HYPERCALL_PAGE=0x100", f"HYPERCALL_PAGE={value}")
    page = parse(elf(notes=None, sections=[Sect("__xen_guest", data=string.encode())])).notes.hypercall_page
    assert page == (VIRT_BASE + (number << 12)) % 2**64


def test_entry_of_the_elf_header_without_a_note() -> None:
    image = parse(elf(notes=linux_notes(ENTRY=None), entry=VIRT_BASE + 0x100004))
    assert image.entry == VIRT_BASE + 0x100004


AX = 2 | 4
CODE_CASES = {
    "executable segments only": (
        [Load(0x100000, memsz=0x3800, flags=PF_R | PF_X), Load(0x110000, flags=PF_R | PF_W)],
        [],
        ((0x100000, 0x104000),),
    ),
    "only the code of a segment that has more in it": (
        [Load(0x100000, memsz=0x10000)],
        [
            Sect(".init.text", 1, AX, VIRT_BASE + 0x100000, size=0x1004, data=bytes(0x1004)),
            Sect(".late.text", 1, AX, VIRT_BASE + 0x108010, size=8, data=bytes(8)),
            Sect(".bss", 8, 3, VIRT_BASE + 0x109000, size=0x7000),
        ],
        ((0x100000, 0x102000), (0x108000, 0x109000)),
    ),
    "a segment in no section is all code": (
        [Load(0x100000, memsz=0x1000), Load(0x200000, memsz=0x2000)],
        [Sect(".text", 1, AX, VIRT_BASE + 0x100000, data=bytes(0x20))],
        ((0x100000, 0x101000), (0x200000, 0x202000)),
    ),
    "flags that leave out the entry point are not believed": (
        [Load(0x100000, memsz=0x1000, flags=PF_R), Load(0x200000, memsz=0x1000, flags=PF_R | PF_X)],
        [],
        ((0x100000, 0x101000), (0x200000, 0x201000)),
    ),
    "a segment linked elsewhere than it is loaded": (
        [Load(0x100000, memsz=0x4000, vaddr=0)],
        [Sect(".text", 1, AX, 0, data=bytes(0x20)), Sect(".text.2", 1, AX, 0x3000, data=bytes(0x20))],
        ((0x100000, 0x101000), (0x103000, 0x104000)),
    ),
}


@pytest.mark.parametrize("case", CODE_CASES)
def test_code_pages(case: str) -> None:
    loads, sections, code = CODE_CASES[case]
    assert parse(elf(loads, sections=sections)).code == code


FUZZ_BASES = (
    elf(sections=[Sect(".text", 1, AX, VIRT_BASE + 0x100000, data=bytes(64)), Sect(".notes", 7, data=linux_notes())]),
    elf(notes=None, sections=[Sect("__xen_guest", data=GUEST_STRING.encode())]),
    bzimage(elf()),
    bzimage(xz(elf())),
    bzimage(gzip.compress(elf())),
)
INTERESTING = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f", b"\0\0\0\x80", (2**63 - 1).to_bytes(8, "little")]),
)


@settings(max_examples=400, deadline=None)
@given(
    base=st.sampled_from(FUZZ_BASES),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), INTERESTING), min_size=1, max_size=6),
    cut=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_mutated_kernels_raise_nothing_but_builderror(
    base: bytes, edits: list[tuple[float, bytes]], cut: float
) -> None:
    data = bytearray(base)
    for where, what in edits:
        at = int(where * len(data))
        data[at : at + len(what)] = what
    try:
        image = parse(bytes(data[: int(cut * len(data))]))
    except BuildError as error:
        assert "\n" not in str(error)
        return
    assert 0 <= image.start <= image.entry - image.virt_base < image.end
    assert all(s.offset + s.filesz <= len(image.data) for s in image.segments)
    assert all(image.start <= s.start and s.start + s.memsz <= image.end for s in image.segments)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=2048), head=st.sampled_from([b"", b"\x7fELF\x02\x01\x01", b"\x1f\x8b\x08"]))
def test_random_files(data: bytes, head: bytes) -> None:
    with pytest.raises(BuildError):
        parse(head + data)
