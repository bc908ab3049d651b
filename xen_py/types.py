# SPDX-License-Identifier: GPL-2.0-only
"""The identifiers of the machine, each a type of its own, and the two ways things go wrong.

Mixing a PFN with an MFN, or a port of one domain with a port of another, is the classic bug of
this field; a `NewType` costs nothing at run time and lets mypy find it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NewType

DomId = NewType("DomId", int)
"""A domain identifier; 0 is dom0, see `xen_py.abi.xen.DOMID_*` for the reserved ones."""
VcpuId = NewType("VcpuId", int)
Port = NewType("Port", int)
"""An event channel port; meaningful together with the domain that owns it."""
GrantRef = NewType("GrantRef", int)
Mfn = NewType("Mfn", int)
"""A machine frame number. Machine frames are private to a domain: the key across domains is (DomId, Mfn)."""
Pfn = NewType("Pfn", int)
"""A guest's own pseudo-physical frame number."""
Gfn = NewType("Gfn", int)
"""A frame as the guest addresses it: the MFN of a PV guest, the PFN of a translated one."""

PAGE_SHIFT = 12
PAGE_SIZE = 4096


class Errno(IntEnum):
    """Error numbers of the hypercall ABI (xen/include/public/errno.h); guests see them negated."""

    EPERM = 1
    ENOENT = 2
    ESRCH = 3
    EINTR = 4
    EIO = 5
    ENXIO = 6
    E2BIG = 7
    ENOEXEC = 8
    EBADF = 9
    ECHILD = 10
    EAGAIN = 11
    ENOMEM = 12
    EACCES = 13
    EFAULT = 14
    EBUSY = 16
    EEXIST = 17
    EXDEV = 18
    ENODEV = 19
    ENOTDIR = 20
    EISDIR = 21
    EINVAL = 22
    ENFILE = 23
    EMFILE = 24
    ENOSPC = 28
    EROFS = 30
    EMLINK = 31
    EDOM = 33
    ERANGE = 34
    EDEADLK = 35
    ENAMETOOLONG = 36
    ENOLCK = 37
    ENOSYS = 38
    ENOTEMPTY = 39
    ENODATA = 61
    ETIME = 62
    EBADMSG = 74
    EOVERFLOW = 75
    EILSEQ = 84
    ERESTART = 85
    ENOTSOCK = 88
    EMSGSIZE = 90
    EOPNOTSUPP = 95
    EADDRINUSE = 98
    EADDRNOTAVAIL = 99
    ENOBUFS = 105
    EISCONN = 106
    ENOTCONN = 107
    ETIMEDOUT = 110
    ECONNREFUSED = 111


class XenError(Exception):
    """What a guest asked for cannot be done; becomes -errno at the hypercall boundary."""

    def __init__(self, errno: Errno, why: str = "") -> None:
        super().__init__(f"{errno.name}: {why}" if why else errno.name)
        self.errno = errno
        self.why = why


class GuestCrash(Exception):
    """The guest cannot go on (a frame that cannot be pushed, say); ends that domain with reason *crash*."""


def is_canonical(address: int) -> bool:
    """A 48-bit virtual address, sign-extended."""
    return address < 1 << 47 or address >= (1 << 64) - (1 << 47)
