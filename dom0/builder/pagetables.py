# SPDX-License-Identifier: GPL-2.0-only
"""The initial page tables, written into the domain's memory as the layout says.

Everything is mapped readable and writable but the page tables themselves (they are typed, and read-only to the
guest), and non-executable but for the kernel's code: real Xen maps all of it executable, but the emulator checks each
store to an executable page for translated code, which made a quarter of a Linux boot.

Only what the builder owns is written: entries carry no USER or GUEST_KERNEL bit yet and Xen's L4 slots stay zero,
because validating the tables (by pinning the L4) is the hypervisor's work. Called before the domain exists.
"""

from __future__ import annotations

from array import array

from dom0.builder.layout import Layout, Mapping, TableRun
from xen_py.memory import GuestMemory
from xen_py.types import PAGE_SHIFT, PAGE_SIZE

_PRESENT = 1 << 0
_RW = 1 << 1
_USER = 1 << 2
_ACCESSED = 1 << 5
_DIRTY = 1 << 6
_NX = 1 << 63
_LEAF = _PRESENT | _RW | _ACCESSED
_TABLE = _PRESENT | _RW | _ACCESSED | _DIRTY | _USER
_ENTRIES = 512
_VA48 = (1 << 48) - 1


def write(layout: Layout, code: tuple[tuple[int, int], ...], memory: GuestMemory) -> None:
    """Write all tables of `layout`; `code` is page-aligned guest-physical (start, end) ranges."""
    mfn_base = memory.geometry.mfn_base
    runs = [run for mapping in layout.mappings for run in mapping.tables]
    tables = {(run.level, run.first + i): run.pfn + i for run in runs for i in range(run.count)}
    for pfn in tables.values():
        memory.words[pfn * _ENTRIES : (pfn + 1) * _ENTRIES] = _EMPTY
    for (level, number), pfn in tables.items():
        if level < 4:
            parent = tables[level + 1, number >> 9]
            memory.words[parent * _ENTRIES + (number & _ENTRIES - 1)] = (mfn_base + pfn) << PAGE_SHIFT | _TABLE
    for mapping in layout.mappings:
        leaves = _leaves(mapping, mfn_base, code, runs)
        number, slot = divmod((mapping.va & _VA48) >> PAGE_SHIFT, _ENTRIES)
        done = 0
        while done < mapping.pages:
            count = min(_ENTRIES - slot, mapping.pages - done)
            at = tables[1, number] * _ENTRIES + slot
            memory.words[at : at + count] = leaves[done : done + count]
            done += count
            number, slot = number + 1, 0


_EMPTY = array("Q", bytes(PAGE_SIZE))


def _leaves(mapping: Mapping, mfn_base: int, code: tuple[tuple[int, int], ...], runs: list[TableRun]) -> memoryview:
    """The L1 entries of a mapping, first page first."""
    leaves = array("Q")
    page = mapping.pfn
    end = mapping.pfn + mapping.pages
    for start, stop, flags in sorted(_exceptions(code, runs)):
        if stop <= page or start >= end:
            continue
        leaves.extend(_entries(mfn_base, page, max(start, page), _LEAF | _NX))
        page = max(start, page)
        leaves.extend(_entries(mfn_base, page, min(stop, end), flags))
        page = min(stop, end)
    leaves.extend(_entries(mfn_base, page, end, _LEAF | _NX))
    return memoryview(leaves)


def _exceptions(code: tuple[tuple[int, int], ...], runs: list[TableRun]) -> list[tuple[int, int, int]]:
    """(first PFN, PFN after the last, flags) of pages that are not plain data; they do not overlap."""
    executable = [(start >> PAGE_SHIFT, end >> PAGE_SHIFT, _LEAF) for start, end in code]
    read_only = [(run.pfn, run.pfn + run.count, _LEAF & ~_RW | _NX) for run in runs]
    return executable + read_only


def _entries(mfn_base: int, page: int, end: int, flags: int) -> range:
    return range((mfn_base + page) << PAGE_SHIFT | flags, (mfn_base + end) << PAGE_SHIFT | flags, PAGE_SIZE)
