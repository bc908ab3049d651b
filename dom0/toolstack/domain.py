# SPDX-License-Identifier: GPL-2.0-only
"""One domain as the toolstack holds it, from the moment it has an id to the moment nothing is left of it.

Owner: the trio thread; `dom0.toolstack.lifecycle` changes it, everybody else reads.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import attrs
import trio

from dom0.backend.console import Console
from dom0.backend.grants import GuestGrants, PinnedFrame
from dom0.host.hosted import HostedVm
from dom0.host.switchboard import Dom0Port
from dom0.host.vm import Vm
from dom0.toolstack.config import DomainConfig
from xen_py.doorbell import RunState
from xen_py.memory import GuestMemory
from xen_py.types import DomId
from xenstore.ring import RingConnection


class ToolstackError(Exception):
    """What was asked cannot be done. The text is one line for the user, `code` the exit status xl would give."""

    def __init__(self, message: str, *, code: int = 1, lines: list[str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.lines = lines or []
        """The circumstances, for who wants to know more."""


def _last_cpu(pid: int) -> int:
    """The processor a process ran on last (field 39 of proc(5)'s stat)."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[36])
    except (OSError, IndexError):
        return 0


@attrs.define(eq=False)
class GuestDomain:
    """A domain and all that belongs to it; what it does not have (yet, or any more) is None."""

    domid: DomId
    config: DomainConfig
    name: str
    uuid: str
    start_time: float = attrs.field(factory=time.time)
    building: trio.CancelScope | None = None
    dying: bool = False
    shutdown_reason: int | None = None
    reason_text: str | None = None
    """Why it is over, in words."""
    memory: GuestMemory | None = None
    vm: Vm | HostedVm | None = None
    console: Console | None = None
    serving: trio.CancelScope | None = None
    """The task that takes the console's clients; `served` says that it has ended."""
    served: trio.Event = attrs.field(factory=trio.Event)
    store: RingConnection | None = None
    ring_grants: GuestGrants | None = None
    ring_pins: list[PinnedFrame] = attrs.field(factory=list)
    """The pages of console and store."""
    ports: list[Dom0Port] = attrs.field(factory=list)
    build_log: tuple[str, ...] = ()
    shut_down: trio.Event = attrs.field(factory=trio.Event)
    """It has ended, by itself or with its process; it may still be there."""
    gone: trio.Event = attrs.field(factory=trio.Event)

    def pages_kb(self) -> int:
        if self.memory is None:
            return 0
        pages = self.vm.info().pages if self.vm is not None else 0
        return 4 * pages if pages else self.config.memory_kb

    def promised_kb(self) -> int:
        """Memory it may take of the machine without asking anybody, and has not taken yet."""
        if self.memory is None:
            return self.config.memory_kb if self.building is not None else 0
        return max(0, self.pages_kb() - self.memory.touched_bytes() // 1024)

    def row(self) -> dict[str, Any]:
        """Its line of `domain.list`."""
        info = self.vm.info() if self.vm is not None else None
        paused = info is None or bool(self.vm and self.vm.pauses)
        over = self.shutdown_reason is not None
        awake = info is not None and not over and not paused and info.state is not RunState.BLOCKED
        return {
            "domid": self.domid,
            "name": self.name,
            "uuid": self.uuid,
            "mem_kb": self.pages_kb(),
            "max_kb": self.config.maxmem_kb,
            "vcpus_online": sum(1 for vcpu in self.vcpus() if vcpu["online"]),
            "vcpus_max": self.config.maxvcpus,
            "running": awake and not self.dying,
            "blocked": info is not None and not over and not paused and info.state is RunState.BLOCKED,
            "paused": paused and not over,
            "shutdown": over,
            "dying": self.dying,
            "shutdown_reason": self.shutdown_reason,
            "reason_text": self.reason_text,
            "cpu_time_ns": info.cpu_time_ns if info else 0,
            "start_time": self.start_time,
        }

    def vcpus(self) -> list[dict[str, Any]]:
        """Its lines of `domain.vcpus`."""
        info = self.vm.info() if self.vm is not None else None
        if info is None or not info.vcpus:
            states = [(n < self.config.vcpus, True, 0) for n in range(self.config.maxvcpus)]
        else:
            states = list(info.vcpus)
        running = info is not None and info.state is RunState.RUNNING and self.shutdown_reason is None
        rows = []
        for number, (online, blocked, cpu_time_ns) in enumerate(states):
            if info is not None and len(states) == 1:
                cpu_time_ns = info.cpu_time_ns
            rows.append(
                {
                    "vcpu": number,
                    "cpu": _last_cpu(info.pid) if info is not None else 0,
                    "online": online,
                    "running": online and running and not blocked,
                    "blocked": online and (blocked or not running),
                    "cpu_time_ns": cpu_time_ns,
                }
            )
        return rows
