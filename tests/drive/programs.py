# SPDX-License-Identifier: GPL-2.0-only
"""Programs of Python guests for tests: a function becomes a guest's `main`, and tells the test what it finds.

A program of the test's own process is reached through a module made for it, so this is for machines in this process.
"""

from __future__ import annotations

import itertools
import sys
import types
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from dom0.host.machine import Guest as Handle
from dom0.host.machine import Machine
from dom0.toolstack.config import DomainConfig, ShutdownAction
from dom0.toolstack.deviceconfig import DeviceConfig
from domU.guest import Guest

_numbers = itertools.count()


def kernel_for(main: Callable[[Guest], Awaitable[None]]) -> str:
    """What `kernel` must be for a guest whose program is that function."""
    module = types.ModuleType(f"program_of_a_test_{next(_numbers)}")
    module.main = main  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    return f"python:{module.__name__}:main"


def configured(name: str, kernel: str, *devices: str, cmdline: str | None = None) -> DomainConfig:
    """A small guest that stays in the list when it ends."""
    found: list[DeviceConfig] = []
    for item in devices:
        found.append(DeviceConfig.parse(item, found))
    return DomainConfig(
        name=name,
        kernel=kernel,
        cmdline=cmdline,
        memory_kb=16 * 1024,
        devices=tuple(found),
        on_poweroff=ShutdownAction.PRESERVE,
        on_reboot=ShutdownAction.PRESERVE,
        on_crash=ShutdownAction.PRESERVE,
    )


@asynccontextmanager
async def inside(machine: Machine, *devices: str, name: str = "inside") -> AsyncIterator[tuple[Handle, Guest]]:
    """A guest for the test to act as: its program does nothing until the block is left."""
    there: list[Guest] = []
    started, done = trio.Event(), trio.Event()

    async def main(guest: Guest) -> None:
        there.append(guest)
        started.set()
        await done.wait()

    handle = await machine.create(configured(name, kernel_for(main), *devices))
    await started.wait()
    try:
        yield handle, there[0]
    finally:
        done.set()
        with trio.CancelScope(shield=True):
            await handle.wait_shutdown()
            await handle.destroy()
