# SPDX-License-Identifier: GPL-2.0-only
"""A disk for Python guests: `read`, `write`, `flush`, `discard`, as many at a time as the caller likes.

    async with guest.device(BlockFrontend, vdev) as disk:
        await disk.write(0, b"...")         # whole sectors
        await disk.flush()                  # ... are now on the disk for good
        data = await disk.read(0, 4096)

Offsets and lengths are bytes. A call is split into requests of as many segments as the backend takes, which are under
way together; it has been done when it returns. The backend is not trusted with more than the pages of its request:
data is copied into pages of our own, which are granted for good where the backend keeps its mappings.

Owned by the guest's thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from domU.frontend.driver import Frontend
from domU.kernel import Page
from xen_py.drive import bus
from xen_py.drive.bus import Nodes
from xen_py.drive.half import DeviceFailed
from xen_py.drive.queue import FrontQueue, QueueClosed
from xen_py.io import blkif
from xen_py.io.blkif import (
    DISCARD_SECURE,
    MAX_INDIRECT_PAGES,
    MAX_SEGMENTS,
    SECTOR_SIZE,
    SEGMENT,
    DiscardRequest,
    DiskInfo,
    IndirectRequest,
    Operation,
    Request,
    Segment,
    Status,
    pack_segments,
)
from xen_py.io.ring import FrontRing
from xen_py.types import PAGE_SIZE, GrantRef

if TYPE_CHECKING:
    from domU.guest import Guest

MOST_SEGMENTS = 64
"""In one request of ours, however many the backend takes."""
_MOST_SECTORS = (1 << 64) - 1
Part = Callable[[int, int], Awaitable[None]]


class DiskFailed(Exception):
    """A request could not be done; the disk goes on."""


@dataclass(eq=False, slots=True)
class _Buffer:
    """A page of ours that the backend may use."""

    page: Page
    ref: GrantRef


class BlockFrontend(Frontend):
    """See the module. `queues` and `ring_page_order` say how much is wanted, the backend how much there can be."""

    type = "vbd"
    ring = blkif.RING
    queues = 1
    ring_page_order = 0
    persistent = True

    sectors = 0
    """The disk's size in units of 512 bytes; it may change."""
    sector_size = SECTOR_SIZE
    info = DiskInfo(0)
    can_flush = can_barrier = can_discard = can_discard_securely = False
    max_segments = MAX_SEGMENTS

    def __init__(self, guest: Guest, devid: int, backend: str) -> None:
        super().__init__(guest, devid, backend)
        self._rings: list[FrontQueue] = []
        self._calls_made = 0
        self._spare: list[_Buffer] = []
        """Of the present connection; each has a list of its own."""

    async def publish(self, nodes: Nodes) -> Mapping[str, str]:
        order = min(self.ring_page_order, bus.number(nodes, "max-ring-page-order", 0, 16, 0))
        count = min(self.queues, bus.number(nodes, "multi-queue-max-queues", 1, 1 << 16, 1))
        persistent = self.persistent and bus.flag(nodes, "feature-persistent")
        published = {"protocol": "x86_64-abi", "feature-persistent": str(int(persistent))}
        if count > 1:
            published["multi-queue-num-queues"] = str(count)
        if order:
            published["ring-page-order"] = str(order)
        rings: list[FrontQueue] = []
        self._spare = []
        self.on_disconnect(self._forget)
        for number in range(count):
            published |= self._publish_ring(rings, f"queue-{number}/" if count > 1 else "", order)
        self._rings = rings
        self._queue = rings[0]
        return published

    def _publish_ring(self, rings: list[FrontQueue], prefix: str, order: int) -> Mapping[str, str]:
        pages = [self.guest.kernel.allocate() for _ in range(1 << order)]
        refs = [self.grant(page) for page in pages]
        queue = FrontQueue(FrontRing(self.ring, [page.data[:] for page in pages]), lambda: port.notify(), self.fail)
        port = self.offer(queue.on_event)
        self.on_disconnect(queue.close)
        rings.append(queue)
        names = [f"{prefix}ring-ref{n}" for n in range(1 << order)] if order else [f"{prefix}ring-ref"]
        return dict(zip(names, map(str, refs), strict=True)) | {f"{prefix}event-channel": str(port.port)}

    async def connect(self, nodes: Nodes) -> None:
        self.sector_size = bus.number(nodes, "sector-size", SECTOR_SIZE, PAGE_SIZE, SECTOR_SIZE)
        if self.sector_size & self.sector_size - 1:
            raise DeviceFailed(f"the backend's sectors have {self.sector_size} bytes")
        self.sectors = bus.number(nodes, "sectors", 0, _MOST_SECTORS)
        self.info = DiskInfo(bus.number(nodes, "info", 0, 0xFFFF, 0) & 7)
        self.can_flush = bus.flag(nodes, "feature-flush-cache")
        self.can_barrier = bus.flag(nodes, "feature-barrier")
        self.can_discard = bus.flag(nodes, "feature-discard")
        self.can_discard_securely = self.can_discard and bus.flag(nodes, "discard-secure")
        indirect = bus.number(nodes, "feature-max-indirect-segments", 0, 1 << 32, 0)
        self.max_segments = max(MAX_SEGMENTS, min(indirect, MOST_SEGMENTS))

    async def refresh(self) -> int:
        """Look again at the disk's size, which the backend may have changed; the sectors there are."""
        value = await self.bus.read(f"{self.other}/sectors")
        if value is not None:
            self.sectors = bus.number({"sectors": value}, "sectors", 0, _MOST_SECTORS)
        return self.sectors

    # ---- what a guest does with a disk ----

    async def read(self, offset: int, length: int) -> bytes:
        """DiskFailed where the backend has refused any part of it; QueueClosed where the device went meanwhile."""
        parts: dict[int, bytes] = {}

        async def part(at: int, size: int) -> None:
            with self._buffers(size) as buffers:
                await self._transfer(Operation.READ, at, size, buffers)
                whole = b"".join(buffer.page.data for buffer in buffers)
                parts[at] = whole[:size]

        await self._each(offset, length, part)
        return b"".join(parts[at] for at in sorted(parts))

    async def write(self, offset: int, data: bytes | memoryview, *, barrier: bool = False) -> None:
        """The data is on the disk's way when this returns; `flush`, or a barrier, makes it last."""
        view = memoryview(data)
        operation = Operation.WRITE_BARRIER if barrier else Operation.WRITE
        if barrier and len(view) > MAX_SEGMENTS * PAGE_SIZE:
            raise ValueError(f"a barrier carries at most {MAX_SEGMENTS} pages")

        async def part(at: int, size: int) -> None:
            with self._buffers(size) as buffers:
                _fill(buffers, view[at - offset :][:size])
                await self._transfer(operation, at, size, buffers)

        await self._each(offset, len(view), part, MAX_SEGMENTS if barrier else None)

    async def flush(self) -> None:
        """Everything written before lasts, whatever happens to the host."""
        if self.can_flush:
            await self._call(Request(Operation.FLUSH_DISKCACHE, 0, self._handle, 0, 0, pack_segments([])))
        elif self.can_barrier:
            await self._call(Request(Operation.WRITE_BARRIER, 0, self._handle, 0, 0, pack_segments([])))

    async def discard(self, offset: int, length: int, *, secure: bool = False) -> None:
        """The bytes are needed no more; what is read there afterwards may be anything."""
        first, count = self._sectors(offset, length)
        flag = DISCARD_SECURE if secure else 0
        await self._call(DiscardRequest(Operation.DISCARD, flag, self._handle, 0, first, count))

    # ---- requests ----

    @property
    def _handle(self) -> int:
        return self.devid & 0xFFFF

    def _sectors(self, offset: int, length: int) -> tuple[int, int]:
        if offset < 0 or length <= 0 or offset % self.sector_size or length % self.sector_size:
            raise ValueError(f"{length} bytes at {offset} are not whole sectors of {self.sector_size}")
        return offset // SECTOR_SIZE, length // SECTOR_SIZE

    async def _each(self, offset: int, length: int, part: Part, segments: int | None = None) -> None:
        """`part(offset, size)` for every request's worth, all under way together."""
        self._sectors(offset, length)
        step = (segments or self.max_segments) * PAGE_SIZE
        sizes = [(at, min(step, offset + length - at)) for at in range(offset, offset + length, step)]
        if len(sizes) == 1:
            await part(*sizes[0])
            return
        try:
            async with trio.open_nursery() as nursery:
                for at, size in sizes:
                    nursery.start_soon(part, at, size)
        except* (DiskFailed, DeviceFailed, QueueClosed) as group:
            raise group.exceptions[0] from None

    async def _transfer(self, operation: Operation, offset: int, size: int, buffers: list[_Buffer]) -> None:
        first, count = self._sectors(offset, size)
        segments = []
        for number, buffer in enumerate(buffers):
            last = min(PAGE_SIZE // SECTOR_SIZE, count - number * (PAGE_SIZE // SECTOR_SIZE)) - 1
            segments.append(Segment(buffer.ref, 0, last))
        if len(segments) <= MAX_SEGMENTS:
            await self._call(Request(operation, len(segments), self._handle, 0, first, pack_segments(segments)))
            return
        table = b"".join(map(SEGMENT.pack, segments))
        with self._buffers(len(table)) as pages:
            _fill(pages, memoryview(table))
            refs = b"".join(page.ref.to_bytes(4, "little") for page in pages).ljust(4 * MAX_INDIRECT_PAGES, b"\0")
            await self._call(
                IndirectRequest(Operation.INDIRECT, operation, len(segments), 0, first, self._handle, refs)
            )

    async def _call(self, request: Request | DiscardRequest | IndirectRequest) -> None:
        self._calls_made += 1
        _ = self.queue  # DeviceFailed while it is not connected
        ring = self._rings[self._calls_made % len(self._rings)]
        spare = self._spare
        response = await ring.call(request)
        if self._spare is not spare:
            raise QueueClosed("the device was disconnected as the response came")
        if response.status != Status.OKAY:
            name = Operation(request.operation).name.lower()
            raise DiskFailed(f"{self.name}: {name} at sector {request.sector_number} answered with {response.status}")

    # ---- pages ----

    def _forget(self) -> None:
        self._spare = []

    @contextmanager
    def _buffers(self, size: int) -> Iterator[list[_Buffer]]:
        """Pages for one request. Those of one that nobody has waited out are not used again: they still may be."""
        _ = self.queue  # DeviceFailed while it is not connected
        buffers, spare = [], self._spare
        for _ in range(-(-size // PAGE_SIZE)):
            if spare:
                buffers.append(spare.pop())
                continue
            page = self.guest.kernel.allocate()
            buffers.append(_Buffer(page, self.grant(page)))
        try:
            yield buffers
        except DiskFailed:
            spare += buffers
            raise
        spare += buffers


def _fill(buffers: list[_Buffer], data: memoryview) -> None:
    for number, buffer in enumerate(buffers):
        piece = data[number * PAGE_SIZE :][:PAGE_SIZE]
        buffer.page.data[: len(piece)] = piece
