# SPDX-License-Identifier: GPL-2.0-only
"""Just enough ELF to load a kernel: program headers, section headers, notes' places.

Own code instead of pyelftools, because the file is hostile: every offset and count is checked before it is used,
nothing is followed, and the time is bounded by the number of headers that are accepted.

Pure; any thread. Source: System V ABI, chapters 4 and 5; public/elfnote.h for what is done with it.
"""

from __future__ import annotations

import struct

import attrs

from dom0.builder.errors import BuildError

EM_386 = 3
EM_X86_64 = 62
PT_LOAD = 1
PT_NOTE = 4
PF_X, PF_W, PF_R = 1, 2, 4
SHT_NOTE = 7
SHT_NOBITS = 8
SHF_ALLOC, SHF_EXECINSTR = 2, 4

_MACHINES = {2: "SPARC", 8: "MIPS", 20: "PowerPC", 21: "PowerPC64", 22: "S/390", 40: "ARM", 183: "ARM64", 243: "RISC-V"}
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_U64 = 1 << 64
_MAX_SEGMENTS = 256
_MAX_SECTIONS = 4096
"""Kernels have about five segments and a hundred sections."""


@attrs.frozen
class ProgramHeader:
    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int

    @property
    def is_loadable(self) -> bool:
        return self.type == PT_LOAD and bool(self.flags & (PF_R | PF_W | PF_X))


@attrs.frozen
class Section:
    name: bytes
    type: int
    flags: int
    addr: int
    offset: int
    size: int

    @property
    def is_code(self) -> bool:
        return self.flags & (SHF_ALLOC | SHF_EXECINSTR) == SHF_ALLOC | SHF_EXECINSTR


@attrs.frozen
class Elf:
    """A checked 64-bit x86 ELF file: the contents of every segment and section lie within `data`."""

    data: bytes = attrs.field(repr=False)
    entry: int
    segments: tuple[ProgramHeader, ...]
    sections: tuple[Section, ...]
    """Empty if the file has no section table or an impossible one: loading does not need it."""

    def contents(self, part: ProgramHeader | Section) -> memoryview:
        size = part.filesz if isinstance(part, ProgramHeader) else part.size
        return memoryview(self.data)[part.offset : part.offset + size]


def is_elf(data: bytes | memoryview) -> bool:
    return bytes(data[:4]) == b"\x7fELF"


def parse(data: bytes, name: str) -> Elf:
    """Check and take apart the ELF file `data`; BuildError (about `name`) if it is not a loadable 64-bit x86 one."""
    if len(data) < _EHDR.size:
        raise BuildError(f"{name}: ELF file of {len(data)} bytes is cut off in its header")
    ident, _, machine, _, entry, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, shstrndx = _EHDR.unpack_from(
        data
    )
    if ident[5] != 1 or ident[4] not in (1, 2):
        raise BuildError(f"{name}: not a little-endian ELF file")
    if ident[4] == 1:
        what = "a 32-bit x86 kernel" if machine == EM_386 else "a 32-bit ELF file"
        raise BuildError(f"{name}: {what}; only 64-bit PV kernels can be booted")
    if machine != EM_X86_64:
        raise BuildError(f"{name}: built for {_MACHINES.get(machine, f'machine type {machine}')}, not for x86-64")
    if phentsize != _PHDR.size or not 0 < phnum <= _MAX_SEGMENTS or phoff + phnum * _PHDR.size > len(data):
        raise BuildError(f"{name}: not a loadable ELF file (it has no usable program headers)")
    segments = tuple(_segment(data, phoff + i * _PHDR.size, name) for i in range(phnum))
    if not any(segment.is_loadable for segment in segments):
        raise BuildError(f"{name}: not a loadable ELF file (it has no segment to load)")
    usable = shentsize == _SHDR.size and 0 < shnum <= _MAX_SECTIONS and shoff + shnum * _SHDR.size <= len(data)
    return Elf(data, entry, segments, _sections(data, shoff, shnum, shstrndx) if usable else ())


def _segment(data: bytes, at: int, name: str) -> ProgramHeader:
    kind, flags, offset, vaddr, paddr, filesz, memsz, _ = _PHDR.unpack_from(data, at)
    header = ProgramHeader(kind, flags, offset, vaddr, paddr, filesz, memsz)
    if header.is_loadable or kind == PT_NOTE:
        if offset + filesz > len(data):
            raise BuildError(f"{name}: ELF file is cut off: a segment ends at {offset + filesz:#x} of {len(data):#x}")
        if header.is_loadable and (filesz > memsz or paddr + memsz > _U64):
            raise BuildError(f"{name}: ELF file is damaged: segment at {paddr:#x} of impossible size {memsz:#x}")
    return header


def _sections(data: bytes, shoff: int, shnum: int, shstrndx: int) -> tuple[Section, ...]:
    headers = [_SHDR.unpack_from(data, shoff + i * _SHDR.size) for i in range(shnum)]
    names = b""
    if shstrndx < shnum:
        _, _, _, _, offset, size, *_ = headers[shstrndx]
        names = data[offset : offset + min(size, 1 << 20)]
    sections = []
    for name_at, kind, flags, addr, offset, size, *_ in headers:
        if kind != SHT_NOBITS and offset + size > len(data):
            continue
        end = names.find(b"\0", name_at, name_at + 64) if name_at < len(names) else -1
        sections.append(Section(names[name_at:end] if end > 0 else b"", kind, flags, addr, offset, size))
    return tuple(sections)
