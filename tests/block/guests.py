# SPDX-License-Identifier: GPL-2.0-only
"""Python guests with disks, for the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from dom0.backend.block.backend import BlockBackend
from dom0.backend.grants import GuestGrants
from dom0.host.machine import Guest as Handle
from dom0.host.machine import Machine, open_machine
from dom0.kit.guests import configured, kernel_for
from dom0.toolstack.diskspec import parse
from domU.guest import Guest

XVDA = 51712


def image(path: Path, sectors: int = 2048) -> Path:
    """A file of so many sectors; each begins with its number."""
    path.write_bytes(b"".join(n.to_bytes(8, "little").ljust(512, b"\xa5") for n in range(sectors)))
    return path


@asynccontextmanager
async def guest_with(
    machine: Machine, *disks: str, memory_mb: int = 16, name: str = "disky"
) -> AsyncIterator[tuple[Handle, Guest]]:
    """A guest with those disks, until the block is left; then it is destroyed."""
    there: list[Guest] = []
    started = trio.Event()

    async def main(guest: Guest) -> None:
        there.append(guest)
        started.set()
        await trio.sleep_forever()

    config = configured(name, kernel_for(name, main))
    config = attrs.evolve(
        config,
        memory_kb=memory_mb * 1024,
        maxmem_kb=memory_mb * 1024,
        disks=tuple(parse([disk]) for disk in disks),
    )
    handle = await machine.create(config)
    await started.wait()
    try:
        yield handle, there[0]
    finally:
        with trio.CancelScope(shield=True):
            await handle.destroy()


@asynccontextmanager
async def one_guest(*disks: str) -> AsyncIterator[tuple[Machine, Guest]]:
    """A machine with one such guest; nothing of it may be left pinned."""
    with trio.fail_after(60):
        async with open_machine() as machine, guest_with(machine, *disks) as (_, guest):
            yield machine, guest
            grants = grants_of(machine, guest)
            while guest.devices:
                await trio.sleep(0.01)
            for backend in list(machine.backends.all()):
                while backend.connected:
                    await trio.sleep(0.01)
            assert grants.statistics().pinned == 0


def grants_of(machine: Machine, guest: Guest) -> GuestGrants:
    vm = machine.toolstack.domains[guest.domid].vm
    assert vm is not None
    return vm.grants


def backend_of(machine: Machine, guest: Guest, devid: int = XVDA) -> BlockBackend:
    backend = machine.backends.device("vbd", guest.domid, devid)
    assert isinstance(backend, BlockBackend)
    return backend
