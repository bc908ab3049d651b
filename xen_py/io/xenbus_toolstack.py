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


class Doing(Enum):
    """What a step does."""

    MAKE = "in one transaction: both directories, each with `state` 1, the backend's with `online` 1"
    RUN_ADD = "run the script with `add`"
    RUN_REMOVE = "run the script with `remove`"
    NOTHING = "nothing: the halves connect by themselves"
    CLOSE = "in one transaction: `online` 0 and, unless it is 6, the backend's `state` 5"
    TAKE = (
        "in one transaction: delete the frontend's directory, `online` 0 and, unless it is 6, the backend's `state` 5"
    )
    CLEAR = "delete both directories and the record in /libxl"
    NOT_READY = "error: the backend is not ready"
    SCRIPT_ERROR = "error, with what is in `hotplug-error`"
    KILL_SCRIPT = "kill the script; error"
    STILL_USED = "error: the guest still uses the device"
    CLEAR_ANYWAY = "error; delete both directories and the record in /libxl all the same"
    KILL_AND_CLEAR = "kill the script; delete both directories and the record in /libxl"


@dataclass(frozen=True)
class Step:
    """What to do, where the device is then, and how long it may stay there (seconds)."""

    do: Doing
    next: Phase
    timeout: int | None = None


_REMOVALS: dict[tuple[Phase, Happening], Step] = {
    (phase, happening): step
    for phase in (Phase.ASKING, Phase.REMOVING, Phase.FORCING)
    for happening, step in (
        (Happening.CLOSED, Step(Doing.RUN_REMOVE, Phase.UNPLUGGING, HOTPLUG_TIMEOUT)),
        (Happening.VANISHED, Step(Doing.CLEAR, Phase.ABSENT)),
    )
}

TOOLSTACK: dict[tuple[Phase, Happening], Step] = {
    (Phase.ABSENT, Happening.ADD): Step(Doing.MAKE, Phase.ADDING, INIT_TIMEOUT),
    (Phase.ADDING, Happening.READY): Step(Doing.RUN_ADD, Phase.PLUGGING, HOTPLUG_TIMEOUT),
    (Phase.ADDING, Happening.TIMEOUT): Step(Doing.NOT_READY, Phase.PRESENT),
    (Phase.PLUGGING, Happening.SCRIPT_DONE): Step(Doing.NOTHING, Phase.PRESENT),
    (Phase.PLUGGING, Happening.SCRIPT_FAILED): Step(Doing.SCRIPT_ERROR, Phase.PRESENT),
    (Phase.PLUGGING, Happening.TIMEOUT): Step(Doing.KILL_SCRIPT, Phase.PRESENT),
    (Phase.PRESENT, Happening.ASK): Step(Doing.CLOSE, Phase.ASKING, DESTROY_TIMEOUT),
    (Phase.PRESENT, Happening.REMOVE): Step(Doing.CLOSE, Phase.REMOVING, DESTROY_TIMEOUT),
    (Phase.PRESENT, Happening.DESTROY): Step(Doing.TAKE, Phase.FORCING, DESTROY_TIMEOUT),
    **_REMOVALS,
    (Phase.ASKING, Happening.TIMEOUT): Step(Doing.STILL_USED, Phase.PRESENT),
    (Phase.REMOVING, Happening.TIMEOUT): Step(Doing.TAKE, Phase.FORCING, DESTROY_TIMEOUT),
    (Phase.FORCING, Happening.TIMEOUT): Step(Doing.CLEAR_ANYWAY, Phase.ABSENT),
    (Phase.UNPLUGGING, Happening.SCRIPT_DONE): Step(Doing.CLEAR, Phase.ABSENT),
    (Phase.UNPLUGGING, Happening.SCRIPT_FAILED): Step(Doing.CLEAR, Phase.ABSENT),
    (Phase.UNPLUGGING, Happening.TIMEOUT): Step(Doing.KILL_AND_CLEAR, Phase.ABSENT),
}
"""What is not in the table changes nothing in that phase. A device whose adding failed is PRESENT: its nodes are there
and have to be removed (`xl create` does that by destroying the domain)."""
