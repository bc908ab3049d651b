# SPDX-License-Identifier: GPL-2.0-only
"""Direct paging: checking and changing the guest's real page tables.

The guest's tables are what the emulated CPU walks, so every entry is checked before it is there, by the rules of
xen/arch/x86/mm.c: an entry may name only frames of the domain; a table entry names a validated table of the level
below; a writable mapping needs the frame's type to be writable. Slots 256-271 of an L4 are the hypervisor's.

Everything works on words of guest memory: an *entry address* is the word index `frame index * 512 + slot`.
Owned by the domain's thread. Changes of mappings need no TLB flush by themselves (the guest asks for those it needs),
but for one: a frame that stops being writable and becomes a table must not be reachable by a stale translation.
"""

from __future__ import annotations

from collections.abc import Callable

from xen_py.descriptors import check_page
from xen_py.frames import FrameFlag, FrameTable, FrameType
from xen_py.hvspace import HypervisorSpace
from xen_py.types import Errno, Mfn, XenError

PRESENT = 1
RW = 2
USER = 4
PWT = 8
PCD = 0x10
ACCESSED = 0x20
DIRTY = 0x40
PAT = PSE = 0x80
GLOBAL = 0x100
AVAIL = 0xE00
AVAIL_HIGH = 0x7FF << 52
GUEST_KERNEL = 1 << 52
GNTTAB = 1 << 62
NX = 1 << 63
FRAME_MASK = 0x000FFFFFFFFFF000
AD = ACCESSED | DIRTY

L1_DISALLOWED = PWT | PCD | PAT | GNTTAB
TABLE_DISALLOWED = PWT | PCD | PSE | GLOBAL
# Bits that may change in an entry without looking at the frames again.
# RW is not among them for tables either: a linear entry (a table naming its own level) must stay read-only.
CHECKED_BITS = ~(NX | AVAIL_HIGH | AVAIL | GLOBAL | DIRTY | ACCESSED | USER)

HYPERVISOR_SLOTS = range(256, 272)


class PageTables:
    """All page tables of one domain."""

    def __init__(
        self,
        frames: FrameTable,
        words: memoryview,
        space: HypervisorSpace,
        flush: Callable[[], None],
        on_free: Callable[[int], None],
    ) -> None:
        self.frames = frames
        self.words = words
        self.space = space
        self.flush = flush
        self._base = frames.base
        self._on_free = on_free
        """Called with the index of a frame whose last reference went."""

    # ---- references ----

    def get_page(self, mfn: int) -> int:
        """Take a reference on a frame of the domain; its index."""
        i = self.frames.index(mfn)
        self.frames.refs[i] += 1
        return i

    def put_page(self, i: int) -> None:
        if self.frames.put(i):
            self._on_free(i)

    def get_type(self, i: int, kind: int) -> None:
        """Take a type reference, changing and validating the type when nobody holds another (EINVAL otherwise)."""
        f = self.frames
        if f.type_counts[i] == 0:
            old = f.types[i]
            if old != kind:
                if old == FrameType.WRITABLE:
                    self.flush()
                f.types[i] = kind
                f.flags[i] &= ~FrameFlag.VALIDATED
            f.type_counts[i] = 1
            if not f.flags[i] & FrameFlag.VALIDATED:
                try:
                    self._validate(i, kind)
                except XenError:
                    f.type_counts[i] = 0
                    f.types[i] = FrameType.NONE
                    raise
                f.flags[i] |= FrameFlag.VALIDATED
            return
        if f.types[i] != kind:
            raise XenError(Errno.EINVAL, f"MFN {f.mfn(i):#x} is in use as type {f.types[i]}, wanted {kind}")
        if not f.flags[i] & FrameFlag.VALIDATED:
            raise XenError(Errno.EINVAL, f"MFN {f.mfn(i):#x} refers to itself")
        f.type_counts[i] += 1

    def put_type(self, i: int) -> None:
        f = self.frames
        left = f.type_counts[i] - 1
        f.type_counts[i] = left
        if left == 0 and FrameType.L1 <= f.types[i] <= FrameType.SEGDESC:
            f.flags[i] &= ~FrameFlag.VALIDATED
            if f.types[i] != FrameType.SEGDESC:
                self._drop_entries(i, f.types[i])
            f.outside.admit(i)

    def get_page_and_type(self, mfn: int, kind: int) -> int:
        i = self.get_page(mfn)
        try:
            self.get_type(i, kind)
        except XenError:
            self.put_page(i)
            raise
        return i

    def put_page_and_type(self, i: int) -> None:
        self.put_type(i)
        self.put_page(i)

    # ---- validation of whole tables ----

    def _validate(self, i: int, kind: int) -> None:
        if kind == FrameType.WRITABLE:
            return
        if self.frames.flags[i] & FrameFlag.SPECIAL:
            raise XenError(Errno.EINVAL, f"MFN {self.frames.mfn(i):#x} is shared with the hypervisor")
        self.frames.outside.bar(i)
        try:
            if kind == FrameType.SEGDESC:
                check_page(self.words[i * 512 : i * 512 + 512])
            else:
                self._validate_table(i, kind)
        except XenError:
            self.frames.outside.admit(i)
            raise

    def _validate_table(self, i: int, level: int) -> None:
        words = self.words
        start = i * 512
        table = words[start : start + 512].tolist()
        done: list[int] = []
        try:
            for slot, entry in enumerate(table):
                if not entry & PRESENT or (level == 4 and slot in HYPERVISOR_SLOTS):
                    continue
                if level == 1:
                    self._get_from_l1e(entry)
                    adjusted = _adjust_l1(entry)
                else:
                    self._get_from_table_entry(entry, level, i)
                    adjusted = entry | USER
                done.append(slot)
                if adjusted != entry:
                    words[start + slot] = adjusted
        except XenError:
            for slot in done:
                self._put_from_entry(words[start + slot], level, i)
            raise
        if level == 4:
            self.space.fill_l4(words, start)

    def _drop_entries(self, i: int, level: int) -> None:
        start = i * 512
        table = self.words[start : start + 512].tolist()
        for slot, entry in enumerate(table):
            if entry & PRESENT and not (level == 4 and slot in HYPERVISOR_SLOTS):
                self._put_from_entry(entry, level, i)

    # ---- single entries ----

    def _get_from_l1e(self, entry: int) -> None:
        """Take what an L1 entry that is about to be there needs: a reference, and the writable type for RW."""
        if entry & L1_DISALLOWED:
            raise XenError(Errno.EINVAL, f"bad L1 flags {entry & L1_DISALLOWED:#x}")
        f = self.frames
        mfn = (entry & FRAME_MASK) >> 12
        i = mfn - self._base
        if not 0 <= i < f.count or not f.flags[i] & FrameFlag.ALLOCATED:
            raise XenError(
                Errno.EINVAL if mfn == FRAME_MASK >> 12 else Errno.EPERM, f"L1 entry names foreign MFN {mfn:#x}"
            )
        f.refs[i] += 1
        if entry & RW:
            # get_type(WRITABLE), here because it is the path taken most
            count = f.type_counts[i]
            if f.types[i] == FrameType.WRITABLE:
                f.type_counts[i] = count + 1
            elif count == 0:
                f.types[i] = FrameType.WRITABLE
                f.flags[i] |= FrameFlag.VALIDATED
                f.type_counts[i] = 1
            else:
                f.refs[i] -= 1
                raise XenError(Errno.EBUSY, f"MFN {mfn:#x} is in use as type {f.types[i]} and cannot be writable")
        if not entry & NX:
            maps = f.code_maps[i]
            if maps == 0 or f.flags[i] & FrameFlag.UNWATCHED:
                self.space.code_mapped(i)
            f.code_maps[i] = maps + 1

    def _put_from_l1e(self, entry: int) -> None:
        f = self.frames
        i = ((entry & FRAME_MASK) >> 12) - self._base
        if i >= f.count:
            return  # another domain's, which the grant's handle keeps
        if not entry & NX:
            maps = f.code_maps[i] - 1
            f.code_maps[i] = maps
            if maps == 0:
                self.space.code_unmapped(i)
        if entry & RW:
            f.type_counts[i] -= 1
        left = f.refs[i] - 1
        f.refs[i] = left
        if left == 0:
            f.refs[i] = 1
            self.put_page(i)

    def _get_from_table_entry(self, entry: int, level: int, holder: int) -> None:
        if entry & TABLE_DISALLOWED:
            raise XenError(Errno.EINVAL, f"bad L{level} flags {entry & TABLE_DISALLOWED:#x}")
        f = self.frames
        mfn = (entry & FRAME_MASK) >> 12
        i = self.get_page(mfn)
        if f.types[i] == level and f.type_counts[i] and not entry & RW:
            # A read-only *linear* page table: an entry that names a table of its own level. The table itself needs
            # no further reference; another one is held by its type. Such entries do not nest: a table that has them
            # cannot be named by them, so that dropping a table never runs down a chain that the guest has made.
            f.refs[i] -= 1
            if i != holder:
                linear = f.linear
                if not f.flags[i] & FrameFlag.VALIDATED or linear[holder] < 0 or not -0x8000 < linear[i] <= 0:
                    raise XenError(Errno.EINVAL, f"linear L{level} entry names a table that is not valid or linear too")
                linear[holder] += 1
                linear[i] -= 1
                f.refs[i] += 1
                f.type_counts[i] += 1
            return
        try:
            self.get_type(i, level - 1)
        except XenError:
            self.put_page(i)
            raise

    def _put_from_entry(self, entry: int, level: int, holder: int) -> None:
        if level == 1:
            self._put_from_l1e(entry)
            return
        i = ((entry & FRAME_MASK) >> 12) - self._base
        if i != holder:
            f = self.frames
            if f.types[i] == level:
                f.linear[holder] -= 1
                f.linear[i] += 1
            self.put_page_and_type(i)

    def set_l1(self, at: int, new: int, preserve_ad: bool = False) -> None:
        """Change one entry of a validated L1 table."""
        words = self.words
        old = words[at]
        if new & PRESENT:
            if new & L1_DISALLOWED:
                raise XenError(Errno.EINVAL, f"bad L1 flags {new & L1_DISALLOWED:#x}")
            new = _adjust_l1(new)
            if not (old ^ new) & CHECKED_BITS:
                if (old ^ new) & NX:
                    self._code_permission_changed(new)
                words[at] = new | (old & AD) if preserve_ad else new
                return
            self._get_from_l1e(new)
        words[at] = new | (old & AD) if preserve_ad and new & PRESENT else new
        if old & PRESENT:
            self._put_from_l1e(old)

    def set_foreign(self, at: int, new: int) -> None:
        """Let an entry of a validated L1 table name another domain's frame, which a grant's handle keeps."""
        old = self.words[at]
        self.words[at] = _adjust_l1(new)
        if old & PRESENT:
            self._put_from_l1e(old)

    def _code_permission_changed(self, new: int) -> None:
        f = self.frames
        i = ((new & FRAME_MASK) >> 12) - self._base
        if i >= f.count:
            return
        if new & NX:
            f.code_maps[i] -= 1
            if f.code_maps[i] == 0:
                self.space.code_unmapped(i)
        else:
            if f.code_maps[i] == 0 or f.flags[i] & FrameFlag.UNWATCHED:
                self.space.code_mapped(i)
            f.code_maps[i] += 1

    def set_table_entry(self, at: int, new: int, level: int, preserve_ad: bool = False) -> None:
        """Change one entry of a validated L2, L3 or L4 table."""
        words = self.words
        holder = at // 512
        if level == 4 and at % 512 in HYPERVISOR_SLOTS:
            raise XenError(Errno.EINVAL, f"L4 slot {at % 512} is the hypervisor's")
        old = words[at]
        if new & PRESENT:
            if new & TABLE_DISALLOWED:
                raise XenError(Errno.EINVAL, f"bad L{level} flags {new & TABLE_DISALLOWED:#x}")
            adjusted = new | USER
            if not (old ^ adjusted) & CHECKED_BITS:
                words[at] = adjusted | (old & AD) if preserve_ad else adjusted
                return
            self._get_from_table_entry(new, level, holder)
            new = adjusted
        words[at] = new | (old & AD) if preserve_ad and new & PRESENT else new
        if old & PRESENT:
            self._put_from_entry(old, level, holder)
        # The emulator does not cache table entries, but a translation made through the old one may be in its TLB.
        self.flush()

    def update(self, machine_address: int, new: int, preserve_ad: bool) -> None:
        """MMU_NORMAL_PT_UPDATE and MMU_PT_UPDATE_PRESERVE_AD: write one word of any frame of the domain."""
        f = self.frames
        i = (machine_address >> 12) - self._base
        if not 0 <= i < f.count or not f.flags[i] & FrameFlag.ALLOCATED:
            raise XenError(Errno.EINVAL, f"mmu_update of foreign MFN {machine_address >> 12:#x}")
        at = i * 512 + ((machine_address & 0xFFF) >> 3)
        if f.type_counts[i]:
            kind = f.types[i]
            if kind == FrameType.L1:
                self.set_l1(at, new, preserve_ad)
                return
            if kind <= FrameType.L4:
                self.set_table_entry(at, new, kind, preserve_ad)
                return
            if kind != FrameType.WRITABLE:
                raise XenError(Errno.EINVAL, f"mmu_update of a descriptor page, MFN {machine_address >> 12:#x}")
        else:
            self.get_type(i, FrameType.WRITABLE)
            self.put_type(i)
        self.words[at] = new

    # ---- pinning and roots ----

    def pin(self, mfn: int, level: int) -> None:
        i = self.get_page_and_type(mfn, level)
        if self.frames.flags[i] & FrameFlag.PINNED:
            self.put_page_and_type(i)
            raise XenError(Errno.EINVAL, f"MFN {mfn:#x} is pinned already")
        self.frames.flags[i] |= FrameFlag.PINNED

    def unpin(self, mfn: int) -> None:
        i = self.frames.index(mfn)
        if not self.frames.flags[i] & FrameFlag.PINNED:
            raise XenError(Errno.EINVAL, f"MFN {mfn:#x} is not pinned")
        self.frames.flags[i] &= ~FrameFlag.PINNED
        self.put_page_and_type(i)

    # ---- walking ----

    def l1_address(self, root: Mfn, va: int) -> int | None:
        """Address of the L1 entry for a virtual address under that L4, or None when a table is missing."""
        words = self.words
        base = self._base
        entry = words[(root - base) * 512 + (va >> 39 & 511)]
        if not entry & PRESENT or va >> 39 & 511 in HYPERVISOR_SLOTS:
            return None
        entry = words[(((entry & FRAME_MASK) >> 12) - base) * 512 + (va >> 30 & 511)]
        if not entry & PRESENT:
            return None
        entry = words[(((entry & FRAME_MASK) >> 12) - base) * 512 + (va >> 21 & 511)]
        if not entry & PRESENT:
            return None
        return (((entry & FRAME_MASK) >> 12) - base) * 512 + (va >> 12 & 511)


def _adjust_l1(entry: int) -> int:
    """As Xen hands L1 entries to the CPU: kernel mappings become user ones too, marked; user ones are global."""
    if not entry & USER:
        entry |= GUEST_KERNEL | USER
    if not entry & GUEST_KERNEL:
        entry |= GLOBAL
    return entry
