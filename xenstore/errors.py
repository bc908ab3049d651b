# SPDX-License-Identifier: GPL-2.0-only
"""The ways a request fails: raised inside the server, sent as a string, raised again in the client.

Anyone may raise these; only `xenstore.server.Server.answer` turns them into ERROR replies and only
`xenstore.client`/`xenstore.aclient` turn replies back into them.
Source: xen/include/public/io/xs_wire.h (the sixteen names a reply may carry).
"""

from __future__ import annotations

import errno


class XenstoreError(Exception):
    """A request that the store refused. `error` is the name on the wire, `path` what it was about."""

    error = "EIO"

    def __init__(self, message: str = "", path: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.path = path

    @property
    def errno(self) -> int:
        return int(getattr(errno, self.error, errno.EINVAL))

    def __str__(self) -> str:
        text = self.message or type(self).__doc__ or ""
        return f"{self.error}: {text}" + (f": {self.path}" if self.path is not None else "")


class InvalidRequest(XenstoreError):
    """the request or its path is malformed"""

    error = "EINVAL"


class PermissionDenied(XenstoreError):
    """the caller may not do this"""

    error = "EACCES"


class AlreadyExists(XenstoreError):
    """this watch is already set"""

    error = "EEXIST"


class IsADirectory(XenstoreError):
    """the node is a directory"""

    error = "EISDIR"


class NotFound(XenstoreError):
    """there is no such node, watch, transaction or domain"""

    error = "ENOENT"


class OutOfMemory(XenstoreError):
    """the store is out of memory"""

    error = "ENOMEM"


class QuotaExceeded(XenstoreError):
    """a quota of the domain is used up (the daemon's log says which one)"""

    error = "ENOSPC"


class StoreIOError(XenstoreError):
    """the store could not carry this out"""

    error = "EIO"


class NotEmpty(XenstoreError):
    """the node has children"""

    error = "ENOTEMPTY"


class NotImplementedByStore(XenstoreError):
    """the store does not know this request"""

    error = "ENOSYS"


class ReadOnly(XenstoreError):
    """the connection is read-only"""

    error = "EROFS"


class Busy(XenstoreError):
    """not now: a transaction or the domain is in use"""

    error = "EBUSY"


class Conflict(XenstoreError):
    """something the transaction read has changed; start it again"""

    error = "EAGAIN"


class AlreadyConnected(XenstoreError):
    """already connected"""

    error = "EISCONN"


class TooBig(XenstoreError):
    """the reply or the value does not fit into one message"""

    error = "E2BIG"


class NotPermitted(XenstoreError):
    """only the owner of the node or dom0 may do this"""

    error = "EPERM"


class ConnectionLost(XenstoreError):
    """the connection to the store is gone"""

    error = "EIO"


class ProtocolError(Exception):
    """The peer broke the framing of the protocol: its connection ends, nobody else's does."""


BY_NAME: dict[str, type[XenstoreError]] = {
    cls.error: cls
    for cls in (
        InvalidRequest, PermissionDenied, AlreadyExists, IsADirectory, NotFound, OutOfMemory, QuotaExceeded,
        StoreIOError, NotEmpty, NotImplementedByStore, ReadOnly, Busy, Conflict, AlreadyConnected, TooBig,
        NotPermitted,
    )
}  # fmt: skip


def from_wire(name: str, message: str = "", path: str | None = None) -> XenstoreError:
    """The exception for an ERROR reply; a name outside the public list (oxenstored's EQUOTA) is kept."""
    cls = BY_NAME.get(name)
    if cls is not None:
        return cls(message, path)
    error = XenstoreError(message, path)
    error.error = name
    return error
