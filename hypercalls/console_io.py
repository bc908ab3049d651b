# SPDX-License-Identifier: GPL-2.0-only
"""console_io: a guest's emergency console (`earlyprintk=xen`). What is written goes to its log; there is no input."""

from __future__ import annotations

from xen_py.domain import Domain
from xen_py.types import Errno, XenError
from xen_py.vcpu import Vcpu

_MOST_AT_ONCE = 1 << 20


def console_io(d: Domain, v: Vcpu, command: int, count: int, buffer: int, *_: int) -> int:
    command &= 0xFFFFFFFF
    count &= 0xFFFFFFFF
    if command == 1:
        return 0
    if command != 0:
        raise XenError(Errno.ENOSYS, f"console_io {command}")
    if count > _MOST_AT_ONCE:
        raise XenError(Errno.EINVAL, f"console_io of {count} bytes")
    d.link.console_write(d.access.read(buffer, count))
    return 0
