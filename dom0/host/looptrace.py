# SPDX-License-Identifier: GPL-2.0-only
"""A domain's records on their way to the host: in batches, and only as far as the host keeps up.

A guest never waits for who looks at it: what does not fit is dropped, counted, and the count is sent instead. Owned by
the domain's thread.
"""

from __future__ import annotations

from typing import Any, Protocol

from dom0.host.looplink import LoopLink
from xen_py.clock import Clock
from xen_py.trace import Record, Tracer

_BATCH = 64
"""Records in one message: some 200 bytes each."""
_MOST_WAITING = 4096


class Traced(Protocol):
    """What is needed of `xen_py.domain.Domain`."""

    def trace(self, tracer: Tracer | None) -> None: ...


class LoopTrace:
    """Collects what a domain does, while the host wants it."""

    def __init__(self, domain: Traced, link: LoopLink, clock: Clock) -> None:
        self._domain = domain
        self._link = link
        self._tracer = Tracer(clock.now)
        self._waiting: list[list[Any]] = []
        self._lost = 0

    @property
    def on(self) -> bool:
        return self._tracer.on

    def switch(self, on: bool) -> None:
        """The host's order."""
        if on == self._tracer.on:
            return
        if on:
            self._tracer.add(self._keep)
            self._domain.trace(self._tracer)
        else:
            self._domain.trace(None)
            self._tracer.remove(self._keep)
            self.send()
            self._waiting.clear()
            self._lost = 0

    def _keep(self, record: Record) -> None:
        if len(self._waiting) >= _MOST_WAITING:
            self._lost += 1
            return
        self._waiting.append(record.to_plain())
        if len(self._waiting) % _BATCH == 0:
            self.send()

    def send(self) -> None:
        """What has come together; called whenever the loop has nothing better to do."""
        while self._waiting:
            if not self._link.records(self._lost, self._waiting[:_BATCH]):
                return
            self._lost = 0
            del self._waiting[:_BATCH]
