# SPDX-License-Identifier: GPL-2.0-only
"""Where everything lies in a new domain: numbers in, segment table out.

Pure, and table-tested against what real Xen logs. The order is part of the ABI (public/xen.h, "Start-of-day memory
layout"): kernel, ramdisk if mapped, p2m list if the kernel names no place for it, start_info, xenstore page, console
page, page tables, boot stack, padding of at least 512 KiB to a 4 MiB boundary. All of that is mapped from the
kernel's virtual base on, PFN 0 at the base. Behind it, unmapped, a ramdisk whose kernel allows that, and last the p2m
list where the kernel wants it mapped elsewhere, with the page tables of that mapping.
"""

from __future__ import annotations

import attrs

from dom0.builder.errors import BuildError
from xen_py.types import PAGE_SHIFT, PAGE_SIZE

LEVELS = 4
_INDEX_BITS = 9
_PADDING_PAGES = (512 << 10) // PAGE_SIZE
_ALIGN_MASK = (4 << 20) - 1
_VA48 = (1 << 48) - 1
_HYPERVISOR_SLOTS = range(256, 272)
"""L4 entries that belong to Xen."""


@attrs.frozen
class Segment:
    name: str
    vstart: int
    vend: int
    pfn: int
    pages: int

    def __str__(self) -> str:
        return f"{self.name:<13}: {self.vstart:#x} -> {self.vend:#x}  (pfn {self.pfn:#x} + {self.pages:#x} pages)"


@attrs.frozen
class TableRun:
    """`count` page tables of one level, in consecutive frames from `pfn` on.

    Table i covers the 48-bit virtual addresses whose bits from 12 + 9 * level up equal `first + i`.
    """

    level: int
    first: int
    count: int
    pfn: int

    def __str__(self) -> str:
        bits = PAGE_SHIFT + self.level * _INDEX_BITS
        last = ((self.first + self.count) << bits) - 1
        return f"level {self.level}: {self.first << bits:#018x} -> {last:#018x}, {self.count} table(s)"


@attrs.frozen
class Mapping:
    """Virtual addresses `va` on are mapped to `pages` frames from `pfn` on, with `tables` made for it."""

    va: int
    pages: int
    pfn: int
    tables: tuple[TableRun, ...]

    @property
    def table_pages(self) -> int:
        return sum(run.count for run in self.tables)


@attrs.frozen
class Layout:
    segments: tuple[Segment, ...]
    """In memory order."""
    mappings: tuple[Mapping, ...]
    """The kernel's, then the p2m list's if it has one of its own."""
    virt_alloc_end: int
    virt_pgtab_end: int
    pages: int
    """PFNs from 0 up to here are in use."""

    def __getitem__(self, name: str) -> Segment:
        return next(segment for segment in self.segments if segment.name == name)

    def __contains__(self, name: str) -> bool:
        return any(segment.name == name for segment in self.segments)

    @property
    def log(self) -> tuple[str, ...]:
        lines = [str(segment) for segment in self.segments]
        lines += [str(run) for mapping in self.mappings for run in mapping.tables]
        lines.append(f"virt_alloc_end : {self.virt_alloc_end:#x}")
        lines.append(f"virt_pgtab_end : {self.virt_pgtab_end:#x}")
        return tuple(lines)


@attrs.define
class _Allocator:
    """The two ends of what has been given out; virtual and physical grow together."""

    virt: int
    pfn: int = 0
    segments: list[Segment] = attrs.Factory(list)

    def take(self, name: str, size: int) -> Segment:
        pages = -(-size // PAGE_SIZE)
        segment = Segment(name, self.virt, self.virt + size, self.pfn, pages)
        self.segments.append(segment)
        self.skip(pages)
        return segment

    def skip(self, pages: int) -> None:
        self.pfn += pages
        self.virt += pages * PAGE_SIZE


def plan(
    *,
    virt_base: int,
    kernel_start: int,
    kernel_end: int,
    init_p2m: int | None,
    ramdisk_size: int | None,
    ramdisk_unmapped: bool,
    nr_pages: int,
) -> Layout:
    """Lay out a domain of `nr_pages`; kernel addresses are guest-physical, page-aligned at the start."""
    least = max(kernel_end, 0) + (ramdisk_size or 0)
    if least > nr_pages << PAGE_SHIFT:
        raise _too_little(least, nr_pages)
    _check_virtual(virt_base, virt_base + least)
    p2m_size = nr_pages * 8
    if init_p2m is not None and (init_p2m >= virt_base or init_p2m % PAGE_SIZE):
        init_p2m = None

    alloc = _Allocator(virt_base)
    alloc.skip(kernel_start >> PAGE_SHIFT)
    alloc.take("kernel", kernel_end - kernel_start)
    if ramdisk_size is not None and not ramdisk_unmapped:
        alloc.take("ramdisk", ramdisk_size)
    if init_p2m is None:
        alloc.take("phys2mach", p2m_size)
    for name in ("start info", "xenstore", "console"):
        alloc.take(name, PAGE_SIZE)
    end, tables = _initial_tables(virt_base, alloc)
    alloc.take("page tables", sum(run.count for run in tables) * PAGE_SIZE)
    alloc.take("boot stack", PAGE_SIZE)
    virt_alloc_end = alloc.virt
    mappings = [Mapping(virt_base, end - virt_base >> PAGE_SHIFT, 0, tables)]
    alloc.skip(end - alloc.virt >> PAGE_SHIFT)
    _check_virtual(virt_base, end)
    if ramdisk_size is not None and ramdisk_unmapped:
        alloc.take("ramdisk", ramdisk_size)
    if init_p2m is not None:
        mappings.append(_p2m_mapping(init_p2m, p2m_size, alloc.pfn, mappings[0]))
        alloc.take("phys2mach", (mappings[1].pages + mappings[1].table_pages) * PAGE_SIZE)
    if alloc.pfn > nr_pages:
        raise _too_little(alloc.pfn << PAGE_SHIFT, nr_pages)
    return Layout(tuple(alloc.segments), tuple(mappings), virt_alloc_end, end, alloc.pfn)


def _too_little(needed: int, nr_pages: int) -> BuildError:
    megabytes = -(-needed // (1 << 20))
    return BuildError(
        f"too little memory: the kernel and its ramdisk need at least {megabytes} MiB and the domain has"
        f" {nr_pages >> 8} MiB; give it more (memory = ...)"
    )


def _check_virtual(start: int, end: int) -> None:
    """All of [start, end) must be addresses that exist and are the guest's."""
    high = start >> 47 == (1 << 17) - 1 and end <= 1 << 64
    low = start >> 47 == 0 and end <= 1 << 47
    if not (low or high) or not set(_slots(start, end)).isdisjoint(_HYPERVISOR_SLOTS):
        raise BuildError(f"the kernel cannot be mapped at {start:#x}-{end:#x}: these addresses are not a guest's")


def _slots(start: int, end: int) -> range:
    """L4 slots of [start, end)."""
    return range((start & _VA48) >> 39, ((end - 1 & _VA48) >> 39) + 1)


def _tables_for(va: int, end: int, pfn: int, present: tuple[TableRun, ...]) -> tuple[TableRun, ...]:
    """The tables, in frames from `pfn` on, that [va, end) needs and `present` does not have; top level first."""
    first, last = va & _VA48, end - 1 & _VA48
    runs: list[TableRun] = []
    for level in range(LEVELS, 0, -1):
        bits = PAGE_SHIFT + level * _INDEX_BITS
        have = {i for run in present if run.level == level for i in range(run.first, run.first + run.count)}
        for i in range(first >> bits, (last >> bits) + 1):
            if i in have:
                continue
            if runs and runs[-1].level == level and runs[-1].first + runs[-1].count == i:
                runs[-1] = attrs.evolve(runs[-1], count=runs[-1].count + 1)
            else:
                runs.append(TableRun(level, i, 1, pfn))
            pfn += 1
    return tuple(runs)


def _initial_tables(virt_base: int, alloc: _Allocator) -> tuple[int, tuple[TableRun, ...]]:
    """Where the initial mapping ends, and its tables: they must lie in what they map, and they make it longer."""
    room = 1 + _PADDING_PAGES
    pages = room
    while True:
        end = (alloc.virt + pages * PAGE_SIZE | _ALIGN_MASK) + 1
        tables = _tables_for(virt_base, end, alloc.pfn, ())
        pages = sum(run.count for run in tables) + room
        if alloc.virt + pages * PAGE_SIZE <= end:
            return end, tables


def _p2m_mapping(va: int, size: int, pfn: int, kernel: Mapping) -> Mapping:
    """The p2m list mapped at `va`: its pages, then the tables that the kernel's mapping does not have."""
    pages = -(-size // PAGE_SIZE)
    end = va + pages * PAGE_SIZE
    if va < kernel.va + kernel.pages * PAGE_SIZE and end > kernel.va:
        raise BuildError(f"the kernel wants its p2m list at {va:#x}, where it would overlap the kernel itself")
    _check_virtual(va, end)
    return Mapping(va, pages, pfn, _tables_for(va, end, pfn + pages, kernel.tables))
