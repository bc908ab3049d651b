# SPDX-License-Identifier: GPL-2.0-only
"""The base of every frontend in a Python guest: what an author of a driver does not have to write.

The least a frontend is:

    class EchoFrontend(Frontend):
        type = "echo"                       # its directory below device/
        ring = ECHO                         # a RingKind

        async def say(self, data):
            return (await self.queue.call(Request(0, data))).data

All else has a default that a driver may replace: `publish` (which rings and event channels to make), `connect` (what
the backend says of the device), `reconfigure`, `free`. The handshake itself is `xen_py.drive.half`; `guest.device(...)`
runs it. While the device is not connected, `queue` raises DeviceFailed: `wait_connected` first.

Owned by the guest's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

import trio

from domU.events import GuestPort
from domU.grants import NoGrants
from domU.kernel import OutOfMemory, Page
from xen_py.drive.bus import Nodes
from xen_py.drive.half import DeviceFailed, Half, step_fields
from xen_py.drive.queue import FrontQueue
from xen_py.io.ring import FrontRing, RingKind
from xen_py.io.xenbus import Action, Event, Side, State
from xen_py.types import DomId, GrantRef, XenError

if TYPE_CHECKING:
    from domU.guest import Guest

LEAVE_SECONDS = 10.0
"""How long a device that is not wanted any more may take to close."""


class Frontend(Half):
    """One device's frontend half. See the module."""

    side = Side.FRONTEND
    type: ClassVar[str]
    ring: ClassVar[RingKind]

    def __init__(self, guest: Guest, devid: int, backend: str) -> None:
        path = f"{guest.path}/device/{self.type}/{devid}"
        name = f"{guest.name} {self.type} {devid}"
        super().__init__(guest.bus, path, backend, f"{guest.path}/error/device/{self.type}/{devid}", name)
        self.guest = guest
        self.devid = devid
        self.backend_id = DomId(0)
        self._queue: FrontQueue | None = None
        self.shared: list[tuple[GrantRef, Page]] = []
        """What the backend may use now."""
        self._ports: list[GuestPort] = []
        self._closers: list[Callable[[], None]] = []
        self._changed = trio.lowlevel.ParkingLot()
        self.on_change = self._wake
        self.observe = self._record

    def _wake(self) -> None:
        self._changed.unpark_all()

    def _record(self, ours: State, theirs: State, event: Event, action: Action) -> None:
        tracer = self.guest.kernel.domain.tracer
        if tracer is not None:
            tracer.record(self.guest.domid, "xenbus", self.name, **step_fields(ours, theirs, event, action))

    @property
    def queue(self) -> FrontQueue:
        """The ring of a device that has one. DeviceFailed while it is not connected."""
        if self._queue is None or not self.connected:
            raise DeviceFailed(f"{self.name} is not connected{f': {self.failure}' if self.failure else ''}")
        return self._queue

    async def wait_connected(self) -> None:
        """Until the device can be used. DeviceFailed when it has ended, or one of the halves has closed it."""
        while not (self.connected and self.state is State.CONNECTED):
            if self.over.is_set():
                raise DeviceFailed(f"{self.name} cannot be used: {self.failure or 'it was taken away'}")
            if self.state is State.CLOSED and self.wish is not Event.WANTED and self.is_free():
                raise DeviceFailed(f"{self.name} cannot be used: {self.failure or 'the backend has closed it'}")
            await self._changed.park()

    async def leave(self) -> None:
        """The guest does not want the device any more: close it, for LEAVE_SECONDS at most."""
        self.unwant()
        if self.guest.kernel.is_dead():
            return
        with trio.move_on_after(LEAVE_SECONDS):
            while not self.over.is_set() and not (self.state is State.CLOSED and self.is_free()):
                await self._changed.park()

    # ---- what a driver may replace ----

    async def publish(self, nodes: Nodes) -> Mapping[str, str]:
        """Make rings and event channels; what the backend has to know. `nodes` is the backend's directory."""
        pages = [self.guest.kernel.allocate()]
        refs = [self.grant(page) for page in pages]
        queue = FrontQueue(FrontRing(self.ring, [page.data[:] for page in pages]), lambda: port.notify(), self.fail)
        port = self.offer(queue.on_event)
        self._queue = queue
        self.on_disconnect(queue.close)
        return {"ring-ref": str(refs[0]), "event-channel": str(port.port)}

    async def connect(self, nodes: Nodes) -> None:
        """The backend is connected: read what it says of the device."""

    async def reconfigure(self, nodes: Nodes) -> None:
        """The backend has taken over what was to be negotiated anew."""

    async def free(self) -> None:
        """Nothing is shared any more: free what `publish` made beside pages, grants and ports."""

    # ---- what a driver may use ----

    def grant(self, page: Page, *, readonly: bool = False) -> GrantRef:
        """Let the backend use the page until the device is freed; the page goes with it."""
        ref = self.guest.grants.grant(self.backend_id, page, readonly=readonly)
        self.shared.append((ref, page))
        return ref

    def offer(self, handler: Callable[[], None]) -> GuestPort:
        """An event channel for the backend, until the device is freed."""
        port = self.guest.events.offer(self.backend_id, handler)
        self._ports.append(port)
        return port

    def on_disconnect(self, close: Callable[[], None]) -> None:
        """Call this once, before the rings' pages go."""
        self._closers.append(close)

    # ---- the handshake's steps ----

    async def do_prepare(self) -> None:
        raise AssertionError("a frontend has nothing to prepare")

    async def do_publish(self) -> None:
        await self._release()
        value = await self.bus.read(f"{self.own}/backend-id")
        if value is None or not value.isdigit():
            raise DeviceFailed(f"{self.own}/backend-id is missing")
        self.backend_id = DomId(int(value))
        nodes = await self.their_nodes()
        try:
            published = await self.publish(nodes)
        except (XenError, OutOfMemory, NoGrants) as error:
            raise DeviceFailed(f"the device cannot be set up: {error}") from error
        for name, text in published.items():
            await self.bus.write(f"{self.own}/{name}", text)

    async def do_connect(self, nodes: Nodes) -> None:
        await self.connect(nodes)

    async def do_reconfigure(self, nodes: Nodes) -> None:
        await self.reconfigure(nodes)

    async def do_disconnect(self) -> None:
        closers, self._closers = self._closers, []
        for close in closers:
            close()
        self._queue = None

    async def do_free(self) -> None:
        await self._release()
        await self.free()
        self._changed.unpark_all()

    async def _release(self) -> None:
        """Let go of rings, ports and grants; pages that the backend still has mapped go when it lets them go."""
        await self.do_disconnect()
        for port in self._ports:
            port.close()
        for ref, _ in self.shared:
            self.guest.grants.end_and_free(ref)  # and the page
        self._ports, self.shared = [], []
