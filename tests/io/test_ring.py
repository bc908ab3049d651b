# SPDX-License-Identifier: GPL-2.0-only
"""Shared rings: nothing lost, nothing overwritten, no wake-up missed, and no index of the other side believed."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from xen_py.io import blkif, netif
from xen_py.io.ring import REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, BackRing, FrontRing, RingBroken, RingKind
from xen_py.types import PAGE_SIZE

INDEX = st.one_of(st.integers(0, 0xFFFFFFFF), st.integers(-40, 40).map(lambda number: number & 0xFFFFFFFF))
# 496-byte slots: eight in a page, and in two pages one lies across the border
SMALL = RingKind("small", 496, 16, bytes, bytes)


def shared(pages: int = 1) -> list[bytearray]:
    return [bytearray(b"\xa5" * PAGE_SIZE) for _ in range(pages)]


def views(memory: list[bytearray]) -> list[memoryview]:
    return [memoryview(page) for page in memory]


def set_index(memory: list[bytearray], at: int, value: int) -> None:
    struct.pack_into("<I", memory[0], at * 4, value & 0xFFFFFFFF)


def index(memory: list[bytearray], at: int) -> int:
    return int(struct.unpack_from("<I", memory[0], at * 4)[0])


def request(number: int) -> bytes:
    return struct.pack("<Q", number) * 62


def response(number: int) -> bytes:
    return struct.pack("<QQ", number, ~number & (1 << 64) - 1)


@pytest.mark.parametrize(
    ("kind", "pages", "slots"),
    [
        (blkif.RING, 1, 32),
        (blkif.RING, 2, 64),
        (blkif.RING, 16, 512),
        (netif.TX_RING, 1, 256),
        (netif.RX_RING, 1, 256),
        (netif.CTRL_RING, 1, 128),
        (SMALL, 1, 8),
        (SMALL, 2, 16),
    ],
)
def test_ring_sizes(kind: RingKind, pages: int, slots: int) -> None:
    assert kind.slots(pages) == slots


def test_a_new_ring_is_empty_and_asks_for_the_first_event() -> None:
    memory = shared()
    FrontRing(SMALL, views(memory))
    assert [index(memory, at) for at in (REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT)] == [0, 1, 0, 1]
    assert memory[0][16:64] == bytes(48)


def test_our_own_mistakes_are_named() -> None:
    memory = shared()
    front, back = FrontRing(SMALL, views(memory)), BackRing(SMALL, views(memory))
    with pytest.raises(ValueError, match="a response to no request"):
        back.put_response(response(0))
    for number in range(8):
        front.put_request(request(number))
    with pytest.raises(ValueError, match="small ring of 8 slots is full"):
        front.put_request(request(8))
    with pytest.raises(ValueError, match="497 bytes where 496 have room"):
        FrontRing(SMALL, views(memory)).put_request(bytes(497))
    with pytest.raises(ValueError, match="one or more pages"):
        BackRing(SMALL, [memoryview(bytearray(100))])


def test_a_shorter_structure_fits_a_slot() -> None:
    memory = shared()
    front, back = FrontRing(blkif.RING, views(memory)), BackRing(blkif.RING, views(memory))
    discard = blkif.DiscardRequest(blkif.Operation.DISCARD, 0, 1, 2, 3, 4)
    front.put_request(blkif.DISCARD_REQUEST.pack(discard))
    front.push()
    assert [blkif.RING.decode_request(slot) for slot in back.take_requests()] == [discard]


def test_a_backend_that_takes_over_finds_what_nobody_answered() -> None:
    memory = shared()
    front, dead = FrontRing(SMALL, views(memory)), BackRing(SMALL, views(memory))
    for number in range(3):
        front.put_request(request(number))
    front.push()
    dead.take_requests()
    dead.put_response(response(0))
    dead.push()
    heir = BackRing(SMALL, views(memory))
    assert heir.take_requests() == [request(1), request(2)]
    for number in (1, 2):
        heir.put_response(response(number))
    heir.push()
    assert front.take_responses() == [response(number) for number in range(3)]


def test_a_closed_ring_lets_go_of_its_memory() -> None:
    memory = shared()
    front = FrontRing(SMALL, views(memory))
    with pytest.raises(BufferError):
        memory[0].append(0)
    front.close()
    memory[0].append(0)


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (REQ_PROD, 9, "small ring of 8 slots.*producer index is 0x9.*0x0 are consumed and at most 8 more"),
        (REQ_PROD, -1, "producer index is 0xffffffff"),
        (REQ_PROD, 1, "producer index is 0x1; it was 0x2"),
        (RSP_PROD, 3, "producer index is 0x3.*at most 2 more"),
        (RSP_PROD, 1 << 31, "producer index is 0x80000000"),
    ],
)
def test_impossible_indices_break_the_ring(at: int, value: int, words: str) -> None:
    memory = shared()
    front, back = FrontRing(SMALL, views(memory)), BackRing(SMALL, views(memory))
    for number in range(2):
        front.put_request(request(number))
    front.push()
    assert back.final_check()
    set_index(memory, at, value)
    take: Callable[[], Any] = back.take_requests if at == REQ_PROD else front.take_responses
    with pytest.raises(RingBroken, match=words):
        take()


def test_requests_cannot_outrun_unanswered_ones() -> None:
    """Taken requests hold their slots until their responses are out: a frontend that overwrites them is broken."""
    memory = shared()
    front, back = FrontRing(SMALL, views(memory)), BackRing(SMALL, views(memory))
    for number in range(8):
        front.put_request(request(number))
    front.push()
    back.take_requests(limit=5)
    back.put_response(response(0))  # not pushed, so not seen
    set_index(memory, REQ_PROD, 9)
    with pytest.raises(RingBroken, match="0x5 are consumed and at most 3 more"):
        back.take_requests()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_hostile_indices_only_ever_break_the_ring(data: st.DataObject) -> None:
    """Whatever the other side writes into the header, at any time: RingBroken, or what a ring can hold."""
    memory = shared()
    hostile_front = data.draw(st.booleans())
    front = FrontRing(SMALL, views(memory))
    if hostile_front:
        for at in range(4):
            set_index(memory, at, data.draw(INDEX))
    back = BackRing(SMALL, views(memory))
    try:
        for _ in range(data.draw(st.integers(1, 12))):
            for at in range(4):
                if data.draw(st.booleans()):
                    set_index(memory, at, data.draw(INDEX))
            if hostile_front:
                assert len(back.take_requests(data.draw(st.none() | st.integers(0, 9)))) <= 8
                for _ in range(data.draw(st.integers(0, back.unanswered()))):
                    back.put_response(response(1))
                back.push()
                back.final_check()
                assert 0 <= back.unanswered() <= 8
            else:
                for _ in range(data.draw(st.integers(0, front.free()))):
                    front.put_request(request(1))
                front.push()
                assert len(front.take_responses()) <= 8
                front.final_check()
                assert 0 <= front.free() <= 8
    except RingBroken as error:
        assert "cannot" in str(type(error).__doc__)


class Halves(RuleBasedStateMachine):
    """Both halves, starting anywhere in the index space; responses come in any order.

    A half that sleeps has no other reason to look than an event: that is what the invariant is about.
    """

    @initialize(pages=st.sampled_from([1, 2]), start=st.sampled_from([0, 0xFFFFFFF0, 0xFFFFFFFF, 12345]))
    def begin(self, pages: int, start: int) -> None:
        self.memory = shared(pages)
        self.front = FrontRing(SMALL, views(self.memory))
        for at in range(4):
            set_index(self.memory, at, start + at % 2)
        self.front._produced = self.front._pushed = self.front._consumed = self.front._seen = start
        self.back = BackRing(SMALL, views(self.memory))
        self.next = 0
        self.put: list[int] = []  # by the frontend, not pushed
        self.pushed: list[int] = []  # not taken yet
        self.taken: list[int] = []  # not answered
        self.answered: list[int] = []  # not pushed
        self.ready: list[int] = []  # not taken by the frontend
        self.front_sleeps = self.back_sleeps = False

    @rule(count=st.integers(1, 20))
    def front_puts(self, count: int) -> None:
        in_flight = len(self.put + self.pushed + self.taken + self.answered + self.ready)
        assert self.front.free() == self.front.slots - in_flight
        for _ in range(min(count, self.front.free())):
            self.front.put_request(request(self.next))
            self.put.append(self.next)
            self.next += 1

    @rule()
    def front_pushes(self) -> None:
        notify = self.front.push()
        self.pushed += self.put
        self.put = []
        if notify:
            self.back_sleeps = False

    @rule(limit=st.none() | st.integers(0, 5))
    @precondition(lambda self: not self.back_sleeps)
    def back_takes(self, limit: int | None) -> None:
        count = len(self.pushed) if limit is None else min(limit, len(self.pushed))
        assert self.back.take_requests(limit) == [request(number) for number in self.pushed[:count]]
        self.taken += self.pushed[:count]
        del self.pushed[:count]

    @rule(data=st.data())
    def back_answers(self, data: st.DataObject) -> None:
        """Also while it sleeps: its disk wakes it, not the ring."""
        assert self.back.unanswered() == len(self.taken)
        for number in data.draw(st.permutations(self.taken))[: data.draw(st.integers(0, 20))]:
            self.back.put_response(response(number))
            self.taken.remove(number)
            self.answered.append(number)

    @rule()
    def back_pushes(self) -> None:
        notify = self.back.push()
        self.ready += self.answered
        self.answered = []
        if notify:
            self.front_sleeps = False

    @rule(limit=st.none() | st.integers(0, 5))
    @precondition(lambda self: not self.front_sleeps)
    def front_takes(self, limit: int | None) -> None:
        count = len(self.ready) if limit is None else min(limit, len(self.ready))
        assert self.front.take_responses(limit) == [response(number) for number in self.ready[:count]]
        del self.ready[:count]

    @rule()
    def front_sleeps_if_nothing_is_there(self) -> None:
        more = self.front.final_check()
        assert more == bool(self.ready)
        self.front_sleeps = not more

    @rule()
    def back_sleeps_if_nothing_is_there(self) -> None:
        more = self.back.final_check()
        assert more == bool(self.pushed)
        self.back_sleeps = not more

    @invariant()
    def who_sleeps_has_nothing_to_do(self) -> None:
        assert not (self.back_sleeps and self.pushed)
        assert not (self.front_sleeps and self.ready)


TestHalves = Halves.TestCase
TestHalves.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
