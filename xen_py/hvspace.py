# SPDX-License-Identifier: GPL-2.0-only
"""The hypervisor's part of every address space: L4 slots 256 and up.

Slot 256 is the machine-to-phys table, readable by the guest. Slot 257 is private: for each vCPU the 16 pages of its
GDT and the 16 of its LDT, and a window through which a frame can be named while its translated code is dropped.

Everything lies in one anonymous block that the engine sees at `HV_MACHINE`, above all frames of any guest and inside
the 40 bits of address that the emulator knows. The tables here are the hypervisor's own: they have no page types.
Owned by the domain's thread.
"""

from __future__ import annotations

import mmap
import zlib

from xen_py.abi.xen import FIRST_RESERVED_GDT_PAGE, INVALID_M2P_ENTRY
from xen_py.doorbell import fence
from xen_py.engine import Engine
from xen_py.frames import FrameFlag, FrameTable
from xen_py.memory import MFN_LIMIT, GuestMemory
from xen_py.types import PAGE_SIZE

HV_MACHINE = 0xFE_0000_0000
"""Machine address of the block."""

PRESENT, RW, USER, ACCESSED, DIRTY = 1, 2, 4, 0x20, 0x40
NX = 1 << 63

PRIVATE_VA = 0xFFFF808000000000
VCPU_SPAN = 32 * PAGE_SIZE
GDT_LIMIT = (FIRST_RESERVED_GDT_PAGE + 1) * PAGE_SIZE - 1
LDT_OFFSET = 16 * PAGE_SIZE
WINDOW_PAGES = 256
WINDOW_VA = PRIVATE_VA + (1 << 30)

_RESERVED_DESCRIPTORS = {
    # selector: descriptor; the flat ring-3 segments that Xen promises (arch-x86/xen-x86_64.h), and ring 0's own
    0xE008: 0x00AF9B000000FFFF,
    0xE010: 0x00CF93000000FFFF,
    0xE020: 0x00CFFB000000FFFF,
    0xE028: 0x00CFF3000000FFFF,
    0xE030: 0x00AFFB000000FFFF,
}


def gdt_va(vcpu: int) -> int:
    return PRIVATE_VA + vcpu * VCPU_SPAN


def ldt_va(vcpu: int) -> int:
    return gdt_va(vcpu) + LDT_OFFSET


class HypervisorSpace:
    """The block, and the L4 entries that make it visible."""

    def __init__(self, frames: FrameTable, memory: GuestMemory, engine: Engine, vcpus: int) -> None:
        self._frames = frames
        self._memory = memory
        self._engine = engine
        geometry = frames.geometry
        m2p_ones = geometry.mfn_base * 8 // PAGE_SIZE
        m2p_own = -(-geometry.nr_frames * 8 // PAGE_SIZE)
        m2p_l1 = -(-(m2p_ones + m2p_own) // 512)
        m2p_l2 = -(-m2p_l1 // 512)
        private_l1 = -(-vcpus * 32 // 512)
        # pages: ones, zero, reserved GDT, m2p data, m2p L1s, L2s, L3, its L1 and L2 of ones, private L1s, L2,
        # window L1, L2, L3
        total = 3 + m2p_own + m2p_l1 + m2p_l2 + 1 + 2 + private_l1 + 1 + 2 + 1
        self._block = mmap.mmap(-1, total * PAGE_SIZE)
        self.words = memoryview(self._block).cast("Q")
        self._next = 0
        ones, zero, reserved = self._take(1), self._take(1), self._take(1)
        self._zero = zero
        self.words[ones * 512 : ones * 512 + 512] = memoryview(b"\xff" * PAGE_SIZE).cast("Q")
        for selector, descriptor in _RESERVED_DESCRIPTORS.items():
            self.words[reserved * 512 + (selector >> 3) % 512] = descriptor

        self._m2p = self._take(m2p_own)
        """Word index / 512 of the entry of MFN mfn_base."""
        self.m2p = self.words[self._m2p * 512 : self._m2p * 512 + geometry.nr_frames]
        for i in range(m2p_own * 512):
            self.words[self._m2p * 512 + i] = INVALID_M2P_ENTRY
        readable = PRESENT | USER | ACCESSED | NX
        table = PRESENT | RW | USER | ACCESSED | DIRTY
        l1 = self._take(m2p_l1)
        for page in range(m2p_ones + m2p_own):
            data = ones if page < m2p_ones else self._m2p + page - m2p_ones
            self.words[l1 * 512 + page] = self._entry(data, readable)
        # frames of others and none at all: invalid, by one page, one L1 and one L2 table for all of them
        for page in range(m2p_ones + m2p_own, m2p_l1 * 512):
            self.words[l1 * 512 + page] = self._entry(ones, readable)
        ones_l1, ones_l2 = self._take(1), self._take(1)
        for k in range(512):
            self.words[ones_l1 * 512 + k] = self._entry(ones, readable)
            self.words[ones_l2 * 512 + k] = self._entry(ones_l1, table)
        self._slots = [self._tower(l1, m2p_l1, m2p_l2, table, ones_l1, ones_l2)]

        self._private_l1 = self._take(private_l1)
        for vcpu in range(vcpus):
            for page in range(FIRST_RESERVED_GDT_PAGE):
                self.set_gdt_page(vcpu, page, None)
            at = self._private_l1 * 512 + vcpu * 32
            self.words[at + FIRST_RESERVED_GDT_PAGE] = self._entry(reserved, PRESENT | ACCESSED | RW | DIRTY | NX)
        private_l2 = self._take(1)
        for k in range(private_l1):
            self.words[private_l2 * 512 + k] = self._entry(self._private_l1 + k, table)
        self._window_l1 = self._take(1)
        window_l2 = self._take(1)
        self.words[window_l2 * 512] = self._entry(self._window_l1, table)
        private_l3 = self._take(1)
        self.words[private_l3 * 512] = self._entry(private_l2, table)
        self.words[private_l3 * 512 + 1] = self._entry(window_l2, table)
        self._slots.append(self._entry(private_l3, table))

        self._window_next = 0
        self._code_sums: dict[int, int] = {}
        engine.map(HV_MACHINE, memoryview(self._block))

    def _take(self, pages: int) -> int:
        first = self._next
        self._next += pages
        return first

    def _entry(self, page: int, flags: int) -> int:
        return (HV_MACHINE + page * PAGE_SIZE) | flags

    def _tower(self, l1: int, n1: int, n2: int, flags: int, rest_l1: int, rest_l2: int) -> int:
        """L2 and L3 tables over a run of L1 tables, and over MFN_LIMIT frames in all; the L4 entry for them."""
        l2 = self._take(n2)
        for k in range(n2 * 512):
            self.words[l2 * 512 + k] = self._entry(l1 + k if k < n1 else rest_l1, flags)
        l3 = self._take(1)
        for k in range(MFN_LIMIT * 8 >> 30):
            self.words[l3 * 512 + k] = self._entry(l2 + k if k < n2 else rest_l2, flags)
        return self._entry(l3, flags)

    @property
    def m2p_entry(self) -> int:
        """L4 slot 256, through which the machine-to-phys table shows."""
        return self._slots[0]

    def fill_l4(self, words: memoryview, at: int) -> None:
        """Put the hypervisor's slots into the L4 table that starts at that word."""
        words[at + 256] = self._slots[0]
        words[at + 257] = self._slots[1]
        for slot in range(258, 272):
            words[at + slot] = 0

    def hide_m2p(self, words: memoryview, at: int) -> None:
        """VMASST m2p_strict: a user-mode L4 does not show the machine-to-phys table."""
        words[at + 256] = 0

    def set_gdt_page(self, vcpu: int, page: int, machine_address: int | None) -> None:
        """Let a page of that vCPU's GDT be this guest frame; None for a page of zeros."""
        at = self._private_l1 * 512 + vcpu * 32 + page
        flags = PRESENT | ACCESSED | RW | DIRTY | NX
        self.words[at] = self._entry(self._zero, flags) if machine_address is None else machine_address | flags

    def set_ldt_page(self, vcpu: int, page: int, machine_address: int | None) -> None:
        """The same for the LDT; None for not present."""
        at = self._private_l1 * 512 + vcpu * 32 + 16 + page
        self.words[at] = 0 if machine_address is None else machine_address | PRESENT | ACCESSED | RW | DIRTY | NX

    def reserved_descriptor(self, selector: int) -> int:
        """The hypervisor's own descriptor with that selector (RPL 0), 0 when there is none."""
        return _RESERVED_DESCRIPTORS.get(selector, 0)

    def gdt_pages(self, vcpu: int) -> memoryview:
        """The first words of the vCPU's GDT page entries (for save and tests)."""
        at = self._private_l1 * 512 + vcpu * 32
        return self.words[at : at + 32]

    # Translated code. The emulator keeps translations by machine frame and looks at a store only the first time a
    # mapping without execute permission is written through; so a frame that got new contents while nothing mapped it
    # executable may have stale translations. Every executable mapping passes through the hypervisor, which compares
    # the frame with what it was while it was executable.

    def code_mapped(self, index: int) -> None:
        """The frame's first executable mapping is about to be made, or another one while stores are not watched."""
        flags = self._frames.flags
        if flags[index] & FrameFlag.UNWATCHED:
            flags[index] &= ~FrameFlag.UNWATCHED
            self._engine.flush_tlb()
            if self._frames.code_maps[index]:
                return
        if not flags[index] & FrameFlag.CODE_SEEN:
            flags[index] |= FrameFlag.CODE_SEEN
            self._memory.code_seen[index] = 1
            fence()  # before anything is translated from what a backend may be writing now
            self._code_sums[index] = self._sum(index)
            return
        present = self._sum(index)
        if self._code_sums.get(index) != present:
            self.drop_code(index)
        self._code_sums[index] = present

    def code_unmapped(self, index: int) -> None:
        """The frame's last executable mapping is gone. What changed meanwhile was perhaps not seen by the emulator."""
        if self._code_sums.get(index) != self._sum(index):
            self._code_sums.pop(index, None)

    def written_from_outside(self, index: int) -> None:
        """Somebody other than the guest wrote the frame."""
        flags = self._frames.flags
        if flags[index] & FrameFlag.CODE_SEEN:
            self.drop_code(index)
            if not self._frames.code_maps[index]:  # as good as new: such writes need not be told any more
                flags[index] &= ~FrameFlag.CODE_SEEN
                self._memory.code_seen[index] = 0
                self._code_sums.pop(index, None)

    def _sum(self, index: int) -> int:
        return zlib.crc32(self._memory.bytes[index * PAGE_SIZE : (index + 1) * PAGE_SIZE])

    def drop_code(self, index: int) -> None:
        """Forget translated code of that frame. Uses the current address space, so a CR3 must be loaded."""
        if self._window_next == WINDOW_PAGES:
            self._window_next = 0
        slot = self._window_next
        self._window_next += 1
        at = self._window_l1 * 512 + slot
        machine = self._frames.mfn(index) << 12
        self.words[at] = machine | PRESENT | USER | ACCESSED
        if slot == 0:
            self._engine.flush_tlb()
        self._engine.drop_code(WINDOW_VA + slot * PAGE_SIZE, PAGE_SIZE)
        self.words[at] = 0

    def close(self) -> None:
        self.m2p.release()
        self.words.release()
