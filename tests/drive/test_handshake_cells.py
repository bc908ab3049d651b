# SPDX-License-Identifier: GPL-2.0-only
"""Both halves of the echo device in every cell of the handshake table: each does what the table says, and rests.

A half is put before the two states and the event of a cell, as a driver is that has just come to them, and its first
action is compared with the table. The other end is the test, which stands still. Where the step cannot be done (a ring
that nobody has published), the half must fail in the way the table has for that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from echo_device.backend import EchoBackend
from echo_device.frontend import EchoFrontend

from dom0.backend.bus import LocalBus
from dom0.host.machine import FrontDomain, Machine, open_machine
from dom0.kit.guests import held
from domU.guest import Guest
from xen_py.drive import half
from xen_py.drive.half import Half
from xen_py.io.xenbus import TABLE, Action, Do, Event, Side, State

SETTLE = 0.005
"""Seconds of nothing after which a half rests; virtual ones count too."""
CELLS = [(ours, theirs, event) for ours in State for theirs in State for event in Event]
Seen = tuple[State, State, Event, Action]


@asynccontextmanager
async def machine_with_guest() -> AsyncIterator[tuple[Machine, Guest]]:
    async with open_machine() as machine, held(machine) as (_, guest):
        yield machine, guest


def write_states(machine: Machine, own: str, other: str, ours: State, theirs: State) -> None:
    store = machine.store
    for path, state in ((own, ours), (other, theirs)):
        if state is not State.UNKNOWN:
            store.write(f"{path}/state", str(int(state)))
    store.close()


async def first_action(tested: Half, event: Event) -> list[Seen]:
    """Run the half until it rests; all that it acted on."""
    seen: list[Seen] = []
    moved = trio.lowlevel.ParkingLot()

    def observe(ours: State, theirs: State, event: Event, action: Action) -> None:
        seen.append((ours, theirs, event, action))
        moved.unpark_all()

    tested.observe = observe
    tested._is_impatient = lambda _ours: False  # type: ignore[method-assign]
    match event:
        case Event.RESTING | Event.UNWANTED:
            tested._wish = event
        case Event.FAILED:
            tested.fail("as the test wants it")
        case Event.GONE:
            tested.peer_gone()
        case Event.RECONFIGURE:
            tested.connected = True
            tested.ask_to_reconfigure()
        case Event.TIMEOUT:
            tested._is_impatient = lambda _ours: not any(e is Event.TIMEOUT for _, _, e, _ in seen)  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tested.run)
        still = 0
        while still < 3 and not tested.over.is_set() and len(seen) < 50:
            before = len(seen)
            with trio.move_on_after(SETTLE):
                await moved.park()
            still = still + 1 if len(seen) == before else 0
        nursery.cancel_scope.cancel()
    return seen


def check(side: Side, ours: State, theirs: State, event: Event, seen: list[Seen]) -> None:
    wanted = TABLE[side, ours, theirs, event]
    assert len(seen) < 50, f"it does not rest: {seen[-4:]}"
    acted = [action for o, t, e, action in seen if (o, t, e) == (ours, theirs, event)]
    if event is Event.TIMEOUT and not acted:
        # before its patience was over there was something else to do
        assert TABLE[side, ours, theirs, Event.WANTED].do is not Do.WAIT or ours is State.UNKNOWN
        return
    if event is Event.RECONFIGURE and not acted:
        settled = TABLE[side, ours, theirs, Event.WANTED]
        assert settled.switch_to is not None or settled.do is Do.END
        return
    assert acted, f"the cell was not met, but {seen}"
    assert acted[0] is wanted


@pytest.mark.parametrize("event", Event)
async def test_the_backend_in_every_cell(
    event: Event, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setitem(half.PATIENCE, Side.BACKEND, SETTLE)
    async with machine_with_guest() as (machine, guest):
        assert machine.toolstack.domains[guest.domid].vm is not None
        vm = machine.toolstack.domains[guest.domid].vm
        assert vm is not None
        front = FrontDomain(guest.domid, vm.grants, machine.switchboard, machine.bridges, vm)
        store = machine.store
        for number, (ours, theirs, _) in enumerate(cell for cell in CELLS if cell[2] is event):
            own = f"/local/domain/0/backend/tested/{guest.domid}/{number}"
            other = f"/local/domain/{guest.domid}/device/tested/{number}"
            write_states(machine, own, other, ours, theirs)
            backend = EchoBackend(front, LocalBus(store), own, other, number)
            check(Side.BACKEND, ours, theirs, event, await first_action(backend, event))
            assert vm.grants.statistics().pinned == 0
        store.close()


@pytest.mark.parametrize("event", Event)
async def test_the_frontend_in_every_cell(
    event: Event, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setitem(half.PATIENCE, Side.FRONTEND, SETTLE)
    async with machine_with_guest() as (machine, guest):
        pages = guest.kernel.statistics()["pages_free"]
        ports = guest.events.statistics()["ports_open"]
        for number, (ours, theirs, _) in enumerate(cell for cell in CELLS if cell[2] is event):
            own = f"{guest.path}/device/{EchoFrontend.type}/{number}"
            other = f"/local/domain/0/backend/tested/{guest.domid}/{number}"
            store = machine.store
            store.mkdir(own)
            store.set_perms(own, [f"n{guest.domid}", "r0"])
            store.write(f"{own}/backend-id", "0")
            store.mkdir(other)
            store.set_perms(other, ["n0", f"r{guest.domid}"])
            store.close()
            write_states(machine, own, other, ours, theirs)
            frontend = EchoFrontend(guest, number, other)
            check(Side.FRONTEND, ours, theirs, event, await first_action(frontend, event))
            assert guest.grants.statistics()["granted"] == 0
            assert guest.kernel.statistics()["pages_free"] == pages
            assert guest.events.statistics()["ports_open"] == ports
