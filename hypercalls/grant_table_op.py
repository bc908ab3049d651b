# SPDX-License-Identifier: GPL-2.0-only
"""grant_table_op as far as a frontend needs it to publish grants: version 1 tables (grant_table.h).

A sub-operation's own trouble goes into its `status`; the call then returns 0.
"""

from __future__ import annotations

from struct import Struct

from xen_py.abi.xen import DOMID_SELF
from xen_py.domain import Domain
from xen_py.memory import GRANT_FRAMES
from xen_py.types import Errno, XenError
from xen_py.vcpu import Vcpu

_setup = Struct("<HxxIhxxxxxxQ")
_query = Struct("<HxxIIhxx")
_version = Struct("<HxxI")
_SETUP_TABLE, _QUERY_SIZE, _SET_VERSION, _GET_STATUS_FRAMES, _GET_VERSION = 2, 6, 8, 9, 10
_OKAY, _GENERAL_ERROR, _BAD_DOMAIN, _PERMISSION_DENIED = 0, -1, -2, -8


def grant_table_op(d: Domain, v: Vcpu, command: int, arg: int, count: int, *_: int) -> int:
    command &= 0xFFFFFFFF
    count &= 0xFFFFFFFF
    if count >> 31:
        raise XenError(Errno.EINVAL, f"{count} grant operations at once")
    if command == _SETUP_TABLE:
        if count != 1:
            raise XenError(Errno.EINVAL, "setup_table does one table at a time")
        owner, frames, _status, list_at = _setup.unpack(d.access.read(arg, 24))
        d.access.write(arg, _setup.pack(owner, frames, _setup_table(d, owner, frames, list_at), list_at))
        return 0
    if command == _QUERY_SIZE:
        if count != 1:
            raise XenError(Errno.EINVAL, "query_size asks for one table at a time")
        owner, *_old = _query.unpack(d.access.read(arg, 16))
        status = _owner_status(d, owner)
        reply = (d.grant_frames, GRANT_FRAMES) if status == _OKAY else (0, 0)
        d.access.write(arg, _query.pack(owner, *reply, status))
        return 0
    if command == _SET_VERSION:
        wanted = int.from_bytes(d.access.read(arg, 4), "little")
        if wanted not in (1, 2):
            raise XenError(Errno.EINVAL, f"grant table version {wanted}")
        d.access.write(arg, (1).to_bytes(4, "little"))
        return 0 if wanted == 1 else -Errno.ENOSYS
    if command == _GET_VERSION:
        owner, _old_version = _version.unpack(d.access.read(arg, 8))
        if _owner_status(d, owner) != _OKAY:
            raise XenError(Errno.EPERM if owner == 0 else Errno.ESRCH, f"grant table of domain {owner}")
        d.access.write(arg, _version.pack(owner, 1))
        return 0
    raise XenError(Errno.ENOSYS, f"grant_table_op {command}")


def _owner_status(d: Domain, owner: int) -> int:
    if owner in (DOMID_SELF, d.domid):
        return _OKAY
    return _PERMISSION_DENIED if owner == 0 else _BAD_DOMAIN


def _setup_table(d: Domain, owner: int, frames: int, list_at: int) -> int:
    status = _owner_status(d, owner)
    if status != _OKAY:
        return status
    if frames > GRANT_FRAMES:
        return _GENERAL_ERROR
    d.grant_frames = max(d.grant_frames, frames)
    mfns = b"".join(d.spec.memory.grant_mfn(n).to_bytes(8, "little") for n in range(frames))
    try:
        d.access.write(list_at, mfns)
    except XenError:
        raise XenError(Errno.EFAULT, "frame list cannot be written") from None
    return _OKAY
