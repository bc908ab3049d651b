# SPDX-License-Identifier: GPL-2.0-only
"""physdev_op of a domain without physical devices: only I/O privilege can be set (physdev.h)."""

from __future__ import annotations

from xen_py.domain import Domain
from xen_py.types import Errno, XenError
from xen_py.vcpu import Vcpu

_SET_IOPL, _SET_IOBITMAP = 6, 7


def physdev_op(d: Domain, v: Vcpu, command: int, arg: int, *_: int) -> int:
    command &= 0xFFFFFFFF
    if command == _SET_IOPL:
        iopl = int.from_bytes(d.access.read(arg, 4), "little")
        if iopl > 3:
            raise XenError(Errno.EINVAL, f"IOPL {iopl}")
        v.iopl = iopl << 12
        return 0
    if command == _SET_IOBITMAP:
        raw = d.access.read(arg, 12)
        ports = int.from_bytes(raw[8:], "little")
        if ports > 65536:
            raise XenError(Errno.EINVAL, f"{ports} I/O ports are more than there are")
        v.io_bitmap, v.io_bitmap_ports = int.from_bytes(raw[:8], "little"), ports
        return 0
    raise XenError(Errno.ENOSYS, f"physdev_op {command}")
