# SPDX-License-Identifier: GPL-2.0-only
"""A kernel image, from a file to something that can be put into a domain's memory.

`load_kernel` reads, unpacks (or finds it unpacked in the cache) and checks; it blocks (xz takes a second), so the host
calls it in a worker thread.
A `KernelImage` is a value: domains that boot the same kernel may share one.

Guest-physical of a segment is p_paddr - PADDR_OFFSET, and its virtual address VIRT_BASE + that: p_vaddr is not used,
because Linux has a per-cpu segment linked at virtual address 0.
"""

from __future__ import annotations

import os
import stat

import attrs

from dom0.builder import bzimage, cache, compression, elf, notes
from dom0.builder.compression import Progress
from dom0.builder.errors import BuildError
from xen_py.types import PAGE_SIZE

MAX_FILE = 1 << 30
"""The largest file that is read (Xen's limit as well; a kernel with its debug symbols is near it)."""
MAX_UNPACKED = 512 << 20
_ADDRESS_MASK = (1 << 64) - 1


@attrs.frozen
class LoadSegment:
    """`filesz` bytes at `offset` of the image go to guest-physical `start`; `memsz` in all, the rest zero."""

    start: int
    memsz: int
    offset: int
    filesz: int


@attrs.frozen
class KernelImage:
    """A checked 64-bit PV kernel. Addresses are guest-physical unless they say otherwise."""

    name: str
    packing: str
    """How it lay in the file, for people: "ELF", "bzImage (xz)", ..."""
    data: bytes = attrs.field(repr=False, eq=False)
    """The unpacked ELF file."""
    segments: tuple[LoadSegment, ...]
    code: tuple[tuple[int, int], ...]
    """Where instructions are: page-aligned (start, end)."""
    start: int
    end: int
    virt_base: int
    entry: int
    """Virtual."""
    notes: notes.XenNotes
    log: tuple[str, ...] = ()


def load_kernel(path: str | os.PathLike[str], progress: Progress | None = None) -> KernelImage:
    """Read the kernel in file `path`; BuildError if it cannot be booted."""
    name = os.fspath(path)
    data = read_file(path, "kernel")
    return parse_elf_kernel(*cache.unpacked(data, lambda: unpack(data, name, progress)), name)


def read_file(path: str | os.PathLike[str], what: str) -> bytes:
    """A whole regular file; BuildError (about `what`) if that cannot be had.

    It is read, not mapped: a file that shrinks under a mapping would kill the host.
    """
    name = os.fspath(path)
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise BuildError(f"{what} {name}: not a regular file")
            if status.st_size > MAX_FILE:
                raise BuildError(f"{what} {name}: {status.st_size >> 20} MiB, more than {MAX_FILE >> 20} MiB")
            return file.read(status.st_size)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BuildError(f"{what} {name}: cannot be read: {reason}") from None


def unpack(data: bytes, name: str, progress: Progress | None = None) -> tuple[bytes, str]:
    """The ELF file in `data` (an ELF file, a bzImage or a compressed one of them), and how it was packed."""
    outer = ""
    if not elf.is_elf(data) and not bzimage.is_bzimage(data):
        packed_as = compression.detect(data)
        if packed_as is None:
            raise BuildError(f"{name}: not a kernel (neither an ELF file nor a bzImage)")
        data = compression.decompress(data, MAX_UNPACKED, what=name, progress=progress)
        outer = f" ({packed_as})"
    if elf.is_elf(data):
        return data, "ELF" + outer
    if not bzimage.is_bzimage(data):
        raise BuildError(f"{name}: not a kernel (unpacks to neither an ELF file nor a bzImage)")
    payload = bzimage.payload(data, name)
    if elf.is_elf(payload):
        return bytes(payload), f"bzImage{outer}"
    inner = compression.detect(payload)
    data = compression.decompress(payload, MAX_UNPACKED, what=name, progress=progress)
    if not elf.is_elf(data):
        raise BuildError(f"{name}: the bzImage does not hold an ELF file")
    return data, f"bzImage ({inner}){outer}"


def parse_kernel(data: bytes, name: str, progress: Progress | None = None) -> KernelImage:
    """As `load_kernel`, for a kernel in memory."""
    return parse_elf_kernel(*unpack(data, name, progress), name)


def parse_elf_kernel(data: bytes, packing: str, name: str) -> KernelImage:
    """The kernel whose unpacked ELF file is `data`."""
    file = elf.parse(data, name)
    wishes = notes.parse(file, name)
    virt_base = wishes.virt_base or 0
    paddr_offset = wishes.paddr_offset or 0
    loadable = [s for s in file.segments if s.is_loadable]
    low = min(s.paddr for s in loadable)
    high = max(s.paddr + s.memsz for s in loadable)
    if low < paddr_offset:
        raise BuildError(f"{name}: ELF file is damaged: it starts at {low:#x}, below PADDR_OFFSET {paddr_offset:#x}")
    if low - paddr_offset & PAGE_SIZE - 1 or virt_base & PAGE_SIZE - 1:
        raise BuildError(f"{name}: ELF file is damaged: it does not start at a page boundary ({low:#x})")
    if sum(s.memsz for s in loadable) > 2 * (high - low):
        raise BuildError(f"{name}: ELF file is damaged: its segments overlap")
    start, end = low - paddr_offset, high - paddr_offset
    entry = file.entry if wishes.entry is None else wishes.entry
    if virt_base + end > _ADDRESS_MASK or not virt_base + start <= entry < virt_base + end:
        raise BuildError(
            f"{name}: ELF file is damaged: entry {entry:#x} is not within {virt_base + start:#x}-{virt_base + end:#x}"
        )
    log = [f"phdr: paddr={s.paddr:#x} memsz={s.memsz:#x}" for s in loadable]
    log.append(f"memory: {low:#x} -> {high:#x}")
    log += wishes.log
    log += [
        f"virt_base        = {virt_base:#x}",
        f"elf_paddr_offset = {paddr_offset:#x}",
        f"virt_offset      = {virt_base - paddr_offset & _ADDRESS_MASK:#x}",
        f"virt_kstart      = {virt_base + start:#x}",
        f"virt_kend        = {virt_base + end:#x}",
        f"virt_entry       = {entry:#x}",
        f"p2m_base         = {_ADDRESS_MASK if wishes.init_p2m is None else wishes.init_p2m:#x}",
    ]
    return KernelImage(
        name=name,
        packing=packing,
        data=data,
        segments=tuple(LoadSegment(s.paddr - paddr_offset, s.memsz, s.offset, s.filesz) for s in loadable),
        code=_code_pages(file, loadable, paddr_offset, entry - virt_base),
        start=start,
        end=end,
        virt_base=virt_base,
        entry=entry,
        notes=wishes,
        log=tuple(log),
    )


def _code_pages(
    file: elf.Elf, loadable: list[elf.ProgramHeader], paddr_offset: int, entry: int
) -> tuple[tuple[int, int], ...]:
    """Pages that hold instructions, as guest-physical ranges.

    They are those of the executable segments; where the section table names the code within such a segment, only
    that: Linux's init segment is executable, but all of its BSS is in it. If the entry point were not covered,
    the flags would be of no use, and everything counts as code.
    """
    ranges = []
    for segment in loadable:
        if not segment.flags & elf.PF_X:
            continue
        base = segment.paddr - paddr_offset
        inside = [
            (base + s.addr - segment.vaddr, base + s.addr - segment.vaddr + s.size)
            for s in file.sections
            if s.is_code and s.size and segment.vaddr <= s.addr and s.addr + s.size <= segment.vaddr + segment.memsz
        ]
        ranges += inside or [(base, base + segment.memsz)]
    if not any(start <= entry < end for start, end in ranges):
        ranges = [(s.paddr - paddr_offset, s.paddr - paddr_offset + s.memsz) for s in loadable]
    pages: list[tuple[int, int]] = []
    for start, end in sorted((a & -PAGE_SIZE, b + PAGE_SIZE - 1 & -PAGE_SIZE) for a, b in ranges):
        if pages and start <= pages[-1][1]:
            pages[-1] = (pages[-1][0], max(end, pages[-1][1]))
        else:
            pages.append((start, end))
    return tuple(pages)
