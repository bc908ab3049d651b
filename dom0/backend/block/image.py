# SPDX-License-Identifier: GPL-2.0-only
"""What a block backend reads and writes: the `Disk` protocol, raw files and block devices, and the empty drive.

A transfer moves bytes straight between the file and views of the guest's memory. What can be had at once (from the
page cache) is done in the loop, `attempt`; all else in worker threads, at most WORKERS for a disk, that are never
abandoned: a thread must not write into frames that have been given back.

A write has been done when the kernel has taken it; `flush` makes everything done before it survive a loss of power
(fdatasync). What is inside a file is never looked at to find out its format: a guest could write any header it likes.

Owner: the trio thread; a transfer belongs to one thread at a time. A file is locked while a disk has it open, shared
by readers and by one writer alone, so that two guests (or hosts) do not write to one file system.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import trio

from xen_py.io.blkif import SECTOR_SIZE

WORKERS = 8
_MOST_PIECES = 1024
"""IOV_MAX."""
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_BLKGETSIZE64, _BLKSSZGET, _BLKPBSZGET = 0x80081272, 0x1268, 0x127B
_BLKDISCARD, _BLKSECDISCARD = 0x1277, 0x127D

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class DiskError(Exception):
    """A disk cannot be opened; one line for the user."""


class Transfer:
    """Bytes on their way between a place on the disk and pieces of memory."""

    __slots__ = ("done", "left", "offset", "pieces", "write")

    def __init__(self, write: bool, offset: int, pieces: list[memoryview]) -> None:
        self.write = write
        self.offset = offset
        """In bytes, of what is left."""
        self.pieces = pieces
        self.left = sum(map(len, pieces))
        self.done = 0

    def move(self, fd: int, flags: int = 0) -> None:
        """All that is left. OSError, with what was moved counted."""
        call = os.pwritev if self.write else os.preadv
        while self.left:
            count = call(fd, self.pieces[:_MOST_PIECES], self.offset, flags)
            if not count:
                raise OSError(errno.EIO, "the file ends before the disk does")
            self._advance(count)

    def _advance(self, count: int) -> None:
        self.offset += count
        self.left -= count
        self.done += count
        whole = 0
        while count and len(self.pieces[whole]) <= count:
            count -= len(self.pieces[whole])
            whole += 1
        if whole or count:
            del self.pieces[:whole]
        if count:
            self.pieces[0] = self.pieces[0][count:]


class Disk(Protocol):
    """A disk that is open. Numbers of sectors count 512 bytes, whatever `sector_size` is."""

    @property
    def sectors(self) -> int: ...

    @property
    def sector_size(self) -> int:
        """The unit of all requests."""

    @property
    def physical_sector_size(self) -> int: ...

    @property
    def readonly(self) -> bool: ...

    @property
    def can_discard(self) -> bool: ...

    @property
    def can_discard_securely(self) -> bool: ...

    def attempt(self, transfer: Transfer) -> bool:
        """Do what can be done without waiting; whether that was all of it. OSError."""

    async def transfer(self, *transfers: Transfer) -> None:
        """Do what is left of them, one after the other. OSError where one fails: some may be done."""

    async def flush(self) -> None:
        """Make durable what was done before. OSError."""

    async def discard(self, offset: int, length: int, secure: bool) -> None:
        """The guest needs these bytes no more. OSError."""

    def refresh(self) -> bool:
        """Look at the size; whether it has changed. DiskError where the disk is gone for good."""

    async def close(self) -> None: ...

    def statistics(self) -> dict[str, Any]: ...


class RawDisk:
    """A file or block device whose bytes are the disk's."""

    def __init__(self, path: str, readonly: bool, sector_size: int = SECTOR_SIZE) -> None:
        self.path = path
        self.readonly = readonly
        self.sector_size = self.physical_sector_size = sector_size
        self.can_discard = not readonly
        self.can_discard_securely = False
        self.sectors = 0
        self._limit = trio.CapacityLimiter(WORKERS)
        self._nowait = {True: os.RWF_NOWAIT, False: os.RWF_NOWAIT}
        """By direction; 0 once the file's file system has said that it cannot."""
        self._lost_by: int | None = None
        """A sync has failed: the kernel drops such pages and has the next sync succeed, which must not be believed."""
        self._counts = {"at_once": 0, "in_thread": 0, "flushes": 0, "discards": 0}
        self.fd, self._is_device = _open(path, readonly)
        try:
            if self._is_device:
                self.sector_size = _ioctl_int(self.fd, _BLKSSZGET)
                self.physical_sector_size = max(self.sector_size, _ioctl_int(self.fd, _BLKPBSZGET))
                self.can_discard_securely = False  # whether a device can is known only when it has been asked to
            self.refresh()
        except OSError as error:
            os.close(self.fd)
            raise DiskError(f"disk {path} cannot be used: {error.strerror}") from error

    def refresh(self) -> bool:
        if self._is_device:
            size = struct.unpack("Q", fcntl.ioctl(self.fd, _BLKGETSIZE64, bytes(8)))[0]
        else:
            size = os.fstat(self.fd).st_size
        sectors = size // self.sector_size * self.sector_size // SECTOR_SIZE
        changed, self.sectors = sectors != self.sectors, sectors
        return bool(changed)

    def nowait(self) -> int:
        """What makes a read come back rather than wait, where the file's file system can do that."""
        if self._nowait[False]:
            try:
                os.preadv(self.fd, [bytearray(1)], 0, os.RWF_NOWAIT)
            except BlockingIOError:
                pass
            except OSError:
                self._nowait[False] = 0
        return self._nowait[False]

    def attempt(self, transfer: Transfer) -> bool:
        flags = self._nowait[transfer.write]
        if not flags:
            return False
        try:
            transfer.move(self.fd, flags)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            self._nowait[transfer.write] = 0
            return False
        self._counts["at_once"] += 1
        return True

    async def transfer(self, *transfers: Transfer) -> None:
        self._counts["in_thread"] += len(transfers)
        await self._in_thread(self._move_all, transfers)

    def _move_all(self, transfers: Sequence[Transfer]) -> None:
        for transfer in transfers:
            transfer.move(self.fd)

    async def flush(self) -> None:
        if self._lost_by is not None:
            raise OSError(self._lost_by, "an earlier flush failed: what it was to save may be lost")
        self._counts["flushes"] += 1
        try:
            await self._in_thread(os.fdatasync, self.fd)
        except OSError as error:
            self._lost_by = error.errno
            raise

    async def discard(self, offset: int, length: int, secure: bool) -> None:
        self._counts["discards"] += 1
        await self._in_thread(self._discard, offset, length, secure)

    def _discard(self, offset: int, length: int, secure: bool) -> None:
        if self._is_device:
            command = _BLKSECDISCARD if secure else _BLKDISCARD
            fcntl.ioctl(self.fd, command, struct.pack("QQ", offset, length))
        elif _libc.fallocate(self.fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    async def _in_thread(self, function: Callable[..., None], *arguments: Any) -> None:
        await trio.to_thread.run_sync(function, *arguments, limiter=self._limit)

    async def close(self) -> None:
        os.close(self.fd)

    def statistics(self) -> dict[str, Any]:
        return {"sectors": self.sectors, **self._counts}


class EmptyDrive:
    """A removable drive without a medium."""

    sectors = 0
    sector_size = physical_sector_size = SECTOR_SIZE
    readonly = True
    can_discard = can_discard_securely = False

    def attempt(self, transfer: Transfer) -> bool:
        raise OSError(errno.ENOMEDIUM, "there is no medium")

    async def transfer(self, *transfers: Transfer) -> None:
        raise OSError(errno.ENOMEDIUM, "there is no medium")

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()

    async def discard(self, offset: int, length: int, secure: bool) -> None:
        raise OSError(errno.ENOMEDIUM, "there is no medium")

    def refresh(self) -> bool:
        return False

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()

    def statistics(self) -> dict[str, Any]:
        return {"sectors": 0}


def _open(path: str, readonly: bool) -> tuple[int, bool]:
    """The open and locked file, and whether it is a block device."""
    try:
        fd = os.open(path, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        what = "read" if readonly else "read and written"
        raise DiskError(f"disk {path} cannot be {what}: {error.strerror}") from error
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise DiskError(f"disk {path} is neither a file nor a block device")
        fcntl.flock(fd, (fcntl.LOCK_SH if readonly else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise DiskError(f"disk {path} is in use by another guest or program; only mode r can be shared") from None
    except BaseException:
        os.close(fd)
        raise
    return fd, stat.S_ISBLK(mode)


def _ioctl_int(fd: int, request: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(fd, request, bytes(4)))[0])
