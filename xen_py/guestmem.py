# SPDX-License-Identifier: GPL-2.0-only
"""Reading and writing guest memory by guest virtual address, as the hypervisor's copy_from_guest does.

The walk goes through the guest's own tables (which are validated, so it cannot leave the domain's memory), honours
present and write permission, sets accessed and dirty bits as a CPU would, and refuses the hypervisor's addresses.
Anything else is EFAULT. Callers copy first and check the copy: the guest may change its memory at any time.
Owned by the domain's thread.
"""

from __future__ import annotations

from struct import Struct

from xen_py.abi.xen import HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START
from xen_py.memory import GuestMemory
from xen_py.mmu import ACCESSED, DIRTY, FRAME_MASK, PRESENT, RW
from xen_py.types import Errno, XenError

_u64 = Struct("<Q")


class GuestAccess:
    """Access to one domain's memory through the page tables whose L4 is `root_index`."""

    def __init__(self, memory: GuestMemory) -> None:
        self._words = memory.words
        self._bytes = memory.bytes
        self._base = memory.geometry.mfn_base
        self.root_index = 0
        """Frame index of the L4 table in force."""

    def translate(self, va: int, write: bool) -> int:
        """Byte offset in the domain's memory of a guest virtual address; EFAULT when it is not mapped so."""
        if HYPERVISOR_VIRT_START <= va < HYPERVISOR_VIRT_END or not (va < 1 << 47 or va >= (1 << 64) - (1 << 47)):
            raise XenError(Errno.EFAULT, f"address {va:#x} is not the guest's")
        words = self._words
        base = self._base
        need = PRESENT | RW if write else PRESENT
        e4 = words[self.root_index * 512 + (va >> 39 & 511)]
        if e4 & need != need:
            raise XenError(Errno.EFAULT, f"address {va:#x} is not mapped")
        e3 = words[(((e4 & FRAME_MASK) >> 12) - base) * 512 + (va >> 30 & 511)]
        if e3 & need != need:
            raise XenError(Errno.EFAULT, f"address {va:#x} is not mapped")
        e2 = words[(((e3 & FRAME_MASK) >> 12) - base) * 512 + (va >> 21 & 511)]
        if e2 & need != need:
            raise XenError(Errno.EFAULT, f"address {va:#x} is not mapped")
        at = (((e2 & FRAME_MASK) >> 12) - base) * 512 + (va >> 12 & 511)
        e1 = words[at]
        if e1 & need != need:
            raise XenError(Errno.EFAULT, f"address {va:#x} is not mapped{' writable' if write else ''}")
        used = ACCESSED | DIRTY if write else ACCESSED
        if e1 & used != used:
            words[at] = e1 | used
        return (((e1 & FRAME_MASK) >> 12) - base) << 12 | va & 0xFFF

    def readable(self, va: int) -> bool:
        try:
            self.translate(va, False)
        except XenError:
            return False
        return True

    def read(self, va: int, size: int) -> bytes:
        room = 4096 - (va & 0xFFF)
        if size <= room:
            at = self.translate(va, False)
            return bytes(self._bytes[at : at + size])
        parts = []
        while size:
            n = min(size, 4096 - (va & 0xFFF))
            at = self.translate(va, False)
            parts.append(self._bytes[at : at + n])
            va = va + n & 0xFFFFFFFFFFFFFFFF
            size -= n
        return b"".join(parts)

    def write(self, va: int, data: bytes) -> None:
        size = len(data)
        done = 0
        while done < size:
            n = min(size - done, 4096 - (va & 0xFFF))
            at = self.translate(va, True)
            self._bytes[at : at + n] = data[done : done + n]
            va = va + n & 0xFFFFFFFFFFFFFFFF
            done += n

    def read_u64(self, va: int) -> int:
        if va & 7:
            return int(_u64.unpack(self.read(va, 8))[0])
        return self._words[self.translate(va, False) >> 3]

    def write_u64(self, va: int, value: int) -> None:
        if va & 7:
            self.write(va, _u64.pack(value))
        else:
            self._words[self.translate(va, True) >> 3] = value
