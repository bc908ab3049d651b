# SPDX-License-Identifier: GPL-2.0-only
"""One domain from its plain specification to its end: what a VM process does after it was forked.

`run_domain` is the same on a thread of the host process. Everything it holds arrives as descriptors: the memory
file, the doorbell page with its two eventfds, the link's socket.
"""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from typing import Any

import msgpack  # type: ignore[import-untyped]

from dom0.host import sandbox
from dom0.host.looplink import HostGone, LoopLink
from dom0.host.vmloop import Steppable, VmLoop
from xen_py.clock import Clock, RealClock
from xen_py.doorbell import Doorbell, join_fences
from xen_py.foreign import room_for
from xen_py.link import HostLink
from xen_py.memory import GuestMemory
from xen_py.spec import DomainSpec, Program

DESCRIPTORS = 5
"""Memory file, doorbell page, inbox eventfd, outbox eventfd, link socket: in this order."""

MakeDomain = Callable[[DomainSpec, GuestMemory, HostLink, Clock], Steppable]


def run_domain(
    spec: DomainSpec, fds: list[int], make: MakeDomain, confine: Callable[[], None] = lambda: None
) -> None:
    """Make the domain and drive it until the host closes the link. Owns `fds`. A bug ends it with a message.

    `confine` is called when all descriptors are in use and nothing of the guest's has been looked at.
    """
    join_fences()
    memory_fd, page_fd, inbox_fd, outbox_fd, link_fd = fds
    with ExitStack() as stack:
        doorbell = stack.enter_context(closing(Doorbell(page_fd, inbox_fd, outbox_fd)))
        sock = stack.enter_context(socket.socket(fileno=link_fd))
        memory = stack.enter_context(closing(GuestMemory.from_fd(memory_fd, spec.memory, room_for(spec.memory))))
        link = LoopLink(sock, doorbell)
        clock = RealClock()
        if spec.program is not None:
            _run_program(stack, spec, spec.program, memory, link, doorbell, clock, confine)
            return
        confine()
        try:
            domain = stack.enter_context(closing(make(spec, memory, link, clock)))
            VmLoop(domain, link, doorbell, clock).run()
        except HostGone:
            return
        except Exception:
            with suppress(HostGone):
                link.broken(traceback.format_exc())


def _run_program(
    stack: ExitStack,
    spec: DomainSpec,
    program: Program,
    memory: GuestMemory,
    link: LoopLink,
    doorbell: Doorbell,
    clock: Clock,
    confine: Callable[[], None],
) -> None:
    """A guest that is a program. What it needs is imported here, not in the template: other guests do without."""
    import trio

    from dom0.host.programloop import ProgramLoop
    from dom0.host.runtimes import make_program_domain

    async def run() -> None:
        confine()
        domain, runtime = make_program_domain(spec, program, memory, link, clock)
        stack.enter_context(closing(domain))
        await ProgramLoop(domain, runtime, link, doorbell).run()

    try:
        trio.run(run)
    except* HostGone:
        pass
    except* Exception:
        with suppress(HostGone):
            link.broken(traceback.format_exc())


def vm_process(request: bytes, fds: list[int], make: MakeDomain) -> None:
    """The whole life of a VM process; the caller has closed what is not ours and exits afterwards."""
    plain: dict[str, Any] = msgpack.unpackb(request)
    spec = DomainSpec.from_plain(plain["spec"])
    os.setsid()
    sandbox.set_title(f"xen-py: {spec.name} [{spec.domid}]")
    run_domain(spec, fds, make, sandbox.confine if spec.program is None else sandbox.confine_program)
