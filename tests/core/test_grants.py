# SPDX-License-Identifier: GPL-2.0-only
"""Grant tables: every sub-operation of grant_table_op with its statuses, and the granting side against a model."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.core.machine import CODE, DATA, FREE, L1, PAGES, RO_FLAGS, RW_FLAGS, VA, Machine, build_machine
from xen_py.abi import grant_table as abi
from xen_py.abi.grant_table import GnttabOp, GrantFlag, GrantStatus, MapFlag
from xen_py.abi.xen import DOMID_SELF, HYPERVISOR_VIRT_START, Hypercall
from xen_py.frames import FrameType
from xen_py.grants import GrantError
from xen_py.maptrack import HANDLES_PER_FRAME, Mapping, Maptrack
from xen_py.types import DomId, Errno, GrantRef

ME, DOM0, OTHER, NOBODY = DomId(1), DomId(0), DomId(2), DomId(77)
OKAY, ERROR, NO_DOMAIN, BAD_REF = 0, -1, -2, -3
BAD_HANDLE, BAD_ADDRESS, BAD_BUS, DENIED, BAD_PAGE, BAD_COPY, BUSY, FULL = -4, -5, -6, -8, -9, -10, -12, -13
PERMIT, READONLY, READING, WRITING = 1, 4, 8, 0x10
HOST, DEVICE, RO = MapFlag.HOST, MapFlag.DEVICE, MapFlag.READONLY
REF = 9


def grant(machine: Machine, ref: int, pfn: int, domid: int = ME, flags: int = PERMIT, mfn: int | None = None) -> None:
    """The guest writes an entry."""
    table = machine.memory.frame(machine.memory.geometry.grant_mfn(ref // 512))
    abi.entry_v1.pack_into(table, ref % 512 * 8, flags, domid, machine.mfn(pfn) if mfn is None else mfn)


def flags_of(machine: Machine, ref: int = REF) -> int:
    return machine.domain.grants.entry(ref)[0]


def operate(machine: Machine, command: int, layout: struct.Struct, *fields: int) -> tuple[int, ...]:
    """One operation that must not fail as a call; its fields afterwards."""
    machine.put(DATA, layout.pack(*fields))
    assert machine.call(Hypercall.GRANT_TABLE_OP, command, VA(DATA), 1) == 0
    return layout.unpack(machine.get(DATA, layout.size))


def map_grant(
    machine: Machine, address: int, flags: int = HOST, ref: int = REF, owner: int = ME
) -> tuple[int, int, int]:
    """Status, handle, bus address."""
    fields = operate(machine, GnttabOp.MAP_GRANT_REF, abi.map_grant_ref, address, flags, ref, owner, 99, 7777, 8888)
    assert fields[:4] == (address, flags, ref, owner)
    return fields[4:]  # type: ignore[return-value]


def mapped(machine: Machine, address: int, flags: int = HOST, ref: int = REF) -> int:
    status, handle, bus = map_grant(machine, address, flags, ref)
    assert (status, bus) == (OKAY, machine.domain.grants.entry(ref)[2] << 12)
    return handle


def unmap(machine: Machine, handle: int, address: int = 0, bus: int = 0) -> int:
    fields = operate(machine, GnttabOp.UNMAP_GRANT_REF, abi.unmap_grant_ref, address, bus, handle, 99)
    assert fields[:3] == (address, bus, handle)
    return fields[3]


def replace(machine: Machine, handle: int, address: int, new_address: int) -> int:
    return operate(machine, GnttabOp.UNMAP_AND_REPLACE, abi.unmap_grant_ref, address, new_address, handle, 99)[3]


def counts(machine: Machine, pfn: int) -> tuple[int, int]:
    frames = machine.domain.frames
    return frames.refs[pfn], frames.type_counts[pfn]


PLACE = FREE + 20
"""A page whose address mappings are put at; its own frame loses that mapping."""
GRANTED = FREE


# mapping


@pytest.mark.parametrize(
    ("flags", "marks", "references", "types"),
    [
        (HOST, READING | WRITING, 1, 1),
        (HOST | RO, READING, 1, 0),
        (DEVICE, READING | WRITING, 1, 1),
        (DEVICE | RO, READING, 1, 0),
        (HOST | DEVICE, READING | WRITING, 2, 2),
        (HOST | DEVICE | RO, READING, 2, 0),
    ],
)
def test_map_and_unmap(machine: Machine, flags: int, marks: int, references: int, types: int) -> None:
    grant(machine, REF, GRANTED)
    before = counts(machine, GRANTED)
    handle = mapped(machine, VA(PLACE), flags)
    assert flags_of(machine) == PERMIT | marks
    assert counts(machine, GRANTED) == (before[0] + references, before[1] + types)
    if flags & HOST:
        entry = machine.words(L1)[PLACE]
        assert entry >> 12 & 0xFFFFFFF == machine.mfn(GRANTED)
        assert bool(entry & 2) == (not flags & RO)
        assert entry >> 63, "a grant is not executable"
    bus = machine.mfn(GRANTED) << 12
    assert unmap(machine, handle, VA(PLACE), bus) == OKAY
    assert flags_of(machine) == PERMIT
    assert counts(machine, GRANTED) == before
    assert machine.domain.grants.active == {}
    assert unmap(machine, handle, VA(PLACE)) == BAD_HANDLE
    if flags & HOST:
        assert machine.words(L1)[PLACE] == 0


def test_guest_uses_a_mapping(machine: Machine) -> None:
    machine.put(GRANTED, b"granted bytes")
    grant(machine, REF, GRANTED)
    handle = mapped(machine, VA(PLACE))
    access = machine.domain.access
    assert access.read(VA(PLACE), 13) == b"granted bytes"
    access.write(VA(PLACE), b"Granted")
    assert machine.get(GRANTED, 13) == b"Granted bytes"
    assert unmap(machine, handle, VA(PLACE)) == OKAY
    assert machine.call(Hypercall.GRANT_TABLE_OP, GnttabOp.QUERY_SIZE, VA(PLACE), 1) == -Errno.EFAULT


@pytest.mark.parametrize(
    ("entry", "flags", "ref", "owner", "status"),
    [
        ((PERMIT, ME), 0, REF, NOBODY, BAD_REF),  # no mapping asked for comes first
        ((PERMIT, ME), RO, REF, ME, BAD_REF),
        ((PERMIT, ME), HOST, REF, NOBODY, NO_DOMAIN),
        ((PERMIT, ME), HOST, REF, DOMID_SELF, NO_DOMAIN),
        ((PERMIT, ME), HOST, REF, DOM0, ERROR),
        ((PERMIT, ME), HOST, 512, DOM0, BAD_REF),
        ((PERMIT, ME), HOST, 512, ME, BAD_REF),
        ((PERMIT, ME), HOST, 0xFFFFFFFF, ME, BAD_REF),
        ((PERMIT, OTHER), HOST, REF, ME, ERROR),
        ((PERMIT, DOMID_SELF), HOST, REF, ME, ERROR),
        ((0, ME), HOST, REF, ME, ERROR),
        ((2, ME), HOST, REF, ME, ERROR),
        ((3, ME), HOST, REF, ME, ERROR),
        ((PERMIT | GrantFlag.SUB_PAGE, ME), HOST, REF, ME, ERROR),
        ((PERMIT | READONLY, ME), HOST, REF, ME, ERROR),
        ((PERMIT | READONLY, ME), HOST | RO, REF, ME, OKAY),
        ((PERMIT | READING | WRITING, ME), HOST, REF, ME, OKAY),
    ],
)
def test_map_status(machine: Machine, entry: tuple[int, int], flags: int, ref: int, owner: int, status: int) -> None:
    grant(machine, REF, GRANTED, entry[1], entry[0])
    before = counts(machine, GRANTED), machine.domain.maptrack.statistics()["mappings"]
    result, handle, bus = map_grant(machine, VA(PLACE), flags, ref, owner)
    assert result == status
    if status != OKAY:
        assert (handle, bus) == (7777, 8888)
        assert flags_of(machine) == entry[0]
        assert (counts(machine, GRANTED), machine.domain.maptrack.statistics()["mappings"]) == before
        assert machine.domain.grants.active == {}


@pytest.mark.parametrize("mfn", [0, 5, 0xFFFFFFFF])
def test_map_of_a_frame_that_is_not_the_granters(machine: Machine, mfn: int) -> None:
    grant(machine, REF, GRANTED, mfn=mfn)
    assert map_grant(machine, VA(PLACE))[0] == BAD_PAGE
    assert flags_of(machine) == PERMIT


@pytest.mark.parametrize(
    ("address", "flags"),
    [
        (0x1000, HOST),  # no page table there
        (HYPERVISOR_VIRT_START, HOST),
        (1 << 47, HOST),
        (0x1000 + 4, HOST | MapFlag.CONTAINS_PTE),
        (0x1000, HOST | MapFlag.CONTAINS_PTE),
        (1 << 63, HOST | MapFlag.CONTAINS_PTE),
        (0, HOST | DEVICE),
    ],
)
def test_map_at_an_address_without_a_page_table(machine: Machine, address: int, flags: int) -> None:
    grant(machine, REF, GRANTED)
    before = counts(machine, GRANTED)
    assert map_grant(machine, address, flags)[0] == ERROR
    assert (flags_of(machine), counts(machine, GRANTED)) == (PERMIT, before)


def test_map_by_page_table_entry(machine: Machine) -> None:
    grant(machine, REF, GRANTED)
    flags = HOST | MapFlag.CONTAINS_PTE | MapFlag.APPLICATION | 5 << 16
    handle = mapped(machine, machine.l1_pointer(PLACE), flags)
    assert machine.words(L1)[PLACE] & 0xE07 == 0xA07  # present, writable, user, two of the available bits
    assert replace(machine, handle, machine.l1_pointer(PLACE), VA(PLACE + 1)) == ERROR
    assert unmap(machine, handle, machine.l1_pointer(PLACE)) == OKAY
    grant(machine, REF, GRANTED)
    frame_of_data = machine.l1_pointer(0) - (machine.mfn(L1) << 12) + (machine.mfn(DATA) << 12)
    assert map_grant(machine, frame_of_data, flags)[0] == ERROR, "not an L1 table"


def test_page_tables_may_be_granted_read_only(machine: Machine) -> None:
    grant(machine, REF, L1)
    assert map_grant(machine, VA(PLACE))[0] == ERROR
    assert map_grant(machine, VA(PLACE), DEVICE)[0] == ERROR
    assert flags_of(machine) == PERMIT
    handle = mapped(machine, VA(PLACE), HOST | RO)
    assert unmap(machine, handle, VA(PLACE)) == OKAY


def test_what_was_checked_holds_while_it_is_mapped(machine: Machine) -> None:
    grant(machine, REF, GRANTED)
    first = mapped(machine, VA(PLACE), HOST | RO)
    grant(machine, REF, FREE + 1, OTHER, 0)  # taken back without waiting
    status, second, bus = map_grant(machine, VA(PLACE + 1), HOST | RO)
    assert (status, bus) == (OKAY, machine.mfn(GRANTED) << 12)
    assert unmap(machine, first, VA(PLACE)) == OKAY
    assert unmap(machine, second, VA(PLACE + 1)) == OKAY
    assert map_grant(machine, VA(PLACE))[0] == ERROR


def test_write_pins_come_and_go_by_themselves(machine: Machine) -> None:
    grant(machine, REF, GRANTED)
    reader = mapped(machine, VA(PLACE), HOST | RO)
    writer = mapped(machine, VA(PLACE + 1))
    assert flags_of(machine) == PERMIT | READING | WRITING
    assert unmap(machine, writer, VA(PLACE + 1)) == OKAY
    assert flags_of(machine) == PERMIT | READING
    grant(machine, REF, GRANTED, flags=PERMIT | READONLY | READING)
    assert map_grant(machine, VA(PLACE + 1))[0] == ERROR
    assert unmap(machine, reader, VA(PLACE)) == OKAY
    assert flags_of(machine) == PERMIT | READONLY


def test_pin_counters_do_not_overflow(machine: Machine) -> None:
    grant(machine, REF, GRANTED)
    handles = [mapped(machine, 0, DEVICE | RO) for _ in range(128)]
    assert map_grant(machine, 0, DEVICE | RO)[0] == ERROR
    assert map_grant(machine, VA(PLACE), HOST | RO)[0] == OKAY
    assert machine.domain.grants.statistics()["pins_device_read"] == 128
    assert unmap(machine, handles[0], 0, machine.mfn(GRANTED) << 12) == OKAY
    assert map_grant(machine, 0, DEVICE | RO)[0] == OKAY


def test_unmap_of_parts(machine: Machine) -> None:
    grant(machine, REF, GRANTED)
    bus = machine.mfn(GRANTED) << 12
    handle = mapped(machine, VA(PLACE), HOST | DEVICE)
    assert unmap(machine, handle) == OKAY, "nothing named, nothing done"
    assert unmap(machine, handle, VA(PLACE), bus + 4096) == BAD_BUS
    assert unmap(machine, handle, VA(PLACE + 1)) == ERROR
    assert unmap(machine, handle, VA(PLACE)) == OKAY
    assert flags_of(machine) == PERMIT | READING | WRITING
    assert unmap(machine, handle, VA(PLACE)) == OKAY, "the CPU's part is gone already"
    assert unmap(machine, handle, 0, bus) == OKAY
    assert unmap(machine, handle, 0, bus) == BAD_HANDLE
    assert unmap(machine, 0xFFFFFFFF, VA(PLACE)) == BAD_HANDLE
    assert flags_of(machine) == PERMIT


def test_mapping_the_guest_took_away_by_itself(machine: Machine) -> None:
    grant(machine, REF, GRANTED)
    before = counts(machine, GRANTED)
    handle = mapped(machine, VA(PLACE))
    assert machine.call(Hypercall.UPDATE_VA_MAPPING, VA(PLACE), 0, 2) == 0
    assert counts(machine, GRANTED) == before
    assert unmap(machine, handle, VA(PLACE)) == ERROR
    assert flags_of(machine) == PERMIT | READING | WRITING
    # as it was, by hand: then it can be unmapped
    assert machine.call(Hypercall.UPDATE_VA_MAPPING, VA(PLACE), machine.entry(GRANTED, RO_FLAGS), 2) == 0
    assert unmap(machine, handle, VA(PLACE)) == ERROR
    assert machine.call(Hypercall.UPDATE_VA_MAPPING, VA(PLACE), machine.entry(GRANTED, RW_FLAGS), 2) == 0
    assert unmap(machine, handle, VA(PLACE)) == OKAY
    assert (flags_of(machine), counts(machine, GRANTED)) == (PERMIT, before)


def test_unmap_and_replace(machine: Machine) -> None:
    grant(machine, REF, GRANTED)
    old, kept = counts(machine, GRANTED), counts(machine, PLACE + 1)
    handle = mapped(machine, VA(PLACE))
    moved = machine.words(L1)[PLACE + 1]
    assert replace(machine, handle, VA(PLACE), VA(PLACE + 1)) == OKAY
    assert machine.words(L1)[PLACE] == moved
    assert machine.words(L1)[PLACE + 1] == 0
    assert (counts(machine, GRANTED), counts(machine, PLACE + 1)) == (old, kept)
    assert replace(machine, handle, VA(PLACE), VA(PLACE + 1)) == BAD_HANDLE
    handle = mapped(machine, VA(PLACE))
    assert replace(machine, handle, VA(PLACE), 0) == OKAY
    assert machine.words(L1)[PLACE] == 0


def test_replace_that_fails_takes_the_replacement_all_the_same(machine: Machine) -> None:
    grant(machine, REF, GRANTED)
    handle = mapped(machine, VA(PLACE))
    assert replace(machine, handle, VA(PLACE + 2), VA(PLACE + 1)) == ERROR
    assert machine.words(L1)[PLACE + 1] == 0
    assert replace(machine, handle, VA(PLACE), 0x1000) == ERROR
    assert replace(machine, handle, VA(PLACE), VA(PLACE)) == ERROR
    assert machine.words(L1)[PLACE] == 0
    assert flags_of(machine) == PERMIT | READING | WRITING


def test_handles_run_out(machine: Machine) -> None:
    machine.domain.maptrack = Maptrack(max_frames=1)
    for ref in range(8, 8 + 2):
        grant(machine, ref, GRANTED)
        for _ in range(128):
            mapped(machine, 0, DEVICE, ref)
    grant(machine, 10, GRANTED)
    assert map_grant(machine, 0, DEVICE, 10)[0] == FULL
    assert unmap(machine, 5, 0, machine.mfn(GRANTED) << 12) == OKAY
    assert mapped(machine, 0, DEVICE, 10) == 5


def test_maptrack_reuses_the_oldest_handle_and_is_saved() -> None:
    track = Maptrack()
    handles = [track.allocate(Mapping(ME, GrantRef(n), 2)) for n in range(HANDLES_PER_FRAME + 1)]
    assert handles == list(range(HANDLES_PER_FRAME + 1))
    for handle in (7, 3):
        track.free(handle)
    other = Maptrack()
    other.restore(track.save())
    assert other.save() == track.save()
    fresh = [other.allocate(Mapping(ME, GrantRef(0), 2)) for _ in range(HANDLES_PER_FRAME)]
    assert fresh == [*range(HANDLES_PER_FRAME + 1, 2 * HANDLES_PER_FRAME), 7]
    assert other.get(3) is None


# copying

SOURCE_GREF, DEST_GREF = abi.CopyFlag.SOURCE_GREF, abi.CopyFlag.DEST_GREF
DEST = FREE + 2


def copy(
    machine: Machine,
    source: tuple[int, int, int],
    dest: tuple[int, int, int],
    length: int,
    flags: int = SOURCE_GREF | DEST_GREF,
) -> int:
    fields = operate(machine, GnttabOp.COPY, abi.copy, *source, *dest, length, flags, 99)
    assert fields[:8] == (*source, *dest, length, flags)
    return fields[8]


@pytest.mark.parametrize("flags", range(4))
def test_copy(machine: Machine, flags: int) -> None:
    machine.put(GRANTED, bytes(range(256)) * 16)
    grant(machine, REF, GRANTED, flags=PERMIT | READONLY)
    grant(machine, REF + 1, DEST)
    source = (REF, ME, 3) if flags & SOURCE_GREF else (machine.mfn(GRANTED), DOMID_SELF, 3)
    dest = (REF + 1, DOMID_SELF, 90) if flags & DEST_GREF else (machine.mfn(DEST), DOMID_SELF, 90)
    before = counts(machine, GRANTED), counts(machine, DEST)
    assert copy(machine, source, dest, 10, flags) == OKAY
    assert machine.get(DEST, 12, 89) == bytes([0, *range(3, 13), 0])
    assert (counts(machine, GRANTED), counts(machine, DEST)) == before
    assert (flags_of(machine), flags_of(machine, REF + 1)) == (PERMIT | READONLY, PERMIT)


@pytest.mark.parametrize(
    ("source", "dest", "length", "flags", "status"),
    [
        ((999, NOBODY, 5000), (999, NOBODY, 0), 0, 3, OKAY),  # no byte, no question
        ((REF, NOBODY, 0), (REF, ME, 0), 1, 3, NO_DOMAIN),
        ((REF, ME, 0), (REF, NOBODY, 0), 1, 3, NO_DOMAIN),
        ((REF, ME, 0), (REF, NOBODY, 0), 1, 3, NO_DOMAIN),
        ((REF, DOM0, 0), (REF, ME, 0), 1, 3, ERROR),
        ((REF, ME, 0), (REF, DOM0, 0), 1, 3, ERROR),
        ((REF, ME, 0), (512, DOM0, 0), 1, 3, BAD_REF),
        ((REF, 0x7FF2, 0), (REF, ME, 0), 1, 3, NO_DOMAIN),
        ((0, ME, 0), (REF, ME, 0), 1, DEST_GREF, DENIED),  # by frame number only as DOMID_SELF
        ((REF, ME, 0), (0, NOBODY, 0), 1, SOURCE_GREF, DENIED),
        ((512, ME, 0), (REF, ME, 0), 1, 3, BAD_REF),
        ((REF, ME, 0), (512, ME, 0), 1, 3, BAD_REF),
        ((REF + 1, ME, 0), (REF, ME, 0), 1, 3, ERROR),
        ((REF, ME, 0), (REF + 2, ME, 0), 1, 3, ERROR),  # read-only
        ((REF + 3, ME, 0), (REF, ME, 0), 1, 3, BAD_PAGE),
        ((REF, ME, 0), (REF + 4, ME, 0), 1, 3, ERROR),  # a page table
        ((REF + 4, ME, 0), (REF, ME, 0), 1, 3, OKAY),
        ((1, DOMID_SELF, 0), (REF, ME, 0), 1, DEST_GREF, BAD_PAGE),
        ((REF, ME, 0), (1, DOMID_SELF, 0), 1, SOURCE_GREF, BAD_PAGE),
        ((REF, ME, 4095), (REF, ME, 0), 2, 3, BAD_COPY),
        ((REF, ME, 0), (REF, ME, 4095), 2, 3, BAD_COPY),
        ((REF, ME, 0), (REF, ME, 0), 4097, 3, BAD_COPY),
        ((REF, ME, 4095), (REF, ME, 0), 1, 3, OKAY),
        ((REF, ME, 0), (REF, ME, 1), 4095, 3, OKAY),  # onto itself
    ],
)
def test_copy_status(
    machine: Machine,
    source: tuple[int, int, int],
    dest: tuple[int, int, int],
    length: int,
    flags: int,
    status: int,
) -> None:
    grant(machine, REF, GRANTED)
    grant(machine, REF + 1, GRANTED, OTHER)
    grant(machine, REF + 2, GRANTED, flags=PERMIT | READONLY)
    grant(machine, REF + 3, GRANTED, mfn=3)
    grant(machine, REF + 4, L1)
    before = counts(machine, GRANTED), counts(machine, L1)
    assert copy(machine, source, dest, length, flags) == status
    assert machine.domain.grants.active == {}
    assert (counts(machine, GRANTED), counts(machine, L1)) == before
    assert flags_of(machine) == PERMIT


def test_copy_of_a_grant_in_use_elsewhere(machine: Machine) -> None:
    grant(machine, REF, GRANTED)
    grant(machine, REF + 1, DEST)
    reader = mapped(machine, VA(PLACE), HOST | RO)
    grant(machine, REF, DEST, flags=PERMIT | READING)  # another frame meanwhile
    assert copy(machine, (REF + 1, ME, 0), (REF, ME, 0), 1) == ERROR
    assert copy(machine, (REF, ME, 0), (REF + 1, ME, 0), 1) == OKAY
    assert flags_of(machine) == PERMIT | READING
    # the frame is given up while an unmapped mapping still pins it
    for pfn in (PLACE, GRANTED):
        assert machine.call(Hypercall.UPDATE_VA_MAPPING, VA(pfn), 0, 2) == 0
    machine.domain.release_frame(GRANTED)
    assert copy(machine, (REF, ME, 0), (REF + 1, ME, 0), 1) == NO_DOMAIN
    assert unmap(machine, reader, VA(PLACE)) == ERROR
    table = machine.domain.grants
    table.pin(REF + 1, ME, readonly=True)
    with pytest.raises(GrantError, match="in use by domain 1"):
        table.pin(REF + 1, DOM0, readonly=True)


def test_copied_code_is_noticed(machine: Machine) -> None:
    """Code written by a copy is what runs, though the emulator had translated what was there before."""
    increment, block = b"\x48\xff\xc3", b"\xb8\x1d\x00\x00\x00\xbf\x01\x00\x00\x00\x0f\x05"
    for code in (increment * 2, increment * 5):
        machine.put(GRANTED, code + block)
        fields = abi.copy.pack(machine.mfn(GRANTED), DOMID_SELF, 0, machine.mfn(CODE), DOMID_SELF, 0, 64, 0, 99)
        machine.put(DATA, fields)
        assert machine.call(Hypercall.GRANT_TABLE_OP, GnttabOp.COPY, VA(DATA), 1) == 0
        machine.regs[3] = 0
        machine.regs[16] = VA(CODE)
        machine.domain.vcpus[0].blocked = False
        machine.run()
        assert machine.regs[3] == len(code) // 3


# the table itself


def setup(machine: Machine, owner: int, frames: int, at: int = VA(FREE)) -> tuple[int, int]:
    machine.put(DATA, abi.setup_table.pack(owner, frames, 99, at))
    result = machine.call(Hypercall.GRANT_TABLE_OP, GnttabOp.SETUP_TABLE, VA(DATA), 1)
    return result, abi.setup_table.unpack(machine.get(DATA, abi.setup_table.size))[2]


@pytest.mark.parametrize(
    ("owner", "frames", "at", "result", "status"),
    [
        (DOMID_SELF, 0, VA(FREE), 0, OKAY),
        (ME, 3, VA(FREE), 0, OKAY),
        (DOMID_SELF, 64, VA(FREE), 0, OKAY),
        (DOMID_SELF, 65, VA(FREE), 0, ERROR),
        (DOMID_SELF, 0xFFFFFFFF, VA(FREE), 0, ERROR),
        (DOMID_SELF, 1, 0x1000, 0, BAD_ADDRESS),
        (DOMID_SELF, 2, VA(PAGES) - 8, 0, BAD_ADDRESS),
        (DOMID_SELF, 1, HYPERVISOR_VIRT_START, -Errno.EFAULT, 99),
        (NOBODY, 1, HYPERVISOR_VIRT_START, -Errno.EFAULT, 99),
        (NOBODY, 1, VA(FREE), 0, NO_DOMAIN),
        (0x7FF5, 1, VA(FREE), 0, NO_DOMAIN),
        (DOM0, 1, VA(FREE), 0, DENIED),
        (OTHER, 1, VA(FREE), 0, DENIED),
    ],
)
def test_setup_table(machine: Machine, owner: int, frames: int, at: int, result: int, status: int) -> None:
    assert setup(machine, owner, frames, at) == (result, status)
    if (result, status) == (0, OKAY):
        assert machine.domain.grants.nr_frames == max(1, frames)
        geometry = machine.memory.geometry
        mfns = struct.unpack(f"<{frames}Q", machine.get(FREE, 8 * frames))
        assert mfns == tuple(geometry.grant_mfn(n) for n in range(frames))


def test_table_grows_and_never_shrinks(machine: Machine) -> None:
    grant(machine, 512, GRANTED)
    assert map_grant(machine, VA(PLACE), ref=512)[0] == BAD_REF
    assert setup(machine, DOMID_SELF, 2) == (0, OKAY)
    assert setup(machine, DOMID_SELF, 1) == (0, OKAY)
    assert map_grant(machine, VA(PLACE), ref=512)[0] == OKAY


@pytest.mark.parametrize(
    ("owner", "answer"),
    [
        (DOMID_SELF, (1, 64, OKAY)),
        (ME, (1, 64, OKAY)),
        (NOBODY, (5, 6, NO_DOMAIN)),
        (DOM0, (5, 6, DENIED)),
        (OTHER, (5, 6, DENIED)),
    ],
)
def test_query_size(machine: Machine, owner: int, answer: tuple[int, ...]) -> None:
    assert operate(machine, GnttabOp.QUERY_SIZE, abi.query_size, owner, 5, 6, 99) == (owner, *answer)


@pytest.mark.parametrize(("wanted", "result"), [(0, -Errno.EINVAL), (1, 0), (2, -Errno.ENOSYS), (3, -Errno.EINVAL)])
def test_set_version(machine: Machine, wanted: int, result: int) -> None:
    machine.put(DATA, struct.pack("<I", wanted))
    assert machine.call(Hypercall.GRANT_TABLE_OP, GnttabOp.SET_VERSION, VA(DATA), 1) == result
    assert machine.get(DATA, 4) == b"\1\0\0\0"


@pytest.mark.parametrize(
    ("owner", "result", "version"),
    [(DOMID_SELF, 0, 1), (ME, 0, 1), (NOBODY, -Errno.ESRCH, 9), (DOM0, -Errno.EPERM, 9), (OTHER, -Errno.EPERM, 9)],
)
def test_get_version(machine: Machine, owner: int, result: int, version: int) -> None:
    machine.put(DATA, abi.get_version.pack(owner, 9))
    assert machine.call(Hypercall.GRANT_TABLE_OP, GnttabOp.GET_VERSION, VA(DATA), 1) == result
    assert abi.get_version.unpack(machine.get(DATA, 8)) == (owner, version)


@pytest.mark.parametrize(
    ("owner", "frames", "status"),
    [(DOMID_SELF, 0, OKAY), (ME, 1, ERROR), (NOBODY, 0, NO_DOMAIN), (DOM0, 0, DENIED)],
)
def test_get_status_frames(machine: Machine, owner: int, frames: int, status: int) -> None:
    fields = operate(machine, GnttabOp.GET_STATUS_FRAMES, abi.get_status_frames, frames, owner, 99, VA(FREE))
    assert fields[2] == status


def test_swap(machine: Machine) -> None:
    def swap(a: int, b: int) -> int:
        return operate(machine, GnttabOp.SWAP_GRANT_REF, abi.swap_grant_ref, a, b, 99)[2]

    grant(machine, 8, GRANTED)
    grant(machine, 9, DEST, OTHER, PERMIT | READONLY)
    assert swap(8, 9) == OKAY
    assert machine.domain.grants.entry(8) == (PERMIT | READONLY, OTHER, machine.mfn(DEST))
    assert machine.domain.grants.entry(9) == (PERMIT, ME, machine.mfn(GRANTED))
    mapped(machine, VA(PLACE), ref=9)
    assert [swap(*refs) for refs in ((8, 9), (9, 8), (9, 9), (512, 8), (8, 512))] == [
        BUSY,
        BUSY,
        OKAY,
        BAD_REF,
        BAD_REF,
    ]


@pytest.mark.parametrize(
    ("command", "arg", "count", "result"),
    [
        (GnttabOp.TRANSFER, VA(DATA), 1, -Errno.EOPNOTSUPP),
        (GnttabOp.TRANSFER, VA(DATA), 0, -Errno.EOPNOTSUPP),
        (GnttabOp.TRANSFER, HYPERVISOR_VIRT_START, 1, -Errno.EFAULT),
        (GnttabOp.DUMP_TABLE, VA(DATA), 1, -Errno.ENOSYS),
        (GnttabOp.CACHE_FLUSH, VA(DATA), 1, -Errno.ENOSYS),
        (13, VA(DATA), 1, -Errno.ENOSYS),
        (GnttabOp.COPY | 1 << 12, VA(DATA), 1, -Errno.EINVAL),
        (GnttabOp.MAP_GRANT_REF, VA(DATA), 1 << 31, -Errno.EINVAL),
        (GnttabOp.SETUP_TABLE, VA(DATA), 2, -Errno.EINVAL),
        (GnttabOp.QUERY_SIZE, VA(DATA), 0, -Errno.EINVAL),
        (GnttabOp.GET_STATUS_FRAMES, VA(DATA), 2, -Errno.EINVAL),
        *((op, VA(DATA), 0, 0) for op in (0, 1, 5, 7, 11)),
        *((op, HYPERVISOR_VIRT_START, 0, -Errno.EFAULT) for op in (0, 1, 5, 7, 11)),
        *((op, 0x1000, 1, -Errno.EFAULT) for op in (*range(3), *range(5, 12))),
    ],
)
def test_calls_that_fail_as_a_whole(machine: Machine, command: int, arg: int, count: int, result: int) -> None:
    assert machine.call(Hypercall.GRANT_TABLE_OP, command, arg, count) == result


def test_a_long_list_gives_way(machine: Machine) -> None:
    d = machine.domain
    grant(machine, REF, GRANTED)
    machine.put(DATA, abi.map_grant_ref.pack(0, DEVICE, REF, ME, 99, 0, 0) * 3)
    d.kick()
    assert machine.call(Hypercall.GRANT_TABLE_OP, GnttabOp.MAP_GRANT_REF, VA(DATA), 3) == 0
    rest = d.take_continuation()
    assert rest == (Hypercall.GRANT_TABLE_OP, GnttabOp.MAP_GRANT_REF, VA(DATA, 32), 2)
    assert d.maptrack.statistics()["mappings"] == 1
    d.engine.clear_kick()
    assert machine.call(*rest) == 0
    assert d.maptrack.statistics()["mappings"] == 3


# what backends use, and looking


def test_pinned_frame_is_neither_freed_nor_retyped(machine: Machine) -> None:
    d = machine.domain
    machine.put(GRANTED, b"kept")
    grant(machine, REF, GRANTED, DOM0)
    assert d.grants.pin(REF, DOM0, readonly=False) == GRANTED
    machine.read_only(GRANTED)
    assert machine.mmuext(0, machine.mfn(GRANTED)) == -Errno.EINVAL  # pin as L1 table
    assert machine.call(Hypercall.UPDATE_VA_MAPPING, VA(GRANTED), 0, 2) == 0
    d.release_frame(GRANTED)
    assert machine.get(GRANTED, 4) == b"kept"
    d.grants.unpin(REF, DOM0, readonly=False)
    assert machine.get(GRANTED, 4) == bytes(4)
    with pytest.raises(GrantError, match="bad_page"):
        d.grants.pin(REF, DOM0, readonly=False)


def test_only_a_pin_can_be_unpinned(machine: Machine) -> None:
    grants = machine.domain.grants
    grant(machine, REF, GRANTED, DOM0)
    grants.pin(REF, DOM0, readonly=True)
    for ref, domid, readonly in ((REF, DOM0, False), (REF, OTHER, True), (REF + 1, DOM0, True), (-1, DOM0, True)):
        with pytest.raises(GrantError, match="bad_handle"):
            grants.unpin(ref, domid, readonly=readonly)
    grants.unpin(REF, DOM0, readonly=True)


def test_pinning_a_page_table_for_writing_leaves_nothing(machine: Machine) -> None:
    grants = machine.domain.grants
    grant(machine, REF, L1, DOM0)
    with pytest.raises(GrantError, match="general_error"):
        grants.pin(REF, DOM0, readonly=False)
    assert (grants.active, flags_of(machine)) == ({}, PERMIT)
    with pytest.raises(GrantError, match="bad_gntref"):
        grants.pin(-1, DOM0, readonly=False)


def test_usage_and_saved_state(machine: Machine) -> None:
    grants = machine.domain.grants
    for ref in range(8, 12):
        grant(machine, ref, FREE + ref, DOM0, PERMIT | (READONLY if ref & 1 else 0))
    grant(machine, 20, FREE, OTHER)
    for ref in (8, 10, 11):
        grants.pin(ref, DOM0, readonly=True)
    grant(machine, 10, FREE + 10, DOM0, 0)
    usage = grants.usage(rows=2)
    assert usage == {
        "frames": 1,
        "max_frames": 64,
        "in_use": 3,
        "revoked": 1,
        "pinned": [
            (8, 0, machine.mfn(FREE + 8), 0x100, 0, machine.mfn(FREE + 8), PERMIT | READING),
            (10, 0, machine.mfn(FREE + 10), 0x100, 0, machine.mfn(FREE + 10), 0),
        ],
        "granted": [(0, False, 2, 2), (0, True, 2, 1)],
        "unlisted": 1,
    }
    statistics = machine.domain.statistics()["grants"]
    assert (statistics["in_use"], statistics["pins_host_read"], statistics["maps"]) == (3, 3, 3)
    state = grants.save()
    grants.restore({"frames": 3, "active": [], "counters": {}})
    assert grants.entries == 3 * 512 and not grants.active
    grants.restore(state)
    assert grants.save() == state
    grants.unpin(8, DOM0, readonly=True)


class GrantModel(RuleBasedStateMachine):
    """A guest that grants and revokes as it likes, and users that pin and unpin: a plain model of both.

    The model knows an entry as the guest wrote it and a list of pins for it; the table must agree on every status,
    show the marks, and keep every pinned frame.
    """

    REFS = range(8, 12)

    def __init__(self) -> None:
        super().__init__()
        self.machine = build_machine()
        self.entries: dict[int, tuple[int, int, int]] = dict.fromkeys(self.REFS, (0, 0, 0))
        self.pins: dict[int, list[tuple[DomId, bool]]] = {ref: [] for ref in self.REFS}
        self.frame: dict[int, int] = {}
        self.start = {pfn: counts(self.machine, pfn) for pfn in range(PAGES)}

    def teardown(self) -> None:
        self.machine.close()

    refs = st.sampled_from(REFS)

    @rule(
        ref=refs,
        domid=st.sampled_from([DOM0, OTHER]),
        pfn=st.sampled_from([FREE, FREE + 1, L1, PAGES + 100]),
        flags=st.sampled_from([0, PERMIT, PERMIT, PERMIT | READONLY, 3, PERMIT | 0x100]),
    )
    def write_entry(self, ref: int, domid: int, pfn: int, flags: int) -> None:
        self.entries[ref] = (flags, domid, pfn)
        marks = flags_of(self.machine, ref) & (READING | WRITING)
        grant(self.machine, ref, pfn, domid, flags | marks)

    @rule(ref=refs, domid=st.sampled_from([DOM0, OTHER]), readonly=st.booleans())
    def pin(self, ref: int, domid: DomId, readonly: bool) -> None:
        flags, grantee, pfn = self.entries[ref]
        pins = self.pins[ref]
        if pins:
            refused = pins[0][0] != domid
            if not refused and not readonly and all(each for _, each in pins):
                refused = bool(flags & READONLY)
            pfn = self.frame[ref]
        else:
            refused = flags & 0x103 != PERMIT or grantee != domid or (not readonly and bool(flags & READONLY))
            refused = refused or pfn >= PAGES
        refused = refused or (pfn == L1 and not readonly)
        try:
            index = self.machine.domain.grants.pin(ref, domid, readonly=readonly)
        except GrantError:
            assert refused
        else:
            assert not refused and index == pfn
            self.frame[ref] = pfn
            pins.append((domid, readonly))

    @precondition(lambda self: any(self.pins.values()))
    @rule(data=st.data())
    def unpin(self, data: Any) -> None:
        ref = data.draw(st.sampled_from([ref for ref in self.REFS if self.pins[ref]]))
        domid, readonly = self.pins[ref].pop(data.draw(st.integers(0, len(self.pins[ref]) - 1)))
        self.machine.domain.grants.unpin(ref, domid, readonly=readonly)

    @rule()
    def save_and_restore(self) -> None:
        grants = self.machine.domain.grants
        grants.restore(grants.save())

    @invariant()
    def marks_show_the_pins(self) -> None:
        for ref, pins in self.pins.items():
            marks = (READING if pins else 0) | (WRITING if any(not readonly for _, readonly in pins) else 0)
            assert flags_of(self.machine, ref) & (READING | WRITING) == marks

    @invariant()
    def frames_are_held(self) -> None:
        for pfn, (refs, types) in self.start.items():
            mine = [ro for ref, pins in self.pins.items() if self.frame.get(ref) == pfn for _, ro in pins]
            assert counts(self.machine, pfn) == (refs + len(mine), types + mine.count(False)), pfn


GrantModel.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestGrantModel = GrantModel.TestCase


def test_status_names_are_complete() -> None:
    assert sorted(GrantStatus) == list(range(-13, 1))
    assert FrameType.WRITABLE == 7
