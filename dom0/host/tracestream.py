# SPDX-License-Identifier: GPL-2.0-only
"""A machine's records on their way to one client of the control socket, who may be slow.

What waits is bounded: what does not fit is dropped and counted, and the client is told the count. Owner: the trio
thread.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import trio

from dom0.host.machine import Machine
from xen_py.trace import KINDS, Record

MOST_WAITING = 20_000
_BATCH = 500


class TraceStream:
    """The records that one client wants: of a domain, or of all, and of some kinds."""

    def __init__(self, machine: Machine, domid: int | None, kinds: list[str] | None) -> None:
        self._machine = machine
        self._domid = domid
        self._kinds = frozenset(KINDS if kinds is None else kinds)
        self._waiting: deque[list[Any]] = deque()
        self._lost = 0
        self._news = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> TraceStream:
        await self._machine.trace.add(self._put)
        return self

    async def __aexit__(self, *_error: object) -> None:
        with trio.CancelScope(shield=True):
            await self._machine.trace.remove(self._put)

    def _put(self, record: Record) -> None:
        if record.kind not in self._kinds or not (self._domid is None or record.concerns(self._domid)):
            return
        if len(self._waiting) >= MOST_WAITING:
            self._lost += 1
            return
        self._waiting.append(record.to_plain())
        self._news.unpark()

    async def take(self) -> tuple[list[list[Any]], int]:
        """Some records, at least one; and how many were lost before them."""
        while not self._waiting:
            await self._news.park()
        count = min(len(self._waiting), _BATCH)
        lost, self._lost = self._lost, 0
        return [self._waiting.popleft() for _ in range(count)], lost
