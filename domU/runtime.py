# SPDX-License-Identifier: GPL-2.0-only
"""A Python guest from its first moment to its end: what the host starts in place of a vCPU.

The host makes the domain and calls `run` once, in the trio loop of the thread that owns the domain, and `upcall`
whenever it has marked ports pending. `run` returns when the domain is over, which the domain itself then knows
(`Domain.shutdown`): the program has returned (poweroff), asked for an end, or failed (crash, with the traceback in the
guest's log). Cancelling `run` is destroying the domain.

dom0 finds this class by its entry point (group "xen_py.runtimes"), not by importing it.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from domU.events import Events
from domU.frontend.console import ConsoleFrontend
from domU.frontend.xenstore import open_store
from domU.guest import Guest
from domU.kernel import Kernel
from xen_py.abi.xen import ShutdownReason
from xen_py.domain import Domain
from xen_py.drive.bell import Bell
from xen_py.spec import Program
from xen_py.types import DomId
from xenstore.aclient import AsyncClient
from xenstore.errors import NotFound

Main = Callable[[Guest], Awaitable[None]]
_REASONS = {
    b"poweroff": ShutdownReason.POWEROFF,
    b"halt": ShutdownReason.POWEROFF,
    b"reboot": ShutdownReason.REBOOT,
}


class ProgramError(Exception):
    """The program that a configuration names cannot be found; one line for the user."""


def load(program: Program) -> Main:
    """The function `main` of "package.module:main" (which is what is meant where no name is given)."""
    name, _, attribute = program.target.partition(":")
    for folder in program.path:
        if folder not in sys.path:
            sys.path.append(folder)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        where = f" (looked in {', '.join(program.path)} too)" if program.path else ""
        raise ProgramError(f"there is no module {name!r}{where}") from error
    main = getattr(module, attribute or "main", None)
    if not callable(main):
        raise ProgramError(f"module {name!r} has no function {attribute or 'main'!r}")
    return main  # type: ignore[no-any-return]


class Runtime:
    """One guest. `main` is its program, or is loaded when the guest starts."""

    def __init__(self, domain: Domain, program: Program, main: Main | None = None) -> None:
        self._domain = domain
        self._program = program
        self._main = main
        self._events: Events | None = None
        self._timer = Bell()
        self._ending = trio.CancelScope()
        self._working = trio.CancelScope()
        self._kernel: Kernel | None = None
        self._asked = ShutdownReason.POWEROFF
        self.guest: Guest | None = None

    def upcall(self) -> None:
        """Ports may have become pending. Called on the domain's thread."""
        if self._events is not None:
            self._events.upcall()

    def kill(self) -> None:
        """The domain is to end at once: nothing the program does from now on reaches anybody."""
        if self._kernel is not None:
            self._kernel.kill()
        self._ending.cancel()

    async def run(self) -> None:
        """See the module."""
        kernel = self._kernel = Kernel(self._domain)
        kernel.on_timer = self._timer.ring
        kernel.on_over = self._ending.cancel
        events = self._events = Events(kernel)
        console = ConsoleFrontend(kernel, events)
        try:
            with self._ending:
                await self._boot(kernel, events, console)
                kernel.shutdown(self._asked)
        except Exception as error:
            if kernel.is_dead():
                return
            causes = _causes(error)
            kernel.print_emergency("".join(traceback.format_exception(error)))
            self._domain.crash(f"{type(causes).__name__}: {causes}")
        finally:
            self._events = None
            console.release()
            events.release()
            if self.guest is not None:
                self.guest.grants.release()

    async def _boot(self, kernel: Kernel, events: Events, console: ConsoleFrontend) -> None:
        main = self._main or load(self._program)
        failure: Exception | None = None
        async with open_store(kernel, events) as store, trio.open_nursery() as nursery:
            domid = DomId(int(await store.read("domid")))
            name = (await store.read("name")).decode()
            guest = self.guest = Guest(kernel, events, console, store, domid, name)
            nursery.start_soon(self._keep_time)
            await nursery.start(self._obey, store)
            try:
                with self._working:
                    await main(guest)
            except Exception as error:
                failure = error  # raised below, where no nursery puts it into a group
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _keep_time(self) -> None:
        """Raise the timer events that the guest has asked the hypervisor for."""
        domain = self._domain
        while True:
            deadline = domain.next_deadline()
            seconds = max(0, deadline - domain.clock.now()) / 1e9 if deadline else float("inf")
            with trio.move_on_after(seconds):
                await self._timer.wait()
            domain.run_timers()
            self.upcall()

    async def _obey(self, store: AsyncClient, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """control/shutdown, as any guest obeys it: take notice by writing it empty, let the program end, do it."""
        for feature in ("poweroff", "reboot"):
            await store.write(f"control/feature-{feature}", "1")
        async with store.watch("control/shutdown") as changes:
            task_status.started()
            async for _ in changes:
                try:
                    wanted = await store.read("control/shutdown")
                except NotFound:
                    continue
                if wanted in _REASONS:
                    await store.write("control/shutdown", "")
                    self._asked = _REASONS[wanted]
                    self._working.cancel()

    def statistics(self) -> dict[str, Any]:
        return self.guest.statistics() if self.guest is not None else {}


def _causes(error: BaseException) -> BaseException:
    """What an exception is about: the first of a group's."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
