# SPDX-License-Identifier: GPL-2.0-only
"""The loop of a VM process whose guest is a program: trio in place of `Domain.step`.

To the host it is what `dom0.host.vmloop` is: it takes the inbox, obeys orders, publishes its state, and says when the
domain is over. The guest's own tasks run between these. A pause holds all of them: while it lasts the process waits
for orders and does nothing else, as a vCPU that is not run.

Owned by the one thread of the VM process.
"""

from __future__ import annotations

from functools import partial

import trio

from dom0.host import grantorders
from dom0.host.looplink import LoopLink
from dom0.host.looptrace import LoopTrace
from dom0.host.runtimes import GuestRuntime
from xen_py.domain import Domain
from xen_py.doorbell import Doorbell, RunState
from xen_py.drive.bell import Bell

RECORDS_SECONDS = 1.0
"""How long the last records of a trace may wait to be sent."""


class _Publisher(trio.abc.Instrument):
    """Shows whether the guest waits or works."""

    def __init__(self, doorbell: Doorbell) -> None:
        self._doorbell = doorbell

    def before_io_wait(self, timeout: float) -> None:
        if timeout:
            self._doorbell.publish_state(RunState.BLOCKED)

    def after_io_wait(self, timeout: float) -> None:
        if timeout:
            self._doorbell.publish_state(RunState.RUNNING)


class ProgramLoop:
    """Drives one guest; starts paused, as a toolstack creates domains."""

    def __init__(self, domain: Domain, runtime: GuestRuntime, link: LoopLink, doorbell: Doorbell) -> None:
        self._domain = domain
        self._runtime = runtime
        self._link = link
        self._doorbell = doorbell
        self._pauses = 1
        self._kept = Bell()
        self._traced = Bell()
        link.on_kept = self._kept.ring
        link.serve_grants(partial(grantorders.carry_out, domain))
        self._trace = LoopTrace(domain, link, domain.clock)

    async def run(self) -> None:
        """Returns never but by HostGone, when the host has closed the link (or by a bug's exception)."""
        self._obey()
        instrument = _Publisher(self._doorbell)
        trio.lowlevel.add_instrument(instrument)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve_host)
            nursery.start_soon(self._serve_kept)
            nursery.start_soon(self._take_events)
            nursery.start_soon(self._send_records)
            await self._runtime.run()
            nursery.cancel_scope.cancel()
        trio.lowlevel.remove_instrument(instrument)
        over = self._domain.shutdown
        assert over is not None, "a runtime returned and the domain is not over"
        self._publish(RunState.OVER)
        self._link.over(over.reason, over.why)
        while True:
            self._link.wait(None)
            self._doorbell.inbox.quiet()
            self._obey_once()

    async def _serve_host(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._link.fd)
            self._obey()

    async def _serve_kept(self) -> None:
        """Orders that came while a hypercall waited for its answer."""
        while True:
            await self._kept.wait()
            self._obey()

    async def _send_records(self) -> None:
        while True:
            await self._traced.wait()
            while self._trace.on:
                await trio.sleep(RECORDS_SECONDS)
                self._trace.send()

    async def _take_events(self) -> None:
        inbox = self._doorbell.inbox
        while True:
            await trio.lowlevel.wait_readable(inbox.eventfd)
            for port in inbox.take():
                self._domain.deliver(port)
            self._runtime.upcall()

    def _obey(self) -> None:
        """Carry out the host's orders; while it wants the domain paused, nothing else."""
        self._obey_once()
        while self._pauses:
            self._publish(RunState.PAUSED)
            self._link.wait(None)
            self._doorbell.inbox.quiet()  # the marks stay, and are looked at below
            self._obey_once()
            if not self._pauses:
                self._doorbell.inbox.poke()
        self._publish(RunState.RUNNING)

    def _obey_once(self) -> None:
        for kind, order, *args in self._link.orders():
            if kind in ("pause", "unpause"):
                self._pauses = max(0, self._pauses + (1 if kind == "pause" else -1))
                self._link.done(order)
            else:
                self._trace.switch(bool(args[0]))
                self._traced.ring()
                self._link.done(order)

    def _publish(self, state: RunState) -> None:
        info = self._domain.info()
        self._doorbell.publish(info.pages, [(v.online, True, v.cpu_time_ns) for v in info.vcpus])
        self._doorbell.publish_state(state)
