# SPDX-License-Identifier: GPL-2.0-only
"""The native thread that serves a ring, against the same ring in Python: all that it does, and all that it leaves."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from dom0.backend.block.image import RawDisk
from dom0.backend.block.lane import Lane
from dom0.backend.block.requests import RingServer
from dom0.backend.grants import PinnedFrame
from tests.block.guests import image
from tests.core import reference
from tests.core.machine import FREE, L4, NX, RW_FLAGS, SYSCALL, VA, Machine, build_machine
from xen_py.abi.grant_table import GrantFlag, GrantStatus
from xen_py.abi.xen import Hypercall
from xen_py.doorbell import Doorbell
from xen_py.drive.queue import BackQueue
from xen_py.engine import ExitKind, R
from xen_py.io import blkif
from xen_py.io.blkif import IndirectRequest, Operation, Request, Response, Segment, Status, pack_segments
from xen_py.io.ring import BackRing, FrontRing, RingBroken
from xen_py.memory import GuestMemory, MemoryGeometry
from xen_py.types import PAGE_SIZE, GrantRef, Port

SECTORS = 2048
PAGES = 128
DATA = 16
"""The first page that is not a ring's; its number is its grant reference."""
SAFE = 40
"""One of those, which nothing else is done with."""
PORT = Port(77)
PIN_L1, UNPIN = 0, 4


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = build_machine()
    yield made
    made.close()


class Kept:
    """Frames of the memory by their page numbers, for what is not the lane's."""

    def __init__(self, memory: GuestMemory) -> None:
        self.frames = {
            GrantRef(n): PinnedFrame(GrantRef(n), False, n, memory.bytes[n * PAGE_SIZE : (n + 1) * PAGE_SIZE])
            for n in range(DATA, memory.geometry.max_pages)
        }
        self.announced: list[int] = []
        self.tell: Callable[[int], None] = self.announced.append

    async def use(self, wants: Sequence[tuple[GrantRef, bool]]) -> list[PinnedFrame | GrantStatus]:
        return [self.frames.get(ref, GrantStatus.BAD_GNTREF) for ref, _ in wants]

    async def done(self, frames: Iterable[PinnedFrame]) -> None:
        for frame in frames:
            if frame.written:
                self.tell(frame.index)


class Bench:
    """A frontend's half, its memory, and what serves it."""

    def __init__(
        self, path: Path, ring_pages: int = 1, readonly: bool = False, memory: GuestMemory | None = None, ring: int = 0
    ) -> None:
        self.memory = memory or GuestMemory.create(MemoryGeometry.for_domain(PAGES))
        for number in range(DATA, self.memory.geometry.max_pages):
            self.grant(number)
        self.path = path
        self.disk = RawDisk(str(path), readonly)
        self.doorbell = Doorbell.create()
        ring_range = range(ring, ring + ring_pages)
        self.front = FrontRing(blkif.RING, [self.page(n) for n in ring_range])
        self.queue = BackQueue(BackRing(blkif.RING, [self.page(n) for n in ring_range]), self._notify)
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

    def grant(self, ref: int, page: int | None = None, flags: int = GrantFlag.PERMIT_ACCESS, domid: int = 0) -> None:
        """Put an entry into the grant table; the page of that number where none is named."""
        geometry = self.memory.geometry
        mfn = geometry.mfn_base + (ref if page is None else page)
        self.memory.words[geometry.index(geometry.grant_mfn(0)) * 512 + ref] = mfn << 32 | domid << 16 | flags

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
async def bench(path: Path, **how: Any) -> AsyncIterator[Bench]:
    there = Bench(path, **how)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(there.server.serve)
            assert await there.one(Operation.READ, 0, whole([SAFE])) == Status.OKAY
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
    async with bench(path, ring_pages=ring_pages) as b:
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


@pytest.mark.parametrize("ring_pages", [1, 4])
async def test_bursts_of_requests_that_come_one_by_one(tmp_path: Path, ring_pages: int) -> None:
    """Answers may be held back for more to come, never for good."""
    dice = random.Random(ring_pages)
    async with bench(image(tmp_path / "disk", SECTORS), ring_pages=ring_pages) as b:
        for burst in [1, 2, 8, 32, 32, 31, 1, 1, *(dice.randint(1, 32) for _ in range(80))]:
            for _ in range(burst):
                b.put(Operation.READ, dice.randrange(SECTORS - 8), whole([dice.randrange(DATA, PAGES)]))
                b.push()
                for _ in range(dice.randrange(300)):
                    pass
            assert len(await b.responses(burst)) == burst
        assert b.lane.statistics()["requests"] > 1000


GRANT = 200
"""A reference that Python, for which it is none, answers with an error."""
BAD_ENTRIES = [
    ("nothing", {"flags": 0}, False),
    ("for another domain", {"domid": 3}, False),
    ("read-only", {"flags": GrantFlag.PERMIT_ACCESS | GrantFlag.READONLY}, True),
    ("a transfer", {"flags": GrantFlag.ACCEPT_TRANSFER}, False),
    ("a part of a page", {"flags": GrantFlag.PERMIT_ACCESS | GrantFlag.SUB_PAGE}, False),
    ("shared_info", {"page": PAGES}, False),
    ("the grant table", {"page": PAGES + 1}, False),
    ("below all frames", {"page": -1}, False),
    ("behind all frames", {"page": 1 << 24}, False),
    ("a frame that is barred", {"page": DATA + 1}, True),
]


@pytest.mark.parametrize(("entry", "written"), [row[1:] for row in BAD_ENTRIES], ids=[row[0] for row in BAD_ENTRIES])
async def test_entries_that_do_not_grant_it(tmp_path: Path, entry: dict[str, int], written: bool) -> None:
    """Such a frame is not written; it is written out only where nothing but its being written is forbidden."""
    path = image(tmp_path / "disk", SECTORS)
    async with bench(path) as b:
        b.memory.barred[DATA + 1] = 1
        b.grant(GRANT, **({"page": DATA + 2} | entry))
        before, disk = bytes(b.memory.bytes[PAGE_SIZE:]), path.read_bytes()
        assert await b.one(Operation.READ, 16, whole([GRANT])) == Status.ERROR
        assert bytes(b.memory.bytes[PAGE_SIZE:]) == before
        await b.lent()
        b.page(DATA + 1)[:] = b.page(DATA + 2)[:] = bytes([7]) * PAGE_SIZE
        assert await b.one(Operation.WRITE, 16, whole([GRANT])) == (Status.OKAY if written else Status.ERROR)
        assert (path.read_bytes() != disk) is written
        assert not any(b.memory.writers)


async def test_an_entry_that_changes_all_the_time(tmp_path: Path) -> None:
    """It names, in turn, a frame that may be written, one that is barred, and nothing."""
    async with bench(image(tmp_path / "disk", SECTORS)) as b:
        barred = DATA + 1
        b.memory.barred[barred] = 1
        over = threading.Event()

        def change() -> None:
            while not over.is_set():
                b.grant(GRANT, DATA)
                b.grant(GRANT, barred)
                b.grant(GRANT, DATA, flags=0)

        thread = threading.Thread(target=change)
        thread.start()
        try:
            for _ in range(300):
                await b.lent()
                await b.one(Operation.READ, 8, whole([GRANT] * 4))
        finally:
            over.set()
            thread.join()
        assert bytes(b.page(barred)) == bytes(PAGE_SIZE)
        assert not any(b.memory.writers)


async def test_nothing_is_read_into_a_page_table(tmp_path: Path, machine: Machine) -> None:
    """A guest makes a frame a table, and a table a frame, while a disk that is full of evil entries is read into it."""
    evil = machine.entry(L4, RW_FLAGS)
    path = tmp_path / "disk"
    path.write_bytes(evil.to_bytes(8, "little") * (SECTORS * 64))
    table, dice = FREE + 8, random.Random(8)
    machine.read_only(table)
    words = machine.words(table)
    async with bench(path, memory=machine.memory, ring=FREE) as b:
        del b.frames.frames[GrantRef(table)]
        for _ in range(400):
            await b.lent()
            words[:] = memoryview(bytes(PAGE_SIZE)).cast("Q")
            for _ in range(count := dice.randint(1, 4)):
                b.put(Operation.READ, 0, whole([table] * dice.randint(1, 11)))
            early = dice.random() < 0.8
            if early:
                b.push()
            for _ in range(dice.randrange(200)):
                pass
            made = machine.mmuext(PIN_L1, machine.mfn(table)) == 0
            assert made or early
            if not early:
                b.push()
            if made:
                for _ in range(20):
                    assert evil not in words.tolist(), "a page table was written from outside"
                await b.responses(count)
                assert evil not in words.tolist()
                assert machine.mmuext(UNPIN, machine.mfn(table)) == 0
            else:
                await b.responses(count)
        reference.check(machine.domain)
        assert b.lane.statistics()["given_back"]


async def test_programs_read_from_a_disk_are_those_that_run(tmp_path: Path, machine: Machine) -> None:
    """Executable all the time, before, or afterwards: what was translated of the frame before is gone."""
    path = tmp_path / "disk"
    path.write_bytes(b"".join((b"\xb8" + n.to_bytes(4, "little") + SYSCALL).ljust(512, b"\0") for n in range(SECTORS)))
    page, dice = FREE + 8, random.Random(9)

    def map_with(flags: int) -> None:
        assert machine.call(Hypercall.UPDATE_VA_MAPPING, VA(page), machine.entry(page, flags), 2) == 0

    async with bench(path, memory=machine.memory, ring=FREE) as b:
        b.frames.tell = machine.domain.space.written_from_outside
        for n in range(1, 200):
            if dice.random() < 0.6:
                map_with(RW_FLAGS)
            for sector in (n + 1, n)[dice.randrange(2) :]:  # the first makes it a frame like any other again
                await b.lent()
                assert await b.one(Operation.READ, sector, [Segment(page, 0, 0)]) == Status.OKAY
            map_with(RW_FLAGS & ~NX)
            machine.regs[R.RIP] = VA(page)
            assert machine.exit() == ExitKind.SYSCALL
            assert machine.regs[R.RAX] == n
        assert b.lane.statistics()["requests"] > 20 < b.lane.statistics()["given_back"]


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
            b.grant(page, flags=0)
            b.page(page)[:] = bytes([page]) * PAGE_SIZE
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
