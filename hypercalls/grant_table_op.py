# SPDX-License-Identifier: GPL-2.0-only
"""grant_table_op: set up and ask for grant tables, and use grants (grant_table.h, grant_table.c); version 1.

An operation's own trouble goes into its `status`; the call fails only for what concerns all of it. Mapping and copying
are in modules of their own. Frames are not given away on this host, as on a Xen started with gnttab=no-transfer.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from hypercalls import grant_copy, grant_map
from hypercalls.grant_domains import is_there, status_of
from xen_py.abi import grant_table as abi
from xen_py.abi.grant_table import GnttabOp, GrantStatus
from xen_py.abi.xen import DOMID_SELF, HYPERVISOR_VIRT_END, Hypercall
from xen_py.domain import Domain
from xen_py.grants import GrantError
from xen_py.types import Errno, XenError
from xen_py.vcpu import Vcpu

_ONE_AT_A_TIME = {GnttabOp.SETUP_TABLE, GnttabOp.QUERY_SIZE, GnttabOp.GET_STATUS_FRAMES}


def grant_table_op(d: Domain, v: Vcpu, command: int, arg: int, count: int, *_: int) -> int:
    command &= 0xFFFFFFFF
    count &= 0xFFFFFFFF
    if count >> 31:
        raise XenError(Errno.EINVAL, f"{count} grant operations at once")
    if command >> abi.COMMAND_BITS:
        raise XenError(Errno.EINVAL, f"grant_table_op {command:#x}")
    if command in _LISTS:
        layout, operation = _LISTS[command]
        _check_list(arg)
        return _each(d, v, command, arg, count, layout.size, operation)
    if command in _SINGLE:
        if command in _ONE_AT_A_TIME and count != 1:
            raise XenError(Errno.EINVAL, f"grant_table_op {command} does one table at a time")
        return _SINGLE[command](d, arg)
    if command == GnttabOp.TRANSFER:
        _check_list(arg)
        raise XenError(Errno.EOPNOTSUPP, "frames cannot be given to another domain")
    raise XenError(Errno.ENOSYS, f"grant_table_op {command}")


def _check_list(at: int) -> None:
    """guest_handle_okay: the list begins outside the hypervisor's addresses; the rest shows when it is used."""
    if 1 << 47 <= at < HYPERVISOR_VIRT_END:
        raise XenError(Errno.EFAULT, f"a list at {at:#x}")


def _each(
    d: Domain, v: Vcpu, command: int, at: int, count: int, size: int, operation: Callable[[Domain, Vcpu, int], None]
) -> int:
    """The operation on each element of a list, leaving the rest for later when somebody wants the domain's thread."""
    for n in range(count):
        if n and d.must_yield():
            return d.continue_with(Hypercall.GRANT_TABLE_OP, command, at + n * size, count - n)
        operation(d, v, at + n * size)
    return 0


def _setup_table(d: Domain, at: int) -> int:
    owner, frames, _status, list_at = abi.setup_table.unpack(d.access.read(at, abi.setup_table.size))
    _check_list(list_at)
    status = status_of(d, owner)
    if status == GrantStatus.OKAY and frames > d.grants.max_frames:
        status = GrantStatus.GENERAL_ERROR
    if status == GrantStatus.OKAY:
        d.grants.grow(frames)
        for n in range(frames):
            try:
                d.access.write(list_at + 8 * n, d.spec.memory.grant_mfn(n).to_bytes(8, "little"))
            except XenError:
                status = GrantStatus.BAD_VIRT_ADDR
                break
    _write_status(d, at + abi.SETUP_STATUS, status)
    return 0


def _query_size(d: Domain, at: int) -> int:
    owner, now, limit, _status = abi.query_size.unpack(d.access.read(at, abi.query_size.size))
    status = status_of(d, owner)
    if status == GrantStatus.OKAY:
        now, limit = d.grants.nr_frames, d.grants.max_frames
    d.access.write(at, abi.query_size.pack(owner, now, limit, status))
    return 0


def _set_version(d: Domain, at: int) -> int:
    """Version 2 is answered as by a host with gnttab=max-ver:1; the version in force comes back in any case."""
    (wanted,) = abi.set_version.unpack(d.access.read(at, abi.set_version.size))
    d.access.write(at, abi.set_version.pack(1))
    if wanted == 1:
        return 0
    return -Errno.ENOSYS if wanted == 2 else -Errno.EINVAL


def _get_version(d: Domain, at: int) -> int:
    owner, _version = abi.get_version.unpack(d.access.read(at, abi.get_version.size))
    if owner not in (DOMID_SELF, d.domid):
        raise XenError(Errno.EPERM if is_there(d, owner) else Errno.ESRCH, f"grant table of domain {owner}")
    d.access.write(at + abi.GET_VERSION_VERSION, (1).to_bytes(4, "little"))
    return 0


def _get_status_frames(d: Domain, at: int) -> int:
    """There are status frames in version 2 only, so none can be asked for."""
    frames, owner, _status, list_at = abi.get_status_frames.unpack(d.access.read(at, abi.get_status_frames.size))
    _check_list(list_at)
    status = status_of(d, owner)
    if status == GrantStatus.OKAY and frames:
        status = GrantStatus.GENERAL_ERROR
    _write_status(d, at + abi.STATUS_FRAMES_STATUS, status)
    return 0


def _swap(d: Domain, _v: Vcpu, at: int) -> None:
    a, b, _status = abi.swap_grant_ref.unpack(d.access.read(at, abi.swap_grant_ref.size))
    status = GrantStatus.OKAY
    try:
        d.grants.swap(a, b)
    except GrantError as error:
        status = error.status
    _write_status(d, at + abi.SWAP_STATUS, status)


def _write_status(d: Domain, at: int, status: GrantStatus) -> None:
    d.access.write(at, status.to_bytes(2, "little", signed=True))


_LISTS: dict[int, tuple[Struct, Callable[[Domain, Vcpu, int], None]]] = {
    GnttabOp.MAP_GRANT_REF: (abi.map_grant_ref, grant_map.map_grant_ref),
    GnttabOp.UNMAP_GRANT_REF: (abi.unmap_grant_ref, grant_map.unmap_grant_ref),
    GnttabOp.UNMAP_AND_REPLACE: (abi.unmap_grant_ref, grant_map.unmap_and_replace),
    GnttabOp.COPY: (abi.copy, grant_copy.copy),
    GnttabOp.SWAP_GRANT_REF: (abi.swap_grant_ref, _swap),
}
_SINGLE: dict[int, Callable[[Domain, int], int]] = {
    GnttabOp.SETUP_TABLE: _setup_table,
    GnttabOp.QUERY_SIZE: _query_size,
    GnttabOp.SET_VERSION: _set_version,
    GnttabOp.GET_STATUS_FRAMES: _get_status_frames,
    GnttabOp.GET_VERSION: _get_version,
}
