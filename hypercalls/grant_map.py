# SPDX-License-Identifier: GPL-2.0-only
"""Mapping grants and unmapping them: GNTTABOP_map_grant_ref, unmap_grant_ref and unmap_and_replace.

Source: map_grant_ref and unmap_common in xen/common/grant_table.c, create_grant_pv_mapping and replace_grant_pv_mapping
in xen/arch/x86/pv/grant_table.c. The reference and the writable type that a mapping for the CPU needs belong to its
page-table entry, as with any entry; those of a mapping for devices belong to the handle. A domain may grant to itself
and map that by its own domid, but not by DOMID_SELF.

Frames of another domain are held on its side, by the pin that belongs to the handle (`xen_py.foreign`): a page-table
entry that the guest overwrites instead of unmapping it leaves the frame pinned, as in Xen it leaves the grant active.
"""

from __future__ import annotations

from hypercalls.grant_domains import others
from xen_py.abi import grant_table as abi
from xen_py.abi.grant_table import GrantStatus, MapFlag
from xen_py.domain import Domain
from xen_py.foreign import OthersGrants
from xen_py.frames import FrameType
from xen_py.grants import GrantError, pins_for
from xen_py.maptrack import Mapping
from xen_py.mmu import AD, AVAIL, FRAME_MASK, NX, PRESENT, RW, USER
from xen_py.types import PAGE_SHIFT, DomId, GrantRef, Mfn, XenError, is_canonical
from xen_py.vcpu import Vcpu

_AVAIL_SHIFT = 9
_KINDS = MapFlag.HOST | MapFlag.DEVICE
_PINS = _KINDS | MapFlag.READONLY


def map_grant_ref(d: Domain, v: Vcpu, at: int) -> None:
    """One element of the list."""
    host_addr, flags, ref, owner, _status, handle, bus = abi.map_grant_ref.unpack(
        d.access.read(at, abi.map_grant_ref.size)
    )
    try:
        handle, bus = _map(d, v, host_addr, flags, ref, owner)
        status = GrantStatus.OKAY
    except GrantError as error:
        status = error.status
    d.access.write(at, abi.map_grant_ref.pack(host_addr, flags, ref, owner, status, handle, bus))


def _map(d: Domain, v: Vcpu, host_addr: int, flags: int, ref: int, owner: int) -> tuple[int, int]:
    """Map one grant; its handle and its bus address."""
    if not flags & _KINDS:
        raise GrantError(GrantStatus.BAD_GNTREF, f"flags {flags:#x} ask for no mapping")
    mapping = Mapping(DomId(owner), GrantRef(ref), flags)
    foreign = others(d, owner) if owner != d.domid else None
    handle = d.maptrack.allocate(mapping)
    if handle is None:
        raise GrantError(GrantStatus.NO_SPACE, "no more handles")
    try:
        if foreign is None:
            _map_own(d, v, host_addr, mapping)
        else:
            _map_foreign(d, v, host_addr, mapping, foreign)
    except GrantError:
        d.maptrack.free(handle)
        raise
    return handle, _frame(d, mapping) << PAGE_SHIFT


def _map_own(d: Domain, v: Vcpu, host_addr: int, mapping: Mapping) -> None:
    flags, ref = mapping.flags, mapping.ref
    host, device, readonly = (bool(flags & bit) for bit in (MapFlag.HOST, MapFlag.DEVICE, MapFlag.READONLY))
    increment = pins_for(host=host, device=device, readonly=readonly)
    index = mapping.index = d.grants.acquire(ref, d.domid, increment, readonly=readonly, mapping=True)
    try:
        if device:
            d.grants.hold(index, readonly=readonly)
        try:
            if host:
                _set(d, _entry_address(d, v, host_addr, flags), _entry(d, mapping))
        except GrantError:
            if device:
                d.grants.let_go(index, readonly=readonly)
            raise
    except GrantError:
        d.grants.release(ref, increment, readonly=readonly)
        raise


def _map_foreign(d: Domain, v: Vcpu, host_addr: int, mapping: Mapping, foreign: OthersGrants) -> None:
    owner, ref, flags = mapping.domid, mapping.ref, mapping.flags
    mapping.index = foreign.map(owner, ref, flags & _PINS)
    try:
        d.foreign.enter(owner)
        try:
            if flags & MapFlag.HOST:
                d.pages.set_foreign(_entry_address(d, v, host_addr, flags), _entry(d, mapping))
        except GrantError:
            d.foreign.leave(owner)
            raise
    except GrantError:
        foreign.unmap(owner, ref, flags & _PINS)
        raise


def unmap_grant_ref(d: Domain, v: Vcpu, at: int) -> None:
    """One element of the list."""
    host_addr, bus, handle, _status = abi.unmap_grant_ref.unpack(d.access.read(at, abi.unmap_grant_ref.size))
    _unmap_one(d, v, at, handle, host_addr, bus, 0)


def unmap_and_replace(d: Domain, v: Vcpu, at: int) -> None:
    """One element of the list: unmap, and move the mapping of another address there."""
    host_addr, new_addr, handle, _status = abi.unmap_grant_ref.unpack(d.access.read(at, abi.unmap_grant_ref.size))
    _unmap_one(d, v, at, handle, host_addr, 0, new_addr)


def _unmap_one(d: Domain, v: Vcpu, at: int, handle: int, host_addr: int, bus: int, new_addr: int) -> None:
    try:
        _unmap(d, v, handle, host_addr, bus, new_addr)
        status = GrantStatus.OKAY
    except GrantError as error:
        status = error.status
    d.access.write(at + abi.UNMAP_STATUS, status.to_bytes(2, "little", signed=True))


def _unmap(d: Domain, v: Vcpu, handle: int, host_addr: int, bus: int, new_addr: int) -> None:
    mapping = d.maptrack.get(handle)
    if mapping is None:
        raise GrantError(GrantStatus.BAD_HANDLE, f"handle {handle:#x}")
    frame = _frame(d, mapping)
    flags = mapping.flags
    host = bool(host_addr and flags & MapFlag.HOST)
    device = bool(bus and flags & MapFlag.DEVICE)
    if device and bus != frame << PAGE_SHIFT:
        raise GrantError(GrantStatus.BAD_DEV_ADDR, f"bus address {bus:#x} is not that of the grant")
    if host:
        _replace(d, v, host_addr, frame, new_addr, flags)
        d.pages.flush()
        mapping.flags &= ~MapFlag.HOST
    if device:
        mapping.flags &= ~MapFlag.DEVICE
    if host or device:
        _release(d, mapping, host=host, device=device)
    if not mapping.flags & _KINDS:
        d.maptrack.free(handle)
        if mapping.domid != d.domid:
            d.foreign.leave(mapping.domid)


def _release(d: Domain, mapping: Mapping, *, host: bool, device: bool) -> None:
    """The grant is used no more for the CPU, for devices, or both."""
    readonly = bool(mapping.flags & MapFlag.READONLY)
    if mapping.domid != d.domid:
        kinds = MapFlag.HOST * host | MapFlag.DEVICE * device
        d.link.others.unmap(mapping.domid, mapping.ref, kinds | mapping.flags & MapFlag.READONLY)
        return
    if device:
        d.grants.let_go(mapping.index, readonly=readonly)
    d.grants.release(mapping.ref, pins_for(host=host, device=device, readonly=readonly), readonly=readonly)


def _frame(d: Domain, mapping: Mapping) -> Mfn:
    """What the mapped frame is to this domain."""
    if mapping.domid == d.domid:
        return d.frames.mfn(mapping.index)
    return d.foreign.mfn(mapping.domid, mapping.index)


def _entry(d: Domain, mapping: Mapping) -> int:
    """The page-table entry of the mapping."""
    return _frame(d, mapping) << PAGE_SHIFT | _entry_flags(mapping.flags)


def _entry_flags(flags: int) -> int:
    """The page-table entry's flags for a mapping."""
    entry = PRESENT | AD | NX | (flags >> abi.MAP_AVAIL_SHIFT << _AVAIL_SHIFT & AVAIL)
    if flags & MapFlag.APPLICATION:
        entry |= USER
    return entry if flags & MapFlag.READONLY else entry | RW


def _entry_address(d: Domain, v: Vcpu, address: int, flags: int) -> int:
    """Where the page-table entry is: `address` is its machine address, or the virtual one that it maps."""
    if flags & MapFlag.CONTAINS_PTE:
        if address & 7:
            raise GrantError(GrantStatus.GENERAL_ERROR, f"page-table entry at {address:#x} is not aligned")
        index = (address >> PAGE_SHIFT) - d.frames.base
        at = index * 512 + ((address & 0xFFF) >> 3)
    else:
        found = d.pages.l1_address(v.root, address) if is_canonical(address) else None
        if found is None:
            raise GrantError(GrantStatus.GENERAL_ERROR, f"no page table for address {address:#x}")
        at, index = found, found // 512
    frames = d.frames
    if not 0 <= index < frames.count or frames.types[index] != FrameType.L1 or not frames.type_counts[index]:
        raise GrantError(GrantStatus.GENERAL_ERROR, f"no L1 table is at {address:#x}")
    return at


def _set(d: Domain, at: int, entry: int) -> None:
    try:
        d.pages.set_l1(at, entry)
    except XenError as error:
        raise GrantError(GrantStatus.GENERAL_ERROR, error.why) from None


def _replace(d: Domain, v: Vcpu, address: int, mfn: int, new_address: int, flags: int) -> None:
    """Take a mapping away; at its place comes what is mapped at `new_address`, unless that is 0.

    What is at `new_address` is gone from there in any case, even when this fails.
    """
    words = d.memory.words
    new_at, replacement = 0, 0
    if new_address:
        if flags & MapFlag.CONTAINS_PTE:
            raise GrantError(GrantStatus.GENERAL_ERROR, "nothing can replace a mapping named by its page-table entry")
        new_at = _entry_address(d, v, new_address, 0)
        replacement = words[new_at]
    try:
        at = _entry_address(d, v, address, flags)
        entry = words[at] if at != new_at else 0
        wanted = PRESENT if flags & MapFlag.READONLY else PRESENT | RW
        if (entry & FRAME_MASK) >> PAGE_SHIFT != mfn or entry & (PRESENT | RW) != wanted:
            raise GrantError(GrantStatus.GENERAL_ERROR, f"the grant is not what is mapped at {address:#x}")
        if replacement & PRESENT and (replacement & FRAME_MASK) >> PAGE_SHIFT >= d.frames.base + d.frames.count:
            d.pages.set_foreign(at, replacement)
        else:
            _set(d, at, replacement)
    finally:
        if new_address:
            d.pages.set_l1(new_at, 0)
