# SPDX-License-Identifier: GPL-2.0-only
"""The packets of known flows, moved by a native thread: from ring to ring, and between rings and a bridge's world.

What Open vSwitch calls a datapath, with the switch (`switch`) as what decides: it sees the first packet of each flow
and shows the datapath where such packets go (`learn`); whenever anything changes at a switch, all that was shown is
forgotten. What a flow is, and how the thread and this one share rings and sockets, is said in engine/native/flows.h
and datapath.c. A switch that is looked at (captures), VLANs, and cards whose packets are counted out (`rate=`) or
hashed have no flows.

Owner: the trio thread, but for the thread in `datapath.c`.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NamedTuple

import trio

from dom0.backend.grants import GuestGone
from dom0.backend.net.lane import PacketLane
from xen_py.doorbell import Bell, Doorbell, open_native
from xen_py.drive.queue import BackQueue
from xen_py.types import Port

_COUNTS = ("forwarded", "missed", "lingered")
_PLACE_COUNTS = ("rx_packets", "rx_bytes", "tx_packets", "tx_bytes")

# The structure goes on; it is never made here.
_ffi, _native = open_native("""
    struct xenpy_packets;
    struct xenpy_datapath { uint64_t forwarded, missed, lingered; };
    struct xenpy_datapath *xenpy_datapath_open(void);
    void xenpy_datapath_close(struct xenpy_datapath *d);
    int xenpy_datapath_add_lane(struct xenpy_datapath *d, struct xenpy_packets *packets, uint32_t source, int wake_fd,
        int call_fd, void *bell, int bell_fd, uint32_t tx_port, uint32_t rx_port, uint32_t longest, uint32_t gso_kinds,
        uint32_t blank_versions);
    int xenpy_datapath_add_link(struct xenpy_datapath *d, uint32_t source, int fd, int call_fd);
    void xenpy_datapath_remove(struct xenpy_datapath *d, int place);
    int xenpy_datapath_learn(struct xenpy_datapath *d, uint32_t source, const char *data, uint32_t size,
        uint32_t target, uint32_t longest);
    void xenpy_datapath_forget(struct xenpy_datapath *d);
    void xenpy_datapath_hold(struct xenpy_datapath *d, int place, int on);
    void xenpy_datapath_resume(struct xenpy_datapath *d, int place);
    void xenpy_datapath_counts(struct xenpy_datapath *d, int place, uint64_t *counts);
""")


class NoRoom(Exception):
    """There is no place in the datapath, or it cannot be started."""


class Takes(NamedTuple):
    """What a guest takes of packets as they are."""

    longest: int
    """Bytes of a frame that is not to be cut, and of a segment with its headers."""
    gso_kinds: int
    """Bits 1 << GsoType."""
    blank_versions: int
    """Of IP, whose checksums may be blank: bits 1 << version."""


class Datapath:
    """Of one host. Its thread runs while there are places."""

    def __init__(self) -> None:
        self._native: Any = None
        self._places = 0

    def add_lane(
        self,
        source: int,
        lane: PacketLane,
        wake_fd: int,
        call_fd: int,
        bell: Bell,
        ports: tuple[Port, Port],
        takes: Takes,
    ) -> int:
        """The number of a new place. NoRoom."""
        packets = _ffi.cast("struct xenpy_packets *", lane.address)
        return self._joined(
            _native.xenpy_datapath_add_lane(
                *(self._opened(), packets, source, wake_fd, call_fd),
                *(bell.address, bell.eventfd, *ports, takes.longest, takes.gso_kinds, takes.blank_versions),
            )
        )

    def add_link(self, source: int, fd: int, call_fd: int) -> int:
        """The number of a new place. NoRoom."""
        return self._joined(_native.xenpy_datapath_add_link(self._opened(), source, fd, call_fd))

    def _opened(self) -> Any:
        if self._native is None:
            opened = _native.xenpy_datapath_open()
            if opened == _ffi.NULL:
                raise NoRoom("no thread or descriptor is left for the datapath")
            self._native = opened
        return self._native

    def _joined(self, number: int) -> int:
        self._places += number >= 0
        self._end_if_empty()
        if number < 0:
            raise NoRoom("no place or descriptor is left in the datapath")
        return number

    def leave(self, place: int) -> None:
        _native.xenpy_datapath_remove(self._native, place)
        self._places -= 1
        self._end_if_empty()

    def _end_if_empty(self) -> None:
        if not self._places:
            _native.xenpy_datapath_close(self._native)
            self._native = None

    def learn(self, source: int, data: bytes, target: int, longest: int) -> None:
        """This frame, which came from `source`, went to that place, as all of its flow are to, up to that size."""
        if self._native is not None:
            _native.xenpy_datapath_learn(self._native, source, data, len(data), target, longest)

    def forget(self) -> None:
        """Something by which a switch decides has changed."""
        if self._native is not None:
            _native.xenpy_datapath_forget(self._native)

    def hold(self, place: int, on: bool) -> None:
        _native.xenpy_datapath_hold(self._native, place, on)

    def resume(self, place: int) -> None:
        _native.xenpy_datapath_resume(self._native, place)

    def counts(self, place: int) -> dict[str, int]:
        """Of a place, as a switch counts: packets and bytes that came in there (rx) and that went out (tx)."""
        counts = _ffi.new("uint64_t[]", len(_PLACE_COUNTS))
        _native.xenpy_datapath_counts(self._native, place, counts)
        return dict(zip(_PLACE_COUNTS, map(int, counts), strict=True))

    def statistics(self) -> dict[str, int]:
        """Packets forwarded, packets that the switch was called for, and how often something came while it lingered."""
        found = {"places": self._places}
        if self._native is not None:
            found |= {name: int(getattr(self._native, name)) for name in _COUNTS}
        return found


class LanePlace:
    """The rings of one queue of a guest's. `doorbell` becomes ours to close; the lane outlives it."""

    def __init__(
        self,
        datapath: Datapath,
        source: int,
        lane: PacketLane,
        queues: tuple[BackQueue, BackQueue],
        doorbell: Doorbell,
        ports: tuple[Port, Port],
        route: Callable[[Port, int | None], Awaitable[None]],
        takes: Takes,
    ) -> None:
        """`queues` and `ports` (the guest's) are those to send and to receive. NoRoom."""
        self._datapath = datapath
        self._tx, self._rx = queues
        self._ports = ports
        self._route = route
        self._routed = self._closing = False
        self._doorbell = doorbell
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._call_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._listening = self._freed = False
        try:
            self.number = datapath.add_lane(source, lane, self._wake_fd, self._call_fd, doorbell.inbox, ports, takes)
        except NoRoom:
            self._free()
            raise

    async def listen(self) -> None:
        """Come when the datapath calls, until `close`. The guest's events go to it, but while somebody looks."""
        self._listening = True
        try:
            while not self._closing:
                looked_at = self._tx.observe is not None
                if self._routed == looked_at:
                    await self._direct(not looked_at)
                    continue
                await _called(self._call_fd)
                if not self._closing:
                    self._tx.on_event()
                    if self._ports[0] == self._ports[1]:
                        self._rx.on_event()
        finally:
            self._listening = False
            if self._closing:
                self._free()

    def look(self) -> None:
        """Somebody has begun or ended to look at the rings."""
        os.eventfd_write(self._call_fd, 1)

    async def _direct(self, directly: bool) -> None:
        self._routed = directly
        with suppress(GuestGone):
            await self._route(self._ports[0], self._wake_fd if directly else None)

    def counts(self) -> dict[str, int]:
        return self._datapath.counts(self.number)

    async def close(self) -> None:
        """Leave the datapath; both rings have been taken back."""
        self._datapath.leave(self.number)
        self._closing = True
        try:
            if self._routed:
                await self._direct(False)
        finally:
            if self._listening:
                self.look()
            else:
                self._free()

    def _free(self) -> None:
        if not self._freed:
            self._freed = True
            for fd in (self._wake_fd, self._call_fd):
                os.close(fd)
            self._doorbell.close()


class LinkPlace:
    """A socket of messages that are a byte and, where that is F, a frame."""

    def __init__(self, datapath: Datapath, source: int, fd: int) -> None:
        """NoRoom."""
        self._datapath = datapath
        self._call_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self.number = datapath.add_link(source, fd, self._call_fd)
        except NoRoom:
            os.close(self._call_fd)
            raise

    async def called(self) -> None:
        """Return when there are messages for us, which stay in the socket until `resume`; or its end."""
        await _called(self._call_fd)

    def resume(self) -> None:
        """We have taken all that there was."""
        self._datapath.resume(self.number)

    def hold(self, on: bool) -> None:
        """Frames of ours wait to be sent, none may overtake them; or they wait no longer."""
        self._datapath.hold(self.number, on)

    def counts(self) -> dict[str, int]:
        return self._datapath.counts(self.number)

    def close(self) -> None:
        """Before the socket is closed."""
        self._datapath.leave(self.number)
        os.close(self._call_fd)


async def _called(fd: int) -> None:
    """Return when that eventfd has been written since the last time."""
    await trio.lowlevel.wait_readable(fd)
    with suppress(BlockingIOError):
        os.eventfd_read(fd)
