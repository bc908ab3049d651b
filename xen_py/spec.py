# SPDX-License-Identifier: GPL-2.0-only
"""What a domain is made from, and what becomes of it: the plain data that crosses between host and domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xen_py.abi.xen import ShutdownReason
from xen_py.maptrack import MAX_FRAMES
from xen_py.memory import GRANT_FRAMES, MemoryGeometry
from xen_py.start import StartState
from xen_py.types import DomId, Mfn, Port


@dataclass(frozen=True)
class Program:
    """What a guest without a kernel image runs: `language` names the runtime, which knows what `target` means."""

    language: str
    target: str
    path: tuple[str, ...] = ()
    """Directories to look for it in, after those the host was installed with."""

    @classmethod
    def parse(cls, kernel: str, path: tuple[str, ...] = ()) -> Program | None:
        """The program that a configuration's `kernel` names ("python:package.module:main"); None for an image."""
        language, colon, target = kernel.partition(":")
        return cls(language, target, path) if colon and language in LANGUAGES else None

    def to_plain(self) -> dict[str, Any]:
        return {"language": self.language, "target": self.target, "path": list(self.path)}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Program:
        return cls(plain["language"], plain["target"], tuple(plain["path"]))


LANGUAGES = frozenset({"python"})


@dataclass(frozen=True)
class DomainSpec:
    """Everything the hypervisor must know to run a freshly built domain."""

    domid: DomId
    name: str
    uuid: bytes
    """16 bytes, xen_domain_handle_t."""
    vcpus: int
    nr_pages: int
    """PFNs 0..nr_pages-1 are allocated, PFN n at MFN mfn_base + n."""
    memory: MemoryGeometry
    start: StartState
    store_port: Port
    console_port: Port
    store_mfn: Mfn
    console_mfn: Mfn
    program: Program | None = None
    """What runs in place of instructions."""
    max_grant_frames: int = GRANT_FRAMES
    max_maptrack_frames: int = MAX_FRAMES

    def to_plain(self) -> dict[str, Any]:
        plain = dict(vars(self))
        plain["memory"] = self.memory.to_plain()
        plain["start"] = self.start.to_plain()
        plain["program"] = self.program.to_plain() if self.program else None
        return plain

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> DomainSpec:
        return cls(
            **{
                **plain,
                "memory": MemoryGeometry.from_plain(plain["memory"]),
                "start": StartState.from_plain(plain["start"]),
                "program": Program.from_plain(plain["program"]) if plain["program"] else None,
            }
        )


@dataclass(frozen=True)
class Kicked:
    """Somebody wanted the domain's thread: look at the inbox and at pause requests, then step again."""


@dataclass(frozen=True)
class Blocked:
    """Every vCPU sleeps. Step again when there is an event, or at `deadline_ns` of system time (None: never)."""

    deadline_ns: int | None


@dataclass(frozen=True)
class Shutdown:
    """The domain is over."""

    reason: ShutdownReason
    why: str


Step = Kicked | Blocked | Shutdown


@dataclass(frozen=True)
class VcpuInfo:
    vcpu: int
    online: bool
    running: bool
    blocked: bool
    cpu_time_ns: int


@dataclass(frozen=True)
class DomainInfo:
    cpu_time_ns: int
    pages: int
    max_pages: int
    vcpus: tuple[VcpuInfo, ...]
