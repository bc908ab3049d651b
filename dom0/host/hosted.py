# SPDX-License-Identifier: GPL-2.0-only
"""A guest whose program runs in the host's own trio loop: no process, no thread, no message between it and dom0.

`HostedVm` is to the rest of the host what `dom0.host.vm.Vm` is for a loop elsewhere. Everything is on one thread, in an
order that only trio's scheduler decides: this is how drivers are developed, and the ground of deterministic runs. The
price: a program's bug that never awaits stops the host, and a paused guest's tasks run on until they wait for an event.

Owner: the trio thread. `run` must be running for any of it to work.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import trio

from dom0.backend.grants import GuestGone, GuestGrants
from dom0.host import grantorders
from dom0.host.runtimes import GuestRuntime, make_program_domain
from dom0.host.spawn import Spawner
from dom0.host.vm import VmInfo, VmStatistics
from xen_py.clock import Clock
from xen_py.domain import Domain
from xen_py.doorbell import RunState
from xen_py.foreign import room_for
from xen_py.link import HostLink
from xen_py.memory import GuestMemory
from xen_py.spec import DomainSpec
from xen_py.trace import Tracer
from xen_py.types import Port

_log = logging.getLogger("xen-py.vm")


class HostedVm:
    """See the module. `services` answers the domain's calls."""

    def __init__(
        self,
        spec: DomainSpec,
        memory: GuestMemory,
        services: HostLink,
        clock: Clock,
        on_over: Callable[[int, str], None],
        on_death: Callable[[str], None],
    ) -> None:
        assert spec.program is not None
        self.spec = spec
        self.memory = memory
        self.grants = GuestGrants(spec.domid, memory, self.order)
        self.pauses = 1
        self.ended = trio.Event()
        """The program is gone and nothing more will come from it."""
        self._on_over = on_over
        self._on_death = on_death
        self._running = trio.Event()
        self._pending: dict[Port, None] = {}
        """Events that came while the domain was paused."""
        self._statistics = VmStatistics()
        self._last_info = VmInfo(0, RunState.STARTING, spec.nr_pages, 0, ())
        self._killed = False
        self._domain: Domain | None
        self.runtime: GuestRuntime
        self._view = GuestMemory.from_fd(os.dup(memory.fd), spec.memory, room_for(spec.memory))
        """The guest's memory as its domain has it, with room for that of others."""
        self._domain, self.runtime = make_program_domain(spec, spec.program, self._view, services, clock)

    direct = False

    def another_doorbell(self) -> None:
        """There is none: its events are calls."""

    async def route(self, port: Port, eventfd: int | None) -> None:
        """Without a doorbell nobody asks for this."""
        raise GuestGone("the guest runs in the host's own loop")

    async def run(self, _spawner: Spawner, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the program, paused at first, to its end; then wait for `destroy`, the domain's memory at hand."""
        task_status.started()
        assert self._domain is not None
        try:
            await self._running.wait()
            if not self._killed:
                await self.runtime.run()
            if not self._killed:
                over = self._domain.shutdown
                assert over is not None, "a runtime returned and the domain is not over"
                self._on_over(over.reason, over.why)
                self._running = trio.Event()
                await self._running.wait()
        except Exception as error:
            _log.exception("domain %d's runtime failed", self.spec.domid)
            if not self._killed:
                self._on_death(f"xen-py failed: {error!r}")
        finally:
            self.info()
            domain, self._domain = self._domain, None
            if domain is not None:
                domain.close()
            self._view.close()
            self.ended.set()

    # what the host does with it

    def deliver(self, port: Port) -> None:
        """Mark `port` pending for the guest, which sees it at once."""
        if self._domain is None or self._domain.shutdown is not None:
            return
        self._statistics.delivered += 1
        if self.pauses:
            self._pending[port] = None
        else:
            self._domain.deliver(port)
            self.runtime.upcall()

    async def pause(self) -> None:
        """Hold the domain: it gets no events. Pauses count."""
        self.pauses += 1

    async def unpause(self) -> None:
        """Take one pause back. A domain that is not paused stays as it is."""
        if self.pauses:
            self.pauses -= 1
        if not self.pauses:
            self._running.set()
            pending, self._pending = list(self._pending), {}
            for port in pending:
                self.deliver(port)

    async def destroy(self) -> None:
        """End the program, whatever it is doing."""
        self._killed = True
        self.runtime.kill()
        self._running.set()
        await self.ended.wait()

    async def order(self, kind: str, *args: object, check: Callable[[Any], bool]) -> Any:
        """Have the domain do something with its grants; as `Vm.order`."""
        return self.order_now(kind, *args, check=check)

    def order_now(self, kind: str, *args: object, check: Callable[[Any], bool]) -> Any:
        """The same, for who cannot wait."""
        if self._domain is None:
            raise GuestGone(f"domain {self.spec.domid} is gone")
        self._statistics.orders += 1
        return grantorders.carry_out(self._domain, kind, list(args))

    async def trace(self, tracer: Tracer | None) -> None:
        """Have what the domain does recorded there; None ends it."""
        self.grants.tracer = tracer
        if self._domain is not None:
            self._domain.trace(tracer)

    def info(self) -> VmInfo:
        domain = self._domain
        if domain is None:
            return self._last_info
        if domain.shutdown is not None:
            state = RunState.OVER
        else:
            state = RunState.PAUSED if self.pauses else RunState.BLOCKED
        info = domain.info()
        vcpus = tuple((vcpu.online, True, vcpu.cpu_time_ns) for vcpu in info.vcpus)
        self._last_info = VmInfo(0, state, info.pages, info.cpu_time_ns, vcpus)
        return self._last_info

    def statistics(self) -> VmStatistics:
        return self._statistics
