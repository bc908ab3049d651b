# SPDX-License-Identifier: GPL-2.0-only
"""Page types: what an entry may name, what a pin checks and undoes, and that every count comes back to where it was."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.core import reference
from tests.core.machine import (
    CODE,
    DATA,
    FREE,
    L1,
    L2,
    L3,
    L4,
    NX,
    PAGES,
    RO_FLAGS,
    RW,
    RW_FLAGS,
    TABLE_FLAGS,
    USER,
    USER_L1,
    USER_L4,
    VA,
    Machine,
    P,
    build_machine,
)
from xen_py.abi.xen import DOMID_SELF, Hypercall
from xen_py.frames import FrameFlag, FrameType
from xen_py.types import Errno

PIN_L1, PIN_L2, PIN_L3, PIN_L4, UNPIN, NEW_BASEPTR, NEW_USER_BASEPTR = 0, 1, 2, 3, 4, 5, 15
GUEST_KERNEL, GLOBAL = 1 << 52, 0x100
EINVAL, EBUSY, EPERM, ESRCH = -Errno.EINVAL, -Errno.EBUSY, -Errno.EPERM, -Errno.ESRCH
OUTSIDE = 0x123


def test_a_new_domain_adds_up(machine: Machine) -> None:
    reference.check(machine.domain)
    frames = machine.domain.frames
    assert [frames.types[n] for n in (L4, L3, L2, L1)] == [4, 3, 2, 1]
    assert frames.flags[L4] & FrameFlag.PINNED
    assert frames.types[DATA] == FrameType.WRITABLE


L1_ENTRIES = [
    # flags, PFN or MFN outside, result
    (RW_FLAGS, FREE, 0),
    (RO_FLAGS, L1, 0),
    (RO_FLAGS, L4, 0),
    (RW_FLAGS, L1, EBUSY),
    (RW_FLAGS, L4, EBUSY),
    (0, 99999, 0),
    (RW_FLAGS | 0x8, FREE, EINVAL),
    (RW_FLAGS | 0x10, FREE, EINVAL),
    (RW_FLAGS | 0x80, FREE, EINVAL),
    (RW_FLAGS | 1 << 62, FREE, EINVAL),
    (RW_FLAGS, PAGES + 1, EPERM),  # not allocated
    (RW_FLAGS, -OUTSIDE, EPERM),
    (RW_FLAGS, (1 << 40) - 1, EINVAL),  # INVALID_MFN
]


@pytest.mark.parametrize("how", ["update", "va_mapping", "pin"])
@pytest.mark.parametrize(("flags", "pfn", "result"), L1_ENTRIES)
def test_what_an_l1_entry_may_be(machine: Machine, how: str, flags: int, pfn: int, result: int) -> None:
    frame = pfn if pfn == (1 << 40) - 1 else machine.mfn(pfn)
    entry = (frame << 12 | flags) & (1 << 64) - 1
    if how == "update":
        assert machine.update(machine.l1_pointer(FREE + 1), entry) == result
    elif how == "va_mapping":
        assert machine.call(Hypercall.UPDATE_VA_MAPPING, VA(FREE + 1), entry, 0) == result
    else:
        machine.words(FREE + 2)[5] = entry
        machine.words(FREE + 2)[4] = machine.entry(FREE + 3, RW_FLAGS)
        machine.words(FREE + 2)[400] = machine.entry(CODE, P)
        machine.read_only(FREE + 2)
        assert machine.mmuext(PIN_L1, machine.mfn(FREE + 2)) == result
    reference.check(machine.domain)


@pytest.mark.parametrize(
    ("flags", "made"),
    [
        (P | USER | NX, P | USER | NX | GLOBAL),
        (P | NX, P | USER | NX | GUEST_KERNEL),
        (P | USER | NX | GUEST_KERNEL, P | USER | NX | GUEST_KERNEL),
        (P | RW | USER | NX | 0xE00, P | RW | USER | NX | 0xE00 | GLOBAL),
    ],
)
def test_flags_that_are_added_to_an_l1_entry(machine: Machine, flags: int, made: int) -> None:
    assert machine.update(machine.l1_pointer(FREE + 1), machine.entry(FREE, flags)) == 0
    assert machine.words(L1)[FREE + 1] == machine.entry(FREE, made)


@pytest.mark.parametrize(("command", "accessed_dirty"), [(0, 0), (2, 0x60), (3, 0)])
def test_accessed_and_dirty_bits(machine: Machine, command: int, accessed_dirty: int) -> None:
    """PRESERVE_AD keeps what the CPU has set meanwhile."""
    pointer = machine.l1_pointer(FREE)
    assert machine.words(L1)[FREE] & 0x60 == 0x60
    assert machine.update(pointer | command, machine.entry(FREE, P | RW | USER | NX)) == 0
    assert machine.words(L1)[FREE] & 0x60 == accessed_dirty
    assert machine.update(pointer | command, 0) == 0
    assert machine.words(L1)[FREE] == 0


def table(machine: Machine, pfn: int, *entries: tuple[int, int, int]) -> None:
    """Make a page with these (slot, pfn, flags) entries, ready to be pinned."""
    for slot, target, flags in entries:
        machine.words(pfn)[slot] = machine.entry(target, flags)
    if machine.words(L1)[pfn] & RW:
        machine.read_only(pfn)


def test_a_tower_of_tables_is_validated_by_its_pin_and_undone_by_the_unpin(machine: Machine) -> None:
    before = reference.expected(machine.domain)
    a, b, c, d = FREE, FREE + 1, FREE + 2, FREE + 3
    table(machine, d, (3, DATA, RW_FLAGS), (4, CODE, RO_FLAGS & ~NX))
    table(machine, c, (0, d, TABLE_FLAGS), (511, d, TABLE_FLAGS))
    table(machine, b, (7, c, TABLE_FLAGS))
    table(machine, a, (255, b, TABLE_FLAGS), (256, b, TABLE_FLAGS))
    assert machine.mmuext(PIN_L4, machine.mfn(a)) == 0
    frames = machine.domain.frames
    assert [frames.types[n] for n in (a, b, c, d)] == [4, 3, 2, 1]
    assert [frames.type_counts[n] for n in (a, b, c, d)] == [1, 1, 1, 2]
    reference.check(machine.domain)
    assert machine.words(a)[256] == machine.words(L4)[256]  # the hypervisor's own
    for pfn in (a, b, c, d):
        assert machine.mmuext(PIN_L1, machine.mfn(pfn)) == EINVAL or pfn == d
    assert machine.mmuext(UNPIN, machine.mfn(d)) == 0
    assert machine.mmuext(UNPIN, machine.mfn(a)) == 0
    reference.check(machine.domain)
    for pfn in (a, b, c, d):
        assert machine.call(Hypercall.UPDATE_VA_MAPPING, VA(pfn), machine.entry(pfn, RW_FLAGS), 2) == 0
    assert reference.expected(machine.domain) == before


@pytest.mark.parametrize(
    ("slot", "target", "flags"),
    [
        (300, FREE + 9, TABLE_FLAGS),  # writable elsewhere
        (300, L4, TABLE_FLAGS),  # of another level
        (300, -OUTSIDE, TABLE_FLAGS),
        (300, FREE + 3, TABLE_FLAGS | 0x80),  # a superpage
        (300, FREE + 3, TABLE_FLAGS | 0x8),
        (300, FREE + 3, TABLE_FLAGS | 0x100),
    ],
)
def test_a_failed_pin_leaves_nothing_behind(machine: Machine, slot: int, target: int, flags: int) -> None:
    table(machine, FREE + 3, (1, DATA, RW_FLAGS))
    table(machine, FREE, (0, FREE + 3, TABLE_FLAGS), (5, FREE + 3, TABLE_FLAGS))
    before = reference.expected(machine.domain)
    machine.words(FREE)[slot] = (machine.mfn(target) << 12 | flags) & (1 << 64) - 1
    assert machine.mmuext(PIN_L2, machine.mfn(FREE)) == EINVAL
    reference.check(machine.domain)
    assert reference.expected(machine.domain) == before


def test_pins(machine: Machine) -> None:
    table(machine, FREE)
    mfn = machine.mfn(FREE)
    assert machine.mmuext(UNPIN, mfn) == EINVAL
    assert machine.mmuext(PIN_L1, mfn) == 0
    assert machine.mmuext(PIN_L1, mfn) == EINVAL
    assert machine.mmuext(PIN_L2, mfn) == EINVAL
    assert machine.mmuext(UNPIN, mfn) == 0
    assert machine.mmuext(PIN_L2, mfn) == 0
    assert machine.mmuext(UNPIN, mfn) == 0
    for command in (PIN_L1, UNPIN):
        assert machine.mmuext(command, OUTSIDE) == EINVAL
        assert machine.mmuext(command, machine.mfn(PAGES + 2)) == EINVAL
    assert machine.mmuext(PIN_L1, machine.domain.spec.memory.shared_info_mfn) == EINVAL
    assert machine.mmuext(PIN_L4, machine.mfn(DATA)) == EINVAL
    reference.check(machine.domain)


def test_upper_levels_by_update(machine: Machine) -> None:
    table(machine, FREE, (0, DATA, RW_FLAGS))
    at = (machine.mfn(L2) << 12) + 8
    assert machine.update(at, machine.entry(FREE, P | RW)) == 0
    assert machine.words(L2)[1] == machine.entry(FREE, P | RW | USER)
    reference.check(machine.domain)
    assert machine.update(at | 2, machine.entry(FREE, P | RW | NX)) == 0
    for bad in (machine.entry(DATA, TABLE_FLAGS), machine.entry(FREE, TABLE_FLAGS | 0x80), 0x1007):
        assert machine.update(at, bad) == EINVAL
    assert machine.words(L2)[1] & ~0x60 == machine.entry(FREE, P | RW | USER | NX)
    assert machine.update(at, 0) == 0
    reference.check(machine.domain)
    assert machine.domain.frames.type_counts[FREE] == 0
    for slot in (256, 257, 271):
        assert machine.update((machine.mfn(L4) << 12) + slot * 8, 0) == EINVAL
    assert machine.update((machine.mfn(L4) << 12) + 272 * 8, 0) == 0


def test_linear_tables(machine: Machine) -> None:
    def link(holder: int, slot: int, target: int, flags: int = P | USER) -> int:
        return machine.update((machine.mfn(holder) << 12) + slot * 8, machine.entry(target, flags))

    a, b, c = FREE, FREE + 1, FREE + 2
    for pfn in (a, b, c):
        table(machine, pfn)
        assert machine.mmuext(PIN_L2, machine.mfn(pfn)) == 0
    assert link(a, 0, a) == 0  # itself
    assert link(a, 1, b) == 0
    assert link(a, 2, b, P | USER | RW) == EINVAL
    assert link(a, 1, b, P | USER | RW) == EINVAL  # an existing one cannot become writable either
    assert link(b, 0, c) == EINVAL  # they do not nest
    assert link(c, 0, a) == EINVAL
    assert link(c, 0, b) == 0
    reference.check(machine.domain)
    assert machine.domain.frames.linear.tolist()[a : c + 1] == [1, -2, 1]
    for pfn in (b, a, c):
        assert machine.mmuext(UNPIN, machine.mfn(pfn)) == 0
    reference.check(machine.domain)
    assert not any(machine.domain.frames.linear)
    assert [machine.domain.frames.type_counts[n] for n in (a, b, c)] == [0, 0, 0]


def test_execute_permission_is_counted(machine: Machine) -> None:
    counts = machine.domain.frames.code_maps
    pointer = machine.l1_pointer(FREE)
    for flags, count in ((RW_FLAGS & ~NX, 1), (RO_FLAGS & ~NX, 1), (RO_FLAGS, 0), (RO_FLAGS & ~NX, 1), (0, 0)):
        assert machine.update(pointer, machine.entry(FREE, flags) if flags else 0) == 0
        assert counts[FREE] == count
        reference.check(machine.domain)


def test_updates_of_ordinary_pages(machine: Machine) -> None:
    """mmu_update writes into any writable frame, and into none of another kind."""
    at = (machine.mfn(FREE) << 12) + 64
    assert machine.update(at, 0x1234) == 0
    assert machine.words(FREE)[8] == 0x1234
    machine.read_only(FREE)
    assert machine.update(at, 0x5678) == 0  # nobody holds a type
    assert machine.words(FREE)[8] == 0x5678
    machine.words(FREE)[:] = memoryview(bytes(4096)).cast("Q")
    machine.put(DATA, machine.mfn(FREE).to_bytes(8, "little"))
    assert machine.call(Hypercall.SET_GDT, VA(DATA), 8) == 0
    assert machine.update(at, 0) == EINVAL  # a descriptor table
    for mfn in (OUTSIDE, machine.mfn(PAGES + 1)):
        assert machine.update(mfn << 12, 0) == EINVAL
    assert machine.update(at | 5, 0) == -Errno.ENOSYS
    reference.check(machine.domain)


def test_machphys_update(machine: Machine) -> None:
    assert machine.update((machine.mfn(FREE) << 12) | 1, 0x4321) == 0
    assert machine.domain.space.m2p[FREE] == 0x4321
    assert machine.update(OUTSIDE << 12 | 1, 1) == EINVAL


def test_the_count_of_done_requests(machine: Machine) -> None:
    good = machine.l1_pointer(FREE).to_bytes(8, "little") + machine.entry(FREE, RO_FLAGS).to_bytes(8, "little")
    bad = machine.l1_pointer(FREE).to_bytes(8, "little") + machine.entry(L4, RW_FLAGS).to_bytes(8, "little")
    done = VA(DATA, 0x100)
    for requests, result, count in ((good * 3, 0, 3), (good + bad + good, EBUSY, 1), (bad, EBUSY, 0)):
        machine.put(DATA, requests)
        assert machine.call(Hypercall.MMU_UPDATE, VA(DATA), len(requests) // 16, done, DOMID_SELF) == result
        assert machine.get(DATA, 4, 0x100) == count.to_bytes(4, "little")
    assert machine.call(Hypercall.MMU_UPDATE, VA(DATA), 0, done, DOMID_SELF) == 0
    assert machine.get(DATA, 4, 0x100) == bytes(4)
    machine.put(DATA, good)
    assert machine.call(Hypercall.MMU_UPDATE, VA(DATA), 1, 8, DOMID_SELF) == 0  # a bad pointer there is ignored
    assert machine.call(Hypercall.MMU_UPDATE, VA(99), 1, 0, DOMID_SELF) == -Errno.EFAULT
    assert machine.call(Hypercall.MMU_UPDATE, VA(PAGES - 1, 4088), 2, done, DOMID_SELF) == -Errno.EFAULT


@pytest.mark.parametrize(("domid", "result"), [(1, ESRCH), (0, EPERM), (2, ESRCH), (0x7FF4, ESRCH)])
def test_other_domains(machine: Machine, domid: int, result: int) -> None:
    for number in (Hypercall.MMU_UPDATE, Hypercall.MMUEXT_OP):
        assert machine.call(number, VA(DATA), 0, 0, domid) == result
    assert machine.call(Hypercall.UPDATE_VA_MAPPING_OTHERDOMAIN, VA(FREE), 0, 0, domid) == result


def test_new_base_pointers(machine: Machine) -> None:
    d, v = machine.domain, machine.domain.vcpus[0]
    assert machine.mmuext(PIN_L4, machine.mfn(USER_L4)) == 0
    assert machine.mmuext(NEW_USER_BASEPTR, machine.mfn(USER_L4)) == 0
    assert machine.mmuext(NEW_USER_BASEPTR, machine.mfn(USER_L4)) == 0
    reference.check(d)
    for command in (NEW_BASEPTR, NEW_USER_BASEPTR):
        for mfn in (machine.mfn(L3), machine.mfn(DATA), OUTSIDE):
            assert machine.mmuext(command, mfn) == EINVAL
    assert v.user_root == machine.mfn(USER_L4)
    assert machine.mmuext(NEW_USER_BASEPTR, 0) == 0
    assert v.user_root == 0
    assert machine.mmuext(UNPIN, machine.mfn(L4)) == 0  # still in use as the root
    assert machine.mmuext(UNPIN, machine.mfn(USER_L4)) == 0
    assert d.frames.type_counts[USER_L4] == 0
    assert d.frames.type_counts[USER_L1] == 0
    reference.check(d)


SOME = st.integers(FREE, FREE + 5)
FLAGS = st.sampled_from([0, P, P | RW, P | USER, P | RW | USER, P | NX, P | RW | NX, P | 0x80, P | USER | GLOBAL])


class PageTypes(RuleBasedStateMachine):
    """Random operations on a few frames; after each one the counts are what the tables say."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = build_machine()
        for pfn in range(FREE, FREE + 6):
            self.machine.read_only(pfn)

    def teardown(self) -> None:
        self.machine.close()

    @rule(pfn=SOME, slot=st.integers(0, 3), frame=SOME, flags=FLAGS)
    def write_untyped(self, pfn: int, slot: int, frame: int, flags: int) -> None:
        """Contents that a later pin will find."""
        if not self.machine.domain.frames.type_counts[pfn]:
            self.machine.words(pfn)[slot] = self.machine.entry(frame, flags) if flags else 0

    @rule(pfn=SOME, slot=st.integers(0, 3), frame=SOME, flags=FLAGS, command=st.sampled_from([0, 2]))
    def update(self, pfn: int, slot: int, frame: int, flags: int, command: int) -> None:
        value = self.machine.entry(frame, flags) if flags else 0
        before = self.machine.words(pfn)[slot]
        result = self.machine.update((self.machine.mfn(pfn) << 12) + slot * 8 | command, value)
        if result:
            assert self.machine.words(pfn)[slot] == before

    @rule(place=st.integers(40, 43), frame=SOME, flags=FLAGS)
    def map_somewhere(self, place: int, frame: int, flags: int) -> None:
        value = self.machine.entry(frame, flags) if flags else 0
        self.machine.call(Hypercall.UPDATE_VA_MAPPING, VA(place), value, 2)

    @rule(command=st.sampled_from([PIN_L1, PIN_L2, PIN_L3, PIN_L4, UNPIN, UNPIN, NEW_USER_BASEPTR]), pfn=SOME)
    def pin_or_unpin(self, command: int, pfn: int) -> None:
        self.machine.mmuext(command, self.machine.mfn(pfn))

    @rule(pfn=SOME)
    def release(self, pfn: int) -> None:
        reservation = b"".join(n.to_bytes(8, "little") for n in (VA(DATA, 64), 1, 0, DOMID_SELF))
        self.machine.put(DATA, reservation)
        self.machine.put(DATA, self.machine.mfn(pfn).to_bytes(8, "little"), 64)
        assert self.machine.call(Hypercall.MEMORY_OP, 1, VA(DATA)) in (0, 1)

    @rule()
    def populate(self) -> None:
        reservation = b"".join(n.to_bytes(8, "little") for n in (VA(DATA, 64), 1, 0, DOMID_SELF))
        self.machine.put(DATA, reservation)
        assert self.machine.call(Hypercall.MEMORY_OP, 6, VA(DATA)) in (0, 1)

    @invariant()
    def counts_are_right(self) -> None:
        reference.check(self.machine.domain)


TestPageTypes = PageTypes.TestCase
TestPageTypes.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
