# SPDX-License-Identifier: GPL-2.0-only
"""The base of every backend: what an author of a driver does not have to write.

The least a backend is:

    class EchoBackend(Backend):
        type = "echo"                       # its directory below /local/domain/0/backend
        ring = ECHO                         # a RingKind

        def handle(self, request):
            return Response(request.id, request.data)

All else has a default that a driver may replace: `open` (what stands behind the device, and the features to offer),
`connect` (which rings and event channels a frontend has published, and what it is told), `serve` (a task for each
ring; the default answers each request by `handle`), `close`. The handshake itself is `xen_py.drive.half`.

An exception of type `DeviceFailed`, `BadNode` or `RingBroken` closes the device with its text in `error/`; any other
one does so too, with a traceback in the host's log. Nothing a frontend writes is believed: nodes come through
`xen_py.drive.bus`'s readers, ring indices through `xen_py.io.ring`, frames through grants.

Owner: the trio thread; a backend of one device never waits for another's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import trio

from dom0.backend.grants import GuestGone, GuestGrants, PinnedFrame
from dom0.backend.net.switch import Bridges
from dom0.host.switchboard import Dom0Port
from xen_py.doorbell import Doorbell
from xen_py.drive import bus
from xen_py.drive.bus import BadNode, Bus, Nodes
from xen_py.drive.half import EXPECTED, DeviceFailed, Half
from xen_py.drive.queue import BackQueue
from xen_py.io.ring import BackRing, RingKind
from xen_py.io.xenbus import Event, Side
from xen_py.types import DomId, GrantRef, Port, XenError

_log = logging.getLogger("xen-py.backend")

FINISH_SECONDS = 5.0
"""How long requests that were taken may go on when the rings are to be let go."""
_LARGEST_REF = (1 << 32) - 1
_LARGEST_PORT = 4095


class Frontend(Protocol):
    """The domain at the other end, as a backend reaches it."""

    @property
    def domid(self) -> DomId: ...

    @property
    def grants(self) -> GuestGrants: ...

    @property
    def bridges(self) -> Bridges:
        """The host's switches, which are no domain's own."""

    def bind(self, port: Port, handler: Callable[[], None]) -> Dom0Port:
        """Connect to a port it offers. XenError."""

    @property
    def direct(self) -> bool:
        """Whether its events and grants may be dealt with by native code, which shows them to nobody else."""

    def doorbell(self) -> Doorbell | None:
        """The guest's doorbell, once more, for a native thread that rings it; None where all events must be seen."""

    async def route(self, port: Port, eventfd: int | None) -> None:
        """Have the guest's events of that port of its go to an eventfd, or to us again. GuestGone."""


class Backend(Half):
    """One device's backend half. See the module."""

    side = Side.BACKEND
    type: ClassVar[str]
    ring: ClassVar[RingKind]
    max_ring_page_order: ClassVar[int] = 0
    """Rings of up to 2**this pages are offered and taken."""

    def __init__(self, frontend: Frontend, bus: Bus, path: str, frontend_path: str, devid: int) -> None:
        domid = frontend.domid
        name = f"d{domid} {self.type} {devid}"
        error_path = f"/local/domain/0/error/backend/{self.type}/{domid}/{devid}"
        super().__init__(bus, path, frontend_path, error_path, name)
        self.frontend = frontend
        self.devid = devid
        self.queues: list[BackQueue] = []
        self._ring_observer: Callable[[str, str, Any], None] | None = None
        self._frames: list[PinnedFrame] = []
        self._ports: list[Dom0Port] = []
        self._nursery: trio.Nursery | None = None
        self._serving = 0
        self._served = trio.lowlevel.ParkingLot()
        self._scopes: set[trio.CancelScope] = set()
        """One for each task of `start` that runs."""

    # ---- what a driver may replace ----

    async def open(self, settings: Nodes) -> Mapping[str, str]:
        """Open what stands behind the device; the features to show. `settings` is what the toolstack wrote for us."""
        return {}

    async def connect(self, nodes: Nodes) -> Mapping[str, str]:
        """Map the rings that `nodes` (the frontend's directory) names; the properties to show it."""
        await self.open_queue(self.ring, nodes)
        return {}

    async def serve(self, queue: BackQueue) -> None:
        """Answer the requests of one ring until the queue ends."""
        await queue.answer(self.handle)

    def handle(self, request: Any) -> Any:
        """The response to a request."""
        raise NotImplementedError(f"{type(self).__name__} has neither `handle` nor `serve`")

    async def reconfigure(self, nodes: Nodes) -> Mapping[str, str]:
        """The frontend asks to negotiate anew; the properties to show it."""
        return {}

    async def close(self) -> None:
        """Close what `open` opened."""

    # ---- what a driver may use ----

    async def open_queue(
        self, kind: RingKind, nodes: Nodes, prefix: str = "", ring: str = "ring-ref", event: str = "event-channel"
    ) -> BackQueue:
        """Map one ring (nodes `prefix` + `ring`...) and bind its event channel; `serve` begins to work on it."""
        queue = await self.map_ring(kind, self._ring_refs(nodes, prefix + ring), lambda: port.notify())
        queue.peer_port = bus.number(nodes, prefix + event, 1, _LARGEST_PORT)
        port = self.bind(queue.peer_port, queue.on_event)
        self.start(self._serve, queue)
        return queue

    async def map_ring(self, kind: RingKind, refs: list[GrantRef], notify: Callable[[], None]) -> BackQueue:
        """A ring in those pages, for as long as the device is connected; its events and its task are the caller's."""
        frames = await self.pin(refs)
        queue = BackQueue(BackRing(kind, [frame.data for frame in frames]), notify)
        queue.observe = self._ring_observer
        self.queues.append(queue)
        return queue

    def observe_rings(self, observer: Callable[[str, str, Any], None] | None) -> None:
        """Have `observer` told of each request and response: which of them, the ring's kind, the values."""
        self._ring_observer = observer
        for queue in self.queues:
            queue.observe = observer

    def _ring_refs(self, nodes: Nodes, name: str) -> list[GrantRef]:
        if "ring-page-order" not in nodes:
            return [GrantRef(bus.number(nodes, name, 0, _LARGEST_REF))]
        order = bus.number(nodes, "ring-page-order", 0, self.max_ring_page_order)
        if order == 0 and name in nodes:
            return [GrantRef(bus.number(nodes, name, 0, _LARGEST_REF))]
        return [GrantRef(bus.number(nodes, f"{name}{n}", 0, _LARGEST_REF)) for n in range(1 << order)]

    async def pin(self, refs: list[GrantRef]) -> list[PinnedFrame]:
        """Pin frames for as long as the device is connected."""
        try:
            found = await self.frontend.grants.pin([(ref, False) for ref in refs])
        except GuestGone as error:
            raise DeviceFailed(str(error)) from error
        frames = [frame for frame in found if isinstance(frame, PinnedFrame)]
        self._frames += frames
        for ref, frame in zip(refs, found, strict=True):
            if not isinstance(frame, PinnedFrame):
                raise BadNode(f"grant {ref} of a ring cannot be mapped: {frame.name.lower()}")
        return frames

    def bind(self, port: int, handler: Callable[[], None]) -> Dom0Port:
        """Bind to an event channel of the frontend's for as long as the device is connected."""
        try:
            bound = self.frontend.bind(Port(port), handler)
        except XenError as error:
            raise BadNode(f"event channel {port} cannot be bound: {error.why}") from error
        self._ports.append(bound)
        return bound

    def start(self, task: Callable[[Any], Any], argument: Any) -> None:
        """Run `await task(argument)` for as long as the device is connected; what it raises fails the device."""
        assert self._nursery is not None, "a backend is started by `run`"
        self._serving += 1
        scope = trio.CancelScope()
        self._scopes.add(scope)
        self._nursery.start_soon(self._guarded, task, argument, scope)

    # ---- the handshake's steps ----

    async def do_prepare(self) -> None:
        settings = await bus.read_tree(self.bus, self.own)
        features = dict(await self.open(settings))
        if self.max_ring_page_order:
            features.setdefault("max-ring-page-order", str(self.max_ring_page_order))
        await self._show(features)

    async def do_publish(self) -> None:
        raise AssertionError("a backend publishes nothing of its own")

    async def do_connect(self, nodes: Nodes) -> None:
        await self._show(await self.connect(nodes))

    async def do_reconfigure(self, nodes: Nodes) -> None:
        await self._show(await self.reconfigure(nodes))

    async def do_disconnect(self) -> None:
        for queue in self.queues:
            queue.stop()
        with trio.move_on_after(FINISH_SECONDS):
            while self._serving:
                await self._served.park()
        for scope in self._scopes:
            scope.cancel()
        while self._serving:
            await self._served.park()
        for queue in self.queues:
            queue.flush()
            queue.close()
        for port in self._ports:
            port.close()
        frames = self._frames
        self.queues, self._ports, self._frames = [], [], []
        await self.frontend.grants.unpin(frames)

    async def do_free(self) -> None:
        await self.close()

    async def _show(self, properties: Mapping[str, str]) -> None:
        for name, value in properties.items():
            await self.bus.write(f"{self.own}/{name}", value)

    # ---- running ----

    def _watched(self) -> list[str]:
        return [*super()._watched(), f"{self.own}/online"]

    async def look_further(self) -> None:
        online = await self.bus.read(f"{self.own}/online")
        if online == b"0":
            self.unwant()
        elif online is not None and self.wish is Event.UNWANTED:
            self.want()

    async def run(self) -> None:
        async with trio.open_nursery() as self._nursery:
            await super().run()
            self._nursery.cancel_scope.cancel()

    async def _serve(self, queue: BackQueue) -> None:
        await self.serve(queue)

    async def _guarded(self, task: Callable[[Any], Any], argument: Any, scope: trio.CancelScope) -> None:
        try:
            with scope:
                await task(argument)
        except (*EXPECTED, DeviceFailed, GuestGone) as error:
            self.fail(str(error))
        except Exception as error:
            _log.exception("%s: a request could not be served", self.name)
            self.fail(f"xen-py failed: {type(error).__name__}: {error}")
        finally:
            self._scopes.discard(scope)
            self._serving -= 1
            self._served.unpark_all()

    def statistics(self) -> dict[str, Any]:
        return super().statistics() | {"rings": [vars(queue.statistics()) for queue in self.queues]}
