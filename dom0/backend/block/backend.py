# SPDX-License-Identifier: GPL-2.0-only
"""The block backend: what blkback and QEMU's qdisk are on a Xen host, for one disk of one guest.

What the toolstack writes for it is what libxl writes: `params` (the path, after the format and a colon where the disk
is not raw), `mode` (r or w), `device-type` (disk or cdrom), `removable`, `discard-enable`. What it offers: flushes,
barriers, discard, indirect requests, rings of up to 16 pages, several queues, and persistent grants where they are a
gain: a frontend pays for them by copying all data, and a raw file is served without a pin anyway (`lane`).

A file that grows or shrinks is noticed while the guest runs: `sectors` is written anew and Connected once more, which
frontends take for the news (blkfront does). Owner: the trio thread.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

import trio

from dom0.backend.block import engine
from dom0.backend.block.image import Disk, DiskError, EmptyDrive, RawDisk
from dom0.backend.block.lane import MOST_PAGES, Lane
from dom0.backend.block.requests import MAX_INDIRECT_SEGMENTS, Frames, RingServer
from dom0.backend.driver import Backend, Frontend
from dom0.backend.grants import GuestGrants, PersistentPins
from xen_py.drive import bus
from xen_py.drive.bus import BadNode, Bus, BusNodes, Nodes
from xen_py.drive.half import DeviceFailed
from xen_py.drive.queue import BackQueue
from xen_py.io import blkif
from xen_py.io.blkif import DiskInfo
from xen_py.io.xenbus import State
from xen_py.types import Port

MAX_QUEUES = 4
PERSISTENT_FRAMES = 1056
"""Frames a ring keeps pinned while no request uses them: what 32 requests of 33 pages need."""
LOOK_SECONDS = 1.0
"""How often the disk's size is looked at."""
_NATIVE = "x86_64-abi"
PERSISTENT = "XENPY_BLOCK_PERSISTENT"
"""Environment of the host: 1 has persistent grants offered for raw files too."""


class PinnedAnew:
    """Frames pinned for one request each."""

    def __init__(self, grants: GuestGrants) -> None:
        self.use = grants.pin
        self.done = grants.unpin


class BlockBackend(Backend):
    """See the module."""

    type = "vbd"
    ring = blkif.RING
    max_ring_page_order = 4

    def __init__(self, frontend: Frontend, bus: Bus, path: str, frontend_path: str, devid: int) -> None:
        super().__init__(frontend, bus, path, frontend_path, devid)
        self._disk: Disk = EmptyDrive()
        self._info = DiskInfo(0)
        self._discard = False
        self._offers_persistent = self._persistent = False
        self._requests: Counter[str] = Counter()
        self._watching = trio.CancelScope()
        self._lanes: list[Lane] = []

    async def open(self, settings: Nodes) -> Mapping[str, str]:
        readonly = bus.text(settings, "mode", "w") != "w"
        cdrom = bus.text(settings, "device-type", "disk") == "cdrom"
        try:
            self._disk = await self.open_disk(_params(settings), readonly=readonly or cdrom)
        except DiskError as error:
            raise DeviceFailed(str(error)) from error
        self._info = DiskInfo(0)
        if cdrom:
            self._info |= DiskInfo.CDROM
        if cdrom or bus.flag(settings, "removable"):
            self._info |= DiskInfo.REMOVABLE
        if self._disk.readonly:
            self._info |= DiskInfo.READONLY
        self._discard = self._disk.can_discard and bus.flag(settings, "discard-enable", True)
        self._offers_persistent = type(self._disk) is not RawDisk or os.environ.get(PERSISTENT) == "1"
        features = {
            "feature-barrier": "1",
            "feature-flush-cache": "1",
            "feature-persistent": str(int(self._offers_persistent)),
            "feature-max-indirect-segments": str(MAX_INDIRECT_SEGMENTS),
            "multi-queue-max-queues": str(MAX_QUEUES),
            "feature-discard": str(int(self._discard)),
        }
        if self._discard:
            features |= {
                "discard-granularity": str(max(4096, self._disk.sector_size)),
                "discard-alignment": "0",
                "discard-secure": str(int(self._disk.can_discard_securely)),
            }
        return features

    async def open_disk(self, params: str, *, readonly: bool) -> Disk:
        """What stands behind the device; a driver for something else than files replaces this. DiskError."""
        return await open_disk(params, readonly=readonly)

    async def connect(self, nodes: Nodes) -> Mapping[str, str]:
        protocol = bus.text(nodes, "protocol", _NATIVE)
        if protocol != _NATIVE:
            raise BadNode(f"the frontend speaks {protocol!r}; only {_NATIVE} is spoken here")
        self._persistent = self._offers_persistent and bus.flag(nodes, "feature-persistent")
        queues = bus.number(nodes, "multi-queue-num-queues", 1, MAX_QUEUES, 1)
        for number in range(queues):
            await self.open_queue(self.ring, nodes, f"queue-{number}/" if queues > 1 else "")
        try:
            self._disk.refresh()
        except DiskError as error:
            raise DeviceFailed(str(error)) from error
        self.start(self._watch_size, None)
        return {
            "sectors": str(self._disk.sectors),
            "sector-size": str(self._disk.sector_size),
            "physical-sector-size": str(self._disk.physical_sector_size),
            "info": str(int(self._info)),
        }

    async def serve(self, queue: BackQueue) -> None:
        grants = self.frontend.grants
        kept = PersistentPins(grants, PERSISTENT_FRAMES) if self._persistent else None
        frames: Frames = kept or PinnedAnew(grants)
        server = RingServer(
            self._disk,
            queue,
            frames,
            discard=self._discard,
            writable_pins=self._persistent,
            counts=self._requests,
            lane=(lane := self._lane_for(queue)),
        )
        try:
            await server.serve()
        finally:
            if lane is not None:
                self._lanes.remove(lane)
                self._requests.update(lane.statistics())
                lane.close()
            if kept is not None:
                with trio.CancelScope(shield=True):
                    await kept.close()

    def _lane_for(self, queue: BackQueue) -> Lane | None:
        disk = self._disk
        if type(disk) is not RawDisk or len(queue.ring.pages) > MOST_PAGES:
            return None
        doorbell = self.frontend.doorbell()
        if doorbell is None:
            return None
        port = Port(queue.peer_port)
        lane = Lane(queue, self.frontend.grants.memory, disk, doorbell, port, self.frontend.route)
        self._lanes.append(lane)
        return lane

    async def close(self) -> None:
        disk, self._disk = self._disk, EmptyDrive()
        await disk.close()

    async def do_disconnect(self) -> None:
        self._watching.cancel()
        await super().do_disconnect()

    # ---- the disk's size ----

    async def _watch_size(self, _nothing: object) -> None:
        with trio.CancelScope() as self._watching:
            while True:
                await trio.sleep(LOOK_SECONDS)
                try:
                    changed = self._disk.refresh()
                except DiskError as error:
                    raise DeviceFailed(str(error)) from error
                if changed:
                    for lane in self._lanes:
                        lane.resize(self._disk.sectors)
                    await self.bus.run_transaction(self._announce_size)

    async def _announce_size(self, nodes: BusNodes) -> None:
        connected = str(int(State.CONNECTED))
        if await nodes.read(f"{self.own}/state") == connected.encode():
            await nodes.write(f"{self.own}/sectors", str(self._disk.sectors))
            await nodes.write(f"{self.own}/state", connected)

    def statistics(self) -> dict[str, Any]:
        counts = sum((Counter(lane.statistics()) for lane in self._lanes), self._requests)
        return super().statistics() | {"disk": self._disk.statistics(), **counts}


def _params(settings: Nodes) -> str:
    """The node `params`: a path, in the host's encoding."""
    return settings.get("params", b"").decode("utf-8", "surrogateescape")


async def open_disk(params: str, *, readonly: bool) -> Disk:
    """The disk that `params` names: nothing, a path, or a format, a colon and a path. DiskError."""
    if not params:
        return EmptyDrive()
    if params.startswith("/"):
        return RawDisk(params, readonly)
    form, _, path = params.partition(":")
    if form == "raw":
        return RawDisk(path, readonly)
    if form in engine.FORMATS:
        return await engine.EngineDisk.open(path, form, readonly)
    raise DiskError(f"disk {path or params}: format {form!r} is not served")
