# SPDX-License-Identifier: GPL-2.0-only
"""Guests without a kernel image: what runs a program in place of a vCPU, found by the program's language.

A runtime is the guest's side of such a domain, and dom0 does not import guests: it finds the class by an entry point of
the group "xen_py.runtimes" whose name is the language. The domain is a domain like any other, on an engine that
executes nothing (`xen_py.engine.hosted`).
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any, Protocol

from hypercalls.table import dispatch
from xen_py.clock import Clock
from xen_py.domain import Domain
from xen_py.engine.hosted import HostedEngine
from xen_py.link import HostLink
from xen_py.memory import GuestMemory
from xen_py.spec import DomainSpec, Program

GROUP = "xen_py.runtimes"


class RuntimeMissing(Exception):
    """No installed package runs programs of that language."""


class GuestRuntime(Protocol):
    """One guest's program; all of it is used on the thread that owns the domain, in its trio loop."""

    def upcall(self) -> None:
        """Ports have become pending."""

    async def run(self) -> None:
        """From the guest's first moment to its end; the domain knows why."""

    def kill(self) -> None:
        """End it at once; `run` returns soon."""

    def statistics(self) -> dict[str, Any]: ...


@cache
def _runtime(language: str) -> Any:
    found = entry_points(group=GROUP, name=language)
    for entry in found:
        return entry.load()
    raise RuntimeMissing(f"no runtime for programs in {language!r} is installed; `make native` installs xen-py's own")


def make_program_domain(
    spec: DomainSpec, program: Program, memory: GuestMemory, link: HostLink, clock: Clock
) -> tuple[Domain, GuestRuntime]:
    """The domain, and what runs on it."""
    domain = Domain(spec, memory, link, clock, HostedEngine(), dispatch)
    return domain, _runtime(program.language)(domain, program)
