# SPDX-License-Identifier: GPL-2.0-only
"""A whole machine in one trio nursery: store, event channels, toolstack, and the guests that run on it.

The host process (`dom0.host.main`) is a machine with a control socket. Tests and driver developers open one of their
own and talk to it in Python:

    async with open_machine() as machine:
        guest = await machine.create("examples/hello.cfg")
        await guest.console.expect("login:")

Domains run on threads of this process unless `processes` asks for a VM process each, as the host has them. Owner: the
trio thread that opened it; several machines may be open at once, each with a run directory of its own.
"""

from __future__ import annotations

import os
import random
import re
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attrs
import trio

from dom0.backend.console import Console, ConsoleClosed, LogReader
from dom0.backend.grants import GuestGrants
from dom0.backend.manager import BackendManager
from dom0.backend.net.switch import DEFAULT_BRIDGE, Bridges, Switch
from dom0.backend.net.world import World
from dom0.host.assembly import make_domain
from dom0.host.debugkeys import DebugKeys
from dom0.host.hosted import HostedVm
from dom0.host.linger import Lingering, lingering_loop
from dom0.host.spawn import ProcessSpawner, Spawner, TemplateProcess, ThreadSpawner
from dom0.host.switchboard import Dom0Port, Switchboard
from dom0.host.tracing import MachineTrace
from dom0.host.vm import Vm
from dom0.host.vmprocess import MakeDomain
from dom0.toolstack.building import Progress
from dom0.toolstack.config import DomainConfig
from dom0.toolstack.dmesg import MessageBuffer
from dom0.toolstack.domain import GuestDomain, ToolstackError
from dom0.toolstack.lifecycle import Toolstack
from dom0.toolstack.xlcfg import parse_config, read_config_file
from xen_py.clock import Clock, RealClock
from xen_py.doorbell import Doorbell
from xen_py.spec import Program
from xen_py.types import DomId, Port
from xenstore.daemon import Daemon
from xenstore.local import LocalClient
from xenstore.server import Server

_TAIL = 2000


class GuestConsole:
    """What a person at the guest's console would see and type, from the guest's first byte on."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._reader = LogReader(console.log, console.log.start)
        self._reader.__enter__()
        self.text = ""
        """All output read so far, undecodable bytes replaced."""
        self._matched = 0

    async def expect(self, pattern: str | re.Pattern[str]) -> re.Match[str]:
        """Wait until `pattern` (text, or a compiled expression) appears behind the last match.

        Raises `ConsoleClosed` with the end of the output if the guest ends without it.
        """
        expression = re.compile(re.escape(pattern)) if isinstance(pattern, str) else pattern
        while (match := expression.search(self.text, self._matched)) is None:
            if not await self._more():
                raise ConsoleClosed(f"the guest ended without {expression.pattern!r}; last it wrote:\n{self.tail()}")
        self._matched = match.end()
        return match

    async def read_to_end(self) -> str:
        """All output, once the guest is gone."""
        while await self._more():
            pass
        return self.text

    async def send(self, text: str | bytes) -> None:
        await self._console.feed(text.encode() if isinstance(text, str) else text)

    def tail(self) -> str:
        return self.text[-_TAIL:]

    def close(self) -> None:
        self._reader.__exit__()

    async def _more(self) -> bool:
        data = await self._reader.peek()
        self._reader.advance(len(data))
        self.text += data.decode(errors="replace")
        return bool(data)


class Guest:
    """A domain of a machine, as its creator holds it."""

    def __init__(self, toolstack: Toolstack, domain: GuestDomain) -> None:
        assert domain.console is not None
        self.domid: DomId = domain.domid
        self.console = GuestConsole(domain.console)
        self.domain = domain
        self._toolstack = toolstack

    async def pause(self) -> None:
        await self._toolstack.pause(self.domid)

    async def unpause(self) -> None:
        await self._toolstack.unpause(self.domid)

    async def shutdown(self, reason: str = "poweroff") -> None:
        """Ask the guest to end; returns when it has taken notice."""
        await self._toolstack.request_shutdown(self.domid, reason)

    async def wait_shutdown(self) -> int | None:
        """Until it has ended: its shutdown reason."""
        await self.domain.shut_down.wait()
        return self.domain.shutdown_reason

    async def wait_gone(self) -> None:
        await self.domain.gone.wait()

    async def destroy(self) -> None:
        if not self.domain.gone.is_set():
            await self._toolstack.destroy(self.domid)


class LoopClock:
    """The time of the trio loop, as nanoseconds: virtual where the loop's is. `xen_py.clock.Clock`."""

    virtual = True
    _WALL_NS = 1_700_000_000_000_000_000

    def __init__(self) -> None:
        self._started = trio.current_time()

    def now(self) -> int:
        return round((trio.current_time() - self._started) * 1e9) + 1_000_000_000

    def wall(self) -> int:
        return self._WALL_NS + self.now()

    def tsc(self) -> int:
        return self.now()

    def tsc_khz(self) -> int:
        return 1_000_000


@dataclass(frozen=True)
class FrontDomain:
    """See `dom0.backend.driver.Frontend`."""

    domid: DomId
    grants: GuestGrants
    switchboard: Switchboard
    bridges: Bridges
    vm: Vm | HostedVm

    def bind(self, port: Port, handler: Callable[[], None]) -> Dom0Port:
        return self.switchboard.bind(self.domid, port, handler)

    @property
    def direct(self) -> bool:
        return self.vm.direct

    def doorbell(self) -> Doorbell | None:
        return self.vm.another_doorbell()

    async def route(self, port: Port, eventfd: int | None) -> None:
        await self.vm.route(port, eventfd)


class Machine:
    """See the module; made by `open_machine`."""

    def __init__(
        self, rundir: Path, nursery: trio.Nursery, spawner: Spawner, clock: Clock, seed: int | None = None
    ) -> None:
        self.rundir = rundir
        self.clock = clock
        self.seeded = seed is not None
        self.random = random.Random(seed)
        """The machine's own dice."""
        self.nursery = nursery
        self.messages = MessageBuffer()
        self.switchboard = Switchboard()
        self.bridges = Bridges(lambda: clock.now() / 1e9)
        self.worlds: dict[str, World] = {}
        self.lingering: Lingering | None = None
        """Of the loop, where guests are processes."""
        self.daemon = Daemon(Server(clock=lambda: clock.now() / 1e9))
        self.backends = BackendManager(self.daemon.client(), self._frontend)
        self.toolstack = Toolstack(
            nursery, spawner, self.switchboard, self.daemon, self.backends, self.messages, rundir, clock
        )
        self.toolstack.builds_in_turn = self.seeded
        self.debug_keys = DebugKeys(self.toolstack.grant_tables, self.messages.hypervisor)
        self.trace = MachineTrace(self)
        self._consoles: list[GuestConsole] = []

    @property
    def store(self) -> LocalClient:
        """A store client of dom0's rights."""
        return self.daemon.client()

    def open_world(self, log_fd: int) -> None:
        """Give the default bridge a way to the world as soon as there is such a bridge."""

        def on_new(switch: Switch) -> None:
            if switch.name == DEFAULT_BRIDGE:
                world = self.worlds[switch.name] = World(switch, log_fd, self.messages.hypervisor)
                self.nursery.start_soon(world.run)

        self.bridges.on_new = on_new

    def _frontend(self, domid: DomId) -> FrontDomain | None:
        """A guest, for its backends."""
        guest = self.toolstack.domains.get(domid)
        if guest is None or guest.vm is None or guest.dying:
            return None
        return FrontDomain(domid, guest.vm.grants, self.switchboard, self.bridges, guest.vm)

    async def create(
        self, config: str | Path | DomainConfig, *overrides: str, paused: bool = False, progress: Progress | None = None
    ) -> Guest:
        """A new guest from a configuration, or from an xl.cfg file with `key=value` words as on xl's command line."""
        if not isinstance(config, DomainConfig):
            config = parse_config(read_config_file(str(config)), str(config), overrides)
        if self.seeded:
            config = attrs.evolve(config, uuid=str(uuid.UUID(int=self.random.getrandbits(128), version=4)))
            if Program.parse(config.kernel) is None:
                raise ToolstackError("a machine with a seed runs guests written in Python only")
        domain = await self.toolstack.create(config, paused=True, progress=progress)
        guest = Guest(self.toolstack, domain)
        self._consoles.append(guest.console)
        if not paused:
            await guest.unpause()
        return guest

    def statistics(self) -> dict[str, Any]:
        return {
            "toolstack": self.toolstack.statistics(),
            "events": self.switchboard.statistics(),
            "store": self.daemon.statistics(),
            "messages": self.messages.statistics(),
            "trace": self.trace.tracer.statistics(),
            "backends": self.backends.statistics(),
            "bridges": self.bridges.statistics(),
            "datapath": self.bridges.datapath.statistics(),
            "worlds": {name: world.statistics() for name, world in self.worlds.items()},
            "loop": self.lingering.statistics() if self.lingering is not None else {},
        }

    def close(self) -> None:
        for console in self._consoles:
            console.close()


@asynccontextmanager
async def open_machine(
    rundir: Path | None = None,
    *,
    processes: bool = False,
    world: bool = False,
    template: TemplateProcess | None = None,
    log_fd: int = 2,
    make: MakeDomain = make_domain,
    clock: Clock | None = None,
    seed: int | None = None,
) -> AsyncIterator[Machine]:
    """A machine for as long as the block lasts; its guests end with it.

    With a `world`, guests on the default bridge have a way to the host's network (`dom0.backend.net.world`).
    `rundir` holds sockets and logs (a temporary directory if None). `template` is a template process already started;
    `make` makes the domains that run on threads; the programs of Python guests run in this very loop, and `clock` is
    their time (the host's if None). With a `seed` all the machine's dice are thrown by it and its time is that of the
    trio loop: `dom0.kit.seeded` makes such loops.
    """
    with ExitStack() as stack:
        where = rundir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xen-py-")))
        for name in ("console", "log"):
            (where / name).mkdir(mode=0o700, exist_ok=True)
        lingering = stack.enter_context(lingering_loop()) if processes else None
        async with trio.open_nursery() as nursery:
            spawner: Spawner = ProcessSpawner(nursery, log_fd, template) if processes else ThreadSpawner(make)
            try:
                time = clock or (RealClock() if seed is None else LoopClock())
                machine = Machine(where, nursery, spawner, time, seed)
                machine.lingering = lingering
                if world:
                    machine.open_world(log_fd)
                await nursery.start(machine.daemon.serve_unix, os.fspath(where / "xenstored.sock"))
                await nursery.start(machine.backends.run)
                try:
                    yield machine
                finally:
                    with trio.CancelScope(shield=True):
                        await machine.toolstack.destroy_all()
                    machine.close()
            finally:
                with trio.CancelScope(shield=True):
                    await spawner.aclose()
                nursery.cancel_scope.cancel()


__all__ = ["ConsoleClosed", "Guest", "GuestConsole", "Machine", "ToolstackError", "open_machine"]
