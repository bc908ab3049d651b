# SPDX-License-Identifier: GPL-2.0-only
"""The console ring: every byte once and in order, whatever the indices, and nothing outside the page."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from xen_py.io.console import IN_SIZE, OUT_SIZE, Connection, ConsoleRing, RingBroken

INDICES = IN_SIZE + OUT_SIZE


def page_with(in_cons: int = 0, in_prod: int = 0, out_cons: int = 0, out_prod: int = 0) -> bytearray:
    page = bytearray(4096)
    memoryview(page)[INDICES : INDICES + 16].cast("I")[:] = memoryview(
        bytearray(b"".join(n.to_bytes(4, "little") for n in (in_cons, in_prod, out_cons, out_prod)))
    ).cast("I")
    return page


class RingMachine(RuleBasedStateMachine):
    """Both halves on one page, starting anywhere in the index space, against two byte strings."""

    @initialize(start=st.integers(0, 0xFFFFFFFF))
    def begin(self, start: int) -> None:
        self.page = page_with(start, start, start, start)
        self.front = ConsoleRing(memoryview(self.page))
        self.back = ConsoleRing(memoryview(self.page))
        self.output = b""
        self.input = b""

    @rule(data=st.binary(max_size=3000))
    def guest_writes(self, data: bytes) -> None:
        count = self.front.put_output(data)
        assert count == min(len(data), OUT_SIZE - len(self.output))
        self.output += data[:count]

    @rule()
    def backend_takes(self) -> None:
        assert self.back.take_output() == self.output
        self.output = b""

    @rule(data=st.binary(max_size=1500))
    def backend_writes(self, data: bytes) -> None:
        count = self.back.put_input(data)
        assert count == min(len(data), IN_SIZE - len(self.input))
        self.input += data[:count]

    @rule()
    def guest_takes(self) -> None:
        assert self.front.take_input() == self.input
        self.input = b""

    @invariant()
    def room(self) -> None:
        if hasattr(self, "back"):
            assert self.back.input_room() == IN_SIZE - len(self.input)
            assert self.page[INDICES + 16 :] == bytes(4096 - INDICES - 16)


TestRing = RingMachine.TestCase


@given(st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF), st.binary(min_size=1, max_size=64))
def test_any_indices_are_taken_or_refused(cons: int, prod: int, data: bytes) -> None:
    page = page_with(cons, prod, cons, prod)
    ring = ConsoleRing(memoryview(page))
    used = (prod - cons) & 0xFFFFFFFF
    if used > OUT_SIZE:
        with pytest.raises(RingBroken):
            ring.take_output()
    else:
        assert len(ring.take_output()) == used
    if used > IN_SIZE:
        assert ring.input_room() == 0
        with pytest.raises(RingBroken):
            ring.put_input(data)
    else:
        assert ring.put_input(data) == min(len(data), IN_SIZE - used)


def test_connection_flag_and_statistics() -> None:
    ring = ConsoleRing(memoryview(page_with(1, 3, 5, 9)))
    assert ring.connection() is Connection.CONNECTED
    ring.set_connection(Connection.DISCONNECTED)
    assert ring.connection() is Connection.DISCONNECTED
    statistics = ring.statistics()
    assert (statistics.in_cons, statistics.in_prod, statistics.out_cons, statistics.out_prod) == (1, 3, 5, 9)
    ring.close()


def test_a_page_has_one_size() -> None:
    with pytest.raises(ValueError, match="4096"):
        ConsoleRing(memoryview(bytearray(2048)))
