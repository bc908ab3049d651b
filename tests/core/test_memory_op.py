# SPDX-License-Identifier: GPL-2.0-only
"""memory_op: what a domain owns and may own, ballooning down and up, and what stands in the way."""

from __future__ import annotations

import struct

import msgpack
import pytest

from tests.core import reference
from tests.core.machine import DATA, FREE, MAX_PAGES, PAGES, RW_FLAGS, VA, Machine
from xen_py.abi.xen import DOMID_SELF, INVALID_M2P_ENTRY, Hypercall
from xen_py.frames import FrameTable
from xen_py.memory import GuestMemory, MemoryGeometry
from xen_py.types import Errno, XenError

INCREASE, DECREASE, POPULATE = 0, 1, 6


def reserve(
    machine: Machine, command: int, *extents: int, order: int = 0, owner: int = DOMID_SELF, start: int = 0
) -> int:
    machine.put(DATA, struct.pack("<QQIIHxxxxxx", VA(DATA, 0x100), len(extents), order, 0, owner))
    machine.put(DATA, struct.pack(f"<{len(extents)}Q", *extents), 0x100)
    return machine.call(Hypercall.MEMORY_OP, command | start << 6, VA(DATA))


def extent(machine: Machine, n: int = 0) -> int:
    return int.from_bytes(machine.get(DATA, 8, 0x100 + 8 * n), "little")


def unmap(machine: Machine, *pfns: int) -> None:
    for pfn in pfns:
        assert machine.call(Hypercall.UPDATE_VA_MAPPING, VA(pfn), 0, 2) == 0


def test_questions(machine: Machine) -> None:
    machine.put(DATA, struct.pack("<H", DOMID_SELF))
    assert machine.call(Hypercall.MEMORY_OP, 3, VA(DATA)) == PAGES
    assert machine.call(Hypercall.MEMORY_OP, 4, VA(DATA)) == MAX_PAGES
    machine.put(DATA, struct.pack("<H", 5))
    assert machine.call(Hypercall.MEMORY_OP, 3, VA(DATA)) == -Errno.ESRCH
    assert machine.call(Hypercall.MEMORY_OP, 12, VA(DATA)) == 0
    assert struct.unpack("<3Q", machine.get(DATA, 24))[0] == 0xFFFF800000000000
    machine.put(DATA, struct.pack("<IxxxxQ", 8, VA(DATA, 64)))
    assert machine.call(Hypercall.MEMORY_OP, 9, VA(DATA)) == 0
    assert machine.get(DATA, 4) == b"\1\0\0\0"
    assert struct.unpack("<QQI", machine.get(DATA, 20, 64)) == (0, MAX_PAGES << 12, 1)
    assert machine.call(Hypercall.MEMORY_OP, 63, VA(DATA)) == -Errno.ENOSYS


def test_down_and_up_again(machine: Machine) -> None:
    d = machine.domain
    machine.words(FREE)[0] = 0x1234
    unmap(machine, FREE, FREE + 1)
    assert reserve(machine, DECREASE, machine.mfn(FREE), machine.mfn(FREE + 1)) == 2
    assert d.frames.allocated == PAGES - 2
    assert d.space.m2p[FREE] == INVALID_M2P_ENTRY
    assert reserve(machine, DECREASE, machine.mfn(FREE)) == 0  # gone already
    reference.check(d)
    assert reserve(machine, POPULATE, 0x500, 0x501, 0x502) == 3
    assert [extent(machine, n) for n in range(3)] == [machine.mfn(FREE), machine.mfn(FREE + 1), machine.mfn(PAGES)]
    assert [d.space.m2p[n] for n in (FREE, FREE + 1, PAGES)] == [0x500, 0x501, 0x502]
    assert machine.words(FREE)[0] == 0  # nothing of its earlier life
    reference.check(d)


def test_a_mapped_page_goes_with_its_last_mapping(machine: Machine) -> None:
    d = machine.domain
    assert reserve(machine, DECREASE, machine.mfn(FREE)) == 1
    assert d.frames.allocated == PAGES
    unmap(machine, FREE)
    assert d.frames.allocated == PAGES - 1
    assert machine.call(Hypercall.UPDATE_VA_MAPPING, VA(FREE), machine.entry(FREE, RW_FLAGS), 0) == -Errno.EPERM


def test_limits(machine: Machine) -> None:
    assert reserve(machine, POPULATE, *range(30)) == MAX_PAGES - PAGES
    assert reserve(machine, POPULATE, 1) == 0
    assert reserve(machine, INCREASE, 0) == 0
    unmap(machine, *range(40, 48))
    assert reserve(machine, DECREASE, machine.mfn(40), order=2) == 1
    assert reserve(machine, POPULATE, 0x700, order=3) == 0  # no eight adjoining ones
    assert reserve(machine, POPULATE, 0x700, order=2) == 1
    assert extent(machine) == machine.mfn(40)
    assert [machine.domain.space.m2p[40 + n] for n in range(4)] == [0x700, 0x701, 0x702, 0x703]
    assert reserve(machine, POPULATE, 1, order=10) == 0
    assert reserve(machine, POPULATE, 1, order=0xFFFFFFFF) == 0
    assert reserve(machine, POPULATE, 1, owner=2) == 0
    assert reserve(machine, DECREASE, machine.domain.spec.memory.shared_info_mfn) == 0
    assert reserve(machine, DECREASE, 0, (1 << 64) - 1) == 0
    reference.check(machine.domain)


def test_continuations(machine: Machine) -> None:
    unmap(machine, FREE, FREE + 1, FREE + 2)
    assert reserve(machine, DECREASE, *(machine.mfn(FREE + n) for n in range(3)), start=1) == 3
    assert machine.domain.frames.allocated == PAGES - 2
    assert reserve(machine, DECREASE, machine.mfn(FREE), start=5) == 5
    machine.domain.engine.kick()
    assert reserve(machine, POPULATE, 1, 2) == 0
    assert machine.domain.take_continuation() == (Hypercall.MEMORY_OP, POPULATE | 1 << 6, VA(DATA))
    machine.domain.engine.clear_kick()
    assert machine.call(Hypercall.MEMORY_OP, POPULATE | 1 << 6, VA(DATA)) == 2


def test_frame_table_by_itself() -> None:
    table = FrameTable(GuestMemory.create(MemoryGeometry.for_domain(2000)))
    for n in range(2000):
        assert table.find_free(1) == n
        table.allocate(n)
    with pytest.raises(XenError):
        table.find_free(1)
    for n in (5, 6, 8, 9, 10):
        assert table.put(n)
    assert [table.find_free(n) for n in (1, 2, 3)] == [5, 5, 8]
    table.allocate(5)
    assert [table.find_free(n) for n in (1, 2, 3)] == [6, 8, 8]
    state = msgpack.unpackb(msgpack.packb(table.save()))
    again = FrameTable(GuestMemory.create(MemoryGeometry.for_domain(2000)))
    again.restore(state)
    assert again.save() == table.save()
    assert again.allocated == 1996
    assert again.find_free(1) == 6
