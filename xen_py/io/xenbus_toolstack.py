# SPDX-License-Identifier: GPL-2.0-only
"""The toolstack's part in a device's life, as a table: what libxl does to plug a device in and to take it away.

The toolstack only ever looks at the backend's state: it waits for InitWait when it adds a device and for Closed when
it removes one. It writes a state in two cases, at the very start and to ask for a hot unplug. Its patience is bounded:
the timeouts below are libxl's. Backends in a program of their own (QEMU's kind) are not waited for when they are added.

Pure data; the halves' own table is xen_py.io.xenbus. Source: libxl's libxl_device.c and libxl_internal.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

INIT_TIMEOUT = 10
"""Seconds for a backend to reach InitWait."""
HOTPLUG_TIMEOUT = 40
"""Seconds for a hotplug script."""
DESTROY_TIMEOUT = 10
"""Seconds for a backend to reach Closed, and for a driver domain to remove its directory."""


class Phase(Enum):
    """Where a device is, for the toolstack."""

    ABSENT = "no device"
    ADDING = "waiting for the backend's InitWait"
    PLUGGING = "the hotplug script sets up"
    PRESENT = "the device is there"
    ASKING = "waiting for the backend's Closed, and leaving the device where it is otherwise"
    REMOVING = "waiting for the backend's Closed, and taking the device by force otherwise"
    FORCING = "the frontend's directory is gone; waiting for the backend's Closed"
    UNPLUGGING = "the hotplug script clears up"


class Happening(Enum):
    ADD = "a device is wanted"
    ASK = "the device is to go if the guest lets it (`xl block-detach`)"
    REMOVE = "the device is to go (`xl network-detach`)"
    DESTROY = "the device is to go at once (`xl block-detach --force`, end of the domain)"
    READY = "backend in InitWait"
    CLOSED = "backend in Closed"
    VANISHED = "the backend's state is gone"
    SCRIPT_DONE = "the hotplug script has ended well, or there is none"
    SCRIPT_FAILED = "the hotplug script has failed"
    TIMEOUT = "time is up"


@dataclass(frozen=True)
class Step:
    """What to do, where the device is then, and how long it may stay there (seconds)."""

    do: str
    next: Phase
    timeout: int | None = None


_CLOSE = "in one transaction: `online` 0 and, unless it is 6, the backend's `state` 5"
_TAKE = "in one transaction: delete the frontend's directory, `online` 0 and, unless it is 6, the backend's `state` 5"
_SCRIPT = "run the script with `remove`"
_CLEAR = "delete both directories and the record in /libxl"

_REMOVALS: dict[tuple[Phase, Happening], Step] = {
    (phase, happening): step
    for phase in (Phase.ASKING, Phase.REMOVING, Phase.FORCING)
    for happening, step in (
        (Happening.CLOSED, Step(_SCRIPT, Phase.UNPLUGGING, HOTPLUG_TIMEOUT)),
        (Happening.VANISHED, Step(_CLEAR, Phase.ABSENT)),
    )
}

TOOLSTACK: dict[tuple[Phase, Happening], Step] = {
    (Phase.ABSENT, Happening.ADD): Step(
        "in one transaction: both directories, each with `state` 1, the backend's with `online` 1",
        Phase.ADDING,
        INIT_TIMEOUT,
    ),
    (Phase.ADDING, Happening.READY): Step("run the script with `add`", Phase.PLUGGING, HOTPLUG_TIMEOUT),
    (Phase.ADDING, Happening.TIMEOUT): Step("error: the backend is not ready", Phase.PRESENT),
    (Phase.PLUGGING, Happening.SCRIPT_DONE): Step("nothing: the halves connect by themselves", Phase.PRESENT),
    (Phase.PLUGGING, Happening.SCRIPT_FAILED): Step("error, with what is in `hotplug-error`", Phase.PRESENT),
    (Phase.PLUGGING, Happening.TIMEOUT): Step("kill the script; error", Phase.PRESENT),
    (Phase.PRESENT, Happening.ASK): Step(_CLOSE, Phase.ASKING, DESTROY_TIMEOUT),
    (Phase.PRESENT, Happening.REMOVE): Step(_CLOSE, Phase.REMOVING, DESTROY_TIMEOUT),
    (Phase.PRESENT, Happening.DESTROY): Step(_TAKE, Phase.FORCING, DESTROY_TIMEOUT),
    **_REMOVALS,
    (Phase.ASKING, Happening.TIMEOUT): Step("error: the guest still uses the device", Phase.PRESENT),
    (Phase.REMOVING, Happening.TIMEOUT): Step(_TAKE, Phase.FORCING, DESTROY_TIMEOUT),
    (Phase.FORCING, Happening.TIMEOUT): Step(f"error; {_CLEAR} all the same", Phase.ABSENT),
    (Phase.UNPLUGGING, Happening.SCRIPT_DONE): Step(_CLEAR, Phase.ABSENT),
    (Phase.UNPLUGGING, Happening.SCRIPT_FAILED): Step(_CLEAR, Phase.ABSENT),
    (Phase.UNPLUGGING, Happening.TIMEOUT): Step(f"kill the script; {_CLEAR}", Phase.ABSENT),
}
"""What is not in the table changes nothing in that phase. A device whose adding failed is PRESENT: its nodes are there
and have to be removed (`xl create` does that by destroying the domain)."""
