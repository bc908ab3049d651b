# SPDX-License-Identifier: GPL-2.0-only
"""A ring's fast lane: plain reads and writes of granted frames, served by a native thread (engine/native/blocks.c).

The guest's events go to the lane's thread directly. The ring belongs to the trio thread or to the lane's. `RingServer`
lends it whenever nothing is under way; the lane gives it back, with a call, at the first request that it leaves to
Python, or when it is wanted. While it is lent nobody here touches the ring. The lane pins nothing: it looks grants up
in the guest's memory, by the rules of `xen_py.outside`, and keeps none from one request to the next. What it does is
what `dom0.backend.block.requests` would do, and that is what does it wherever there is no lane: for disks that are not
plain files, in seeded machines, while a trace looks at the ring.

Owner: the trio thread, but for the thread in `blocks.c`.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import trio

from dom0.backend.block.image import RawDisk
from dom0.backend.frames import FRAMES, native_frames
from dom0.backend.grants import GuestGone
from xen_py.doorbell import Doorbell, open_native
from xen_py.drive.queue import BackQueue
from xen_py.io.blkif import SECTOR_SIZE
from xen_py.memory import GuestMemory
from xen_py.types import Port

MOST_PAGES = 16
_COUNTS = ("requests", "bytes_read", "bytes_written", "given_back", "events", "lingered")
"""What the thread has done; events are those sent to the guest."""

# The structure goes on; it is never made here.
_ffi, _native = open_native(
    FRAMES + """
    struct xenpy_blocks {
        int lent, wanted, stop;
        uint32_t consumed, produced;
        uint64_t sectors;
        uint64_t requests, bytes_read, bytes_written, given_back, events, lingered;
    };
    struct xenpy_blocks *xenpy_blocks_open(uint8_t **pages, uint32_t page_count, uint32_t slots,
        const struct xenpy_frames *frames, int fd, uint32_t unit, int readonly, int read_flags, int wake_fd,
        int call_fd, void *bell, int bell_fd, uint32_t port);
    void xenpy_blocks_lend(struct xenpy_blocks *b, uint32_t consumed, uint32_t produced);
    void xenpy_blocks_want(struct xenpy_blocks *b);
    int xenpy_blocks_lent(const struct xenpy_blocks *b);
    void xenpy_blocks_size(struct xenpy_blocks *b, uint64_t sectors);
    void xenpy_blocks_close(struct xenpy_blocks *b);
""")


class Lane:
    """See the module. `doorbell` becomes the lane's to close; `disk`, `memory` and the ring's pages outlive it."""

    def __init__(
        self,
        queue: BackQueue,
        memory: GuestMemory,
        disk: RawDisk,
        doorbell: Doorbell,
        port: Port,
        route: Callable[[Port, int | None], Awaitable[None]],
    ) -> None:
        self._queue = queue
        self._port = port
        self._route = route
        self._routed = False
        self._doorbell = doorbell
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._call_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._held = [_ffi.from_buffer("uint8_t[]", page) for page in queue.ring.pages]
        pages = _ffi.new("uint8_t *[]", self._held)
        bell = doorbell.inbox
        self._lane = _native.xenpy_blocks_open(
            *(pages, len(pages), queue.ring.slots, native_frames(_ffi, memory, self._held)),
            *(disk.fd, disk.sector_size // SECTOR_SIZE, disk.readonly, disk.nowait()),
            *(self.wake_fd, self._call_fd, bell.address, bell.eventfd, port),
        )
        if self._lane == _ffi.NULL:
            self._free()
            raise OSError("no thread for a block ring")
        queue.recall = self.want
        queue.wake = lambda: os.eventfd_write(self.wake_fd, 1)
        self._back = trio.lowlevel.ParkingLot()

    def lend(self, sectors: int) -> None:
        """Let the lane have the ring."""
        self.resize(sectors)
        self._queue.lent = True
        _native.xenpy_blocks_lend(self._lane, *self._queue.ring.positions())

    def resize(self, sectors: int) -> None:
        _native.xenpy_blocks_size(self._lane, sectors)

    def want(self) -> None:
        """Have it back soon."""
        if self._queue.lent:
            _native.xenpy_blocks_want(self._lane)

    async def listen(self) -> None:
        """Take the ring back whenever it comes; until cancelled.

        Events of the guest come to the lane directly, but for as long as somebody looks at the ring.
        """
        while True:
            looked_at = self._queue.observe is not None
            if self._routed == looked_at:
                await self._direct(not looked_at)
            await trio.lowlevel.wait_readable(self._call_fd)
            with suppress(BlockingIOError):
                os.eventfd_read(self._call_fd)
            queue = self._queue
            if queue.lent and not _native.xenpy_blocks_lent(self._lane):
                queue.ring.go_on_from(self._lane.consumed, self._lane.produced)
                queue.lent = False
                self._back.unpark_all()
            if not queue.lent:
                queue.on_event()

    async def _direct(self, directly: bool) -> None:
        self._routed = directly
        with suppress(GuestGone):
            await self._route(self._port, self.wake_fd if directly else None)

    async def take_back(self) -> None:
        """Return when the ring is ours; `listen` must be running."""
        while self._queue.lent:
            self.want()
            await self._back.park()

    async def leave(self) -> None:
        """Have the guest's events come to the host again; `listen` has ended."""
        if self._routed:
            await self._direct(False)

    def close(self) -> None:
        """End its thread. The ring must be ours."""
        self._queue.recall = self._queue.wake = lambda: None
        _native.xenpy_blocks_close(self._lane)
        self._free()

    def _free(self) -> None:
        self._lane = None
        for held in self._held:
            _ffi.release(held)
        for fd in (self.wake_fd, self._call_fd):
            os.close(fd)
        self._doorbell.close()

    def statistics(self) -> dict[str, Any]:
        lane = self._lane
        if lane is None:
            return {}
        return {name: int(getattr(lane, name)) for name in _COUNTS}
