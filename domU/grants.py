# SPDX-License-Identifier: GPL-2.0-only
"""A Python guest's grants: which of its pages others may use, and which of others' it uses.

The guest writes the entries itself; the hypervisor marks those in use (GTF_reading, GTF_writing), and such a grant
cannot be taken back: `end` says so, and the page must stay what it is until it can. The table grows as needed.

Owned by the domain's thread, which also sets the marks, so a plain write of an entry cannot race with them.
Source: public/grant_table.h (version 1).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from struct import Struct
from typing import Any

from domU.kernel import Kernel, Page
from xen_py.abi import grant_table as abi
from xen_py.abi.grant_table import ENTRIES_PER_FRAME, RESERVED_ENTRIES, GnttabOp, GrantFlag, GrantStatus, MapFlag
from xen_py.abi.xen import DOMID_SELF, Hypercall
from xen_py.doorbell import fence
from xen_py.types import PAGE_SHIFT, PAGE_SIZE, DomId, GrantRef, Mfn

_LIST_OFFSET = 1024
"""In the argument page, behind the structure."""


class NoGrants(Exception):
    """The grant table is full: more than its frames can hold is granted or still in use by others."""


class GrantRefused(Exception):
    """The hypervisor refused to map a grant; the text has the status."""


@dataclass(eq=False, slots=True)
class MappedGrant:
    """A page of another domain, mapped."""

    domid: DomId
    ref: GrantRef
    data: memoryview
    """4096 bytes, read-only for a read-only mapping; released by `unmap`."""
    handle: int
    bus_address: int


class Grants:
    """The grant references of one guest."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._frames: list[memoryview] = []
        self._free: list[int] = []
        self._granted: dict[GrantRef, Page] = {}
        self._lingering: dict[GrantRef, Page | None] = {}
        """Taken back, but in use when they were; with the page to free then."""
        self._grow()

    def grant(self, domid: DomId, page: Page, *, readonly: bool = False) -> GrantRef:
        """Let `domid` use the page until `end`."""
        if not self._free:
            self.collect()
        if not self._free:
            self._grow()
        ref = GrantRef(self._free.pop())
        words = self._entry(ref)
        words[1] = page.mfn
        fence()  # frame before the flags that make the entry valid
        words[0] = domid << 16 | GrantFlag.PERMIT_ACCESS | (GrantFlag.READONLY if readonly else 0)
        words.release()
        self._granted[ref] = page
        return ref

    def end(self, ref: GrantRef) -> bool:
        """Take a grant back; False while somebody uses it: then nothing has changed."""
        words = self._entry(ref)
        if words[0] & (GrantFlag.READING | GrantFlag.WRITING):
            words.release()
            return False
        words[0] = 0
        words.release()
        del self._granted[ref]
        self._free.append(ref)
        return True

    def end_and_free(self, ref: GrantRef) -> None:
        """Take a grant back and free its page: at once, or later if somebody still uses it."""
        page = self._granted.get(ref)
        if page is None:
            return  # the guest is over
        if self.end(ref):
            self._kernel.free(page)
        else:
            self._lingering[ref] = page

    def collect(self) -> int:
        """Look again at what was in use when it was to be freed; how many still are."""
        for ref, page in list(self._lingering.items()):
            if self.end(ref):
                del self._lingering[ref]
                if page is not None:
                    self._kernel.free(page)
        return len(self._lingering)

    def revoke(self, ref: GrantRef) -> None:
        """Clear an entry whoever uses it, as no correct guest does: for tests of backends.

        What is pinned stays pinned; the page must not be used for anything else.
        """
        words = self._entry(ref)
        words[0] &= GrantFlag.READING | GrantFlag.WRITING
        words.release()

    # ---- grants of others ----

    def map(self, domid: DomId, ref: GrantRef, *, readonly: bool = False) -> MappedGrant:
        """Map a page that another domain has granted to this one; GrantRefused when it cannot be.

        As a device would have it (GNTMAP_device_map): the guest sees its memory without page tables.
        """
        flags = MapFlag.DEVICE | (MapFlag.READONLY if readonly else 0)
        fields = self._operate(GnttabOp.MAP_GRANT_REF, abi.map_grant_ref, 0, flags, ref, domid, 0, 0, 0)
        _, _, _, _, status, handle, bus_address = fields
        if status != GrantStatus.OKAY:
            raise GrantRefused(f"grant {ref} of domain {domid}: {GrantStatus(status).name.lower()}")
        domain, mfn = self._kernel.domain, Mfn(bus_address >> PAGE_SHIFT)
        data = domain.memory.frame(mfn) if domid == domain.domid else domain.foreign.frame(mfn)
        return MappedGrant(domid, ref, data.toreadonly() if readonly else data, handle, bus_address)

    def unmap(self, mapped: MappedGrant) -> None:
        """Give it back. Views of `data` that are still held show nothing of it any more."""
        mapped.data.release()
        fields = self._operate(GnttabOp.UNMAP_GRANT_REF, abi.unmap_grant_ref, 0, mapped.bus_address, mapped.handle, 0)
        if fields[3] != GrantStatus.OKAY:
            raise GrantRefused(f"handle {mapped.handle}: {GrantStatus(fields[3]).name.lower()}")

    def _operate(self, command: GnttabOp, layout: Struct, *fields: int) -> tuple[int, ...]:
        return layout.unpack(self._kernel.call_with(Hypercall.GRANT_TABLE_OP, command, layout.pack(*fields), 1))

    def statistics(self) -> dict[str, Any]:
        return {"granted": len(self._granted), "lingering": len(self._lingering), "grant_frames": len(self._frames)}

    # ---- the table ----

    def _entry(self, ref: int) -> memoryview:
        """The two words of an entry: flags and domid, frame."""
        frame, number = divmod(ref, ENTRIES_PER_FRAME)
        at = number * abi.ENTRY_SIZE
        return self._frames[frame][at : at + abi.ENTRY_SIZE].cast("I")

    def _grow(self) -> None:
        """One more frame, and its entries."""
        wanted = len(self._frames) + 1
        size = abi.setup_table.size
        structure = abi.setup_table.pack(DOMID_SELF, wanted, 0, self._kernel.argument_va + _LIST_OFFSET)
        room = structure.ljust(_LIST_OFFSET, b"\0") + bytes(8 * wanted)
        if len(room) > PAGE_SIZE:
            raise NoGrants(f"a table of {wanted} frames")
        answer = self._kernel.call_with(Hypercall.GRANT_TABLE_OP, GnttabOp.SETUP_TABLE, room, 1)
        status = GrantStatus(abi.setup_table.unpack(answer[:size])[2])
        if status != GrantStatus.OKAY:
            raise NoGrants(
                f"{len(self._granted)} grants are out, the table cannot have {wanted} frames ({status.name.lower()});"
                " xl.cfg's max_grant_frames says how many it may have"
            )
        at = _LIST_OFFSET + 8 * (wanted - 1)
        frame = Mfn(int.from_bytes(answer[at : at + 8], "little"))
        self._frames.append(self._kernel.domain.memory.frame(frame))
        first = (wanted - 1) * ENTRIES_PER_FRAME
        self._free += range(first + ENTRIES_PER_FRAME - 1, max(first, RESERVED_ENTRIES) - 1, -1)

    def release(self) -> None:
        """The guest is over: let go of its memory."""
        self._granted.clear()
        self._lingering.clear()
        for frame in self._frames:
            with suppress(BufferError):
                frame.release()
