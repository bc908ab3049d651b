# SPDX-License-Identifier: GPL-2.0-only
"""Mappings of a domain's own grants under a guest that does as it likes with its page tables, against a plain model.

The guest maps and unmaps by every kind of handle, replaces, copies, and overwrites the page-table entries itself. After
each step every frame's counts must be what its page-table entries and its handles for devices account for, and the
marks of each entry what its handles account for.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.core.machine import FREE, L1, PAGES, RO_FLAGS, RW_FLAGS, VA, build_machine
from tests.core.test_grants import (
    BAD_BUS,
    BAD_HANDLE,
    DEVICE,
    ERROR,
    HOST,
    ME,
    OKAY,
    PERMIT,
    READING,
    READONLY,
    RO,
    WRITING,
    copy,
    counts,
    flags_of,
    grant,
    map_grant,
    replace,
    unmap,
)
from xen_py.abi.xen import Hypercall

REFS = range(8, 11)
FRAMES = (FREE, FREE + 1, L1)
PLACES = tuple(range(FREE + 20, FREE + 23))
PRESENT, RW = 1, 2


class MappingModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.machine = build_machine()
        for pfn in PLACES:
            assert self.machine.call(Hypercall.UPDATE_VA_MAPPING, VA(pfn), 0, 2) == 0
        self.start = {pfn: counts(self.machine, pfn) for pfn in range(PAGES)}
        self.entries = {ref: (PERMIT, FRAMES[ref % 3]) for ref in REFS}
        for ref, (flags, pfn) in self.entries.items():
            grant(self.machine, ref, pfn, ME, flags)
        self.handles: dict[int, tuple[int, int, int]] = {}
        """handle -> ref, flags, pfn"""

    def teardown(self) -> None:
        self.machine.close()

    refs, places = st.sampled_from(REFS), st.sampled_from(PLACES)
    kinds = st.sampled_from([HOST, HOST | RO, DEVICE, DEVICE | RO, HOST | DEVICE, HOST | DEVICE | RO])
    choices = st.integers(0, 4)

    def mapped_at(self, place: int) -> tuple[int | None, int]:
        """Which PFN the guest sees at a place, and whether writable."""
        entry = self.machine.words(L1)[place]
        if not entry & PRESENT:
            return None, 0
        return (entry >> 12 & 0xFFFFFFF) - self.machine.mfn(0), entry & RW

    def users(self, ref: int) -> list[tuple[int, int]]:
        """Flags and PFN of each handle of a reference."""
        return [(flags, pfn) for of, flags, pfn in self.handles.values() if of == ref]

    def may(self, ref: int, *, write: bool) -> int | None:
        """The PFN that a new use of a reference gets, None if it is refused by its entry."""
        flags, pfn = self.entries[ref]
        users = self.users(ref)
        if users:
            if write and all(each & RO for each, _ in users) and flags & READONLY:
                return None
            return users[0][1]
        if flags & 3 != PERMIT or (write and flags & READONLY):
            return None
        return pfn

    @rule(ref=refs, flags=st.sampled_from([0, PERMIT, PERMIT, PERMIT | READONLY]), pfn=st.sampled_from(FRAMES))
    def write_entry(self, ref: int, flags: int, pfn: int) -> None:
        self.entries[ref] = (flags, pfn)
        grant(self.machine, ref, pfn, ME, flags | flags_of(self.machine, ref) & (READING | WRITING))

    @rule(ref=refs, place=places, kind=kinds)
    def map(self, ref: int, place: int, kind: int) -> None:
        pfn = self.may(ref, write=not kind & RO)
        expected = ERROR if pfn is None or (pfn == L1 and not kind & RO) else OKAY
        status, handle, bus = map_grant(self.machine, VA(place), kind, ref)
        assert status == expected
        if status == OKAY:
            assert pfn is not None and bus == self.machine.mfn(pfn) << 12 and handle not in self.handles
            self.handles[handle] = (ref, kind, pfn)
            if kind & HOST:
                assert self.mapped_at(place) == (pfn, 0 if kind & RO else RW)

    @rule(
        choice=choices,
        place=places,
        found=st.booleans(),
        bus_of=st.sampled_from([None, -1, *FRAMES]),
        named=st.booleans(),
    )
    def unmap(self, choice: int, place: int, found: bool, bus_of: int | None, named: bool) -> None:
        """`found` and a `bus_of` of -1 are what the handle was given, the rest what comes."""
        handle = self.chosen(choice)
        if found:
            place = self.place_of(handle, place)
        if bus_of == -1:
            bus_of = self.handles.get(handle, (0, 0, FREE))[2]
        expected, rest = self.expect_unmap(handle, place if named else None, bus_of)
        bus = 0 if bus_of is None else self.machine.mfn(bus_of) << 12
        assert unmap(self.machine, handle, VA(place) if named else 0, bus) == expected
        self.forget(handle, rest)

    def chosen(self, choice: int) -> int:
        """One of the oldest handles, or one that is none."""
        handles = sorted(self.handles)[:4]
        return handles[choice % len(handles)] if handles and choice < 4 else 5000

    def place_of(self, handle: int, place: int) -> int:
        """Where that handle's frame is seen, if it is, else `place`."""
        pfn = self.handles[handle][2] if handle in self.handles else None
        return next((each for each in PLACES if self.mapped_at(each)[0] == pfn), place)

    def expect_unmap(self, handle: int, place: int | None, bus_of: int | None) -> tuple[int, int]:
        """The status, and what the handle is still mapped for afterwards."""
        if handle not in self.handles:
            return BAD_HANDLE, 0
        _, flags, pfn = self.handles[handle]
        if bus_of is not None and flags & DEVICE and bus_of != pfn:
            return BAD_BUS, flags
        if place is not None and flags & HOST:
            if self.mapped_at(place) != (pfn, 0 if flags & RO else RW):
                return ERROR, flags
            flags &= ~HOST
        if bus_of is not None:
            flags &= ~DEVICE
        return OKAY, flags

    def forget(self, handle: int, rest: int) -> None:
        if handle in self.handles:
            ref, _, pfn = self.handles.pop(handle)
            if rest & (HOST | DEVICE):
                self.handles[handle] = (ref, rest, pfn)

    @rule(choice=choices, place=places, found=st.booleans(), other=places)
    def replace(self, choice: int, place: int, found: bool, other: int) -> None:
        handle = self.chosen(choice)
        if found:
            place = self.place_of(handle, place)
        expected, rest = self.expect_unmap(handle, place, None)
        moves = handle in self.handles and bool(self.handles[handle][1] & HOST)
        if moves and place == other:
            expected, rest = ERROR, self.handles[handle][1]
        before = self.mapped_at(other)
        assert replace(self.machine, handle, VA(place), VA(other)) == expected
        if moves:
            assert self.mapped_at(other) == (None, 0)
            if expected == OKAY:
                assert self.mapped_at(place) == before
        self.forget(handle, rest)

    @rule(place=places, pfn=st.sampled_from([None, *FRAMES]), writable=st.booleans())
    def overwrite(self, place: int, pfn: int | None, writable: bool) -> None:
        """The guest changes the entry under a mapping, or makes one that no grant gave it."""
        value = 0 if pfn is None else self.machine.entry(pfn, RW_FLAGS if writable and pfn != L1 else RO_FLAGS)
        assert self.machine.call(Hypercall.UPDATE_VA_MAPPING, VA(place), value, 2) == 0

    @rule(source=refs, dest=refs)
    def copy(self, source: int, dest: int) -> None:
        read = self.may(source, write=False)
        write = self.may(dest, write=True)
        status = copy(self.machine, (source, ME, 0), (dest, ME, 0), 8)
        if status == OKAY:
            assert read is not None and write is not None and write != L1
        elif read is not None and write is not None and write != L1 and source != dest:
            # an upgrade to writing looks again at which frame is meant
            assert self.users(dest) and self.entries[dest][1] != write

    @invariant()
    def marks_show_the_handles(self) -> None:
        for ref in REFS:
            users = self.users(ref)
            marks = (READING if users else 0) | (WRITING if any(not flags & RO for flags, _ in users) else 0)
            assert flags_of(self.machine, ref) & (READING | WRITING) == marks

    @invariant()
    def every_count_is_accounted_for(self) -> None:
        seen = [self.mapped_at(place) for place in PLACES]
        devices = [(pfn, flags) for _, flags, pfn in self.handles.values() if flags & DEVICE]
        for pfn, (refs, types) in self.start.items():
            refs += sum(1 for of, _ in seen if of == pfn) + sum(1 for of, _ in devices if of == pfn)
            types += sum(1 for of, rw in seen if of == pfn and rw)
            types += sum(1 for of, flags in devices if of == pfn and not flags & RO)
            assert counts(self.machine, pfn) == (refs, types), pfn

    @invariant()
    def handles_are_the_models(self) -> None:
        assert self.machine.domain.maptrack.statistics()["mappings"] == len(self.handles)


MappingModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMappingModel = MappingModel.TestCase
