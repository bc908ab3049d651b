# SPDX-License-Identifier: GPL-2.0-only
"""The loop that drives one domain: step, take the inbox, obey pauses, sleep, until the domain or the host is gone.

The same loop runs in a VM process and, for tests and driver developers, on a thread of the host process. It is the
one thread that touches the `Domain`. Order matters in two places: the inbox's eventfd is emptied before the marks are
taken, and marks are looked at after every wake-up and before every sleep, so none is slept over
(engine/native/link.c); and orders are looked for again when one was announced while that eventfd was emptied, for then
nothing tells the engine of it (tests/models/kick.pml). An engine may do all of that by itself for as long as nothing is
asked of the loop (engine/native/events.c, which does as is done here); the link's socket brings it back.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

from dom0.host import grantorders
from dom0.host.looplink import LoopLink
from dom0.host.looptrace import LoopTrace, Traced
from xen_py.clock import Clock
from xen_py.doorbell import Doorbell, RunState
from xen_py.engine import EventPaths
from xen_py.spec import Blocked, DomainInfo, Kicked, Shutdown, Step
from xen_py.types import Port


class Steppable(grantorders.Granter, Traced, Protocol):
    """What the loop needs of `xen_py.domain.Domain`."""

    def step(self) -> Step: ...
    def connect(self, paths: EventPaths) -> None: ...
    def kick(self) -> None: ...
    def deliver(self, port: Port) -> None: ...
    def info(self) -> DomainInfo: ...
    def close(self) -> None: ...


class VmLoop:
    """Drives `domain` until its end; starts paused if asked to, as a toolstack creates domains."""

    def __init__(self, domain: Steppable, link: LoopLink, doorbell: Doorbell, clock: Clock, *, pauses: int = 1) -> None:
        self._domain = domain
        self._link = link
        self._doorbell = doorbell
        self._clock = clock
        self._pauses = pauses
        self._ended = False
        self._trace = LoopTrace(domain, link, clock)
        link.on_kept = domain.kick
        link.serve_grants(partial(grantorders.carry_out, domain))
        domain.connect(EventPaths(doorbell, link.fd, link.routes))

    def run(self) -> None:
        """Returns never but by HostGone, when the host has closed the link (or by a bug's exception)."""
        self._publish(RunState.PAUSED)
        while True:
            self._obey()
            if self._pauses:
                self._sleep_paused()
                continue
            for port in self._doorbell.inbox.take():
                self._domain.deliver(port)
            if self._doorbell.inbox.called():
                continue
            self._doorbell.publish_state(RunState.RUNNING)
            match self._domain.step():
                case Kicked():
                    pass
                case Blocked(deadline):
                    self._sleep_blocked(deadline)
                case Shutdown(reason, why):
                    self._publish(RunState.OVER)
                    self._link.over(reason, why)
                    self._wait_for_the_end()

    def _obey(self) -> None:
        self._trace.send()
        for kind, order, *args in self._link.orders():
            if kind in ("pause", "unpause"):
                self._pauses = max(0, self._pauses + (1 if kind == "pause" else -1))
                if self._pauses and not self._ended:
                    self._publish(RunState.PAUSED)
                self._link.done(order)
            else:
                self._trace.switch(bool(args[0]))
                self._link.done(order)

    def _sleep_paused(self) -> None:
        """Marks stay in the page until the domain runs again; only the wake-up is used up."""
        self._link.wait(None)
        self._doorbell.inbox.quiet()

    def _sleep_blocked(self, deadline_ns: int | None) -> None:
        self._trace.send()
        self._publish(RunState.BLOCKED)
        seconds = None
        if deadline_ns is not None:
            seconds = max(0, deadline_ns - self._clock.now()) / 1e9
        self._link.wait(seconds)

    def _wait_for_the_end(self) -> None:
        """A domain that is over stays, with its memory and state, until the toolstack destroys it."""
        self._ended = True
        while True:
            self._sleep_paused()
            self._obey()

    def _publish(self, state: RunState) -> None:
        info = self._domain.info()
        self._doorbell.publish(info.pages, [(v.online, v.blocked, v.cpu_time_ns) for v in info.vcpus])
        self._doorbell.publish_state(state)
