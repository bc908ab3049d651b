# SPDX-License-Identifier: GPL-2.0-only
"""A model of both halves of a device running the handshake table against each other, for exhaustive search.

A half looks (reads both states, takes its action from the table), works (the action's step) and commits (writes the
new state, unless either state was written since it looked); each is one move, and moves of the two halves interleave
in every way. The world interferes by the incidents named in a scenario, each at most once, at any moment. Timeouts
come only when no half has a move. Rings have a generation, so that a backend left on the rings of a frontend that is
no more shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from xen_py.io.xenbus import Action, Do, Event, Side, State, next_action

CLEAN, LOOK, WORK, COMMIT = range(4)
TIMEOUTS = 3


class Half(NamedTuple):
    state: State = State.INITIALISING
    wish: Event = Event.WANTED
    phase: int = LOOK
    action: Action | None = None
    event: Event = Event.WANTED
    disturbed: bool = False
    failed: bool = False
    reconfigure: bool = False
    alive: bool = True
    over: bool = False
    rings: int = 0  # frontend: the generation it has published; backend: the one it has mapped
    up: bool = False  # frontend: users can use the device
    timeouts: int = TIMEOUTS


class World(NamedTuple):
    front: Half
    back: Half
    incidents: frozenset[str]
    generation: int = 1
    named: int = 0  # the generation whose references are in the store
    in_use: bool = False
    published: State = State.INITIALISED  # where a frontend goes after PUBLISH
    lost_service: bool = False  # the backend has failed or started anew, so the last user may wait for an answer


class Unsafe(AssertionError):
    """A half did what must never happen."""


def begin(incidents: frozenset[str], published: State) -> World:
    in_use = "release" in incidents or "never released" in incidents
    return World(Half(), Half(), incidents, in_use=in_use, published=published)


def moves(world: World) -> Iterator[tuple[str, World]]:
    """Every next world and what leads there. No moves: the end of this way."""
    quiet = True
    for side in Side:
        for name, after in _half_moves(world, side):
            quiet = False
            yield name, after
    for incident in world.incidents:
        changed = _incident(world, incident)
        if changed is not None:
            yield incident, changed._replace(incidents=world.incidents - {incident})
    if quiet:
        for side in Side:
            half, other = _pair(world, side)
            if half.phase == CLEAN and half.alive and not half.over and half.timeouts:
                action = next_action(side, half.state, other.state, Event.TIMEOUT)
                if action.do is not Do.WAIT:
                    waited = half._replace(
                        phase=WORK, action=action, event=Event.TIMEOUT, disturbed=False, timeouts=half.timeouts - 1
                    )
                    yield f"{side.value} times out", _with(world, side, waited)


def _pair(world: World, side: Side) -> tuple[Half, Half]:
    return (world.front, world.back) if side is Side.FRONTEND else (world.back, world.front)


def _with(world: World, side: Side, half: Half) -> World:
    return world._replace(front=half) if side is Side.FRONTEND else world._replace(back=half)


def _poked(half: Half) -> Half:
    """A state it watches was written."""
    if half.phase in (CLEAN, LOOK):
        return half._replace(phase=LOOK)
    return half._replace(disturbed=True)


def _half_moves(world: World, side: Side) -> Iterator[tuple[str, World]]:
    half, other = _pair(world, side)
    if not half.alive or half.over or half.phase == CLEAN:
        return
    name = f"{side.value} "
    if half.phase == LOOK:
        yield name + "looks", _with(world, side, _look(world.published, side, half, other))
    elif half.phase == WORK:
        assert half.action is not None
        if world.in_use and side is Side.FRONTEND and half.action.do is Do.DISCONNECT and half.up:
            # its last user has not let go; what happens meanwhile is looked at
            if half.disturbed:
                yield name + "breaks off", _with(world, side, half._replace(phase=LOOK, action=None, disturbed=False))
            return
        yield name + half.action.do.name.lower(), _work(world, side, half, other)
    else:
        yield name + "commits", _commit(world, side, half, other)


def _look(published: State, side: Side, half: Half, other: Half) -> Half:
    event = Event.GONE if not other.alive else Event.FAILED if half.failed else half.wish
    action = next_action(side, half.state, other.state, event, published)
    if event is half.wish and half.reconfigure and action.switch_to is None:
        asked = next_action(side, half.state, other.state, Event.RECONFIGURE)
        if asked.do is not Do.WAIT:
            event, action, half = Event.RECONFIGURE, asked, half._replace(reconfigure=False)
    if action.do is Do.WAIT and action.wish is None:
        return half._replace(phase=CLEAN, action=None)
    return half._replace(phase=WORK, action=action, event=event, disturbed=False)


def _work(world: World, side: Side, half: Half, other: Half) -> World:
    assert half.action is not None
    do = half.action.do
    after = half._replace(phase=COMMIT)
    if side is Side.FRONTEND:
        if do is Do.PUBLISH:
            after = after._replace(rings=world.generation)
            world = world._replace(named=world.generation)
        elif do is Do.CONNECT:
            after = after._replace(up=True)
        elif do in (Do.DISCONNECT, Do.FAIL):
            after = after._replace(up=False)
        elif do in (Do.FREE, Do.END):
            if half.rings and other.rings == half.rings and other.alive and do is not Do.END:
                raise Unsafe(f"the frontend frees rings that the backend has mapped ({half.event.name})")
            after = after._replace(up=False, rings=0, over=do is Do.END)
    else:
        if do is Do.CONNECT:
            if half.disturbed:
                after = half._replace(phase=LOOK, action=None, disturbed=False)
            elif world.named:
                after = after._replace(rings=world.named)
            else:
                after = half._replace(failed=True, phase=LOOK)
        elif do in (Do.DISCONNECT, Do.FREE, Do.FAIL, Do.END):
            after = after._replace(rings=0, over=do in (Do.FREE, Do.END))
    return _with(world, side, after)


def _commit(world: World, side: Side, half: Half, other: Half) -> World:
    action = half.action
    assert action is not None
    if half.disturbed and (action.switch_to is not None or action.wish is not None):
        return _with(world, side, half._replace(phase=LOOK, action=None, disturbed=False))
    wish = action.wish if action.wish is not None and half.wish is not Event.UNWANTED else half.wish
    switched = action.switch_to is not None and action.switch_to is not half.state
    failed = half.event is Event.FAILED or (half.failed and other.alive)
    look = switched or half.disturbed or wish is not half.wish or failed
    half = half._replace(
        failed=half.failed and half.event is not Event.FAILED,
        phase=LOOK if look else CLEAN,
        action=None,
        wish=wish,
        disturbed=False,
        state=action.switch_to if action.switch_to is not None else half.state,
    )
    world = _with(world, side, half)
    if not switched:
        return world
    return _with(world, Side.BACKEND if side is Side.FRONTEND else Side.FRONTEND, _poked(other))


def _unplugged(world: World) -> World:
    """libxl: online 0 and, unless it is Closed already, state Closing, in one transaction."""
    back = world.back
    if back.over or not back.alive:
        return world
    if back.state not in (State.CLOSED, State.UNKNOWN):
        back = back._replace(state=State.CLOSING)
    return world._replace(back=_poked(back._replace(wish=Event.UNWANTED)), front=_poked(world.front))


def _incident(world: World, incident: str) -> World | None:
    front, back = world.front, world.back
    if incident in ("release", "never released"):
        return world._replace(in_use=False) if incident == "release" else None
    if incident == "reopen":
        if front.wish is Event.WANTED or front.over or not front.alive:
            return None
        return world._replace(front=_poked(front._replace(wish=Event.WANTED)))
    if incident == "backend reborn":
        if back.alive or front.state is State.UNKNOWN:  # the toolstack makes both directories or none
            return None
        return world._replace(back=Half(), front=_poked(front), lost_service=True)
    if incident == "frontend closes":
        return world._replace(front=_poked(front._replace(wish=Event.UNWANTED)))
    if incident == "unplug":
        return _unplugged(world)
    if incident == "forced removal":
        world = _unplugged(world)
        return world._replace(front=_poked(world.front._replace(state=State.UNKNOWN)), back=_poked(world.back))
    if incident == "kexec" and front.alive and not front.over and front.state is not State.UNKNOWN:
        return world._replace(front=Half(), back=_poked(back), generation=world.generation + 1, in_use=False)
    if incident == "frontend dies" and front.alive:
        gone = front._replace(alive=False, state=State.UNKNOWN, up=False, phase=CLEAN, action=None)
        return world._replace(front=gone, back=_poked(back))
    if incident == "backend dies" and back.alive:
        gone = Half(state=State.UNKNOWN, alive=False, phase=CLEAN)
        return world._replace(back=gone, front=_poked(front), lost_service=True)
    if incident == "backend restarts" and back.alive and not back.over and back.state is not State.UNKNOWN:
        wish = Event.UNWANTED if back.wish is Event.UNWANTED else Event.WANTED  # online stays as it is
        return world._replace(back=Half(wish=wish), front=_poked(front), lost_service=True)
    if incident == "frontend fails" and front.alive:
        return world._replace(front=_poked(front._replace(failed=True)))
    if incident == "backend fails" and back.alive:
        return world._replace(back=_poked(back._replace(failed=True)), lost_service=True)
    if incident == "frontend reconfigures":
        return world._replace(front=_poked(front._replace(reconfigure=True)))
    if incident == "backend reconfigures":
        return world._replace(back=_poked(back._replace(reconfigure=True)))
    return None
