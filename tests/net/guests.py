# SPDX-License-Identifier: GPL-2.0-only
"""Python guests with network cards in the test's own loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import attrs
import trio

from dom0.backend.net.backend import NetBackend
from dom0.host.machine import Machine, open_machine
from dom0.kit.guests import configured, kernel_for
from dom0.toolstack.vifspec import parse
from domU.guest import Guest

MAC = "00:16:3e:00:00:0"


@asynccontextmanager
async def guest_with(machine: Machine, *cards: str, name: str = "net") -> AsyncIterator[Guest]:
    """A guest with those cards, until the block is left; then it is destroyed."""
    there: list[Guest] = []
    started = trio.Event()

    async def main(guest: Guest) -> None:
        there.append(guest)
        started.set()
        await trio.sleep_forever()

    config = configured(name, kernel_for(name, main))
    nics = tuple(parse([word for word in card.split(",") if word], "test") for card in cards)
    handle = await machine.create(attrs.evolve(config, nics=nics))
    await started.wait()
    try:
        yield there[0]
    finally:
        with trio.CancelScope(shield=True):
            await handle.destroy()


@asynccontextmanager
async def lab(*cards: str) -> AsyncIterator[tuple[Machine, list[Guest]]]:
    """A machine with a guest for each of the cards; nothing may be left pinned when their devices are closed."""
    with trio.fail_after(60):
        async with open_machine() as machine, AsyncExitStack() as stack:
            guests = [
                await stack.enter_async_context(guest_with(machine, card, name=f"net{number}"))
                for number, card in enumerate(cards)
            ]
            yield machine, guests
            while any(guest.devices for guest in guests) or any(b.connected for b in machine.backends.all()):
                await trio.sleep(0.01)
            assert all(pinned(machine, guest) == 0 for guest in guests)


def pinned(machine: Machine, guest: Guest) -> int:
    vm = machine.toolstack.domains[guest.domid].vm
    assert vm is not None
    return vm.grants.statistics().pinned


def backend_of(machine: Machine, guest: Guest, devid: int = 0) -> NetBackend:
    backend = machine.backends.device("vif", guest.domid, devid)
    assert isinstance(backend, NetBackend)
    return backend
