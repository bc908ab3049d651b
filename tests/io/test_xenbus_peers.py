# SPDX-License-Identifier: GPL-2.0-only
"""The handshake table against halves that are not ours, modelled from how they behave.

A foreign half writes its next state whenever it sees the other's, in one move and without a transaction. Whatever the
interleaving, both get connected when both want to, and closed when either goes; and nobody goes round in circles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from tests.io.xenbus_model import CLEAN, LOOK, Half, World, moves
from xen_py.io.xenbus import Event, Side, State

S = State
OPEN = (S.CONNECTED, S.RECONFIGURING, S.RECONFIGURED)


class Foreign(NamedTuple):
    """`state` is what it shows, `step` where its program is, `closing` that it has been told to go."""

    state: State
    step: int = 0
    closing: bool = False
    mapped: bool = False


Turn = Callable[[Foreign, State, bool], Foreign]
"""(itself, the other's state, is the backend online) -> itself; the same one: it waits."""


def netfront(me: Foreign, other: State, online: bool) -> Foreign:
    """Linux: no Initialised; to Closed at once when the backend closes; driver removal waits for the backend."""
    if me.closing:
        if me.state is S.CONNECTED:
            return me._replace(state=S.CLOSING)
        if me.state is S.CLOSING and other in (S.CLOSING, S.CLOSED, S.UNKNOWN):
            return me._replace(state=S.CLOSED)
        return me if me.state in (S.CLOSING, S.CLOSED) else me._replace(state=S.CLOSED)
    if other is S.INIT_WAIT and me.state is S.INITIALISING:
        return me._replace(state=S.CONNECTED)
    if other in (S.CLOSING, S.CLOSED) and me.state is S.CONNECTED:
        return me._replace(state=S.CLOSED)
    return me


def blkfront(me: Foreign, other: State, online: bool) -> Foreign:
    """Linux: publishes at InitWait, connects when the backend has; leaves as netfront does."""
    if me.closing or other in (S.CLOSING, S.CLOSED):
        if me.state in (S.INITIALISED, S.CONNECTED):
            return me._replace(state=S.CLOSED)
        return me._replace(state=S.CLOSED) if me.closing else me
    if other is S.INIT_WAIT and me.state is S.INITIALISING:
        return me._replace(state=S.INITIALISED)
    if other is S.CONNECTED and me.state is S.INITIALISED:
        return me._replace(state=S.CONNECTED)
    return me


def windows_front(me: Foreign, other: State, online: bool) -> Foreign:
    """Leads the backend through Closing and Closed before it begins, and again when it ends. `step` counts the way."""
    if me.closing and me.step >= 3:
        me = me._replace(step=0)
    if me.step == 0:
        return me._replace(state=S.CLOSING, step=1)
    if me.step == 1 and other in (S.CLOSING, S.CLOSED, S.UNKNOWN):
        return me._replace(state=S.CLOSED, step=2)
    if me.step == 2 and other in (S.CLOSED, S.UNKNOWN) and not me.closing and online:
        return me._replace(state=S.INITIALISING, step=3)
    if me.step == 3 and other is S.INIT_WAIT:
        return me._replace(state=S.CONNECTED, step=4)
    if me.step >= 3 and other in (S.CLOSING, S.CLOSED) and not (me.step == 3 and other is S.CLOSED):
        return me._replace(state=S.CLOSING, step=1)
    return me


def netback(me: Foreign, other: State, online: bool) -> Foreign:
    """Linux: goes to the state the frontend asks for by the shortest way; unmaps when it leaves Connected."""
    goal = {
        S.INITIALISING: S.INIT_WAIT,
        S.CONNECTED: S.CONNECTED,
        S.CLOSING: S.CLOSING,
        S.CLOSED: S.CLOSED,
        S.UNKNOWN: S.CLOSED,
    }.get(other)
    if me.step == 0:  # its probe
        return me._replace(state=S.INIT_WAIT, step=1)
    if not online and me.state is S.CLOSING and other is S.INITIALISING:
        return me._replace(state=S.CLOSED, mapped=False)
    if not online and me.state in (S.CLOSED, S.CLOSING) and other in (S.INITIALISING, S.CONNECTED):
        return me
    if goal is None or goal is me.state:
        return me
    if me.state is S.INIT_WAIT:
        if goal is S.CONNECTED:
            return me._replace(state=S.CONNECTED, mapped=True)
        return me._replace(state=S.CLOSING)
    if me.state is S.CONNECTED:
        return me._replace(state=S.CLOSING, mapped=False)
    if me.state is S.CLOSING:
        return me._replace(state=S.CLOSED, mapped=False)
    if goal is S.CLOSING:
        return me._replace(state=S.CLOSING)
    return me._replace(state=S.INIT_WAIT)


def blkback(me: Foreign, other: State, online: bool) -> Foreign:
    """Linux: connects at Initialised or Connected, unmaps at the frontend's Closed, leaves Closed for Initialising."""
    if me.step == 0:
        return me._replace(state=S.INIT_WAIT, step=1)
    if other is S.INITIALISING and me.state is S.CLOSED and online:
        return me._replace(state=S.INIT_WAIT)
    if other in (S.INITIALISED, S.CONNECTED) and me.state is S.INIT_WAIT:
        return me._replace(state=S.CONNECTED, mapped=True)
    if other is S.CLOSING and me.state is not S.CLOSING:
        return me._replace(state=S.CLOSING)
    if other in (S.CLOSED, S.UNKNOWN) and me.state is not S.CLOSED:
        return me._replace(state=S.CLOSED, mapped=False)
    return me


def qemu(me: Foreign, other: State, online: bool) -> Foreign:
    """As blkback; and when it is told to close while no frontend is there it is Closed at once."""
    if me.state is S.CLOSING and not online and other in (S.INITIALISING, S.UNKNOWN, S.CLOSED):
        return me._replace(state=S.CLOSED, mapped=False)
    return blkback(me, other, online)


class Meeting(NamedTuple):
    world: World  # its half on the foreign side only mirrors the state
    foreign: Foreign
    stale: bool = True  # the foreign half has not looked since the other's last switch
    incident: str = ""


def meeting(side: Side, start: State, incident: str, published: State) -> Meeting:
    world = World(Half(), Half(), frozenset(), named=1, published=published)
    foreign = Foreign(start)
    return Meeting(_mirror(world, side, foreign), foreign, incident=incident)


def _mirror(world: World, side: Side, foreign: Foreign) -> World:
    rings = 1 if foreign.mapped or side is Side.BACKEND else 0
    if side is Side.BACKEND:
        return world._replace(front=Half(state=foreign.state, phase=CLEAN, rings=rings, timeouts=0))
    return world._replace(back=Half(state=foreign.state, phase=CLEAN, rings=rings, timeouts=0))


def _look_again(half: Half) -> Half:
    return half._replace(phase=LOOK) if half.phase in (CLEAN, LOOK) else half._replace(disturbed=True)


def follow(now: Meeting, side: Side, turn: Turn) -> Iterator[tuple[str, Meeting]]:
    """`side` is ours."""
    mine, other = (now.world.front, now.world.back) if side is Side.FRONTEND else (now.world.back, now.world.front)
    for name, world in moves(now.world):
        if "times out" in name and now.stale:
            continue
        after = world.front if side is Side.FRONTEND else world.back
        stale = now.stale or after.state is not mine.state
        mirror = world.back if side is Side.FRONTEND else world.front
        if mirror.phase != CLEAN:  # our switch has poked the mirror
            world = _mirror_keeping(world, side, now.foreign)
        yield name, now._replace(world=world, stale=stale)
    online = now.world.back.wish is not Event.UNWANTED
    if now.stale:
        foreign = turn(now.foreign, mine.state, online)
        moved = foreign != now.foreign
        half = _look_again(mine) if foreign.state is not other.state else mine
        yield f"peer: {foreign.state.name}", now._replace(
            world=_put(_mirror_keeping(now.world, side, foreign), side, half), foreign=foreign, stale=moved
        )
    if now.incident == "frontend closes":
        if side is Side.FRONTEND:
            half = _look_again(mine._replace(wish=Event.UNWANTED))
            yield now.incident, now._replace(world=_put(now.world, side, half), incident="")
        else:
            yield now.incident, now._replace(foreign=now.foreign._replace(closing=True), stale=True, incident="")
    if now.incident == "unplug":
        back = now.world.back
        state = back.state if back.state is S.CLOSED else S.CLOSING
        changed = back._replace(state=state, wish=Event.UNWANTED)
        if side is Side.BACKEND:
            world = now.world._replace(back=_look_again(changed))
            yield now.incident, now._replace(world=world, stale=True, incident="")
        else:
            world = now.world._replace(back=changed, front=_look_again(now.world.front))
            foreign = now.foreign._replace(state=state, step=1)
            yield now.incident, now._replace(world=world, foreign=foreign, stale=True, incident="")


def _put(world: World, side: Side, half: Half) -> World:
    return world._replace(front=half) if side is Side.FRONTEND else world._replace(back=half)


def _mirror_keeping(world: World, side: Side, foreign: Foreign) -> World:
    """The mirror anew, with the wish that says whether the backend is online."""
    wish = world.back.wish
    world = _mirror(world, side, foreign)
    return world._replace(back=world.back._replace(wish=wish)) if side is Side.FRONTEND else world


@pytest.mark.parametrize("incident", ["", "frontend closes", "unplug"])
@pytest.mark.parametrize(
    ("side", "turn"),
    [
        (Side.BACKEND, netfront),
        (Side.BACKEND, blkfront),
        (Side.BACKEND, windows_front),
        (Side.FRONTEND, netback),
        (Side.FRONTEND, blkback),
        (Side.FRONTEND, qemu),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_table_gets_on_with_others(side: Side, turn: Turn, incident: str) -> None:
    start = meeting(side, S.INITIALISING, incident, S.CONNECTED if turn is netback else S.INITIALISED)
    open_ways: dict[Meeting, bool] = {start: False}
    stack = [(start, follow(start, side, turn))]
    trail = ["begin"]
    ends: list[tuple[Meeting, list[str]]] = []
    while stack:
        now, ways = stack[-1]
        step = next(ways, None)
        if step is None:
            if all(name == now.incident for name, _ in follow(now, side, turn)):
                ends.append((now, list(trail)))
            open_ways[now] = True
            stack.pop()
            trail.pop()
            continue
        name, after = step
        assert open_ways.get(after) is not False, f"round in circles: {[*trail, name]}"
        if after not in open_ways:
            open_ways[after] = False
            stack.append((after, follow(after, side, turn)))
            trail.append(name)
    assert ends
    for end, how in ends:
        states = (end.world.front.state, end.world.back.state)
        if not incident or end.incident:
            assert states == (S.CONNECTED, S.CONNECTED), how
        elif incident == "unplug" and side is Side.BACKEND and states[0] is S.INITIALISING:
            assert states[1] is S.CLOSED, how  # it was never connected, so there is nothing for it to follow
        else:
            assert states == (S.CLOSED, S.CLOSED), how
