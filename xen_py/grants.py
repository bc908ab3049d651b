# SPDX-License-Identifier: GPL-2.0-only
"""The granting side of grant tables: which frames of a domain others may use, and who is using them.

The guest writes *entries* into its grant frames (public/grant_table.h, version 1): this frame, for that domain, perhaps
read-only. Whoever uses a grant *pins* it first, be it a backend, a copy or a mapping. The entry is read once, checked,
and marked as being read or written, which is how the guest sees that it cannot take the grant back yet. While an entry
is pinned, what was checked at its first pin holds, whatever the guest writes there meanwhile; the marks go with the
last pin. The rules and the status codes are those of xen/common/grant_table.c.

A pin says who may; a *hold* keeps the frame: a reference, and the type writable where it is to be written, so that a
pinned frame can neither be freed nor become a page table. `pin` and `unpin` do both, for users outside the domain.

Plain data; owned by the domain's thread. The guest changes the flags of an entry with locked instructions, which are
not atomic towards other threads, so only this thread writes them, and only between runs of the engine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from xen_py.abi.grant_table import ENTRIES_PER_FRAME, GRANT_TYPE_MASK, GrantFlag, GrantStatus
from xen_py.frames import FrameType
from xen_py.memory import GRANT_FRAMES, GuestMemory
from xen_py.mmu import PageTables
from xen_py.types import DomId, XenError

INITIAL_FRAMES = 1
"""Frames of a grant table that nobody has set up."""

PIN_HOST_WRITE = 1
PIN_HOST_READ = 1 << 8
PIN_DEVICE_WRITE = 1 << 16
PIN_DEVICE_READ = 1 << 24
_WRITE_PINS = 0x00FF00FF
_OVERFLOW = 7
"""A counter that reached 1 << 7 takes no more."""


class GrantError(Exception):
    """A grant cannot be used so; becomes the status of that one operation."""

    def __init__(self, status: GrantStatus, why: str) -> None:
        super().__init__(f"{status.name.lower()}: {why}")
        self.status = status
        self.why = why


@dataclass(slots=True)
class ActiveEntry:
    """An entry in use."""

    domid: int
    """Who uses it."""
    index: int
    """Frame index of what was granted at the first pin."""
    pin: int
    """Four counters of a byte each: host write, host read, device write, device read."""


class GrantTable:
    """The grant table of one domain. See the module."""

    def __init__(
        self, domid: DomId, memory: GuestMemory, pages: PageTables, max_frames: int = GRANT_FRAMES
    ) -> None:
        self.domid = domid
        self.max_frames = max_frames
        """What the guest may set up; at most GRANT_FRAMES."""
        self.nr_frames = INITIAL_FRAMES
        self.active: dict[int, ActiveEntry] = {}
        self.memory = memory
        self._pages = pages
        self._frames = pages.frames
        self._words = memory.words
        self._table = memory.geometry.index(memory.geometry.grant_mfn(0)) * 512
        self._counters: Counter[str] = Counter()

    @property
    def entries(self) -> int:
        """How many entries the table has."""
        return self.nr_frames * ENTRIES_PER_FRAME

    def grow(self, frames: int) -> None:
        """Have at least that many frames; they are there, and zero. At most `max_frames`."""
        self.nr_frames = max(self.nr_frames, frames)

    def entry(self, ref: int) -> tuple[int, int, int]:
        """Flags, domid and frame of an entry, read in one go."""
        word = self._words[self._table + ref]
        return word & 0xFFFF, word >> 16 & 0xFFFF, word >> 32

    # ---- pins ----

    def acquire(self, ref: int, domid: DomId, increment: int, *, readonly: bool, mapping: bool) -> int:
        """Pin an entry for `domid`; the index of the frame behind it.

        `increment` is a sum of PIN_*; `mapping` tells a mapping from a copy.
        """
        try:
            index = self._acquire(ref, domid, increment, readonly, mapping)
        except GrantError:
            self._counters["refused"] += 1
            raise
        self._counters["maps" if mapping else "copies"] += 1
        return index

    def _acquire(self, ref: int, domid: DomId, increment: int, readonly: bool, mapping: bool) -> int:
        if not 0 <= ref < self.entries:
            raise GrantError(GrantStatus.BAD_GNTREF, f"grant {ref} of {self.entries}")
        act = self.active.get(ref)
        if act is not None and (act.domid != domid or act.pin & increment << _OVERFLOW):
            raise GrantError(GrantStatus.GENERAL_ERROR, f"grant {ref} is in use by domain {act.domid}")
        if act is None or (not readonly and not act.pin & _WRITE_PINS):
            flags, grantee, frame = self.entry(ref)
            mask = GRANT_TYPE_MASK | (GrantFlag.SUB_PAGE if mapping else 0)
            if act is None and (flags & mask != GrantFlag.PERMIT_ACCESS or grantee != domid):
                raise GrantError(GrantStatus.GENERAL_ERROR, f"grant {ref} (flags {flags:#x}) is not for domain {domid}")
            if not readonly and flags & GrantFlag.READONLY:
                raise GrantError(GrantStatus.GENERAL_ERROR, f"grant {ref} is read-only")
            index = frame - self._frames.base
            if act is None:
                try:
                    self._frames.index(frame)
                except XenError:
                    raise GrantError(GrantStatus.BAD_PAGE, f"grant {ref} names MFN {frame:#x}") from None
                act = self.active[ref] = ActiveEntry(domid, index, 0)
            elif not mapping and index != act.index:
                raise GrantError(GrantStatus.GENERAL_ERROR, f"grant {ref} has changed while in use")
            self._words[self._table + ref] |= GrantFlag.READING | (0 if readonly else GrantFlag.WRITING)
        act.pin += increment
        return act.index

    def release(self, ref: int, increment: int, *, readonly: bool) -> None:
        """Take back one `acquire`."""
        act = self.active[ref]
        act.pin -= increment
        clear = 0
        if not act.pin:
            del self.active[ref]
            clear = GrantFlag.READING
        if not readonly and not act.pin & _WRITE_PINS:
            clear |= GrantFlag.WRITING
        if clear:
            self._words[self._table + ref] &= ~clear

    def hold(self, index: int, *, readonly: bool) -> None:
        """Keep the frame: a reference, and the type writable unless `readonly`."""
        mfn = self._frames.mfn(index)
        try:
            if readonly:
                self._pages.get_page(mfn)
            else:
                self._pages.get_page_and_type(mfn, FrameType.WRITABLE)
        except XenError as error:
            raise GrantError(GrantStatus.GENERAL_ERROR, error.why) from None

    def let_go(self, index: int, *, readonly: bool) -> None:
        """Take back one `hold`."""
        if readonly:
            self._pages.put_page(index)
        else:
            self._pages.put_page_and_type(index)

    def pin(self, ref: int, domid: DomId, *, readonly: bool, host: bool = True, device: bool = False) -> int:
        """Let somebody outside use a grant until `unpin`; the index of the frame.

        As a mapping by the CPU (`host`), by devices, or both, each of which holds the frame.
        """
        increment = pins_for(host=host, device=device, readonly=readonly)
        index = self.acquire(ref, domid, increment, readonly=readonly, mapping=True)
        try:
            for _ in range(host + device):  # what could be held once can be held twice
                self.hold(index, readonly=readonly)
        except GrantError:
            self.release(ref, increment, readonly=readonly)
            self._counters["refused"] += 1
            raise
        return index

    def unpin(self, ref: int, domid: DomId, *, readonly: bool, host: bool = True, device: bool = False) -> None:
        """The end of one `pin`, or of one of its two kinds."""
        act = self.active.get(ref)
        increment = pins_for(host=host, device=device, readonly=readonly)
        if act is None or act.domid != domid or not _all_counted(act.pin, increment):
            raise GrantError(GrantStatus.BAD_HANDLE, f"grant {ref} is not pinned so by domain {domid}")
        index = act.index
        self.release(ref, increment, readonly=readonly)
        for _ in range(host + device):
            self.let_go(index, readonly=readonly)

    @contextmanager
    def held(self, ref: int, domid: DomId, *, readonly: bool) -> Iterator[int]:
        """A grant pinned for a copy, as long as the block lasts; the index of the frame."""
        increment = pins_for(host=True, device=False, readonly=readonly)
        index = self.acquire(ref, domid, increment, readonly=readonly, mapping=False)
        try:
            self.hold(index, readonly=readonly)
            try:
                yield index
            finally:
                self.let_go(index, readonly=readonly)
        finally:
            self.release(ref, increment, readonly=readonly)

    # ---- the guest's own ----

    def swap(self, a: int, b: int) -> None:
        """GNTTABOP_swap_grant_ref: exchange two entries that nobody uses."""
        for ref in (a, b):
            if ref >= self.entries:
                raise GrantError(GrantStatus.BAD_GNTREF, f"grant {ref} of {self.entries}")
        if a == b:
            return
        for ref in (a, b):
            if ref in self.active:
                raise GrantError(GrantStatus.EAGAIN, f"grant {ref} is in use")
        words, first, second = self._words, self._table + a, self._table + b
        words[first], words[second] = words[second], words[first]

    # ---- looking, saving ----

    def usage(self, rows: int) -> dict[str, Any]:
        """Who granted what to whom, and what is pinned, as plain data; at most `rows` lines of each.

        `pinned` has (ref, user, MFN, pin, grantee, frame, flags) of the first pinned entries; `granted` sums up all
        entries: (grantee, read-only, entries, how many of them are pinned), less the `unlisted` ones. Pinned entries
        that the guest has taken back without waiting are under the domain that uses them; `revoked` counts them.
        """
        words = self._words[self._table : self._table + self.entries].tolist()
        summary: dict[tuple[int, bool], list[int]] = {}
        revoked = 0
        for ref, word in enumerate(words):
            act = self.active.get(ref)
            permitted = word & GRANT_TYPE_MASK == GrantFlag.PERMIT_ACCESS
            if not permitted and act is None:
                continue
            revoked += not permitted
            grantee = word >> 16 & 0xFFFF if permitted or act is None else act.domid
            sums = summary.setdefault((grantee, bool(word & GrantFlag.READONLY)), [0, 0])
            sums[0] += 1
            sums[1] += act is not None
        pinned = [
            (ref, act.domid, self._frames.mfn(act.index), act.pin, *_columns(words[ref]))
            for ref, act in sorted(self.active.items())[:rows]
        ]
        most = sorted(summary.items(), key=lambda item: -item[1][0])
        granted = sorted((domid, readonly, *sums) for (domid, readonly), sums in most[:rows])
        return {
            "frames": self.nr_frames,
            "max_frames": self.max_frames,
            "in_use": len(self.active),
            "revoked": revoked,
            "pinned": pinned,
            "granted": granted,
            "unlisted": sum(sums[0] for _, sums in most[rows:]),
        }

    def statistics(self) -> dict[str, int]:
        """Entries in use now and the pins on them; maps, copies and refusals since the start."""
        pins: Counter[str] = Counter()
        for act in self.active.values():
            for shift, name in ((0, "host_write"), (8, "host_read"), (16, "device_write"), (24, "device_read")):
                pins[f"pins_{name}"] += act.pin >> shift & 0xFF
        return {"frames": self.nr_frames, "in_use": len(self.active), **pins, **self._counters}

    def save(self) -> dict[str, Any]:
        active = [(ref, act.domid, act.index, act.pin) for ref, act in self.active.items()]
        return {"frames": self.nr_frames, "active": active, "counters": dict(self._counters)}

    def restore(self, state: dict[str, Any]) -> None:
        self.nr_frames = state["frames"]
        self.active = {ref: ActiveEntry(domid, index, pin) for ref, domid, index, pin in state["active"]}
        self._counters = Counter(state["counters"])


def _columns(word: int) -> tuple[int, int, int]:
    """grantee, frame, flags"""
    return word >> 16 & 0xFFFF, word >> 32, word & 0xFFFF


def _all_counted(pin: int, increment: int) -> bool:
    """Whether each counter that `increment` has a one in is above zero."""
    return all(pin >> shift & 0xFF for shift in (0, 8, 16, 24) if increment >> shift & 0xFF)


def pins_for(*, host: bool, device: bool, readonly: bool) -> int:
    """What a mapping for the CPU, for devices or for both adds to the pin."""
    if readonly:
        return PIN_HOST_READ * host + PIN_DEVICE_READ * device
    return PIN_HOST_WRITE * host + PIN_DEVICE_WRITE * device
