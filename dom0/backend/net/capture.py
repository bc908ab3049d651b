# SPDX-License-Identifier: GPL-2.0-only
"""Frames on their way to one client who looks: those of a whole bridge, or of one vif.

A frame of a bridge is kept once, where it comes in; of a vif in both directions. Checksums that senders left blank are
put in, as if the frame had gone over a wire; a segment that is still to be cut is shown whole. What waits is bounded:
what does not fit is lost, and counted. Owner: the trio thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from dom0.backend.net import pcapng
from dom0.backend.net.switch import Port, Switch
from xen_py.io.packet import Packet, complete

MOST_WAITING = 16 << 20
"""Bytes."""
_BATCH = 1 << 18


class Capture:
    """What one client sees of a switch; of the port named `vif` only, if it is not None. `now` is in nanoseconds."""

    def __init__(self, switch: Switch, vif: str | None, snap: int, now: Callable[[], int]) -> None:
        self._switch = switch
        self._vif = vif
        self._snap = snap
        self._now = now
        self._interfaces: dict[str, int] = {}
        self._waiting: deque[bytes] = deque([pcapng.section()])
        self._bytes = 0
        self._lost = 0
        self._news = trio.lowlevel.ParkingLot()

    def __enter__(self) -> Capture:
        self._switch.observe(self._see)
        return self

    def __exit__(self, *_error: object) -> None:
        self._switch.observe_no_more(self._see)

    def _see(self, port: Port, inward: bool, packet: Packet) -> None:
        """`inward` is into the switch, which is out of the guest."""
        if (self._vif is None and not inward) or self._vif not in (None, port.name):
            return
        if self._bytes > MOST_WAITING:
            self._lost += 1
            return
        number = self._interfaces.get(port.name)
        if number is None:
            number = self._interfaces[port.name] = len(self._interfaces)
            self._put(pcapng.interface(port.name, self._snap))
        data = complete(packet).data
        direction = pcapng.OUTWARD if inward else pcapng.INWARD
        kept = data[: self._snap] if self._snap else data
        self._put(pcapng.packet(number, self._now(), kept, len(data), direction))

    def _put(self, block: bytes) -> None:
        self._waiting.append(block)
        self._bytes += len(block)
        self._news.unpark()

    async def take(self) -> tuple[bytes, int]:
        """The file's next bytes, at least a block; and how many frames were lost before them."""
        while not self._waiting:
            await self._news.park()
        blocks, size = [], 0
        while self._waiting and size < _BATCH:
            blocks.append(self._waiting.popleft())
            size += len(blocks[-1])
        self._bytes = max(0, self._bytes - size)
        lost, self._lost = self._lost, 0
        return b"".join(blocks), lost
