# SPDX-License-Identifier: GPL-2.0-only
"""Guests for the host's tests: the hello kernel that comes along, and domains whose every step is scripted."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from dom0 import open_machine
from dom0.host.machine import Machine
from dom0.toolstack.config import DomainConfig
from xen_py.clock import Clock
from xen_py.engine import EventPaths
from xen_py.io.console import ConsoleRing
from xen_py.link import HostLink
from xen_py.memory import GuestMemory
from xen_py.spec import DomainInfo, DomainSpec, Step, VcpuInfo
from xen_py.types import Port

PATIENCE = 30
"""Seconds after which a test that waits for a guest has failed; nothing is measured by it."""


@asynccontextmanager
async def watched_machine(**options: Any) -> AsyncIterator[Machine]:
    """`open_machine` for tests: one that hangs fails instead."""
    with trio.fail_after(PATIENCE):
        async with open_machine(**options) as machine:
            yield machine


HELLO = Path(__file__).resolve().parents[2] / "domU" / "native" / "build" / "hello.elf"


def hello(name: str = "hello", **fields: Any) -> DomainConfig:
    return DomainConfig(**({"name": name, "kernel": str(HELLO), "memory_kb": 16 * 1024} | fields))


class Reserved:
    """A grant table with nothing in it but the toolstack's own entries."""

    def __init__(self, spec: DomainSpec) -> None:
        self._frames = [spec.memory.index(mfn) for mfn in (spec.console_mfn, spec.store_mfn)]

    def pin(self, ref: int, _domid: int, *, readonly: bool) -> int:
        assert not readonly
        return self._frames[ref]

    def unpin(self, ref: int, _domid: int, *, readonly: bool) -> None:
        assert ref < len(self._frames) and not readonly


Script = Callable[["ScriptedDomain"], Iterator[Step]]


class ScriptedDomain:
    """Plays the guest's part in Python: each `step` runs the script to its next yield."""

    def __init__(self, spec: DomainSpec, memory: GuestMemory, link: HostLink, clock: Clock, script: Script) -> None:
        self.spec = spec
        self.memory = memory
        self.link = link
        self.clock = clock
        self.console = ConsoleRing(memory.frame(spec.console_mfn))
        self.delivered: list[Port] = []
        self.thread = threading.current_thread()
        self.closed = False
        self.grants: Any = Reserved(spec)
        self._steps = script(self)

    def step(self) -> Step:
        assert threading.current_thread() is self.thread
        return next(self._steps)

    def connect(self, paths: EventPaths) -> None:
        self.paths = paths

    def kick(self) -> None:
        """It looks at its orders after each step."""

    def deliver(self, port: Port) -> None:
        self.delivered.append(port)

    def info(self) -> DomainInfo:
        return DomainInfo(1000, self.spec.nr_pages, self.spec.nr_pages, (VcpuInfo(0, True, False, True, 1000),))

    def close(self) -> None:
        self.console.close()
        self.closed = True

    def say(self, text: bytes) -> None:
        """Write to the console and tell the backend."""
        assert self.console.put_output(text) == len(text)
        self.link.evtchn_notify(self.spec.console_port)


def scripted(script: Script) -> Callable[[DomainSpec, GuestMemory, HostLink, Clock], ScriptedDomain]:
    return lambda spec, memory, link, clock: ScriptedDomain(spec, memory, link, clock, script)
