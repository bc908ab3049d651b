# SPDX-License-Identifier: GPL-2.0-only
"""The handshake table: every cell is there and sane, and the two halves that follow it always get somewhere."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from docs.xenbus_page import PAGE, page
from tests.io.xenbus_model import World, begin, moves
from xen_py.io.xenbus import ACTIONS, TABLE, Do, Event, Side, State, next_action, parse_state
from xen_py.io.xenbus_toolstack import TOOLSTACK, Happening, Phase

F, B = Side.FRONTEND, Side.BACKEND
WISHES = (Event.WANTED, Event.RESTING, Event.UNWANTED)
FRONT_ONLY = {Do.PUBLISH}
BACK_ONLY = {Do.PREPARE}

LIFE = ["frontend closes", "reopen", "unplug", "kexec", "backend restarts", "frontend reconfigures"]
DEATHS = ["frontend dies", "backend dies", "backend reborn", "forced removal", "frontend fails", "backend fails"]
INCIDENTS = [*LIFE, *DEATHS, "backend reconfigures", "release", "never released"]
HARMLESS = {"kexec", "backend restarts", "frontend reconfigures", "backend reconfigures", "release", "never released"}


@pytest.mark.parametrize("side", Side)
def test_every_cell_has_an_action(side: Side) -> None:
    for ours, theirs, event in product(State, State, Event):
        action = next_action(side, ours, theirs, event)
        assert action.do is not Do.SWITCH or action.switch_to is not None
        assert action.do is not Do.WAIT or action.switch_to is None
        assert action.do not in (BACK_ONLY if side is F else FRONT_ONLY)
        assert action.wish in (None, *WISHES)
        if ours is State.UNKNOWN:
            assert action.do is Do.END
            assert action.switch_to is None, "a deleted node is never written again"
    assert len(TABLE) == len(Side) * len(State) ** 2 * len(Event)


@pytest.mark.parametrize(
    ("side", "ours", "theirs", "event", "do", "switch_to"),
    [
        # the plain handshake
        (B, State.INITIALISING, State.INITIALISING, Event.WANTED, Do.PREPARE, State.INIT_WAIT),
        (F, State.INITIALISING, State.INIT_WAIT, Event.WANTED, Do.PUBLISH, State.INITIALISED),
        (B, State.INIT_WAIT, State.INITIALISED, Event.WANTED, Do.CONNECT, State.CONNECTED),
        (F, State.INITIALISED, State.CONNECTED, Event.WANTED, Do.CONNECT, State.CONNECTED),
        # netfront skips Initialised
        (B, State.INIT_WAIT, State.CONNECTED, Event.WANTED, Do.CONNECT, State.CONNECTED),
        # a Windows frontend closes before it connects
        (B, State.INIT_WAIT, State.CLOSING, Event.WANTED, Do.SWITCH, State.CLOSING),
        (B, State.CLOSED, State.CLOSING, Event.WANTED, Do.SWITCH, State.CLOSING),
        (B, State.CLOSING, State.CLOSED, Event.WANTED, Do.DISCONNECT, State.CLOSED),
        (B, State.CLOSED, State.INITIALISING, Event.WANTED, Do.PREPARE, State.INIT_WAIT),
        # a frontend that goes from Connected to Closed at once (Linux)
        (B, State.CONNECTED, State.CLOSED, Event.WANTED, Do.DISCONNECT, State.CLOSED),
        # kexec: the new frontend finds the backend connected to the old one
        (F, State.INITIALISING, State.CONNECTED, Event.WANTED, Do.SWITCH, State.CLOSING),
        (B, State.CONNECTED, State.INITIALISING, Event.WANTED, Do.DISCONNECT, State.CLOSING),
        # hot unplug: the toolstack wrote Closing; with the device in use nothing is taken away
        (F, State.CONNECTED, State.CLOSING, Event.WANTED, Do.SWITCH, State.CLOSING),
        (B, State.CLOSING, State.CONNECTED, Event.UNWANTED, Do.WAIT, None),
        (B, State.CLOSING, State.CONNECTED, Event.TIMEOUT, Do.WAIT, None),
        (B, State.CLOSING, State.INITIALISING, Event.UNWANTED, Do.DISCONNECT, State.CLOSED),
        (B, State.CLOSED, State.CLOSED, Event.UNWANTED, Do.FREE, None),
        # the forced removal deletes the frontend's nodes
        (B, State.CLOSING, State.UNKNOWN, Event.UNWANTED, Do.DISCONNECT, State.CLOSED),
        # grants are revoked only when the backend has let go
        (F, State.CLOSED, State.CLOSING, Event.UNWANTED, Do.WAIT, None),
        (F, State.CLOSED, State.CLOSED, Event.UNWANTED, Do.FREE, None),
        # reconfiguring
        (F, State.CONNECTED, State.CONNECTED, Event.RECONFIGURE, Do.RECONFIGURE, State.RECONFIGURING),
        (B, State.CONNECTED, State.RECONFIGURING, Event.WANTED, Do.RECONFIGURE, State.RECONFIGURED),
        (F, State.RECONFIGURING, State.RECONFIGURED, Event.WANTED, Do.RECONFIGURE, State.CONNECTED),
        (B, State.RECONFIGURED, State.CONNECTED, Event.WANTED, Do.SWITCH, State.CONNECTED),
        # the other end's death
        (F, State.CONNECTED, State.CONNECTED, Event.GONE, Do.DISCONNECT, State.CLOSED),
        (B, State.CONNECTED, State.CONNECTED, Event.GONE, Do.DISCONNECT, State.CLOSED),
    ],
)
def test_cells_that_peers_rely_on(
    side: Side, ours: State, theirs: State, event: Event, do: Do, switch_to: State | None
) -> None:
    action = next_action(side, ours, theirs, event)
    assert (action.do, action.switch_to) == (do, switch_to)


@pytest.mark.parametrize(("text", "state"), [(None, State.UNKNOWN), (b"4", State.CONNECTED), (b"0", State.UNKNOWN)])
def test_states_are_read(text: bytes | None, state: State) -> None:
    assert parse_state(text) is state


@pytest.mark.parametrize("text", [b"", b"9", b"-1", b"04", b"four", b" 4", b"4\0", b"\xff" * 4000])
def test_nonsense_in_a_state_node_is_refused_in_words(text: bytes) -> None:
    with pytest.raises(ValueError, match="not one of 0 to 8") as error:
        parse_state(text)
    assert len(str(error.value)) < 150


def connected(world: World) -> bool:
    front, back = world.front, world.back
    return (
        front.state is back.state is State.CONNECTED
        and front.up
        and front.rings == back.rings == world.generation
        and front.alive
        and back.alive
    )


def closed(world: World) -> bool:
    """Both ended, nothing left behind."""
    front, back = world.front, world.back
    return (
        (front.state in (State.CLOSED, State.UNKNOWN) or not front.alive)
        and (back.state in (State.CLOSED, State.UNKNOWN) or not back.alive)
        and not front.up
        and (front.rings == 0 or not front.alive)
        and back.rings == 0
    )


def in_use(world: World) -> bool:
    """The frontend cannot let go: it is served on, unless the device was taken by force or the backend is not there."""
    front, back = world.front, world.back
    waits = world.in_use and front.alive and front.action is not None and front.action.do is Do.DISCONNECT
    return waits and (back.rings == front.rings or front.state is State.UNKNOWN or world.lost_service)


def search(incidents: frozenset[str], published: State = State.INITIALISED) -> tuple[int, list[World]]:
    """All worlds reachable with these incidents: how many, and those where nothing moves any more.

    No way may lead round in a circle: as incidents happen once, that would be the two halves chasing each other.
    """
    start = begin(incidents, published)
    colours: dict[World, bool] = {start: False}  # True: everything after it has been seen
    ends = []
    stack = [(start, iter(moves(start)), True)]
    trail = ["begin"]
    while stack:
        world, after, first = stack[-1]
        step = next(after, None)
        if step is None:
            if first and not [name for name, _ in moves(world) if name not in incidents]:
                ends.append(world)
            colours[world] = True
            stack.pop()
            trail.pop()
            continue
        name, following = step
        done = colours.get(following)
        assert done is not False, f"the halves chase each other: {trail} {name}"
        if done is None:
            colours[following] = False
            stack.append((following, iter(moves(following)), True))
            trail.append(name)
    return len(colours), ends


CORE = ["frontend closes", "unplug", "kexec", "backend restarts", "frontend fails", "backend fails"]
SCENARIOS = [frozenset(names) for count in range(3) for names in combinations(INCIDENTS, count)]
SCENARIOS += [frozenset(names) for names in combinations(CORE, 3)]


@pytest.mark.parametrize("incidents", SCENARIOS, ids=lambda names: ", ".join(sorted(names)) or "nothing happens")
@pytest.mark.parametrize("published", [State.INITIALISED, State.CONNECTED])
def test_the_halves_always_get_somewhere(incidents: frozenset[str], published: State) -> None:
    _, ends = search(incidents, published)
    assert ends
    for end in ends:
        both_want = end.front.wish is end.back.wish is Event.WANTED and end.front.alive and end.back.alive
        if both_want:
            assert connected(end) or in_use(end), end
        else:
            assert closed(end) or in_use(end), end
    if incidents <= HARMLESS:
        assert all(connected(end) for end in ends)


@pytest.mark.parametrize(
    ("cell", "code", "incidents"),
    [
        ((B, State.INIT_WAIT, State.CLOSING, Event.WANTED), ".", {"frontend closes"}),
        ((F, State.CLOSED, State.CLOSING, Event.UNWANTED), "fre", {"frontend closes"}),
        ((F, State.INITIALISING, State.CONNECTED, Event.WANTED), "pub", {"kexec"}),
        ((B, State.CLOSING, State.CLOSING, Event.UNWANTED), "dis", {"unplug", "never released"}),
        ((F, State.CLOSED, State.CLOSED, Event.RESTING), "new", {"backend fails"}),
        ((B, State.RECONFIGURED, State.CONNECTED, Event.WANTED), ".", {"frontend reconfigures"}),
    ],
)
def test_the_search_finds_a_mistake_in_the_table(
    monkeypatch: pytest.MonkeyPatch,
    cell: tuple[Side, State, State, Event],
    code: str,
    incidents: set[str],
) -> None:
    monkeypatch.setitem(TABLE, cell, ACTIONS[code])
    with pytest.raises(AssertionError):
        test_the_halves_always_get_somewhere(frozenset(incidents), State.INITIALISED)


def test_the_page_is_what_the_tables_say() -> None:
    assert PAGE.read_text() == page(), "run: python docs/xenbus_page.py"


def test_the_toolstack_never_waits_without_an_end() -> None:
    for step in TOOLSTACK.values():
        if step.timeout is not None:
            assert (step.next, Happening.TIMEOUT) in TOOLSTACK
        else:
            assert step.next in (Phase.ABSENT, Phase.PRESENT)
    reached = {Phase.ABSENT}
    while more := {step.next for (phase, _), step in TOOLSTACK.items() if phase in reached} - reached:
        reached |= more
    assert reached == set(Phase)
