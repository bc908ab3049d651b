# SPDX-License-Identifier: GPL-2.0-only
"""What the frontends of other systems are played on: pages, grants, events and the store of a Python guest.

A player does to the store and the rings what its system's driver does, in that driver's order (`freebsd`, `windows`),
and asserts what the driver asserts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import trio

from domU.events import GuestPort
from domU.guest import Guest
from domU.kernel import Page
from xen_py.drive.bus import BusNodes
from xen_py.io.netif import Extra
from xen_py.io.packet import Packet
from xen_py.io.ring import RSP_EVENT, FrontRing, RingKind
from xen_py.io.xenbus import State, parse_state
from xen_py.types import PAGE_SIZE, DomId, GrantRef

BACKEND = DomId(0)
RX_SLOTS = 256
"""Of a ring of one page: both systems keep all of them posted."""


class SharedRing:
    """A ring in a granted page."""

    def __init__(self, player: Player, kind: RingKind) -> None:
        self.page = player.guest.kernel.allocate()
        self.ref = player.guest.grants.grant(BACKEND, self.page)
        self.ring = FrontRing(kind, [self.page.data[:]])
        self._player = player

    def ask_for_event_at(self, position: int) -> None:
        """Where the driver sets the event index itself."""
        self.page.data[4 * RSP_EVENT : 4 * RSP_EVENT + 4] = (position & 0xFFFFFFFF).to_bytes(4, "little")

    def end(self) -> None:
        self.ring.close()
        self._player.end_grant(self.ref)


class Player:
    """One vif of a guest."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.path = f"{guest.path}/device/vif/0"
        self.backend = ""
        self.states: list[State] = []
        """All of the backend's that were seen."""
        self.written: list[str] = []
        """The names of nodes that were written, in their order."""
        self.received: list[tuple[int, Packet, list[Extra]]] = []
        """Queue, packet and what was said of it."""
        self._changed = trio.Event()

    # ---- the store ----

    async def read_backend(self, name: str) -> str:
        """A node of the backend's; nothing where it is missing."""
        return (await self.guest.bus.read(f"{self.backend}/{name}") or b"").decode()

    async def write(self, nodes: Mapping[str, object]) -> None:
        """In one transaction, in this order."""

        async def body(store: BusNodes) -> None:
            for name, value in nodes.items():
                await store.write(f"{self.path}/{name}", str(value))

        await self.guest.bus.run_transaction(body)
        self.written += nodes

    async def remove(self, name: str) -> None:
        await self.guest.bus.remove(f"{self.path}/{name}")

    async def set_state(self, state: State) -> None:
        await self.guest.bus.write(f"{self.path}/state", str(int(state)))

    async def backend_state(self) -> State:
        state = parse_state(await self.guest.bus.read(f"{self.backend}/state"))
        if not self.states or self.states[-1] is not state:
            self.states.append(state)
        return state

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """`changed` hears of the backend's state."""
        self.backend = (await self.guest.store.read(f"{self.path}/backend")).decode()

        def heard() -> None:
            self._changed.set()

        async with self.guest.bus.watch(f"{self.backend}/state", heard):
            yield

    async def changed(self) -> None:
        await self._changed.wait()
        self._changed = trio.Event()

    # ---- pages and events ----

    def offer(self, handler: Callable[[], None]) -> GuestPort:
        return self.guest.events.offer(BACKEND, handler)

    def lend(self, *, readonly: bool = False) -> tuple[Page, GrantRef]:
        page = self.guest.kernel.allocate()
        return page, self.guest.grants.grant(BACKEND, page, readonly=readonly)

    def end_grant(self, ref: GrantRef) -> None:
        """The backend must not use it any more; the page is freed."""
        assert self.guest.grants.end(ref), "a grant is still in use by the backend"

    def free(self, page: Page, ref: GrantRef) -> None:
        self.end_grant(ref)
        self.guest.kernel.free(page)

    async def receive(self) -> tuple[int, Packet, list[Extra]]:
        """The next packet."""
        with trio.fail_after(10):
            while not self.received:
                await trio.sleep(0.001)
        return self.received.pop(0)


def pieces(data: bytes, first: int, size: int = PAGE_SIZE) -> list[bytes]:
    """The data as a system's buffers hold it: so many bytes in the first, then buffers of `size`."""
    return [data[:first], *(data[at : at + size] for at in range(first, len(data), size))]
