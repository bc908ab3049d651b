# SPDX-License-Identifier: GPL-2.0-only
"""Frames of other domains that this one has mapped by their grants: where they appear among its own.

A domain's machine frame numbers are private to it, so another's frame needs one here. All of an owner's memory gets a
run of numbers behind the domain's own, its *window*, when the first of its grants is mapped, and loses it with the
last: frame i of the owner is then frame `first + i` here, for the emulator, for the page-table walks and for us. What
keeps the guest to the frames it was granted are its page tables: an entry can name a frame of a window only by a
grant (`hypercalls.grant_map`), because everything else looks the frame up among the domain's own.

The owner's grant table is asked through the host (`OthersGrants`): it belongs to the owner's thread, which may be
asking something of us at that moment.

Owned by the domain's thread.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Protocol

from xen_py.abi.grant_table import GrantStatus
from xen_py.engine import Engine
from xen_py.grants import GrantError
from xen_py.hvspace import HV_MACHINE
from xen_py.memory import GuestMemory, MemoryGeometry
from xen_py.types import PAGE_SHIFT, DomId, GrantRef, Mfn

_MOST_ROOM = 1 << 24


def room_for(geometry: MemoryGeometry) -> int:
    """Frames that a domain's process keeps room for behind the domain's own: address space, not memory."""
    return max(0, min(_MOST_ROOM, (HV_MACHINE >> PAGE_SHIFT) - geometry.mfn_base - geometry.nr_frames))


class OthersGrants(Protocol):
    """What a domain asks of the host about grants of others. Calls wait for the answer; refusals are `GrantError`."""

    def map(self, owner: DomId, ref: GrantRef, flags: int) -> int:
        """Pin a grant for what `flags` says (GNTMAP_host, _device, _readonly); its index in the owner's memory."""

    def unmap(self, owner: DomId, ref: GrantRef, flags: int) -> None:
        """The end of one `map`, or of one of its two kinds. Never refused, the owner may be gone."""

    def memory(self, owner: DomId) -> tuple[int, int]:
        """The memory file of a domain some of whose grants are mapped: a descriptor, the caller's, and its frames."""

    def read(self, owner: DomId, ref: GrantRef, offset: int, length: int) -> bytes:
        """Bytes of a granted frame, which they do not leave."""

    def write(self, owner: DomId, ref: GrantRef, offset: int, data: bytes) -> None:
        """Bytes for a granted frame, which they do not leave."""


@dataclass(slots=True)
class _Window:
    first: int
    """Frame index here of the owner's first frame."""
    frames: int
    mappings: int = 0


class ForeignMemory:
    """The windows of one domain. See the module."""

    def __init__(self, memory: GuestMemory, engine: Engine, others: OthersGrants) -> None:
        self._memory = memory
        self._engine = engine
        self._others = others
        self._windows: dict[DomId, _Window] = {}

    def enter(self, owner: DomId) -> None:
        """One more mapping of that owner's frames is being made. GrantError when they find no room."""
        window = self._windows.get(owner)
        if window is None:
            window = self._windows[owner] = self._open(owner)
        window.mappings += 1

    def leave(self, owner: DomId) -> None:
        """One is no more, nor is any translation by it left with the engine."""
        window = self._windows[owner]
        window.mappings -= 1
        if not window.mappings:
            del self._windows[owner]
            self._engine.unmap(self._mfn(window.first) << PAGE_SHIFT, window.frames << PAGE_SHIFT)
            self._memory.clear(window.first, window.frames)

    def mfn(self, owner: DomId, index: int) -> Mfn:
        """What that frame is to this domain."""
        return self._mfn(self._windows[owner].first + index)

    def frame(self, mfn: Mfn) -> memoryview:
        """The 4096 bytes of a frame that `mfn` has named; IndexError when it is none of anybody's mapped memory."""
        index = mfn - self._memory.geometry.mfn_base
        if not any(window.first <= index < window.first + window.frames for window in self._windows.values()):
            raise IndexError(f"MFN {mfn:#x} is not a foreign one")
        return self._memory.bytes[index << PAGE_SHIFT : (index + 1) << PAGE_SHIFT]

    def statistics(self) -> dict[str, int]:
        mappings = sum(window.mappings for window in self._windows.values())
        return {"foreign_domains": len(self._windows), "foreign_mappings": mappings}

    def save(self) -> dict[str, Any]:
        return {"windows": [(owner, w.first, w.frames, w.mappings) for owner, w in self._windows.items()]}

    def restore(self, state: dict[str, Any]) -> None:
        """At the places of before; the owners are asked for their memory again."""
        for owner, first, frames, mappings in state["windows"]:
            fd, _ = self._others.memory(owner)
            self._windows[owner] = self._show(fd, _Window(first, frames, mappings))

    # ---- windows ----

    def _open(self, owner: DomId) -> _Window:
        fd, frames = self._others.memory(owner)
        return self._show(fd, _Window(self._find_room(frames), frames))

    def _show(self, fd: int, window: _Window) -> _Window:
        """Takes over `fd`."""
        try:
            there = self._memory.place(window.first, fd, window.frames)
        except (OSError, IndexError) as error:
            raise GrantError(GrantStatus.NO_DEVICE_SPACE, f"no room for {window.frames} frames: {error}") from error
        finally:
            os.close(fd)
        self._engine.map(self._mfn(window.first) << PAGE_SHIFT, there)
        return window

    def _find_room(self, frames: int) -> int:
        """The lowest place for as many frames behind our own; it may be past the end."""
        first = self._memory.geometry.nr_frames
        for window in sorted(self._windows.values(), key=lambda each: each.first):
            if window.first - first >= frames:
                break
            first = window.first + window.frames
        return first

    def _mfn(self, index: int) -> Mfn:
        return Mfn(self._memory.geometry.mfn_base + index)
