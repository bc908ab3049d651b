# SPDX-License-Identifier: GPL-2.0-only
"""A bell that one task waits on: the lightest way from an event's handler to the task that acts on it."""

from __future__ import annotations

import trio


class Bell:
    """`ring` wakes the task in `wait`; rung while nobody waits, the next `wait` returns at once."""

    def __init__(self) -> None:
        self._rung = False
        self._waiting: trio.lowlevel.Task | None = None

    def ring(self) -> None:
        self._rung = True
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            trio.lowlevel.reschedule(waiting)

    async def wait(self) -> None:
        """Until it has been rung since the last `wait`. One task at a time. Always a checkpoint."""
        if self._rung:
            self._rung = False
            await trio.lowlevel.checkpoint()
            return
        if self._waiting is not None:
            raise trio.BusyResourceError("another task waits for this bell")
        self._waiting = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._give_up)
        self._rung = False

    def _give_up(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._waiting = None
        return trio.lowlevel.Abort.SUCCEEDED
