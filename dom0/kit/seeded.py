# SPDX-License-Identifier: GPL-2.0-only
"""A machine whose every order comes from a seed: the same seed gives the same run, and the same trace byte for byte.

    def test_it():
        run(body, 17)                       # trio's scheduler, its clock and the machine's dice from seed 17

    async def body(machine: Machine) -> None:
        guest = await machine.create(...)

What decides the order of things in one thread: which of the runnable tasks trio takes first, when an event that was
sent arrives, and numbers that are drawn (uuids). All three come from the seed. Events are under way for a random
time, so that what in a quiet machine always happens in one order happens in another. Time is virtual: it stands still
while anything runs and jumps to the next deadline when nothing does; a sleep costs nothing.

Only guests written in Python can run so (`open_machine` with a seed refuses others): an emulator's thread has a time
of its own. One such run at a time in a process, as trio's dice are the process's.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio
import trio.testing
from trio._core import _run as trio_run

from dom0.host.machine import Machine, open_machine
from xen_py.evtchn import Delivery
from xen_py.types import DomId, Port

T = TypeVar("T")

MOST_STEPS = 200_000
"""Steps of tasks in one run; a device that is opened and used a few times takes some thousands."""
AT_ONCE = 0.25
"""The part of the events that arrive while their sender still sends, as on a machine with another processor."""
LONGEST_WAY = 0.0005
"""Seconds of virtual time that an event is under way at most."""


class Restless(Exception):
    """The run does not come to rest: somebody polls without waiting."""


def run(body: Callable[[Machine], Awaitable[T]], seed: int) -> T:
    """`await body(machine)` on a fresh machine, all of it decided by the seed. Restless if it never rests."""

    limit = _StepLimit()

    async def main() -> T:
        with limit.scope:
            async with open_machine(seed=seed) as machine:
                Deliveries(machine).install()
                return await body(machine)
        raise Restless(f"after {MOST_STEPS} steps something is still at work, and virtual time stands still")

    dice, deterministic = trio_run._r.getstate(), trio_run._ALLOW_DETERMINISTIC_SCHEDULING
    trio_run._r.seed(seed)
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    try:
        return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0), instruments=[limit])
    finally:
        trio_run._r.setstate(dice)
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = deterministic  # type: ignore[misc]


class _StepLimit(trio.abc.Instrument):
    """Ends a run in which tasks wake each other for ever."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self._steps = 0

    def before_task_step(self, _task: trio.lowlevel.Task) -> None:
        self._steps += 1
        if self._steps == MOST_STEPS:
            self.scope.cancel()


class Deliveries:
    """Events on their way: each takes a time of its own, or none, so they arrive in an order of the seed's.

    None is lost, and a port that is marked twice before it is looked at is marked once, as everywhere.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._dice = random.Random(machine.random.getrandbits(64))
        self.under_way = 0

    def install(self) -> None:
        self._machine.trace.carry_by(self.carry)

    def carry(self, _sender: DomId, _port: Port, delivery: Delivery) -> None:
        if self._dice.random() < AT_ONCE:
            self._machine.switchboard.deliver(delivery)
        else:
            self.send(delivery, self._dice.uniform(0, LONGEST_WAY))

    def send(self, delivery: Delivery, seconds: float) -> None:
        """Have it arrive after so long."""
        self.under_way += 1
        self._machine.nursery.start_soon(self._arrive, delivery, seconds)

    async def _arrive(self, delivery: Delivery, seconds: float) -> None:
        await trio.sleep(seconds)
        self.under_way -= 1
        self._machine.switchboard.deliver(delivery)


class Recorder:
    """The whole trace of a run, as lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._marked: int | None = None

    def mark(self) -> None:
        """Here something went wrong; what is recorded later only clears up. The first mark counts."""
        if self._marked is None:
            self._marked = len(self.lines)

    def until_mark(self) -> list[str]:
        """All up to the mark, or all."""
        return self.lines[: self._marked]

    async def attach(self, machine: Machine) -> None:
        await machine.trace.add(lambda record: self.lines.append(record.to_json()))

    @property
    def text(self) -> str:
        return "\n".join(self.lines)
