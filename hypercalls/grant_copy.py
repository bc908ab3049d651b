# SPDX-License-Identifier: GPL-2.0-only
"""GNTTABOP_copy: bytes from one frame to another, either named by a grant reference or as a frame of one's own.

Source: gnttab_copy in xen/common/grant_table.c. Nothing is mapped; the grants are pinned for the copy only. Bytes from
and for another domain's frames are taken and put there by that domain's own thread.
"""

from __future__ import annotations

from contextlib import ExitStack

from hypercalls.grant_domains import others
from xen_py.abi import grant_table as abi
from xen_py.abi.grant_table import CopyFlag, GrantStatus
from xen_py.abi.xen import DOMID_SELF
from xen_py.domain import Domain
from xen_py.foreign import OthersGrants
from xen_py.frames import FrameType
from xen_py.grants import GrantError, pins_for
from xen_py.types import PAGE_SHIFT, PAGE_SIZE, DomId, GrantRef, XenError
from xen_py.vcpu import Vcpu


def copy(d: Domain, _v: Vcpu, at: int) -> None:
    """One element of the list."""
    fields = abi.copy.unpack(d.access.read(at, abi.copy.size))
    try:
        _copy(d, *fields)
        status = GrantStatus.OKAY
    except GrantError as error:
        status = error.status
    d.access.write(at + abi.COPY_STATUS, status.to_bytes(2, "little", signed=True))


def _copy(
    d: Domain,
    source: int,
    source_domid: int,
    source_offset: int,
    dest: int,
    dest_domid: int,
    dest_offset: int,
    length: int,
    flags: int,
    _status: int,
) -> None:
    if not length:
        return
    from_grant, to_grant = bool(flags & CopyFlag.SOURCE_GREF), bool(flags & CopyFlag.DEST_GREF)
    sources, dests = _others(d, source_domid, from_grant), _others(d, dest_domid, to_grant)
    fits = source_offset + length <= PAGE_SIZE and dest_offset + length <= PAGE_SIZE
    with ExitStack() as stack:
        memory = d.memory.bytes
        if sources is None:
            start = (_claim(d, stack, source, from_grant, readonly=True) << PAGE_SHIFT) + source_offset
            data: bytes | memoryview = memory[start : start + length]
        else:
            data = sources.read(DomId(source_domid), _ref(source), source_offset if fits else 0, length if fits else 0)
        if dests is None:
            dest_index = _claim(d, stack, dest, to_grant, readonly=False)
        elif not fits:
            dests.write(DomId(dest_domid), _ref(dest), 0, b"")
        if not fits:
            raise GrantError(GrantStatus.BAD_COPY_ARG, f"{length} bytes cross a page boundary")
        if dests is None:
            to = (dest_index << PAGE_SHIFT) + dest_offset
            memory[to : to + length] = data
            d.space.written_from_outside(dest_index)
        else:
            dests.write(DomId(dest_domid), _ref(dest), dest_offset, bytes(data))


def _others(d: Domain, domid: int, is_grant: bool) -> OthersGrants | None:
    """The way to that side's grants, None where it is ours. Only one's own frames have numbers, as DOMID_SELF's."""
    if domid == DOMID_SELF:
        return None
    if not is_grant:
        raise GrantError(GrantStatus.PERMISSION_DENIED, "a frame by its number")
    return None if domid == d.domid else others(d, domid)


def _ref(what: int) -> GrantRef:
    return GrantRef(what & 0xFFFFFFFF)


def _claim(d: Domain, stack: ExitStack, what: int, is_grant: bool, *, readonly: bool) -> int:
    """Pin a grant, or take a frame, until `stack` is left; the frame's index."""
    pages = d.pages
    if is_grant:
        ref = _ref(what)
        increment = pins_for(host=True, device=False, readonly=readonly)
        index = d.grants.acquire(ref, d.domid, increment, readonly=readonly, mapping=False)
        stack.callback(d.grants.release, ref, increment, readonly=readonly)
        mfn, gone = int(pages.frames.mfn(index)), GrantStatus.BAD_DOMAIN
    else:
        mfn, gone = what, GrantStatus.BAD_PAGE
    try:
        index = pages.get_page(mfn)
    except XenError:
        raise GrantError(gone, f"MFN {mfn:#x} does not belong to the domain") from None
    stack.callback(pages.put_page, index)
    if not readonly:
        try:
            pages.get_type(index, FrameType.WRITABLE)
        except XenError as error:
            raise GrantError(GrantStatus.GENERAL_ERROR, error.why) from None
        stack.callback(pages.put_type, index)
    return index
