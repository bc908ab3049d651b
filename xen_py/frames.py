# SPDX-License-Identifier: GPL-2.0-only
"""The frame table: what every machine frame of a domain is used as, and by how many.

The rules are Xen's (xen/arch/x86/mm.c, "page types"). A frame has a *reference count* (one for being allocated to the
domain, one for each page-table entry or other holder) and a *type* with a *type count*. A type can change only while
its count is zero, so a page table can never be mapped writable at the same time. A table type is *validated* when all
its entries were checked; a *pinned* frame holds a type reference of its own.

The counts are flat arrays, because both Python and C work on them; the frame's index is `mfn - mfn_base`.
Owned by the domain's thread.
"""

from __future__ import annotations

import mmap
from typing import Any

from xen_py.memory import GuestMemory
from xen_py.outside import OutsideWrites
from xen_py.types import Errno, Mfn, XenError


class FrameType:
    """What a frame is used as. L1..L4 equal the level of the table."""

    NONE = 0
    L1 = 1
    L2 = 2
    L3 = 3
    L4 = 4
    SEGDESC = 5
    WRITABLE = 7


class FrameFlag:
    VALIDATED = 1
    PINNED = 2
    ALLOCATED = 4
    """Belongs to the domain (an entry in the machine-to-phys table)."""
    SPECIAL = 8
    """shared_info or a grant frame: the hypervisor's, writable by the guest, never freed, never a page table."""
    RESERVED = 32
    """The domain still holds the reference that being allocated is (it has not released the frame)."""
    CODE_SEEN = 16
    """Was mapped executable at some time, so translated code of it may exist."""
    UNWATCHED = 64
    """The emulator stores through its one executable mapping without looking for translated code (native/stores.c)."""


class FrameTable:
    """Types and counts of all frames of one domain."""

    def __init__(self, memory: GuestMemory) -> None:
        geometry = self.geometry = memory.geometry
        self.outside = OutsideWrites(memory)
        self.base = geometry.mfn_base
        n = self.count = geometry.nr_frames
        self._store = mmap.mmap(-1, n * 16 + 8)
        whole = memoryview(self._store)
        self.refs = whole[0 : 4 * n].cast("I")
        self.type_counts = whole[4 * n : 8 * n].cast("I")
        self.code_maps = whole[8 * n : 12 * n].cast("I")
        """Executable mappings of the frame there are now."""
        self.types = whole[12 * n : 13 * n]
        self.flags = whole[13 * n : 14 * n]
        self.tally = whole[16 * n :].cast("Q")
        """One word: how many frames of RAM the domain has."""
        self.linear = whole[14 * n : 16 * n].cast("h")
        """Of a table: how many linear entries it has, or as a negative number how many name it (never both)."""
        self._lowest_free = 0
        """No frame below is free, so that giving a domain many frames one by one does not look at all of them."""

    def index(self, mfn: int) -> int:
        """Frame index of an MFN that the domain owns, or EINVAL."""
        i = mfn - self.base
        if not 0 <= i < self.count or not self.flags[i] & FrameFlag.ALLOCATED:
            raise XenError(Errno.EINVAL, f"MFN {mfn:#x} does not belong to the domain")
        return i

    def mfn(self, index: int) -> Mfn:
        return Mfn(self.base + index)

    def allocate(self, index: int) -> None:
        """Give the frame to the domain, untyped, with the one reference that being allocated is."""
        self.flags[index] = FrameFlag.ALLOCATED | FrameFlag.RESERVED | (self.flags[index] & FrameFlag.CODE_SEEN)
        self.refs[index] = 1
        self.type_counts[index] = 0
        self.types[index] = FrameType.NONE
        self.outside.admit(index)
        self.tally[0] += 1

    def allocate_special(self, index: int) -> None:
        """A frame shared with the hypervisor: permanently of type writable."""
        self.flags[index] = FrameFlag.ALLOCATED | FrameFlag.SPECIAL | FrameFlag.VALIDATED
        self.refs[index] = 1
        self.type_counts[index] = 1
        self.types[index] = FrameType.WRITABLE

    @property
    def allocated(self) -> int:
        """Frames of RAM that the domain has."""
        return self.tally[0]

    def get(self, index: int) -> None:
        self.refs[index] += 1

    def put(self, index: int) -> bool:
        """Drop a reference; True when that was the last one and the frame is free now."""
        left = self.refs[index] - 1
        self.refs[index] = left
        if left:
            return False
        self.flags[index] &= FrameFlag.CODE_SEEN
        self.outside.turn_away(index)
        self.tally[0] -= 1
        self._lowest_free = min(self._lowest_free, index)
        return True

    def find_free(self, n: int) -> int:
        """First index of n adjoining frames of RAM that nobody has; ENOMEM when there are none."""
        run = 0
        flags = self.flags
        for i in range(self._lowest_free, self.geometry.max_pages):
            if flags[i] & FrameFlag.ALLOCATED:
                if i == self._lowest_free:
                    self._lowest_free = i + 1
                run = 0
                continue
            run += 1
            if run == n:
                return i - n + 1
        raise XenError(Errno.ENOMEM, f"no {n} adjoining frames are free")

    def statistics(self) -> dict[str, int]:
        """How many frames are of which type."""
        names = {v: k for k, v in vars(FrameType).items() if k.isupper()}
        tally: dict[str, int] = {f"type_{name.lower()}": 0 for name in names.values()}
        for i in range(self.count):
            if self.flags[i] & FrameFlag.ALLOCATED and self.type_counts[i]:
                tally[f"type_{names[self.types[i]].lower()}"] += 1
        return tally | {"allocated": self.allocated}

    def save(self) -> dict[str, Any]:
        return {"store": bytes(self._store)}

    def restore(self, state: dict[str, Any]) -> None:
        self._store[:] = state["store"]
        self._lowest_free = 0
        for i in range(self.count):
            if self._is_open(i):
                self.outside.admit(i)
            else:
                self.outside.turn_away(i)

    def _is_open(self, i: int) -> bool:
        """Whether that frame may be written from outside: the domain's, and no table or descriptors."""
        if not self.flags[i] & FrameFlag.ALLOCATED or self.flags[i] & FrameFlag.SPECIAL:
            return False
        return not self.type_counts[i] or self.types[i] == FrameType.WRITABLE

    def close(self) -> None:
        for view in (self.refs, self.type_counts, self.code_maps, self.types, self.flags, self.linear, self.tally):
            view.release()
