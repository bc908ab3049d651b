# SPDX-License-Identifier: GPL-2.0-only
"""A block ring's requests: checked, carried out on a disk, answered.

Each visit to the ring takes all requests there are. Segments in indirect pages are fetched, everything is checked, all
frames are pinned in one batch, requests that adjoin on the disk become one transfer. What the disk can do at once is
answered in this visit; the rest goes on in tasks, and responses come in the order in which requests end. So:

- a request is acknowledged when it has been done, and a read's frames have been announced by then;
- a flush syncs after everything acknowledged before it; requests around it are not held up;
- a barrier waits for all requests of its ring, syncs, writes, syncs, and only then does the ring go on.

What a frontend has wrong in one request is that request's error. What makes no sense for the whole ring (RingBroken)
ends the device. Owner: the trio thread, one task a ring. Source: xen/include/public/io/blkif.h; which operation a
response to an indirect request names is as in Linux's blkback.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import trio

from dom0.backend.block.image import Disk, Transfer
from dom0.backend.block.lane import Lane
from dom0.backend.grants import GuestGone, PinnedFrame
from xen_py.abi.grant_table import GrantStatus
from xen_py.drive.queue import BackQueue
from xen_py.io.blkif import (
    DISCARD_SECURE,
    MAX_INDIRECT_PAGES,
    MAX_SEGMENTS,
    SECTOR_SIZE,
    SEGMENTS_PER_INDIRECT_PAGE,
    DiscardRequest,
    IndirectRequest,
    Operation,
    Request,
    Response,
    Segment,
    Status,
    segments_of,
)
from xen_py.io.ring import RingBroken
from xen_py.types import PAGE_SIZE, GrantRef

MAX_INDIRECT_SEGMENTS = 256
_SECTORS_PER_PAGE = PAGE_SIZE // SECTOR_SIZE
_LONGEST_RUN = 512
"""Pieces in one transfer made of several requests."""
_DATA = (Operation.READ, Operation.WRITE)


class Frames(Protocol):
    """How a ring's frames are had: for each request anew, or kept (`PersistentPins`)."""

    async def use(self, wants: Sequence[tuple[GrantRef, bool]]) -> list[PinnedFrame | GrantStatus]: ...

    async def done(self, frames: Iterable[PinnedFrame]) -> None: ...


class Refused(Exception):
    """A request cannot be; the status it is answered with."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


@dataclass(eq=False, slots=True)
class _Job:
    """A request under way."""

    id: int
    operation: int
    """What the response names."""
    offset: int = 0
    """In bytes, on the disk."""
    length: int = 0
    segments: list[Segment] = field(default_factory=list)
    secure: bool = False
    frames: list[PinnedFrame] = field(default_factory=list)
    status: Status = Status.OKAY

    @property
    def writes(self) -> bool:
        return self.operation != Operation.READ

    def pieces(self) -> list[memoryview]:
        return [
            frame.data[segment.first_sect * SECTOR_SIZE : (segment.last_sect + 1) * SECTOR_SIZE]
            for frame, segment in zip(self.frames, self.segments, strict=True)
        ]


class RingServer:
    """One ring of a device. `writable_pins`: frames that are only read are pinned for writing too, to be kept."""

    def __init__(
        self,
        disk: Disk,
        queue: BackQueue,
        frames: Frames,
        *,
        discard: bool,
        writable_pins: bool,
        counts: Counter[str],
        lane: Lane | None = None,
    ) -> None:
        self._disk = disk
        self._queue = queue
        self._frames = frames
        self._discard = discard
        self._writable_pins = writable_pins
        self._counts = counts
        self._lane = lane
        self._listening = trio.CancelScope(shield=True)
        self._visiting = False
        self._under_way = 0
        self._drained = trio.lowlevel.ParkingLot()

    async def serve(self) -> None:
        """Until the queue ends; requests that were taken are answered first. RingBroken, GuestGone."""
        failure: Exception | None = None
        async with trio.open_nursery() as self._nursery:
            if self._lane is not None:
                self._nursery.start_soon(self._listen, self._lane)
            try:
                async for batch in self._queue.batches():
                    self._visiting = True
                    await self._visit(batch)
                    self._visiting = False
                    self._lend()
            except (RingBroken, GuestGone) as error:
                failure = error
            finally:
                self._visiting = True  # nothing is lent any more
                if self._lane is not None:
                    with trio.CancelScope(shield=True):
                        await self._lane.take_back()
                        self._listening.cancel()
                        await self._lane.leave()
        self._queue.flush()
        if failure is not None:
            raise failure

    async def _listen(self, lane: Lane) -> None:
        with self._listening:
            await lane.listen()

    def _lend(self) -> None:
        """Where nothing is under way, the native thread may have the ring."""
        queue = self._queue
        if self._lane is None or self._visiting or queue.ring.unanswered() or queue.observe is not None:
            return
        if not queue.stopped:
            queue.flush()
            self._lane.lend(self._disk.sectors)

    async def _visit(self, batch: list[Request | DiscardRequest | IndirectRequest]) -> None:
        jobs: list[_Job] = []
        for job in await self._jobs(batch):
            if job.operation == Operation.WRITE_BARRIER:
                await self._start(jobs)
                jobs = []
                while self._under_way:
                    self._queue.flush()
                    await self._drained.park()
                await self._barrier(job)
            else:
                jobs.append(job)
        await self._start(jobs)

    # ---- checking ----

    async def _jobs(self, batch: list[Request | DiscardRequest | IndirectRequest]) -> list[_Job]:
        """What can be done; the rest has been answered."""
        indirect = await self._indirect_segments([r for r in batch if isinstance(r, IndirectRequest)])
        jobs = []
        for request in batch:
            try:
                if isinstance(request, IndirectRequest):
                    jobs.append(self._check_indirect(request, indirect.get(id(request))))
                elif isinstance(request, DiscardRequest):
                    jobs.append(self._check_discard(request))
                else:
                    jobs.append(self._check_plain(request))
            except Refused as refused:
                operation = request.indirect_op if isinstance(request, IndirectRequest) else request.operation
                self._respond(_Job(request.id, operation, status=refused.status))
        return jobs

    def _check_plain(self, request: Request) -> _Job:
        operation = request.operation
        if operation not in (*_DATA, Operation.WRITE_BARRIER, Operation.FLUSH_DISKCACHE):
            raise Refused(Status.EOPNOTSUPP)
        if request.nr_segments > MAX_SEGMENTS or (operation in _DATA and not request.nr_segments):
            raise Refused(Status.ERROR)
        segments = segments_of(request.segments, request.nr_segments)
        return self._check_data(request.id, operation, request.sector_number, segments)

    def _check_indirect(self, request: IndirectRequest, segments: list[Segment] | None) -> _Job:
        if request.indirect_op not in _DATA:
            raise Refused(Status.EOPNOTSUPP)
        if segments is None:
            raise Refused(Status.ERROR)
        return self._check_data(request.id, request.indirect_op, request.sector_number, segments)

    def _check_data(self, identifier: int, operation: int, sector: int, segments: list[Segment]) -> _Job:
        unit = self._disk.sector_size // SECTOR_SIZE
        count = 0
        for _, first, last in segments:
            if first > last or last >= _SECTORS_PER_PAGE:
                raise Refused(Status.ERROR)
            count += last - first + 1
        if segments and operation != Operation.READ and self._disk.readonly:
            raise Refused(Status.ERROR)
        if segments and (sector + count > self._disk.sectors or sector % unit or count % unit):
            raise Refused(Status.ERROR)
        return _Job(identifier, operation, sector * SECTOR_SIZE, count * SECTOR_SIZE, segments)

    def _check_discard(self, request: DiscardRequest) -> _Job:
        disk = self._disk
        secure = bool(request.flag & DISCARD_SECURE)
        if not self._discard or (secure and not disk.can_discard_securely):
            raise Refused(Status.EOPNOTSUPP)
        unit = disk.sector_size // SECTOR_SIZE
        first, count = request.sector_number, request.nr_sectors
        if disk.readonly or not count or first + count > disk.sectors or first % unit or count % unit:
            raise Refused(Status.ERROR)
        return _Job(request.id, request.operation, first * SECTOR_SIZE, count * SECTOR_SIZE, secure=secure)

    async def _indirect_segments(self, requests: list[IndirectRequest]) -> dict[int, list[Segment]]:
        """Segments by request, of those whose pages can be read; each page is copied once, then looked at."""
        wants: list[tuple[GrantRef, bool]] = []
        places: list[tuple[IndirectRequest, int, int]] = []
        for request in requests:
            count = request.nr_segments
            if not 0 < count <= MAX_INDIRECT_SEGMENTS:
                continue
            pages = -(-count // SEGMENTS_PER_INDIRECT_PAGE)
            assert pages <= MAX_INDIRECT_PAGES
            places.append((request, len(wants), pages))
            for page in range(pages):
                ref = int.from_bytes(request.indirect_grefs[4 * page : 4 * page + 4], "little")
                wants.append((GrantRef(ref), not self._writable_pins))
        if not wants:
            return {}
        found = await self._frames.use(wants)
        segments: dict[int, list[Segment]] = {}
        for request, at, pages in places:
            frames = [frame for frame in found[at : at + pages] if isinstance(frame, PinnedFrame)]
            if len(frames) == pages:
                segments[id(request)] = segments_of(b"".join(frame.data for frame in frames), request.nr_segments)
        await self._frames.done([frame for frame in found if isinstance(frame, PinnedFrame)])
        return segments

    # ---- carrying out ----

    async def _start(self, jobs: list[_Job]) -> None:
        """Begin them; those that end at once are answered."""
        ended: list[_Job] = []
        written: list[_Job] = []
        writes: list[Transfer] = []
        for run in _runs(await self._pinned(jobs)):
            if run[0].operation in _DATA:
                transfer = _transfer(run)
                try:
                    if self._disk.attempt(transfer):
                        ended += run
                        continue
                except OSError:
                    if len(run) == 1:
                        run[0].status = Status.ERROR
                        ended += run
                        continue
                if transfer.write:
                    written += run
                    writes.append(transfer)
                else:
                    self._begin(self._run, run, [transfer])
            else:
                for job in run:
                    self._begin(self._single, job)
        if writes:  # they seldom wait: one way to a worker and back for all of the visit's
            self._begin(self._run, written, writes)
        await self._end(ended)

    async def _pinned(self, jobs: list[_Job]) -> list[_Job]:
        """Those whose frames could all be had; the others have been answered."""
        wants = [
            (GrantRef(segment.gref), job.writes and not self._writable_pins) for job in jobs for segment in job.segments
        ]
        if not wants:
            return jobs
        found = iter(await self._frames.use(wants))
        good, bad = [], []
        for job in jobs:
            answers = [next(found) for _ in job.segments]
            job.frames = [frame for frame in answers if isinstance(frame, PinnedFrame)]
            if len(job.frames) == len(answers):
                good.append(job)
            else:
                job.status = Status.ERROR
                bad.append(job)
        await self._end(bad)
        return good

    def _begin(self, task: Callable[..., Awaitable[None]], *arguments: object) -> None:
        self._under_way += 1
        self._nursery.start_soon(self._tracked, task, arguments)

    async def _tracked(self, task: Callable[..., Awaitable[None]], arguments: tuple[object, ...]) -> None:
        try:
            await task(*arguments)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._drained.unpark_all()
                self._lend()

    async def _run(self, run: list[_Job], transfers: list[Transfer]) -> None:
        try:
            await self._disk.transfer(*transfers)
        except OSError:
            for job in run:  # which of them is it?
                try:
                    await self._disk.transfer(_transfer([job]))
                except OSError:
                    job.status = Status.ERROR
        await self._end(run)
        self._queue.flush()

    async def _single(self, job: _Job) -> None:
        """A flush, with or without data, or a discard."""
        try:
            if job.operation == Operation.DISCARD:
                await self._disk.discard(job.offset, job.length, job.secure)
            else:
                if job.frames:
                    await self._disk.transfer(_transfer([job]))
                await self._disk.flush()
        except OSError as error:
            cannot = job.operation == Operation.DISCARD and error.errno == errno.EOPNOTSUPP
            job.status = Status.EOPNOTSUPP if cannot else Status.ERROR
        await self._end([job])
        self._queue.flush()

    async def _barrier(self, job: _Job) -> None:
        for pinned in await self._pinned([job]):
            try:
                await self._disk.flush()
                if pinned.frames:
                    await self._disk.transfer(_transfer([pinned]))
                    await self._disk.flush()
            except OSError:
                pinned.status = Status.ERROR
            await self._end([pinned])

    async def _end(self, jobs: list[_Job]) -> None:
        """Give their frames back, then answer: the guest must find the frames announced."""
        frames = [frame for job in jobs for frame in job.frames]
        if frames:
            await self._frames.done(frames)
        for job in jobs:
            self._respond(job)

    def _respond(self, job: _Job) -> None:
        self._counts["requests"] += 1
        if job.status is not Status.OKAY:
            self._counts["errors"] += 1
        elif job.operation == Operation.READ:
            self._counts["bytes_read"] += job.length
        elif job.segments:
            self._counts["bytes_written"] += job.length
        self._queue.respond(Response(job.id, job.operation, job.status))


def _runs(jobs: list[_Job]) -> list[list[_Job]]:
    """Requests of one direction that adjoin on the disk, put together."""
    runs: list[list[_Job]] = []
    pieces = 0
    for job in jobs:
        last = runs[-1][-1] if runs else None
        pieces += len(job.segments)
        if (
            last is not None
            and job.operation in _DATA
            and last.operation == job.operation
            and last.offset + last.length == job.offset
            and pieces <= _LONGEST_RUN
        ):
            runs[-1].append(job)
        else:
            runs.append([job])
            pieces = len(job.segments)
    return runs


def _transfer(run: list[_Job]) -> Transfer:
    if not run[0].writes:
        for job in run:
            for frame in job.frames:
                frame.written = True
    return Transfer(run[0].writes, run[0].offset, [piece for job in run for piece in job.pieces()])
