# SPDX-License-Identifier: GPL-2.0-only
"""A guest's granted frames, for the backends in dom0.

A backend names grant references and gets the frames behind them, all of a ring's requests in one batch:

    frames = await grants.pin([(ref, True), ...])
    ... use frame.data ...
    await grants.unpin(frames)

The domain's own thread checks and marks the entries (`xen_py.grants`), and a pinned frame is neither freed nor used
again while the backend works on it. Frames that a backend has written are named to
the domain before the guest hears of it, because code may have been translated from them: `unpin` does that, and
`announce` for frames that stay pinned. `PersistentPins` keeps pins from one request to the next.

Where a copy is all that is wanted, `copy_out` reads what is granted without a pin, and `copy_in` has the domain's
thread write it: one message instead of two.

A guest may end at any moment. What is pinned then stays readable and writable until it is unpinned, and the domain
stays, dying, as long: see `released`. Owner: the trio thread.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio

from dom0.host.grantorders import MOST_COPIED, MOST_PINS, USAGE_ROWS
from xen_py.abi.grant_table import ENTRIES_PER_FRAME, GRANT_TYPE_MASK, GrantFlag, GrantStatus
from xen_py.doorbell import fence
from xen_py.memory import GRANT_FRAMES, GuestMemory
from xen_py.trace import Tracer
from xen_py.types import PAGE_SHIFT, PAGE_SIZE, DomId, GrantRef

MOST_ENTRIES = GRANT_FRAMES * ENTRIES_PER_FRAME
"""What a grant table may have; those that a guest has not set up are zero."""
_READABLE = GRANT_TYPE_MASK | 0xFFFF << 16
"""Of an entry: its kind, and to whom."""
_MARKS = int(GrantFlag.READING | GrantFlag.WRITING)


class GuestGone(Exception):
    """The guest has ended: there is nobody to ask."""


class Order(Protocol):
    """`dom0.host.vm.Vm.order`."""

    def __call__(self, kind: str, *args: object, check: Any) -> Awaitable[Any]: ...


@dataclass(eq=False, slots=True)
class PinnedFrame:
    """A granted frame, from its pin to its unpin. Only its backend uses it."""

    ref: GrantRef
    readonly: bool
    index: int
    """Frame index in the guest's memory."""
    data: memoryview
    """The 4096 bytes, read-only for a read-only pin; released by `unpin`. The guest may change them at any time."""
    written: bool = False
    """The backend has changed the frame since this was last told; `write` sets it."""
    pinned: bool = True

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Put bytes into the frame; ValueError when they do not fit."""
        if offset < 0 or offset + len(data) > PAGE_SIZE:
            raise ValueError(f"{len(data)} bytes at {offset} leave the frame")
        self.written = True
        self.data[offset : offset + len(data)] = data


@dataclass
class GrantStatistics:
    pinned: int = 0
    """Pins held now."""
    pins: int = 0
    copies: int = 0
    """Parts of frames copied without a pin of their own."""
    refused: int = 0
    batches: int = 0


class GuestGrants:
    """All of one guest's grants that backends use."""

    def __init__(self, domid: DomId, memory: GuestMemory, order: Order) -> None:
        self.domid = domid
        self.memory = memory
        self._order = order
        self._turn = trio.Lock()
        self._empty = trio.lowlevel.ParkingLot()
        self._table = memory.geometry.index(memory.geometry.grant_mfn(0)) * ENTRIES_PER_FRAME
        """Where the grant table is in the guest's memory, in entries."""
        self._statistics = GrantStatistics()
        self.tracer: Tracer | None = None
        """Is told of pins and of what was written, while somebody looks."""

    async def pin(self, wants: Sequence[tuple[GrantRef, bool]]) -> list[PinnedFrame | GrantStatus]:
        """Pin each (reference, read-only): the frame, or why not, in the same order. GuestGone when the guest is.

        Cancellation waits for the answer, so that no pin is left that nobody knows of.
        """
        found: list[PinnedFrame | GrantStatus] = []
        with trio.CancelScope(shield=True):
            for start in range(0, len(wants), MOST_PINS):
                batch = wants[start : start + MOST_PINS]
                try:
                    found += await self._pin(batch)
                except BaseException:
                    await self.unpin(frame for frame in found if isinstance(frame, PinnedFrame))
                    raise
        return found

    async def _pin(self, batch: Sequence[tuple[GrantRef, bool]]) -> list[PinnedFrame | GrantStatus]:
        frames = self.memory.geometry.nr_frames

        def possible(results: Any) -> bool:
            return (
                isinstance(results, list)
                and len(results) == len(batch)
                and all(type(n) is int and (0 <= n < frames or _is_refusal(n)) for n in results)
            )

        async with self._turn:
            results = await self._order("pin", [(ref, bool(readonly)) for ref, readonly in batch], check=possible)
        found: list[PinnedFrame | GrantStatus] = []
        for (ref, readonly), index in zip(batch, results, strict=True):
            if index < 0:
                self._statistics.refused += 1
                found.append(GrantStatus(index))
                continue
            data = self.memory.bytes[index << PAGE_SHIFT : (index + 1) << PAGE_SHIFT]
            found.append(PinnedFrame(ref, readonly, index, data.toreadonly() if readonly else data))
            self._statistics.pins += 1
            self._statistics.pinned += 1
        self._statistics.batches += 1
        if self.tracer is not None:
            refs = [ref for ref, _ in batch]
            refused = {str(ref): GrantStatus(n).name.lower() for ref, n in zip(refs, results, strict=True) if n < 0}
            self.tracer.record(0, "grant", "pin", domain=self.domid, refs=refs, refused=refused)
        return found

    async def unpin(self, frames: Iterable[PinnedFrame]) -> None:
        """Give frames back, each once; what was written is announced. Also when the guest is gone."""
        gone = list(frames)
        if not all(frame.pinned for frame in gone):
            raise ValueError("a frame is unpinned twice")
        for frame in gone:
            frame.pinned = False
            frame.data.release()
        with trio.CancelScope(shield=True):
            for start in range(0, len(gone), MOST_PINS):
                await self._tell(gone[start : start + MOST_PINS], unpin=True)
        self._statistics.pinned -= len(gone)
        if not self._statistics.pinned:
            self._empty.unpark_all()

    def copy_out(self, parts: Sequence[tuple[GrantRef, int, int]]) -> list[bytes | GrantStatus]:
        """Of each (reference, offset, length) a copy, or why not. GuestGone when the guest's memory is.

        To read needs nobody's leave but the entry's: what is read is the granting guest's own, whatever it does
        meanwhile. Each entry is looked at before and after; one that has changed between was no grant.
        """
        try:
            found = [self._copied(*part) for part in parts]
        except ValueError:
            raise GuestGone(f"domain {self.domid} is gone") from None
        self._statistics.copies += len(parts)
        if self.tracer is not None:
            self.tracer.record(0, "grant", "copy out", domain=self.domid, refs=[ref for ref, _, _ in parts])
        return found

    def _copied(self, ref: GrantRef, offset: int, length: int) -> bytes | GrantStatus:
        memory = self.memory
        if offset < 0 or length < 0 or offset + length > PAGE_SIZE or not 0 <= ref < MOST_ENTRIES:
            return GrantStatus.BAD_GNTREF if not 0 <= ref < MOST_ENTRIES else GrantStatus.BAD_COPY_ARG
        place = self._table + ref
        word = memory.words[place]
        if word & _READABLE != GrantFlag.PERMIT_ACCESS:  # to domain 0, in the bits above
            return GrantStatus.GENERAL_ERROR
        index = (word >> 32) - memory.geometry.mfn_base
        if not 0 <= index < memory.geometry.max_pages:
            return GrantStatus.BAD_PAGE
        at = (index << PAGE_SHIFT) + offset
        data = bytes(memory.bytes[at : at + length])
        return data if (memory.words[place] ^ word) & ~_MARKS == 0 else GrantStatus.GENERAL_ERROR

    async def copy_in(self, parts: Sequence[tuple[GrantRef, int, bytes]]) -> list[GrantStatus]:
        """Put bytes into granted frames, at an offset each; what has become of each. GuestGone when the guest is.

        At most MOST_COPIED bytes in all. The domain's own thread does it, as it knows what the frames are used for.
        """
        _check([(offset, len(data)) for _, offset, data in parts])

        def possible(results: Any) -> bool:
            return (
                isinstance(results, list)
                and len(results) == len(parts)
                and all(type(n) is int and (n == GrantStatus.OKAY or _is_refusal(n)) for n in results)
            )

        async with self._turn:
            results = await self._order("copy_in", [list(part) for part in parts], check=possible)
        self._statistics.copies += len(parts)
        self._statistics.batches += 1
        if self.tracer is not None:
            self.tracer.record(0, "grant", "copy in", domain=self.domid, refs=[ref for ref, _, _ in parts])
        return list(map(GrantStatus, results))

    async def announce(self, frames: Iterable[PinnedFrame]) -> None:
        """Name what was written in frames that stay pinned, before the guest is told by a response.

        Where no code has been seen that is nothing. The bytes were written before the look, and the domain marks a
        frame before it translates any of it: one of the two sees the other.
        """
        fence()
        seen = self.memory.code_seen
        written = [frame for frame in frames if frame.written and seen[frame.index]]
        with trio.CancelScope(shield=True):
            for start in range(0, len(written), MOST_PINS):
                await self._tell(written[start : start + MOST_PINS], unpin=False)

    async def _tell(self, frames: list[PinnedFrame], *, unpin: bool) -> None:
        pins = [(frame.ref, frame.readonly) for frame in frames] if unpin else []
        written = [frame.index for frame in frames if frame.written]
        for frame in frames:
            frame.written = False
        if self.tracer is not None:
            what = "unpin" if unpin else "announce"
            self.tracer.record(0, "grant", what, domain=self.domid, refs=[ref for ref, _ in pins], written=written)
        try:
            async with self._turn:
                await self._order("unpin", pins, written, check=lambda result: result is None)
        except GuestGone:
            pass  # and its marks with it
        self._statistics.batches += 1

    async def released(self) -> None:
        """Wait until nothing is pinned."""
        while self._statistics.pinned:
            await self._empty.park()

    async def usage(self) -> dict[str, Any]:
        """What the domain's grant table is used for: `GrantTable.usage` and its maptrack's figures."""
        async with self._turn:
            usage: dict[str, Any] = await self._order("grants", check=_is_usage)
        return usage

    def statistics(self) -> GrantStatistics:
        return GrantStatistics(**vars(self._statistics))


@dataclass
class _Kept:
    frame: PinnedFrame
    uses: int = 0


@dataclass
class PersistentPins:
    """Pins that outlive requests: a frontend which uses the same grants again and again has them checked once.

    At most `limit` frames that no request uses stay pinned; the ones longest unused go first. The frontend cannot take
    such a grant back until the backend lets it go, so this is for frontends that said they want it.
    """

    grants: GuestGrants
    limit: int
    _kept: OrderedDict[tuple[GrantRef, bool], _Kept] = field(default_factory=OrderedDict)
    _turn: trio.Lock = field(default_factory=trio.Lock)
    _hits: Counter[str] = field(default_factory=Counter)

    async def use(self, wants: Sequence[tuple[GrantRef, bool]]) -> list[PinnedFrame | GrantStatus]:
        """As `GuestGrants.pin`; `done` gives them back. The same grant may be in use several times."""
        async with self._turn:
            kept = [self._kept[want] for want in wants if want in self._kept]
            for each in kept:
                each.uses += 1  # so that none goes while we wait
            new = [want for want in dict.fromkeys(wants) if want not in self._kept]
            try:
                pinned = await self.grants.pin(new) if new else []
            except BaseException:
                for each in kept:
                    each.uses -= 1
                raise
            answers = dict(zip(new, pinned, strict=True))
            found: list[PinnedFrame | GrantStatus] = []
            for want in wants:
                answer = answers.get(want)
                if isinstance(answer, GrantStatus):
                    found.append(answer)
                    continue
                if answer is not None:
                    self._kept.setdefault(want, _Kept(answer)).uses += 1
                self._hits["reused" if answer is None else "new"] += 1
                self._kept.move_to_end(want)
                found.append(self._kept[want].frame)
        return found

    async def done(self, frames: Iterable[PinnedFrame]) -> None:
        """A request's frames are used no more: what it wrote is announced, what is too much is unpinned."""
        used = list(frames)
        for frame in used:
            self._kept[frame.ref, frame.readonly].uses -= 1
        await self.grants.announce(dict.fromkeys(used))
        if len(self._kept) <= self.limit:
            return
        idle = [want for want, kept in self._kept.items() if not kept.uses]
        surplus = idle[: max(0, len(idle) - self.limit)]
        if surplus:
            await self.grants.unpin([self._kept.pop(want).frame for want in surplus])

    async def close(self) -> None:
        """Unpin all; no request uses any."""
        frames = [kept.frame for kept in self._kept.values()]
        self._kept.clear()
        await self.grants.unpin(frames)

    def statistics(self) -> dict[str, int]:
        return {"kept": len(self._kept), **self._hits}


def _check(places: Sequence[tuple[int, int]]) -> None:
    """Offset and length of each part of a copy."""
    if any(offset < 0 or length < 0 or offset + length > PAGE_SIZE for offset, length in places):
        raise ValueError("a part of a copy leaves its frame")
    if sum(length for _, length in places) > MOST_COPIED or len(places) > MOST_PINS:
        raise ValueError(f"a copy of more than {MOST_COPIED} bytes or {MOST_PINS} parts")


def _is_refusal(n: int) -> bool:
    return n < 0 and n in GrantStatus._value2member_map_


def _is_usage(usage: Any) -> bool:
    """What `GrantTable.usage` can have said."""
    if not isinstance(usage, dict):
        return False
    numbers = (
        "frames", "max_frames", "in_use", "revoked", "unlisted",
        "maptrack_frames", "max_maptrack_frames", "mappings",
    )
    return (
        all(type(usage.get(key)) is int for key in numbers)
        and _are_rows(usage.get("pinned"), 7)
        and _are_rows(usage.get("granted"), 4)
    )


def _are_rows(rows: Any, columns: int) -> bool:
    return (isinstance(rows, list) and len(rows) <= USAGE_ROWS) and all(
        isinstance(row, list) and len(row) == columns and all(isinstance(n, int) for n in row) for row in rows
    )
