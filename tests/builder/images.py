# SPDX-License-Identifier: GPL-2.0-only
"""Kernel images made for tests: small ELF files and bzImages, with everything in them up to the caller."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from xen_py.abi.elfnote import ElfNote

VIRT_BASE = 0xFFFFFFFF80000000
PF_X, PF_W, PF_R = 1, 2, 4


def note(kind: int, desc: bytes, owner: bytes = b"Xen\0") -> bytes:
    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % 4)

    return struct.pack("<III", len(owner), len(desc), kind) + padded(owner) + padded(desc)


def number(kind: int, value: int) -> bytes:
    return note(kind, struct.pack("<Q", value))


def text(kind: int, value: str) -> bytes:
    return note(kind, value.encode() + b"\0")


def linux_notes(**changes: bytes | None) -> bytes:
    """The notes of a Linux kernel; a keyword replaces one (None leaves it out)."""
    notes: dict[str, bytes | None] = {
        "GUEST_OS": text(ElfNote.GUEST_OS, "linux"),
        "XEN_VERSION": text(ElfNote.XEN_VERSION, "xen-3.0"),
        "VIRT_BASE": number(ElfNote.VIRT_BASE, VIRT_BASE),
        "ENTRY": number(ElfNote.ENTRY, VIRT_BASE + 0x100010),
        "INIT_P2M": number(ElfNote.INIT_P2M, 0x8000000000),
        "FEATURES": text(ElfNote.FEATURES, "!writable_page_tables|pae_pgdir_above_4gb"),
        "LOADER": text(ElfNote.LOADER, "generic"),
        "MOD_START_PFN": number(ElfNote.MOD_START_PFN, 1),
        "PADDR_OFFSET": number(ElfNote.PADDR_OFFSET, 0),
    }
    notes.update(changes)
    return b"".join(part for part in notes.values() if part is not None)


@dataclass
class Load:
    paddr: int = 0x100000
    data: bytes = b"\x90" * 0x20 + b"kernel"
    memsz: int | None = None
    flags: int = PF_R | PF_W | PF_X
    vaddr: int | None = None


@dataclass
class Sect:
    name: str
    type: int = 1
    flags: int = 0
    addr: int = 0
    data: bytes = b""
    size: int | None = None


def elf(
    loads: Sequence[Load] = (Load(),),
    notes: bytes | None = b"",
    sections: Sequence[Sect] = (),
    *,
    machine: int = 62,
    elf_class: int = 2,
    entry: int = 0,
) -> bytes:
    """An ELF file; `notes` go into a PT_NOTE segment (b"": Linux's, None: no such segment)."""
    notes = linux_notes() if notes == b"" else notes
    phnum = len(loads) + (notes is not None)
    offset = 64 + 56 * phnum
    headers, body = b"", b""

    def place(data: bytes) -> int:
        nonlocal body
        at = offset + len(body)
        body += data
        return at

    for load in loads:
        memsz = len(load.data) if load.memsz is None else load.memsz
        vaddr = (VIRT_BASE + load.paddr) % (1 << 64) if load.vaddr is None else load.vaddr
        at = place(load.data)
        headers += struct.pack("<IIQQQQQQ", 1, load.flags, at, vaddr, load.paddr, len(load.data), memsz, 0x1000)
    if notes is not None:
        headers += struct.pack("<IIQQQQQQ", 4, PF_R, place(notes), 0, 0, len(notes), len(notes), 4)
    table, names = bytes(64), b"\0"
    shnum = 0
    shoff = 0
    if sections:
        for section in (*sections, Sect(".shstrtab", 3)):
            at = len(names)
            names += section.name.encode() + b"\0"
            data = names if section.name == ".shstrtab" else section.data
            size = len(data) if section.size is None else section.size
            where = place(data)
            table += struct.pack("<IIQQQQIIQQ", at, section.type, section.flags, section.addr, where, size, 0, 0, 1, 0)
        shnum = len(sections) + 2
        shoff = place(table)
    ident = b"\x7fELF" + bytes([elf_class, 1, 1]) + bytes(9)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, 2, machine, 1, entry, 64, shoff, 0, 64, 56, phnum, 64, shnum, max(shnum - 1, 0)
    )
    return header + headers + body


def bzimage(payload: bytes, *, version: int = 0x20F, setup_sects: int = 2, tail: bytes = b"tail") -> bytes:
    """A bzImage around `payload`; four bytes of unpacked size belong into it for most formats."""
    offset = 0x80
    head = bytearray((setup_sects + 1) * 512)
    head[0x1F1] = setup_sects
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, version)
    struct.pack_into("<II", head, 0x248, offset, len(payload))
    return bytes(head) + bytes(offset) + payload + tail
