# SPDX-License-Identifier: GPL-2.0-only
"""The xenbus handshake as a table: what a frontend or backend does in each (our state, their state, event).

Both halves of a device show their state in the store and watch the other's. Neither trusts the other to pass through
every state, to answer, or to live: each cell below has an answer. `next_action` looks one up; docs/xenbus.md shows all
of them; tests run the two halves against each other through every interleaving.

How a driver's loop uses it:

- *When to look*: whenever one of the two `state` nodes or a wish changes, after each action that switches or changes
  the wish, and after FAILED.
- *Which event*: GONE while the other end's domain is dead; else FAILED, if a step of ours failed or the other end sent
  nonsense, until the action for it has been carried out to its end; else our wish, which is WANTED, RESTING or
  UNWANTED. Only where the wish has nothing to switch: RECONFIGURE while something is to be negotiated anew, and TIMEOUT
  once if nothing has moved for too long.
  An action may change the wish (`wish`), but never that of a half that is UNWANTED.
- *Whose wish*: a frontend is UNWANTED when its driver goes or its domain shuts down, or after it failed, until its user
  asks again (WANTED); a backend when `online` is 0. A frontend that followed the backend into closing is RESTING until
  the backend starts anew; a backend that failed is RESTING until the frontend has closed.
- *How to act*: first the step (`do`), each of which does nothing where there is nothing to do; then, in one store
  transaction, read both states and write the new one. If either was written since we looked, write nothing: look again.
  A step that waits (DISCONNECT, for the device's last user) is broken off when a state is written, to look again.
  CONNECT reads what the other end published in a transaction with both states, for the same reason. A backend whose
  device needs a hotplug script waits in CONNECT for `hotplug-status`: the toolstack runs the script after InitWait.
- A state node of ours that is missing (UNKNOWN) was deleted by the toolstack and is never written again.

Sources: xen/include/public/io/xenbus.h and libxl (states, removal); netback's, blkback's and QEMU's ways through the
states, netfront's and blkfront's; the Windows frontends, which close before they connect.

Pure data; anyone may use it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, IntEnum


class State(IntEnum):
    """What a half shows in its `state` node (enum xenbus_state)."""

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2
    INITIALISED = 3
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8


class Side(Enum):
    FRONTEND = "frontend"
    BACKEND = "backend"


class Event(Enum):
    """Why a half looks at the table; the first three are its wish."""

    WANTED = "the device is wanted"
    RESTING = "followed the other end into closing, or failed: not before the other end starts anew"
    UNWANTED = "the device is to go (frontend: driver or domain ends; backend: online is 0)"
    RECONFIGURE = "something is to be negotiated anew while connected"
    FAILED = "a step of ours failed, or the other end sent nonsense"
    TIMEOUT = "the other end has not moved for too long"
    GONE = "the other end's domain is dead"


class Do(Enum):
    """The step that comes before the switch; one that has been done already does nothing."""

    WAIT = "nothing"
    SWITCH = "only show the new state"
    PREPARE = "backend: open what stands behind the device, write features"
    PUBLISH = "frontend: allocate rings and event channels, write their references"
    CONNECT = "backend: map the rings, write the device's properties; frontend: read them, bring the device up"
    RECONFIGURE = "write, or read and apply, what changed"
    DISCONNECT = "frontend: let the last user go, send no more; backend: finish requests, unmap the rings"
    FREE = "disconnect; frontend: revoke grants, close ports; backend: close what stands behind the device"
    FAIL = "write the reason to error/.../error, stop using the rings; backend: unmap them"
    END = "free everything: our node is deleted, the device is over"


@dataclass(frozen=True)
class Action:
    do: Do
    why: str
    switch_to: State | None = None
    wish: Event | None = None


WAIT = Action(Do.WAIT, "wait")

ACTIONS: dict[str, Action] = {
    ".": WAIT,
    "end": Action(Do.END, "our node was deleted: the toolstack has removed the device"),
    # both ways through closing
    "cg": Action(Do.SWITCH, "begin to close; requests are still served", State.CLOSING),
    "Rcg": Action(Do.SWITCH, "the backend closes: follow it", State.CLOSING, Event.RESTING),
    "cd": Action(Do.SWITCH, "nothing is shared yet, so there is nothing to close", State.CLOSED),
    "dis": Action(Do.DISCONNECT, "close: nothing of ours uses the rings any more", State.CLOSED),
    "Rdis": Action(Do.DISCONNECT, "the backend has closed: follow it", State.CLOSED, Event.RESTING),
    "los": Action(Do.DISCONNECT, "the backend is gone; show it before anything is freed", State.CLOSED),
    "fre": Action(Do.FREE, "the backend has let go of the rings"),
    "fin": Action(Do.FREE, "closed and not wanted: the device ends, the toolstack removes it"),
    "dcg": Action(Do.DISCONNECT, "the frontend started anew: close so that both begin again", State.CLOSING),
    "clr": Action(Do.DISCONNECT, "drop a connection begun with a frontend that is not there any more"),
    # opening
    "new": Action(Do.FREE, "begin anew", State.INITIALISING),
    "Wnew": Action(Do.FREE, "the backend starts anew: so do we", State.INITIALISING, Event.WANTED),
    "Wok": Action(Do.WAIT, "the frontend has closed too: the next one may try again", None, Event.WANTED),
    "pub": Action(Do.PUBLISH, "the backend is ready for our rings", State.INITIALISED),
    "pre": Action(Do.PREPARE, "get ready for a frontend", State.INIT_WAIT),
    "con": Action(Do.CONNECT, "the other end has published all we need", State.CONNECTED),
    "up": Action(Do.CONNECT, "both are connected"),
    # while connected
    "rec": Action(Do.RECONFIGURE, "negotiate anew", State.RECONFIGURING),
    "app": Action(Do.RECONFIGURE, "the backend has taken it over", State.CONNECTED),
    "red": Action(Do.RECONFIGURE, "take over what the frontend changed", State.RECONFIGURED),
    "ask": Action(Do.SWITCH, "ask the frontend to reconfigure", State.RECONFIGURING),
    "cn": Action(Do.SWITCH, "reconfigured, or given up", State.CONNECTED),
    # failures; the reason goes to error/
    "Rfcg": Action(Do.FAIL, "close, and let the other end see it", State.CLOSING, Event.RESTING),
    "Rfcd": Action(Do.FAIL, "close: the other end need not follow", State.CLOSED, Event.RESTING),
    "Rf": Action(Do.FAIL, "closing already", None, Event.RESTING),
    "Ufcg": Action(Do.FAIL, "close, and let the other end see it", State.CLOSING, Event.UNWANTED),
    "Ufcd": Action(Do.FAIL, "close: the other end need not follow, or does not", State.CLOSED, Event.UNWANTED),
    "Uf": Action(Do.FAIL, "closing already", None, Event.UNWANTED),
}

# One grid for each side and event. Rows are our states in order (Unknown, Initialising, ... Reconfigured), columns
# theirs. An upper-case first letter marks a change of wish.
_GRIDS: dict[Side, dict[Event, str]] = {
    Side.FRONTEND: {
        # theirs:  Unk  Ing  IWt  Ied  Con  Cng  Cld  Rng  Red
        Event.WANTED: """
            end  end  end  end  end  end  end  end  end
            .    .    pub  pub  cg   cd   .    cg   cg
            .    .    pub  pub  cg   cd   .    cg   cg
            los  .    .    .    con  Rdis Rdis con  con
            los  .    .    .    up   Rcg  Rdis rec  .
            los  dis  .    .    .    dis  dis  .    .
            new  new  new  new  .    .    new  .    .
            los  .    .    .    .    Rcg  Rdis .    app
            los  .    .    .    cn   Rcg  Rdis cn   cn
        """,
        Event.RESTING: """
            end  end  end  end  end  end  end  end  end
            cd   cd   cd   cd   cd   cd   cd   cd   cd
            cd   cd   cd   cd   cd   cd   cd   cd   cd
            los  cg   cg   cg   cg   dis  dis  cg   cg
            los  cg   cg   cg   cg   cg   dis  cg   cg
            los  dis  .    .    .    dis  dis  .    .
            fre  Wnew Wnew fre  .    .    fre  .    .
            los  cg   cg   cg   cg   cg   dis  cg   cg
            los  cg   cg   cg   cg   cg   dis  cg   cg
        """,
        Event.UNWANTED: """
            end  end  end  end  end  end  end  end  end
            cd   cd   cd   cd   cd   cd   cd   cd   cd
            cd   cd   cd   cd   cd   cd   cd   cd   cd
            los  cg   cg   cg   cg   dis  dis  cg   cg
            los  cg   cg   cg   cg   cg   dis  cg   cg
            los  dis  .    .    .    dis  dis  .    .
            fre  fre  fre  fre  .    .    fre  .    .
            los  cg   cg   cg   cg   cg   dis  cg   cg
            los  cg   cg   cg   cg   cg   dis  cg   cg
        """,
        Event.RECONFIGURE: """
            end  end  end  end  end  end  end  end  end
            .    .    .    .    .    .    .    .    .
            .    .    .    .    .    .    .    .    .
            .    .    .    .    .    .    .    .    .
            .    .    .    .    rec  .    .    .    .
            .    .    .    .    .    .    .    .    .
            .    .    .    .    .    .    .    .    .
            .    .    .    .    .    .    .    .    .
            .    .    .    .    .    .    .    .    .
        """,
        Event.FAILED: """
            end  end  end  end  end  end  end  end  end
            Ufcd Ufcd Ufcd Ufcd Ufcd Ufcd Ufcd Ufcd Ufcd
            Ufcd Ufcd Ufcd Ufcd Ufcd Ufcd Ufcd Ufcd Ufcd
            Ufcd Ufcg Ufcg Ufcg Ufcg Ufcg Ufcd Ufcg Ufcg
            Ufcd Ufcg Ufcg Ufcg Ufcg Ufcg Ufcd Ufcg Ufcg
            Ufcd Ufcd Uf   Uf   Uf   Ufcd Ufcd Uf   Uf
            Uf   Uf   Uf   Uf   Uf   Uf   Uf   Uf   Uf
            Ufcd Ufcg Ufcg Ufcg Ufcg Ufcg Ufcd Ufcg Ufcg
            Ufcd Ufcg Ufcg Ufcg Ufcg Ufcg Ufcd Ufcg Ufcg
        """,
        Event.TIMEOUT: """
            end  end  end  end  end  end  end  end  end
            Rfcd Rfcd Rfcd Rfcd Rfcd Rfcd Rfcd Rfcd Rfcd
            Rfcd Rfcd Rfcd Rfcd Rfcd Rfcd Rfcd Rfcd Rfcd
            Ufcd Ufcg Ufcg Ufcg Ufcg Ufcd Ufcd Ufcg Ufcg
            Ufcd Ufcg Ufcg Ufcg .    Ufcd Ufcd .    rec
            Ufcd Ufcd Ufcd Ufcd Ufcd Ufcd Ufcd Ufcd Ufcd
            .    .    .    .    .    .    .    .    .
            Ufcd Ufcg Ufcg Ufcg cn   Ufcd Ufcd cn   app
            Ufcd Ufcg Ufcg Ufcg cn   Ufcd Ufcd cn   cn
        """,
        Event.GONE: """
            end  end  end  end  end  end  end  end  end
            los  los  los  los  los  los  los  los  los
            los  los  los  los  los  los  los  los  los
            los  los  los  los  los  los  los  los  los
            los  los  los  los  los  los  los  los  los
            los  los  los  los  los  los  los  los  los
            fre  fre  fre  fre  fre  fre  fre  fre  fre
            los  los  los  los  los  los  los  los  los
            los  los  los  los  los  los  los  los  los
        """,
    },
    Side.BACKEND: {
        # theirs:  Unk  Ing  IWt  Ied  Con  Cng  Cld  Rng  Red
        Event.WANTED: """
            end  end  end  end  end  end  end  end  end
            pre  pre  pre  pre  pre  pre  pre  pre  pre
            clr  clr  clr  con  con  cg   dis  con  con
            clr  clr  clr  con  con  cg   dis  con  con
            dis  dcg  dcg  .    .    cg   dis  red  .
            dis  dis  dis  .    .    .    dis  .    .
            .    pre  pre  .    .    cg   .    .    .
            dis  dcg  dcg  .    .    cg   dis  red  cn
            dis  dcg  dcg  .    cn   cg   dis  .    cn
        """,
        Event.RESTING: """
            end  end  end  end  end  end  end  end  end
            cd   cd   cd   cd   cd   cd   cd   cd   cd
            dis  dis  dis  cg   cg   cg   dis  cg   cg
            dis  dis  dis  cg   cg   cg   dis  cg   cg
            dis  dis  dis  cg   cg   cg   dis  cg   cg
            dis  dis  dis  .    .    .    dis  .    .
            Wok  .    .    .    .    cg   Wok  .    .
            dis  dis  dis  cg   cg   cg   dis  cg   cg
            dis  dis  dis  cg   cg   cg   dis  cg   cg
        """,
        Event.UNWANTED: """
            end  end  end  end  end  end  end  end  end
            cd   cd   cd   cd   cd   cd   cd   cd   cd
            dis  dis  dis  cg   cg   cg   dis  cg   cg
            dis  dis  dis  cg   cg   cg   dis  cg   cg
            dis  dis  dis  cg   cg   cg   dis  cg   cg
            dis  dis  dis  .    .    .    dis  .    .
            fin  fin  fin  fin  fin  fin  fin  fin  fin
            dis  dis  dis  cg   cg   cg   dis  cg   cg
            dis  dis  dis  cg   cg   cg   dis  cg   cg
        """,
        Event.RECONFIGURE: """
            end  end  end  end  end  end  end  end  end
            .    .    .    .    .    .    .    .    .
            .    .    .    .    .    .    .    .    .
            .    .    .    .    .    .    .    .    .
            .    .    .    .    ask  .    .    .    .
            .    .    .    .    .    .    .    .    .
            .    .    .    .    .    .    .    .    .
            .    .    .    .    .    .    .    .    .
            .    .    .    .    .    .    .    .    .
        """,
        Event.FAILED: """
            end  end  end  end  end  end  end  end  end
            Rfcd Rfcd Rfcd Rfcg Rfcg Rfcg Rfcd Rfcg Rfcg
            Rfcd Rfcd Rfcd Rfcg Rfcg Rfcg Rfcd Rfcg Rfcg
            Rfcd Rfcd Rfcd Rfcg Rfcg Rfcg Rfcd Rfcg Rfcg
            Rfcd Rfcd Rfcd Rfcg Rfcg Rfcg Rfcd Rfcg Rfcg
            Rfcd Rfcd Rfcd Rf   Rf   Rf   Rfcd Rf   Rf
            Rf   Rf   Rf   Rf   Rf   Rf   Rf   Rf   Rf
            Rfcd Rfcd Rfcd Rfcg Rfcg Rfcg Rfcd Rfcg Rfcg
            Rfcd Rfcd Rfcd Rfcg Rfcg Rfcg Rfcd Rfcg Rfcg
        """,
        Event.TIMEOUT: """
            end  end  end  end  end  end  end  end  end
            Rfcd Rfcd Rfcd Rfcg Rfcg Rfcg Rfcd Rfcg Rfcg
            .    .    .    .    .    .    .    .    .
            .    .    .    .    .    .    .    .    .
            .    .    .    .    .    .    .    .    .
            .    .    .    .    .    .    .    .    .
            .    .    .    .    .    .    .    .    .
            .    .    .    .    cn   .    .    .    .
            .    .    .    .    .    .    .    .    .
        """,
        Event.GONE: """
            end  end  end  end  end  end  end  end  end
            cd   cd   cd   cd   cd   cd   cd   cd   cd
            dis  dis  dis  dis  dis  dis  dis  dis  dis
            dis  dis  dis  dis  dis  dis  dis  dis  dis
            dis  dis  dis  dis  dis  dis  dis  dis  dis
            dis  dis  dis  dis  dis  dis  dis  dis  dis
            fin  fin  fin  fin  fin  fin  fin  fin  fin
            dis  dis  dis  dis  dis  dis  dis  dis  dis
            dis  dis  dis  dis  dis  dis  dis  dis  dis
        """,
    },
}

CODES: dict[tuple[Side, State, State, Event], str] = {
    (side, ours, theirs, event): code
    for side, grids in _GRIDS.items()
    for event, grid in grids.items()
    for ours, row in zip(State, grid.strip().splitlines(), strict=True)
    for theirs, code in zip(State, row.split(), strict=True)
}
"""The table, by the short names of docs/xenbus.md."""

TABLE: dict[tuple[Side, State, State, Event], Action] = {cell: ACTIONS[code] for cell, code in CODES.items()}


def next_action(
    side: Side, ours: State, theirs: State, event: Event, published: State = State.INITIALISED
) -> Action:
    """What the half on this side does now.

    `published` is where a frontend goes after PUBLISH. Network devices go straight to CONNECTED, which is what their
    backends wait for, and bring the device up when the backend is there too.
    """
    action = TABLE[side, ours, theirs, event]
    if action.do is Do.PUBLISH and published is not State.INITIALISED:
        return replace(action, switch_to=published)
    return action


def parse_state(text: bytes | None) -> State:
    """A `state` node as the other end wrote it; a missing one is UNKNOWN. Nonsense is a reason for FAILED."""
    if text is None:
        return State.UNKNOWN
    if len(text) == 1 and text.isdigit() and int(text) in State.__members__.values():
        return State(int(text))
    raise ValueError(f"the other end's state is {text[:16]!r}, which is not one of 0 to {State.RECONFIGURED}")
