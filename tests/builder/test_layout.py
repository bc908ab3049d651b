# SPDX-License-Identifier: GPL-2.0-only
"""The memory layout: against what the builder of Xen 4.17 logged, and what cannot be laid out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dom0.builder.errors import BuildError
from dom0.builder.layout import Layout, TableRun, plan
from xen_py.types import PAGE_SIZE

BASE = 0xFFFFFFFF80000000
P2M = 0x8000000000


def lay_out(**changes: int | bool | None) -> Layout:
    numbers: dict[str, int | bool | None] = {
        "virt_base": BASE,
        "kernel_start": 0x1000000,
        "kernel_end": 0x4A00000,
        "init_p2m": P2M,
        "ramdisk_size": 0x437210,
        "ramdisk_unmapped": True,
        "nr_pages": 0x8000,
    }
    return plan(**{**numbers, **changes})  # type: ignore[arg-type]


def table(layout: Layout) -> list[tuple[str, int, int, int, int]]:
    return [(s.name, s.vstart, s.vend, s.pfn, s.pages) for s in layout.segments]


def test_as_xen_logged_it() -> None:
    """Debian's Linux 6.1.192 with 128 MiB: every segment of Xen 4.17.7's domainbuilder log."""
    layout = lay_out()
    assert table(layout) == [
        ("kernel", 0xFFFFFFFF81000000, 0xFFFFFFFF84A00000, 0x1000, 0x3A00),
        ("start info", 0xFFFFFFFF84A00000, 0xFFFFFFFF84A01000, 0x4A00, 1),
        ("xenstore", 0xFFFFFFFF84A01000, 0xFFFFFFFF84A02000, 0x4A01, 1),
        ("console", 0xFFFFFFFF84A02000, 0xFFFFFFFF84A03000, 0x4A02, 1),
        ("page tables", 0xFFFFFFFF84A03000, 0xFFFFFFFF84A2C000, 0x4A03, 0x29),
        ("boot stack", 0xFFFFFFFF84A2C000, 0xFFFFFFFF84A2D000, 0x4A2C, 1),
        ("ramdisk", 0xFFFFFFFF84C00000, 0xFFFFFFFF85037210, 0x4C00, 0x438),
        ("phys2mach", 0xFFFFFFFF85038000, 0xFFFFFFFF8507B000, 0x5038, 0x43),
    ]
    assert layout.virt_alloc_end == 0xFFFFFFFF84A2D000
    assert layout.virt_pgtab_end == 0xFFFFFFFF84C00000
    assert layout.pages == 0x5038 + 0x43
    kernel, p2m = layout.mappings
    assert kernel.tables == (
        TableRun(4, 0, 1, 0x4A03),
        TableRun(3, 0xFF8000000000 >> 39, 1, 0x4A04),
        TableRun(2, 0xFFFF80000000 >> 30, 1, 0x4A05),
        TableRun(1, 0xFFFF80000000 >> 21, 38, 0x4A06),
    )
    assert (p2m.va, p2m.pages, p2m.pfn) == (P2M, 0x40, 0x5038)
    assert p2m.tables == (
        TableRun(3, P2M >> 39, 1, 0x5078),
        TableRun(2, P2M >> 30, 1, 0x5079),
        TableRun(1, P2M >> 21, 1, 0x507A),
    )
    assert "kernel       : 0xffffffff81000000 -> 0xffffffff84a00000  (pfn 0x1000 + 0x3a00 pages)" in layout.log


def test_mapped_ramdisk_and_p2m_list() -> None:
    """A kernel that asks for neither place: ramdisk and p2m list follow the kernel, all mapped."""
    layout = lay_out(init_p2m=None, ramdisk_unmapped=False)
    names = [s.name for s in layout.segments]
    assert names == ["kernel", "ramdisk", "phys2mach", "start info", "xenstore", "console", "page tables", "boot stack"]
    assert layout["ramdisk"].vstart == 0xFFFFFFFF84A00000
    assert layout["phys2mach"].pfn == 0x4A00 + 0x438
    assert layout["phys2mach"].pages == 0x40
    assert len(layout.mappings) == 1
    assert layout.pages == layout.mappings[0].pages == layout.virt_pgtab_end - BASE >> 12


def test_without_ramdisk() -> None:
    layout = lay_out(ramdisk_size=None)
    assert "ramdisk" not in layout
    assert layout["phys2mach"].pfn == 0x4C00


@pytest.mark.parametrize("init_p2m", [BASE, BASE + 0x10000000, P2M + 1, P2M + 0x800])
def test_unusable_p2m_places_are_ignored(init_p2m: int) -> None:
    """As Xen does: above the kernel's base, or not at a page boundary."""
    assert lay_out(init_p2m=init_p2m) == lay_out(init_p2m=None)


def test_p2m_list_next_to_the_kernel_shares_its_tables() -> None:
    layout = lay_out(init_p2m=BASE - 0x40000000, nr_pages=0x8000)
    assert [run.level for run in layout.mappings[1].tables] == [2, 1]
    layout = lay_out(init_p2m=0x40000000 - 0x40000, virt_base=0x40000000)
    assert [(run.level, run.count) for run in layout.mappings[1].tables] == [(2, 1), (1, 1)]


@pytest.mark.parametrize(
    ("kernel_end", "first_end", "tables"),
    [
        # 512 KiB of padding, the stack and the tables still fit below the 4 MiB boundary, or just do not
        (0x1400000 - 0x80000 - 20 * PAGE_SIZE, 0x1400000, 13),
        (0x1400000 - 0x80000 - 16 * PAGE_SIZE, 0x1800000, 15),
        (0x1400000 - 0x80000, 0x1800000, 15),
    ],
)
def test_padding(kernel_end: int, first_end: int, tables: int) -> None:
    layout = lay_out(kernel_end=kernel_end)
    assert layout.virt_pgtab_end == BASE + first_end
    assert layout["page tables"].pages == tables


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({"kernel_end": 0x9000000}, "need at least 149 MiB and the domain has 128 MiB"),
        ({"ramdisk_size": 100 << 20}, "need at least 174 MiB and the domain has 128 MiB"),
        ({"kernel_end": 0x7F80000, "ramdisk_size": None}, "need at least 133 MiB and the domain has 128 MiB"),
        ({"nr_pages": 0x100}, "the domain has 1 MiB"),
        ({"kernel_end": 1 << 60}, "too little memory"),
    ],
)
def test_too_little_memory(changes: dict[str, int], needed: str) -> None:
    with pytest.raises(BuildError, match=f"too little memory.*{needed}|{needed}"):
        lay_out(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"virt_base": 0xFFFF800000000000},
        {"virt_base": 0xFFFF7FFFFFFFF000},
        {"virt_base": 0x0000900000000000},
        {"virt_base": 0x00007FFFFF000000},
        {"virt_base": 0xFFFFFFFFFE000000},
        {"init_p2m": 0xFFFF800000000000},
        {"init_p2m": 0xFFFF87FFFFFFF000},
        {"init_p2m": 0x1000000000000},
    ],
)
def test_addresses_that_are_not_a_guests(changes: dict[str, int]) -> None:
    with pytest.raises(BuildError, match="these addresses are not a guest's"):
        lay_out(**changes)


def test_p2m_list_over_the_kernel() -> None:
    with pytest.raises(BuildError, match="would overlap the kernel"):
        lay_out(init_p2m=BASE - PAGE_SIZE)


@settings(max_examples=200, deadline=None)
@given(
    virt_base=st.sampled_from([0, 0x40000000, P2M, 0xFFFF880000000000, 0xFFFFFFFF80000000, 0xFFFFFFFFFF000000]),
    start=st.integers(0, 0x3000),
    pages=st.integers(1, 0x3000),
    ramdisk=st.one_of(st.none(), st.integers(1, 4 << 20)),
    unmapped=st.booleans(),
    init_p2m=st.one_of(st.none(), st.integers(0, 2**52 - 1).map(lambda page: page << 12)),
    nr_pages=st.integers(1, 0x8000),
)
def test_any_layout_holds_together(
    virt_base: int, start: int, pages: int, ramdisk: int | None, unmapped: bool, init_p2m: int | None, nr_pages: int
) -> None:
    try:
        layout = plan(
            virt_base=virt_base,
            kernel_start=start << 12,
            kernel_end=(start + pages) << 12,
            init_p2m=init_p2m,
            ramdisk_size=ramdisk,
            ramdisk_unmapped=unmapped,
            nr_pages=nr_pages,
        )
    except BuildError:
        return
    end = 0
    for segment in layout.segments:
        assert segment.pfn >= end, "segments do not overlap"
        end = segment.pfn + segment.pages
    assert end <= layout.pages <= nr_pages
    runs = [run for mapping in layout.mappings for run in mapping.tables]
    tables = {(run.level, run.first + i) for run in runs for i in range(run.count)}
    assert len(tables) == sum(run.count for run in runs), "no table is made twice"
    for mapping in layout.mappings:
        for page in (0, mapping.pages - 1):
            va = mapping.va + page * PAGE_SIZE & (1 << 48) - 1
            assert all((level, va >> 12 + 9 * level) in tables for level in range(1, 5))
