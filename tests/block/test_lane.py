# SPDX-License-Identifier: GPL-2.0-only
"""The native thread that serves a ring, against the same ring in Python: all that it does, and all that it leaves."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from dom0.backend.block.image import RawDisk
from dom0.backend.block.lane import Lane
from dom0.backend.block.requests import RingServer
from dom0.backend.grants import PinnedFrame
from tests.block.guests import image
from xen_py.abi.grant_table import GrantStatus
from xen_py.doorbell import Doorbell
from xen_py.drive.queue import BackQueue
from xen_py.io import blkif
from xen_py.io.blkif import IndirectRequest, Operation, Request, Response, Segment, Status, pack_segments
from xen_py.io.ring import BackRing, FrontRing, RingBroken
from xen_py.memory import GuestMemory, MemoryGeometry
from xen_py.types import PAGE_SIZE, GrantRef, Port

SECTORS = 2048
PAGES = 128
DATA = 16
"""The first page that is not a ring's; its number is its grant reference."""
PORT = Port(77)


class Kept:
    """Frames of the memory by their page numbers, all of them known from the start."""

    def __init__(self, memory: GuestMemory) -> None:
        self.frames = {
            GrantRef(n): PinnedFrame(GrantRef(n), False, n, memory.bytes[n * PAGE_SIZE : (n + 1) * PAGE_SIZE])
            for n in range(DATA, PAGES)
        }
        self.announced: list[int] = []
        self._fresh = True

    async def use(self, wants: Sequence[tuple[GrantRef, bool]]) -> list[PinnedFrame | GrantStatus]:
        return [self.frames.get(ref, GrantStatus.BAD_GNTREF) for ref, _ in wants]

    async def done(self, frames: Iterable[PinnedFrame]) -> None:
        self.announced += [frame.index for frame in frames if frame.written]

    def known(self) -> dict[GrantRef, int] | None:
        if not self._fresh:
            return None
        self._fresh = False
        return {ref: frame.index for ref, frame in self.frames.items()}


class Bench:
    """A frontend's half, its memory, and what serves it."""

    def __init__(self, path: Path, ring_pages: int, readonly: bool) -> None:
        geometry = MemoryGeometry.for_domain(PAGES)
        self.memory = GuestMemory.create(geometry)
        self.path = path
        self.disk = RawDisk(str(path), readonly)
        self.doorbell = Doorbell.create()
        pages = [self.page(n) for n in range(ring_pages)]
        self.front = FrontRing(blkif.RING, pages)
        self.queue = BackQueue(BackRing(blkif.RING, [self.page(n) for n in range(ring_pages)]), self._notify)
        ours = Doorbell(*map(os.dup, self.doorbell.fds))
        self.lane = Lane(self.queue, self.memory, self.disk, ours, PORT, self._route)
        self.eventfd: int | None = None
        self.frames = Kept(self.memory)
        self.counts: Counter[str] = Counter()
        self.server = RingServer(
            *(self.disk, self.queue, self.frames),
            discard=True,
            writable_pins=True,
            counts=self.counts,
            lane=self.lane,
        )
        self._ids = iter(range(1 << 40))

    def _notify(self) -> None:
        self.doorbell.inbox.ring(PORT)

    async def _route(self, port: Port, eventfd: int | None) -> None:
        assert port == PORT
        self.eventfd = eventfd

    def page(self, number: int) -> memoryview:
        return self.memory.bytes[number * PAGE_SIZE : (number + 1) * PAGE_SIZE]

    def put(self, operation: int, sector: int = 0, segments: Sequence[Segment] = ()) -> int:
        identifier = next(self._ids)
        self.front.put(Request(operation, len(segments), 0, identifier, sector, pack_segments(list(segments))))
        return identifier

    def put_indirect(self, operation: int, sector: int, segments: Sequence[Segment], page: int) -> int:
        identifier = next(self._ids)
        packed = b"".join(map(blkif.SEGMENT.pack, segments))
        self.page(page)[: len(packed)] = packed
        refs = page.to_bytes(4, "little").ljust(32, b"\0")
        self.front.put(IndirectRequest(Operation.INDIRECT, operation, len(segments), identifier, sector, 0, refs))
        return identifier

    def push(self) -> None:
        if not self.front.push():
            return
        if self.eventfd is None or next(self._ids) % 2:  # one that was under way when the other way was opened
            self.queue.on_event()
        else:
            os.eventfd_write(self.eventfd, 1)

    async def responses(self, count: int) -> dict[int, Response]:
        """So many, as they come."""
        found: dict[int, Response] = {}
        with trio.fail_after(20):
            while True:
                found |= {response.id: response for response in self.front.take()}
                if len(found) >= count:
                    return found
                if not self.front.final_check():
                    await trio.lowlevel.wait_readable(self.doorbell.inbox.eventfd)
                    assert self.doorbell.inbox.take() == [PORT]

    async def one(self, operation: int, sector: int = 0, segments: Sequence[Segment] = ()) -> Status:
        identifier = self.put(operation, sector, segments)
        self.push()
        response = (await self.responses(1))[identifier]
        assert response.operation == operation
        return Status(response.status)

    async def lent(self) -> None:
        with trio.fail_after(20):
            while not self.queue.lent:
                await trio.sleep(0)


@asynccontextmanager
async def bench(path: Path, ring_pages: int = 1, readonly: bool = False) -> AsyncIterator[Bench]:
    there = Bench(path, ring_pages, readonly)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(there.server.serve)
            assert await there.one(Operation.READ, 0, whole([DATA])) == Status.OKAY
            await there.lent()  # the first request was Python's
            yield there
            there.queue.stop()
    finally:
        assert not there.queue.lent
        there.lane.close()
        there.queue.close()
        await there.disk.close()
        there.doorbell.close()


def whole(pages: Sequence[int]) -> list[Segment]:
    return [Segment(page, 0, 7) for page in pages]


@pytest.mark.parametrize("ring_pages", [1, 4])
async def test_random_requests_as_a_model_has_them(tmp_path: Path, ring_pages: int) -> None:
    path = image(tmp_path / "disk", SECTORS)
    model = bytearray(path.read_bytes())
    dice = random.Random(ring_pages)
    async with bench(path, ring_pages) as b:
        for _ in range(120):
            free = list(range(DATA, PAGES))
            dice.shuffle(free)
            places = list(range(0, SECTORS, 128))
            dice.shuffle(places)
            reads: list[tuple[int, int, list[Segment]]] = []
            for number in range(dice.randint(1, 12)):
                indirect = dice.random() < 0.3
                pages = [free.pop() for _ in range(dice.randint(1, 6))]
                firsts = [(dice.randint(0, 3), dice.randint(3, 7)) for _ in pages]
                segments = [Segment(page, *ends) for page, ends in zip(pages, firsts, strict=True)]
                sector = places[number] + dice.randint(0, 8)
                operation = dice.choice((Operation.READ, Operation.WRITE))
                put = (lambda *a, free=free: b.put_indirect(*a, free.pop())) if indirect else b.put  # type: ignore
                if operation == Operation.READ:
                    reads.append((put(operation, sector, segments), sector, segments))
                else:
                    at = sector * 512
                    for page, first, last in segments:
                        size = (last - first + 1) * 512
                        data = dice.randbytes(size)
                        b.page(page)[first * 512 : (last + 1) * 512] = data
                        model[at : at + size] = data
                        at += size
                    put(operation, sector, segments)
            flushes = int(dice.random() < 0.2)
            if flushes:
                b.put(Operation.FLUSH_DISKCACHE)
            b.push()
            answers = await b.responses(number + 1 + flushes)
            assert {answer.status for answer in answers.values()} == {Status.OKAY}
            for _, sector, segments in reads:
                at = sector * 512
                for page, first, last in segments:
                    size = (last - first + 1) * 512
                    assert b.page(page)[first * 512 : (last + 1) * 512] == model[at : at + size]
                    at += size
        statistics = b.lane.statistics()
        assert statistics["requests"] > 3 * b.counts["requests"] > 0
    assert path.read_bytes() == model


BAD = [
    ("an unknown grant", Operation.READ, 0, [Segment(PAGES + 5, 0, 7)], Status.ERROR),
    ("no segments", Operation.READ, 0, [], Status.ERROR),
    ("a segment backwards", Operation.READ, 0, [Segment(DATA, 5, 4)], Status.ERROR),
    ("a segment over the page", Operation.WRITE, 0, [Segment(DATA, 0, 8)], Status.ERROR),
    ("beyond the end", Operation.WRITE, SECTORS - 7, [Segment(DATA, 0, 7)], Status.ERROR),
    ("far beyond the end", Operation.WRITE, (1 << 64) - 8, [Segment(DATA, 0, 7)], Status.ERROR),
    ("an operation that is none", 9, 0, [Segment(DATA, 0, 7)], Status.EOPNOTSUPP),
]


@pytest.mark.parametrize(
    ("operation", "sector", "segments", "status"), [row[1:] for row in BAD], ids=[row[0] for row in BAD]
)
async def test_what_is_wrong_is_left_to_python(
    tmp_path: Path, operation: int, sector: int, segments: list[Segment], status: Status
) -> None:
    path = image(tmp_path / "disk", SECTORS)
    before = path.read_bytes()
    async with bench(path) as b:
        for _ in range(3):
            assert await b.one(Operation.READ, 8, whole([DATA])) == Status.OKAY
            await b.lent()
            assert await b.one(operation, sector, segments) == status
        assert b.lane.statistics()["given_back"] >= 3
    assert path.read_bytes() == before


async def test_a_disk_that_is_read_only_and_one_that_shrinks(tmp_path: Path) -> None:
    path = image(tmp_path / "disk", SECTORS)
    async with bench(path, readonly=True) as b:
        assert await b.one(Operation.WRITE, 0, whole([DATA])) == Status.ERROR
        with open(path, "ab") as file:
            file.truncate(SECTORS // 2 * 512)
        assert await b.one(Operation.READ, SECTORS - 8, whole([DATA])) == Status.ERROR
        assert b.disk.refresh()
        b.lane.resize(b.disk.sectors)
        assert await b.one(Operation.READ, SECTORS // 2, whole([DATA])) == Status.ERROR
        assert await b.one(Operation.READ, 0, whole([DATA])) == Status.OKAY


async def test_reads_into_frames_that_may_hold_code_are_announced(tmp_path: Path) -> None:
    async with bench(image(tmp_path / "disk", SECTORS)) as b:
        assert await b.one(Operation.READ, 8, whole([DATA, DATA + 1])) == Status.OKAY
        b.frames.announced.clear()
        b.memory.code_seen[DATA + 1] = 1
        await b.lent()
        assert await b.one(Operation.READ, 8, whole([DATA, DATA + 1])) == Status.OKAY
        assert DATA + 1 in b.frames.announced
        b.frames.announced.clear()
        await b.lent()
        assert await b.one(Operation.WRITE, 8, whole([DATA, DATA + 1])) == Status.OKAY
        assert not b.frames.announced


async def test_random_slots_reach_nothing_but_known_frames_and_the_disk(tmp_path: Path) -> None:
    path = image(tmp_path / "disk", SECTORS)
    dice = random.Random(4)
    known = range(DATA, DATA + 8)
    async with bench(path) as b:
        for page in range(DATA + 8, PAGES):
            del b.frames.frames[GrantRef(page)]
            b.page(page)[:] = bytes([page]) * PAGE_SIZE
        b.frames._fresh = True
        assert await b.one(9) == Status.EOPNOTSUPP
        await b.lent()
        for _ in range(1500):
            await b.lent()
            count = dice.randint(1, 3)
            for _ in range(count):
                slot = bytearray(dice.randbytes(112))
                slot[0] = dice.choice((0, 1, 0, 1, 6, 6, dice.randrange(256)))
                slot[1] = dice.choice((0, 1, 2, 11, 12, dice.randrange(256)))
                slot[2:4] = dice.choice((1, 8, 256, 257, 65535)).to_bytes(2, "little")
                if dice.random() < 0.9:
                    slot[16:24] = dice.randrange(SECTORS + 20).to_bytes(8, "little")
                refs = (24, 32, 40) if slot[0] != 6 else (28,)
                for at in refs:
                    if dice.random() < 0.95:
                        slot[at : at + 4] = dice.choice(known).to_bytes(4, "little")
                    if slot[0] != 6 and dice.random() < 0.9:
                        slot[at + 4], slot[at + 5] = sorted((dice.randrange(8), dice.randrange(9)))
                b.front.put_request(bytes(slot))
            b.push()
            answered = 0
            with trio.fail_after(20):
                while answered < count:
                    answered += len(b.front.take_responses())
                    if answered < count and not b.front.final_check():
                        await trio.lowlevel.wait_readable(b.doorbell.inbox.eventfd)
                        b.doorbell.inbox.take()
        assert b.lane.statistics()["requests"] > 100
        assert all(b.page(page) == bytes([page]) * PAGE_SIZE for page in range(DATA + 8, PAGES))
    assert path.stat().st_size == SECTORS * 512


async def test_who_looks_at_the_ring_sees_all_of_it(tmp_path: Path) -> None:
    seen: list[str] = []
    async with bench(image(tmp_path / "disk", SECTORS)) as b:
        assert await b.one(Operation.READ, 8, whole([DATA])) == Status.OKAY
        b.queue.observe = lambda what, _kind, _values: seen.append(what)
        while b.queue.lent:
            await trio.sleep(0.001)
        assert await b.one(Operation.READ, 8, whole([DATA])) == Status.OKAY
        assert seen == ["request", "response"]
        while b.eventfd is not None:
            await trio.sleep(0.001)


async def test_an_index_that_cannot_be_ends_the_ring(tmp_path: Path) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(RingBroken, match="producer index")):
        async with bench(image(tmp_path / "disk", SECTORS)) as b:
            b.page(0)[:4] = (12345).to_bytes(4, "little")
            b.queue.on_event()
            await trio.sleep(5)
