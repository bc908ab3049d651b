# SPDX-License-Identifier: GPL-2.0-only
"""Writes docs/xenbus.md from the tables in xen_py.io: run it after changing one (`python docs/xenbus_page.py`).

A test compares the page with what this makes, so the page cannot be out of date.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from xen_py.io.xenbus import ACTIONS, CODES, TABLE, Do, Event, Side, State
from xen_py.io.xenbus_toolstack import TOOLSTACK

PAGE = Path(__file__).resolve().parent / "xenbus.md"

INTRODUCTION = """\
# The xenbus handshake

A paravirtual device has two halves in two domains. Each shows its state in the store and watches the other's; by these
two numbers alone they find together, part, and find together again. This page says what each half does in every
situation. It is made from the tables that xen-py runs on (`xen_py/io/xenbus.py`, `xen_py/io/xenbus_toolstack.py`) by
`docs/xenbus_page.py`; the tests run both halves of the table against each other through every interleaving, with
closes, failures, restarts and deaths at every moment, and each half against models of Linux's (netfront, blkfront,
netback, blkback), Windows' and QEMU's.

## States

| state | frontend | backend |
|---|---|---|
| 0 Unknown | the node is missing: the toolstack has removed the device | the same |
| 1 Initialising | there, nothing published | there, getting ready |
| 2 InitWait | (not used by frontends) | features are written, waits for the frontend |
| 3 Initialised | rings and event channels are published | (backends of PCI devices: ready) |
| 4 Connected | in use | in use |
| 5 Closing | wants to end; still uses the rings | wants to end; still serves the rings |
| 6 Closed | uses the rings no more | has let go of the rings |
| 7 Reconfiguring | has changed something while connected | asks the frontend to change something |
| 8 Reconfigured | (not used by frontends) | has taken it over |

The nodes are `/local/domain/<F>/device/<type>/<id>/state` and `/local/domain/<B>/backend/<type>/<F>/<id>/state`.

## Rules that the table rests on

1. A half looks at the table when one of the two states or its own wish changes, when an action has switched its state,
   and after a failure. It reads both states; nothing is inferred from the order in which watches fire.
2. An action is a step and then, mostly, a switch. Steps do nothing where there is nothing to do. The switch is made in
   one store transaction that reads both states again; if either was written since the half looked, it writes nothing
   and looks again. What the other half has published is read in such a transaction too. A step that has to wait (for
   the device's last user, for the hotplug script that the toolstack runs after InitWait) is broken off when a state is
   written, to look again.
3. Closing is announced (5), then done (6). The backend serves the rings until the frontend is Closed, so that the
   frontend's users can finish; the frontend revokes its grants only when the backend is Closed or gone.
4. Any state of the other half may come at any time: Windows frontends close before they connect, Linux frontends go
   from Connected to Closed at once, netfront skips Initialised, and a kernel started by kexec is Initialising again
   while the backend is still connected to the one before it.
5. A half that follows the other into closing, or has failed, *rests*: it does not open the device again by itself. A
   missing state node is never written again.
6. A frontend that goes straight from publishing to Connected (network devices) uses the same table: where it says
   Initialised such a driver writes Connected, and the step *connect* is done when the backend is Connected.
"""

EVENTS = """\
## Why a half looks

The first that applies counts; the last two only where the wish has nothing to switch.

| event | when |
|---|---|
"""

ORDER = [
    Event.GONE, Event.FAILED, Event.WANTED, Event.RESTING, Event.UNWANTED, Event.RECONFIGURE, Event.TIMEOUT,
]  # fmt: skip


def name(state: State) -> str:
    return state.name.title().replace("_", "")


def page() -> str:
    parts = [INTRODUCTION, EVENTS + "\n".join(f"| {event.name} | {event.value} |" for event in ORDER) + "\n"]
    parts += [_steps(), _legend()]
    for side in Side:
        parts.append(f"## The {side.value}\n")
        for event in ORDER:
            parts.append(_grid(side, event))
            if event in (Event.WANTED, Event.UNWANTED):
                parts.append(_diagram(side, event))
    parts.append(_toolstack())
    return "\n".join(parts)


def _steps() -> str:
    rows = [f"| {do.name} | {do.value} |" for do in Do]
    return "\n".join(["## Steps\n", "| step | what |", "|---|---|", *rows, ""])


def _legend() -> str:
    rows = []
    for code, action in ACTIONS.items():
        switch = name(action.switch_to) if action.switch_to is not None else ""
        wish = action.wish.name if action.wish is not None else ""
        rows.append(f"| `{code}` | {action.do.name} | {switch} | {wish} | {action.why} |")
    head = ["## Actions\n", "| in the grids | step | switch to | wish from then on | why |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows, ""])


def _grid(side: Side, event: Event) -> str:
    other = "backend" if side is Side.FRONTEND else "frontend"
    lines = [f"### {side.value.capitalize()}, {event.name}: {event.value}\n"]
    lines.append(f"| our state \\ {other}'s | " + " | ".join(name(theirs) for theirs in State) + " |")
    lines.append("|---" * (len(State) + 1) + "|")
    for ours in State:
        cells = (CODES[side, ours, theirs, event] for theirs in State)
        lines.append(f"| **{name(ours)}** | " + " | ".join("" if code == "." else f"`{code}`" for code in cells) + " |")
    return "\n".join([*lines, ""])


def _diagram(side: Side, event: Event) -> str:
    """The switches of one grid; on each the other half's states that lead there."""
    ways: dict[tuple[State, State], list[State]] = defaultdict(list)
    for (at, ours, theirs, why), action in TABLE.items():
        if at is side and why is event and action.switch_to not in (None, ours):
            assert action.switch_to is not None
            ways[ours, action.switch_to].append(theirs)
    lines = ["```mermaid", "stateDiagram-v2"]
    for (ours, new), causes in ways.items():
        others = "any" if len(causes) == len(State) else ", ".join(name(theirs) for theirs in causes)
        lines.append(f"    {name(ours)} --> {name(new)}: {others}")
    return "\n".join([*lines, "```", ""])


def _toolstack() -> str:
    lines = ["## The toolstack\n"]
    lines.append("What libxl does around the two halves, and how long it waits.\n")
    lines += ["| device is | happens | do | then | at most |", "|---|---|---|---|---|"]
    for (phase, happening), step in TOOLSTACK.items():
        limit = f"{step.timeout} s" if step.timeout is not None else ""
        cells = (phase.name, f"{happening.name}: {happening.value}", step.do.value, step.next.name, limit)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    PAGE.write_text(page())
