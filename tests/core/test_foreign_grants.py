# SPDX-License-Identifier: GPL-2.0-only
"""Grants of one domain used by another: mappings, copies, what the two see of it, and both ends' accounts of it.

Two domains of one host, each with an engine of its own; what one asks of the other goes the way it does in a machine.
A model at the end has three of them map, unmap, overwrite, take back and copy as they like.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.core.machine import FREE, L1, PAGES, RO_FLAGS, RW_FLAGS, VA, Machine, Neighbours
from tests.core.test_grants import (
    BAD_BUS,
    BAD_COPY,
    BAD_HANDLE,
    BAD_REF,
    DENIED,
    DEVICE,
    ERROR,
    FULL,
    HOST,
    NO_DOMAIN,
    OKAY,
    PERMIT,
    PLACE,
    READING,
    READONLY,
    REF,
    RO,
    WRITING,
    copy,
    counts,
    flags_of,
    grant,
    map_grant,
    operate,
    replace,
    unmap,
)
from xen_py.abi import grant_table as abi
from xen_py.abi.grant_table import CopyFlag, GnttabOp, GrantStatus
from xen_py.abi.xen import DOMID_SELF, Hypercall
from xen_py.foreign import room_for
from xen_py.grants import GrantError
from xen_py.memory import MemoryGeometry
from xen_py.spec import Shutdown
from xen_py.types import DomId, GrantRef

ONE, TWO, THREE = DomId(1), DomId(2), DomId(3)
GIVEN = FREE + 3
PRESENT, RW = 1, 2
FRAME = 0x000FFFFFFFFFF000


@pytest.fixture
def neighbours() -> Iterator[Neighbours]:
    made = Neighbours()
    yield made
    made.close()


@pytest.fixture
def pair(neighbours: Neighbours) -> tuple[Machine, Machine]:
    """The mapper and the granter, of different sizes so that no number means the same in both."""
    return neighbours.build(ONE), neighbours.build(TWO, max_pages=100)


def mapped(mapper: Machine, address: int = VA(PLACE), flags: int = HOST, ref: int = REF, owner: int = TWO) -> int:
    status, handle, bus = map_grant(mapper, address, flags, ref, owner)
    assert status == OKAY
    assert bus >> 12 >= mapper.domain.frames.base + mapper.domain.frames.count, "not a frame of the mapper's own"
    return handle


def clear(machine: Machine, pfn: int) -> None:
    assert machine.call(Hypercall.UPDATE_VA_MAPPING, VA(pfn), 0, 2) == 0


def nothing_is_left(*machines: Machine) -> None:
    for machine in machines:
        d = machine.domain
        assert d.grants.active == {} and d.maptrack.statistics()["mappings"] == 0
        assert d.foreign.statistics() == {"foreign_domains": 0, "foreign_mappings": 0}


@pytest.mark.parametrize(
    ("flags", "marks", "references", "types"),
    [
        (HOST, READING | WRITING, 1, 1),
        (HOST | RO, READING, 1, 0),
        (DEVICE, READING | WRITING, 1, 1),
        (HOST | DEVICE, READING | WRITING, 2, 2),
        (HOST | DEVICE | RO, READING, 2, 0),
    ],
)
def test_map_and_unmap(pair: tuple[Machine, Machine], flags: int, marks: int, references: int, types: int) -> None:
    mapper, granter = pair
    grant(granter, REF, GIVEN, ONE)
    before, own = counts(granter, GIVEN), [counts(mapper, pfn) for pfn in range(PAGES)]
    clear(mapper, PLACE)
    handle = mapped(mapper, flags=flags)
    assert flags_of(granter) == PERMIT | marks
    assert counts(granter, GIVEN) == (before[0] + references, before[1] + types)
    entry = mapper.words(L1)[PLACE]
    if flags & HOST:
        assert entry & (PRESENT | RW) == (PRESENT if flags & RO else PRESENT | RW)
        assert entry >> 63, "a grant is not executable"
    bus = (mapper.domain.foreign.mfn(TWO, GIVEN)) << 12
    assert unmap(mapper, handle, VA(PLACE), bus + 4096) == (BAD_BUS if flags & DEVICE else OKAY)
    if flags & DEVICE:
        assert unmap(mapper, handle, VA(PLACE), bus) == OKAY
    assert flags_of(granter) == PERMIT
    assert counts(granter, GIVEN) == before
    own[PLACE] = counts(mapper, PLACE)
    assert [counts(mapper, pfn) for pfn in range(PAGES)] == own
    assert unmap(mapper, handle, VA(PLACE)) == BAD_HANDLE
    nothing_is_left(mapper, granter)


def test_both_run_on_one_frame(pair: tuple[Machine, Machine]) -> None:
    """Instructions of the mapper store into it and load from it, those of the granter see it, and the other way."""
    mapper, granter = pair
    grant(granter, REF, GIVEN, ONE)
    handle = mapped(mapper)
    # mov rbx, VA; mov rax, [rbx]; inc rax; mov [rbx+8], rax; then sched_op(shutdown) does not matter: one exit
    code = b"\x48\xbb%s\x48\x8b\x03\x48\xff\xc0\x48\x89\x43\x08\x0f\x05"
    granter.words(GIVEN)[0] = 41
    mapper.exit(code.replace(b"%s", VA(PLACE).to_bytes(8, "little")))
    assert granter.words(GIVEN)[1] == 42
    granter.words(GIVEN)[0] = 99
    granter.exit(code.replace(b"%s", VA(GIVEN).to_bytes(8, "little")))
    assert mapper.domain.access.read_u64(VA(PLACE, 8)) == 100
    assert unmap(mapper, handle, VA(PLACE)) == OKAY
    # the translation has gone with the mapping
    mapper.exit(code.replace(b"%s", VA(PLACE).to_bytes(8, "little")))
    assert granter.words(GIVEN)[1] == 100
    nothing_is_left(mapper, granter)


def test_hypervisor_works_in_granted_memory(pair: tuple[Machine, Machine]) -> None:
    """Arguments of a hypercall may lie in another domain's frame."""
    mapper, granter = pair
    grant(granter, REF, GIVEN, ONE)
    mapped(mapper)
    granter.put(GIVEN, abi.query_size.pack(DOMID_SELF, 0, 0, 99))
    assert mapper.call(Hypercall.GRANT_TABLE_OP, GnttabOp.QUERY_SIZE, VA(PLACE), 1) == 0
    assert abi.query_size.unpack(granter.get(GIVEN, abi.query_size.size)) == (DOMID_SELF, 1, 64, OKAY)


@pytest.mark.parametrize(
    ("entry", "flags", "ref", "owner", "status"),
    [
        ((PERMIT, ONE), 0, REF, TWO, BAD_REF),
        ((PERMIT, ONE), HOST, REF, 77, NO_DOMAIN),
        ((PERMIT, ONE), HOST, 512, TWO, BAD_REF),
        ((PERMIT, ONE), HOST, 0xFFFFFFFF, TWO, BAD_REF),
        ((PERMIT, TWO), HOST, REF, TWO, ERROR),
        ((PERMIT, THREE), HOST, REF, TWO, ERROR),
        ((PERMIT, DOMID_SELF), HOST, REF, TWO, ERROR),
        ((0, ONE), HOST, REF, TWO, ERROR),
        ((PERMIT | READONLY, ONE), HOST, REF, TWO, ERROR),
        ((PERMIT | READONLY, ONE), HOST | RO, REF, TWO, OKAY),
        ((PERMIT | READING | WRITING, ONE), HOST, REF, TWO, OKAY),
    ],
)
def test_map_status(
    pair: tuple[Machine, Machine], entry: tuple[int, int], flags: int, ref: int, owner: int, status: int
) -> None:
    mapper, granter = pair
    grant(granter, REF, GIVEN, entry[1], entry[0])
    before = counts(granter, GIVEN)
    assert map_grant(mapper, VA(PLACE), flags, ref, owner)[0] == status
    if status != OKAY:
        assert counts(granter, GIVEN) == before
        nothing_is_left(mapper, granter)


@pytest.mark.parametrize("mfn", [0, 5, 0xFFFFFFFF])
def test_grants_of_no_frame(pair: tuple[Machine, Machine], mfn: int) -> None:
    mapper, granter = pair
    grant(granter, REF, 0, ONE, mfn=mfn)
    assert map_grant(mapper, VA(PLACE), HOST, REF, TWO)[0] == GrantStatus.BAD_PAGE


def test_a_failed_mapping_leaves_nothing(pair: tuple[Machine, Machine]) -> None:
    """No page table at that address; no handle left; no room for the owner's memory."""
    mapper, granter = pair
    grant(granter, REF, GIVEN, ONE)
    before = counts(granter, GIVEN)
    mapper.domain.maptrack.max_frames = 0
    assert map_grant(mapper, VA(PLACE), HOST, REF, TWO)[0] == FULL
    mapper.domain.maptrack.max_frames = 1
    assert map_grant(mapper, 0x1234567000, HOST, REF, TWO)[0] == ERROR
    mapper.memory.room = 4
    assert map_grant(mapper, VA(PLACE), HOST, REF, TWO)[0] == GrantStatus.NO_DEVICE_SPACE
    assert counts(granter, GIVEN) == before and flags_of(granter) == PERMIT
    nothing_is_left(mapper, granter)


def test_what_is_mapped_stays_what_it_is(pair: tuple[Machine, Machine]) -> None:
    """A frame mapped elsewhere becomes no page table, and it is not freed when its domain gives it up."""
    mapper, granter = pair
    grant(granter, REF, GIVEN, ONE)
    handle = mapped(mapper)
    granter.read_only(GIVEN)
    assert granter.mmuext(0, granter.mfn(GIVEN)) != 0, "pinned as an L1 table while another domain can write it"
    granter.put(GIVEN, b"still here")
    clear(granter, GIVEN)
    granter.domain.release_frame(GIVEN)
    assert mapper.domain.access.read(VA(PLACE), 10) == b"still here"
    assert granter.domain.frames.refs[GIVEN] == 1
    assert unmap(mapper, handle, VA(PLACE)) == OKAY
    assert granter.domain.frames.refs[GIVEN] == 0


def test_entries_cannot_be_copied(pair: tuple[Machine, Machine]) -> None:
    """Only a grant makes an entry that names another's frame: neither an update nor a new table does."""
    mapper, granter = pair
    grant(granter, REF, GIVEN, ONE)
    mapped(mapper)
    entry = mapper.words(L1)[PLACE]
    assert mapper.call(Hypercall.UPDATE_VA_MAPPING, VA(PLACE + 1), entry, 2) < 0
    assert mapper.update(mapper.l1_pointer(PLACE + 1), entry) < 0
    assert mapper.update(mapper.l1_pointer(PLACE), entry & ~RW) < 0, "read-only is another mapping"
    table = FREE + 8
    mapper.words(table)[7] = entry
    mapper.read_only(table)
    assert mapper.mmuext(0, mapper.mfn(table)) < 0
    for flags in (RO_FLAGS, RW_FLAGS):  # next door: no grant, though it is there
        assert mapper.update(mapper.l1_pointer(PLACE + 1), (entry & FRAME) + 4096 | flags) < 0
    # bits that say nothing about the frame are the guest's
    assert mapper.update(mapper.l1_pointer(PLACE), entry | 1 << 9) == 0
    assert mapper.update(mapper.l1_pointer(PLACE), entry & ~(1 << 63)) == 0


def test_an_overwritten_mapping_stays_pinned(pair: tuple[Machine, Machine]) -> None:
    """As in Xen: the grant stays active, and its handle can be given back for devices only. Nobody else is hurt."""
    mapper, granter = pair
    grant(granter, REF, GIVEN, ONE)
    before = counts(granter, GIVEN)
    handle = mapped(mapper)
    clear(mapper, PLACE)
    assert flags_of(granter) == PERMIT | READING | WRITING
    assert unmap(mapper, handle, VA(PLACE)) == ERROR
    # a second mapping, unmapped by the first one's handle
    other = mapped(mapper)
    assert unmap(mapper, handle, VA(PLACE)) == OKAY
    assert unmap(mapper, other, VA(PLACE)) == ERROR
    assert counts(granter, GIVEN) == (before[0] + 1, before[1] + 1)


def test_unmap_and_replace(pair: tuple[Machine, Machine]) -> None:
    """By a page of one's own, and by another domain's."""
    mapper, granter = pair
    for n in range(2):
        grant(granter, REF + n, GIVEN + n, ONE)
        granter.put(GIVEN + n, b"frame %d" % n)
    first = mapped(mapper)
    assert replace(mapper, first, VA(PLACE), VA(PLACE + 1)) == OKAY
    assert mapper.words(L1)[PLACE] & FRAME == mapper.mfn(PLACE + 1) << 12
    assert mapper.words(L1)[PLACE + 1] == 0
    first, second = mapped(mapper), mapped(mapper, VA(PLACE + 1), ref=REF + 1)
    assert replace(mapper, first, VA(PLACE), VA(PLACE + 1)) == OKAY
    assert mapper.domain.access.read(VA(PLACE), 7) == b"frame 1"
    assert flags_of(granter) == PERMIT
    assert unmap(mapper, second, VA(PLACE)) == OKAY
    nothing_is_left(mapper, granter)


def test_named_by_the_entry(pair: tuple[Machine, Machine]) -> None:
    """GNTMAP_contains_pte, as Linux's gntdev uses for processes."""
    mapper, granter = pair
    grant(granter, REF, GIVEN, ONE)
    granter.put(GIVEN, b"here")
    clear(mapper, PLACE)
    handle = mapped(mapper, mapper.l1_pointer(PLACE), HOST | abi.MapFlag.CONTAINS_PTE | abi.MapFlag.APPLICATION)
    assert mapper.domain.access.read(VA(PLACE), 4) == b"here"
    assert unmap(mapper, handle, mapper.l1_pointer(PLACE)) == OKAY
    nothing_is_left(mapper, granter)


def test_machine_to_phys_says_nothing_of_them(pair: tuple[Machine, Machine]) -> None:
    """The guest can look the frame up, as it can any frame of the machine, and finds none of its own."""
    mapper, granter = pair
    grant(granter, REF, GIVEN, ONE)
    mapped(mapper)
    mfn = mapper.domain.foreign.mfn(TWO, GIVEN)
    # mov rbx, M2P + mfn * 8; mov rax, [rbx]; syscall
    code = b"\x48\xbb" + (0xFFFF800000000000 + mfn * 8).to_bytes(8, "little") + b"\x48\x8b\x03\x0f\x05"
    mapper.exit(code)
    assert mapper.regs[0] == (1 << 64) - 1


def test_windows(neighbours: Neighbours) -> None:
    """The memory of several owners finds its place, leaves it, and others come there."""
    mapper = neighbours.build(ONE)
    owners = {DomId(n): neighbours.build(DomId(n), max_pages=80 + 10 * n) for n in range(2, 6)}
    handles = {}
    for n, (domid, owner) in enumerate(owners.items()):
        grant(owner, REF, GIVEN, ONE)
        owner.put(GIVEN, b"owner %d" % domid)
        handles[domid] = mapped(mapper, VA(PLACE + n), owner=domid)
    assert mapper.domain.foreign.statistics() == {"foreign_domains": 4, "foreign_mappings": 4}
    for n, domid in enumerate(owners):
        assert mapper.domain.access.read(VA(PLACE + n), 7) == b"owner %d" % domid
    places = {domid: mapper.domain.foreign.mfn(domid, 0) for domid in owners}
    assert unmap(mapper, handles[DomId(3)], VA(PLACE + 1)) == OKAY
    again = mapped(mapper, VA(PLACE + 1), owner=DomId(3))
    assert mapper.domain.foreign.mfn(DomId(3), 0) == places[DomId(3)]
    assert mapper.domain.access.read(VA(PLACE + 1), 7) == b"owner 3"
    for domid, handle in (handles | {DomId(3): again}).items():
        assert unmap(mapper, handle, VA(PLACE + domid - 2)) == OKAY
    nothing_is_left(mapper, *owners.values())


def test_room() -> None:
    """There is room for a good many guests' memory behind any guest's own, below the hypervisor's."""
    for pages in (1024, 1 << 20, 1 << 24):
        geometry = MemoryGeometry.for_domain(pages)
        assert room_for(geometry) == 1 << 24
        assert geometry.mfn_base + geometry.nr_frames + room_for(geometry) <= 0xFE00000
    huge = MemoryGeometry.for_domain(130_000_000)
    assert 0 < room_for(huge) < 1 << 24


# copying


@pytest.mark.parametrize("from_other", [False, True])
@pytest.mark.parametrize("to_other", [False, True])
def test_copy(pair: tuple[Machine, Machine], from_other: bool, to_other: bool) -> None:
    me, other = pair
    for machine in pair:
        grant(machine, REF, GIVEN, ONE)
        grant(machine, REF + 1, GIVEN + 1, ONE)
    source, dest = (other if from_other else me), (other if to_other else me)
    source.put(GIVEN, bytes(range(256)), 100)
    before = [counts(machine, pfn) for machine in pair for pfn in (GIVEN, GIVEN + 1)]
    owners = TWO if from_other else ONE, TWO if to_other else ONE
    assert copy(me, (REF, owners[0], 110), (REF + 1, owners[1], 4000), 96) == OKAY
    assert dest.get(GIVEN + 1, 96, 4000) == bytes(range(10, 106))
    assert [counts(machine, pfn) for machine in pair for pfn in (GIVEN, GIVEN + 1)] == before
    nothing_is_left(me, other)


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize(
    ("entry", "ref", "owner", "offset", "length", "status"),
    [
        ((PERMIT, ONE), REF, TWO, 0, 4096, OKAY),
        ((PERMIT, ONE), REF, TWO, 4095, 1, OKAY),
        ((PERMIT, ONE), REF, TWO, 4095, 2, BAD_COPY),
        ((PERMIT, ONE), REF, TWO, 0xFFFF, 0xFFFF, BAD_COPY),
        ((PERMIT, ONE), 512, TWO, 0xFFFF, 1, BAD_REF),  # the grants come first
        ((PERMIT, ONE), REF, 77, 0, 1, NO_DOMAIN),
        ((PERMIT, ONE), REF, 0, 0, 1, ERROR),
        ((PERMIT, TWO), REF, TWO, 0, 1, ERROR),
        ((0, ONE), REF, TWO, 0, 1, ERROR),
        ((0, ONE), 512, TWO, 0, 0, OKAY),  # nothing asked, nothing looked at
    ],
)
def test_copy_status(
    pair: tuple[Machine, Machine],
    reads: bool,
    entry: tuple[int, int],
    ref: int,
    owner: int,
    offset: int,
    length: int,
    status: int,
) -> None:
    me, other = pair
    grant(other, REF, GIVEN, entry[1], entry[0])
    theirs, mine = (ref, owner, offset), (me.mfn(FREE), DOMID_SELF, 0)
    if reads:
        assert copy(me, theirs, mine, length, CopyFlag.SOURCE_GREF) == status
    else:
        assert copy(me, mine, theirs, length, CopyFlag.DEST_GREF) == status
    nothing_is_left(me, other)


def test_copies_respect_read_only(pair: tuple[Machine, Machine]) -> None:
    me, other = pair
    grant(other, REF, GIVEN, ONE, PERMIT | READONLY)
    assert copy(me, (me.mfn(FREE), DOMID_SELF, 0), (REF, TWO, 0), 8, CopyFlag.DEST_GREF) == ERROR
    assert copy(me, (REF, TWO, 0), (me.mfn(FREE), DOMID_SELF, 0), 8, CopyFlag.SOURCE_GREF) == OKAY
    assert copy(me, (other.mfn(GIVEN), TWO, 0), (me.mfn(FREE), DOMID_SELF, 0), 8, 0) == DENIED
    grant(other, REF + 1, L1, ONE)
    assert copy(me, (me.mfn(FREE), DOMID_SELF, 0), (REF + 1, TWO, 0), 8, CopyFlag.DEST_GREF) == ERROR, "a page table"


def test_a_copy_over_code(pair: tuple[Machine, Machine]) -> None:
    """What is copied over instructions is what runs next."""
    me, other = pair
    nop_then_exit = b"\x90\x0f\x05"
    page = FREE + 5
    other.put(page, b"\x48\xc7\xc0\x01\x00\x00\x00\x0f\x05")  # mov rax, 1; syscall
    assert other.call(Hypercall.UPDATE_VA_MAPPING, VA(page), other.entry(page, RO_FLAGS & ~(1 << 63)), 2) == 0
    for expected in (1, 2):
        other.regs[0] = 0
        other.regs[16] = VA(page)
        other.domain.engine.set_vcpu(None)
        other.domain.engine.clear_kick()
        other.domain.engine.run()
        assert other.regs[0] == expected
        grant(other, REF, page, ONE)
        me.put(FREE, b"\x48\xc7\xc0\x02\x00\x00\x00" + nop_then_exit)
        assert copy(me, (me.mfn(FREE), DOMID_SELF, 0), (REF, TWO, 0), 10, CopyFlag.DEST_GREF) == OKAY


# ends


def test_the_owner_goes_first(neighbours: Neighbours) -> None:
    """Its frames stay what they were for who has them mapped, and can be given back."""
    mapper, granter = neighbours.build(ONE), neighbours.build(TWO)
    grant(granter, REF, GIVEN, ONE)
    granter.put(GIVEN, b"legacy")
    handle = mapped(mapper)
    del neighbours.machines[TWO]
    granter.close()
    assert neighbours.foreign.is_used(TWO) and neighbours.foreign.users(TWO) == {ONE: 1}
    assert mapper.domain.access.read(VA(PLACE), 6) == b"legacy"
    assert map_grant(mapper, VA(PLACE + 1), HOST, REF, TWO)[0] == NO_DOMAIN
    assert unmap(mapper, handle, VA(PLACE)) == OKAY
    assert not neighbours.foreign.is_used(TWO)
    nothing_is_left(mapper)


def test_a_list_of_operations(pair: tuple[Machine, Machine]) -> None:
    """Each has its own status, and they are done in order."""
    mapper, granter = pair
    for n in range(4):
        grant(granter, REF + n, GIVEN + n, ONE if n != 2 else THREE)
    layout = abi.map_grant_ref
    at = FREE + 12
    mapper.put(at, b"".join(layout.pack(VA(PLACE + n), HOST, REF + n, TWO, 99, 0, 0) for n in range(4)))
    assert mapper.call(Hypercall.GRANT_TABLE_OP, GnttabOp.MAP_GRANT_REF, VA(at), 4) == 0
    rows = [layout.unpack(mapper.get(at, layout.size, n * layout.size)) for n in range(4)]
    assert [row[4] for row in rows] == [OKAY, OKAY, ERROR, OKAY]
    assert len({row[5] for row in rows if row[4] == OKAY}) == 3


def test_others_tables_are_not_shown(pair: tuple[Machine, Machine]) -> None:
    me, _ = pair
    assert operate(me, GnttabOp.SETUP_TABLE, abi.setup_table, TWO, 1, 99, VA(FREE))[2] == DENIED
    assert operate(me, GnttabOp.QUERY_SIZE, abi.query_size, TWO, 0, 0, 99)[3] == DENIED


def test_given_back_by_who_has_not_got_it(pair: tuple[Machine, Machine]) -> None:
    """The owner's side believes nobody."""
    _, granter = pair
    grant(granter, REF, GIVEN, ONE)
    table = granter.domain.grants
    table.pin(REF, ONE, readonly=True)
    for user, kinds in ((THREE, {}), (ONE, {"device": True}), (ONE, {"host": False, "device": True})):
        with pytest.raises(GrantError):
            table.unpin(REF, user, readonly=True, **kinds)
    with pytest.raises(GrantError):
        table.unpin(REF, ONE, readonly=False)
    table.unpin(REF, ONE, readonly=True)


class Neighbourhood(RuleBasedStateMachine):
    """Three domains that use each other's grants as they like, against the sum of what each has mapped."""

    REFS = range(8, 11)
    GRANTED = (FREE, FREE + 1, L1)
    PLACES = tuple(range(FREE + 20, FREE + 23))

    def __init__(self) -> None:
        super().__init__()
        self.neighbours = Neighbours()
        self.domains = [self.neighbours.build(DomId(n), max_pages=70 + 10 * n) for n in (1, 2, 3)]
        self.handles: list[dict[int, tuple[int, int, int, int]]] = [{}, {}, {}]
        """For each domain: handle -> owner, ref, flags, pfn."""
        self.entries: dict[tuple[int, int], tuple[int, int, int]] = {}
        for machine in self.domains:
            for place in self.PLACES:
                clear(machine, place)
        self.start = [[counts(machine, pfn) for pfn in range(PAGES)] for machine in self.domains]
        for owner in range(3):
            for n, ref in enumerate(self.REFS):
                self.permit(owner, ref, (owner + n) % 3, PERMIT, self.GRANTED[n])

    def teardown(self) -> None:
        self.neighbours.close()

    def permit(self, owner: int, ref: int, user: int, flags: int, pfn: int) -> None:
        self.entries[owner, ref] = (user, flags, pfn)
        marks = flags_of(self.domains[owner], ref) & (READING | WRITING)
        grant(self.domains[owner], ref, pfn, user + 1, flags | marks)

    def uses(self, owner: int, ref: int) -> list[tuple[int, int, int]]:
        """(user, flags, pfn) of each handle of a grant."""
        return [
            (user, flags, pfn)
            for user, handles in enumerate(self.handles)
            for of, which, flags, pfn in handles.values()
            if (of, which) == (owner, ref)
        ]

    def expected(self, user: int, owner: int, ref: int, flags: int) -> int | None:
        """The PFN that a mapping gets, None when it is refused."""
        grantee, granted, pfn = self.entries[owner, ref]
        uses = self.uses(owner, ref)
        writes = not flags & RO
        if uses:
            if uses[0][0] != user:
                return None
            if writes and all(each & RO for _, each, _ in uses) and granted & READONLY:
                return None
            pfn = uses[0][2]
        elif granted & 3 != PERMIT or grantee != user or (writes and granted & READONLY):
            return None
        return None if pfn == L1 and writes else pfn

    domids = st.integers(0, 2)
    refs = st.sampled_from(REFS)
    places = st.sampled_from(PLACES)
    kinds = st.sampled_from([HOST, HOST | RO, DEVICE, DEVICE | RO, HOST | DEVICE])

    @rule(
        owner=domids, ref=refs, user=domids, flags=st.sampled_from([0, PERMIT, PERMIT, PERMIT | READONLY]),
        pfn=st.sampled_from(GRANTED),
    )
    def write_entry(self, owner: int, ref: int, user: int, flags: int, pfn: int) -> None:
        self.permit(owner, ref, user, flags, pfn)

    @rule(user=domids, owner=domids, ref=refs, place=places, flags=kinds)
    def map(self, user: int, owner: int, ref: int, place: int, flags: int) -> None:
        pfn = self.expected(user, owner, ref, flags)
        status, handle, _ = map_grant(self.domains[user], VA(place), flags, ref, owner + 1)
        assert (status == OKAY) == (pfn is not None), status
        if pfn is not None:
            self.handles[user][handle] = (owner, ref, flags, pfn)
            if flags & HOST:
                seen = self.domains[user].domain.access.read(VA(place), 4096)
                assert seen == self.domains[owner].get(pfn, 4096) or pfn == L1

    @rule(user=domids, choice=st.integers(0, 3), place=places)
    def unmap(self, user: int, choice: int, place: int) -> None:
        machine, handles = self.domains[user], self.handles[user]
        if choice >= len(handles):
            return
        handle = sorted(handles)[choice]
        owner, _, flags, pfn = handles[handle]
        frame = machine.mfn(pfn) if owner == user else machine.domain.foreign.mfn(DomId(owner + 1), pfn)
        entry = machine.words(L1)[place]
        is_there = entry & PRESENT and (entry & FRAME) >> 12 == frame and bool(entry & RW) == (not flags & RO)
        status = unmap(machine, handle, VA(place), frame << 12)
        assert status == (OKAY if is_there or not flags & HOST else ERROR)
        if status == OKAY:
            del handles[handle]

    @rule(user=domids, place=places)
    def overwrite(self, user: int, place: int) -> None:
        clear(self.domains[user], place)

    @rule(user=domids, owner=domids, ref=refs, writes=st.booleans())
    def copy(self, user: int, owner: int, ref: int, writes: bool) -> None:
        me = self.domains[user]
        theirs, mine = (ref, owner + 1, 16), (me.mfn(FREE + 10), DOMID_SELF, 0)
        pfn = self.expected(user, owner, ref, 0 if writes else RO)
        uses = self.uses(owner, ref)
        if writes and uses and all(each & RO for _, each, _ in uses) and self.entries[owner, ref][2] != uses[0][2]:
            pfn = None  # looked at again for writing, and it names another frame
        if writes:
            status = copy(me, mine, theirs, 64, CopyFlag.DEST_GREF)
        else:
            status = copy(me, theirs, mine, 64, CopyFlag.SOURCE_GREF)
        assert (status == OKAY) == (pfn is not None)
        if pfn is not None and pfn != L1:
            assert me.get(FREE + 10, 64) == self.domains[owner].get(pfn, 64, 16)

    @invariant()
    def accounts_agree(self) -> None:
        for owner, machine in enumerate(self.domains):
            expected = [list(each) for each in self.start[owner]]
            for ref in self.REFS:
                uses = self.uses(owner, ref)
                marks = (READING if uses else 0) | (WRITING if any(not flags & RO for _, flags, _ in uses) else 0)
                assert flags_of(machine, ref) & (READING | WRITING) == marks
                for user, flags, pfn in uses:
                    if user == owner:
                        continue  # held by the entries, which test_grant_mappings accounts for
                    holds = bool(flags & HOST) + bool(flags & DEVICE)
                    expected[pfn][0] += holds
                    expected[pfn][1] += 0 if flags & RO else holds
            for pfn in (FREE, FREE + 1):
                own = [h for h in self.handles[owner].values() if h[0] == owner and h[3] == pfn]
                if not own and not any(
                    machine.words(L1)[place] & FRAME == machine.mfn(pfn) << 12 for place in self.PLACES
                ):
                    assert list(counts(machine, pfn)) == expected[pfn]
            windows = {of for of, *_ in self.handles[owner].values() if of != owner}
            assert machine.domain.foreign.statistics()["foreign_domains"] == len(windows)


TestNeighbourhood = Neighbourhood.TestCase
TestNeighbourhood.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_shutdown_with_mappings(pair: tuple[Machine, Machine]) -> None:
    """A mapper that ends without unmapping is the host's business: `ForeignGrants.user_gone`."""
    mapper, granter = pair
    grant(granter, REF, GIVEN, ONE)
    mapped(mapper)
    assert isinstance(mapper.run(b"\x0f\x0b"), Shutdown)
    mapper.domain.foreign.statistics()
    assert GrantRef(REF) in granter.domain.grants.active
