# SPDX-License-Identifier: GPL-2.0-only
"""The mapper's side of grant tables: which grants this domain has mapped, by the handles it was given for them.

As in xen/common/grant_table.c handles come from frames of 256 and a freed one goes to the end of the queue, so that a
handle used after its end is noticed rather than taken for the next one's. Plain data; owned by the domain's thread.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from xen_py.types import DomId, GrantRef

HANDLES_PER_FRAME = 256
MAX_FRAMES = 1024
"""Xen's default `gnttab_max_maptrack_frames`."""


@dataclass(slots=True)
class Mapping:
    """One grant mapped."""

    domid: DomId
    """Whose grant it is."""
    ref: GrantRef
    flags: int
    """GNTMAP_*: what it is mapped for, less what has been unmapped already."""
    index: int = 0
    """Frame index of what is mapped, in its owner's memory."""


class Maptrack:
    """The handles of one domain."""

    def __init__(self, max_frames: int = MAX_FRAMES) -> None:
        self.max_frames = max_frames
        self.frames = 0
        self._mappings: dict[int, Mapping] = {}
        self._free: deque[int] = deque()

    def allocate(self, mapping: Mapping) -> int | None:
        """A handle for it, None when there are no more."""
        if not self._free:
            if self.frames == self.max_frames:
                return None
            first = self.frames * HANDLES_PER_FRAME
            self._free.extend(range(first, first + HANDLES_PER_FRAME))
            self.frames += 1
        handle = self._free.popleft()
        self._mappings[handle] = mapping
        return handle

    def get(self, handle: int) -> Mapping | None:
        return self._mappings.get(handle)

    def free(self, handle: int) -> None:
        del self._mappings[handle]
        self._free.append(handle)

    def statistics(self) -> dict[str, int]:
        return {"maptrack_frames": self.frames, "max_maptrack_frames": self.max_frames, "mappings": len(self._mappings)}

    def save(self) -> dict[str, Any]:
        mappings = [(handle, m.domid, m.ref, m.flags, m.index) for handle, m in self._mappings.items()]
        return {"frames": self.frames, "mappings": mappings, "free": list(self._free)}

    def restore(self, state: dict[str, Any]) -> None:
        self.frames = state["frames"]
        self._mappings = {handle: Mapping(*fields) for handle, *fields in state["mappings"]}
        self._free = deque(state["free"])
