# SPDX-License-Identifier: GPL-2.0-only
"""A guest for a test to act as: its program does nothing, and the test has it in hand.

    async with inside(machine, "type=echo,loud=1") as guest:
        async with guest.device(EchoFrontend) as echo:
            ...

The guest (`domU.guest.Guest`) runs in the same trio loop as the test; what the test does with it, the guest does. For
machines in this process.
"""

from __future__ import annotations

import sys
import types
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from dom0.host.machine import Guest, Machine
from dom0.toolstack.config import DomainConfig, ShutdownAction
from dom0.toolstack.deviceconfig import DeviceConfig


def kernel_for(name: str, main: Callable[[Any], Awaitable[None]]) -> str:
    """What `kernel` must be for a guest whose program is that function; one of the same name is forgotten."""
    module = types.ModuleType(f"xenpy_program_{name}")
    module.main = main  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    return f"python:{module.__name__}:main"


def configured(name: str, kernel: str, *devices: str) -> DomainConfig:
    """A small guest that stays in the list when it ends; `devices` as in xl.cfg's `device`."""
    found: list[DeviceConfig] = []
    for item in devices:
        found.append(DeviceConfig.parse(item, found))
    return DomainConfig(
        name=name,
        kernel=kernel,
        memory_kb=16 * 1024,
        devices=tuple(found),
        on_poweroff=ShutdownAction.PRESERVE,
        on_reboot=ShutdownAction.PRESERVE,
        on_crash=ShutdownAction.PRESERVE,
    )


@asynccontextmanager
async def held(machine: Machine, *devices: str, name: str = "inside") -> AsyncIterator[tuple[Guest, Any]]:
    """As `inside`, with what dom0 has of the guest in front: its console, its end."""
    there: list[Any] = []
    started, done = trio.Event(), trio.Event()

    async def main(guest: Any) -> None:
        there.append(guest)
        started.set()
        await done.wait()

    handle = await machine.create(configured(name, kernel_for(name, main), *devices))
    await started.wait()
    try:
        yield handle, there[0]
    finally:
        done.set()
        with trio.CancelScope(shield=True):
            await handle.wait_shutdown()
            await handle.destroy()


@asynccontextmanager
async def inside(machine: Machine, *devices: str, name: str = "inside") -> AsyncIterator[Any]:
    """The guest, until the block is left; then it powers off and is destroyed."""
    async with held(machine, *devices, name=name) as (_, guest):
        yield guest
