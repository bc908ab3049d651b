# SPDX-License-Identifier: GPL-2.0-only
"""A log of changes on disk, written before the replies are sent, so that a killed daemon loses nothing.

The file is a header and frames; a frame holds the changes of whole requests and is taken whole or not at all
(length and checksum), so a transaction is never half there. `load` replays it and drops a torn tail; when
the log has grown to several times the store, it is rewritten as the store's present contents beside it and put
in its place by rename. Written with one write() per batch: the page cache survives the process; `sync` also
makes it survive a power loss. Owned by the server; a failed write ends the daemon, unacknowledged.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

from xenstore import perms as perms_module
from xenstore.tree import Tree

MAGIC: Final = b"xenstore journal 1\n\0\0\0\0\0"
_FRAME: Final = struct.Struct("<II")
_CHANGE: Final = struct.Struct("<BHI")
FRAME_MAX: Final = 1 << 30
COMPACT_MIN: Final = 1 << 20
COMPACT_FACTOR: Final = 4
SNAPSHOT_FRAME: Final = 1 << 16

_WRITE, _INSERT, _REMOVE, _PERMS, _CLEAR = range(5)


class JournalError(Exception):
    """The journal cannot be read or written."""


def _encode(change: tuple[Any, ...]) -> Iterator[bytes]:
    action, path = change[0], change[1]
    if action == "write":
        yield _CHANGE.pack(_WRITE, len(path), len(change[2])) + path + change[2]
    elif action == "insert":
        yield _CHANGE.pack(_INSERT, len(path), len(change[2])) + path + change[2]
        yield _CHANGE.pack(_PERMS, len(path), len(change[3].wire)) + path + change[3].wire
    elif action == "remove":
        yield _CHANGE.pack(_REMOVE, len(path), 0) + path
    else:
        yield _CHANGE.pack(_PERMS, len(path), len(change[2].wire)) + path + change[2].wire


def _frame(body: bytes) -> bytes:
    return _FRAME.pack(len(body), zlib.crc32(body)) + body


def _frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The whole frames of a file, each with the offset behind it."""
    at = len(MAGIC)
    while at + _FRAME.size <= len(data):
        length, checksum = _FRAME.unpack_from(data, at)
        stop = at + _FRAME.size + length
        body = data[at + _FRAME.size : stop]
        if length > FRAME_MAX or stop > len(data) or zlib.crc32(body) != checksum:
            return
        yield stop, body
        at = stop


def _changes(body: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    at = 0
    while at < len(body):
        action, path_length, length = _CHANGE.unpack_from(body, at)
        at += _CHANGE.size
        path = body[at : at + path_length]
        at += path_length
        yield action, path, body[at : at + length]
        at += length


def _apply(tree: Tree, action: int, path: bytes, data: bytes) -> None:
    if action == _CLEAR:
        for child in list(tree.nodes[b"/"].children or ()):
            tree.remove(b"/" + child)
        return
    node = tree.find(path)
    if action == _INSERT:
        if node is None:
            tree.create(path, data)
        else:
            tree.write(path, node, data)
    elif node is None:
        raise JournalError(f"the journal changes {path!r}, which does not exist")
    elif action == _WRITE:
        tree.write(path, node, data)
    elif action == _REMOVE:
        tree.remove(path)
    elif action == _PERMS:
        tree.set_perms(path, node, perms_module.parse(data))
    else:
        raise JournalError(f"the journal holds an unknown change {action}")


class Journal:
    """The log of one store in one file, which this process alone writes."""

    def __init__(self, path: str, sync: bool = False) -> None:
        self.path = path
        self._sync = sync
        self._tree: Tree | None = None
        self._fd = -1
        self._size = 0
        self._compacted = 0

    def load(self, tree: Tree) -> None:
        """Bring the tree to what the file says, then start the file anew from there."""
        self._tree = tree
        try:
            with open(self.path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            data = b""
        if data and not MAGIC.startswith(data[: len(MAGIC)]):
            raise JournalError(f"{self.path} is not a xenstore journal: move it away or name another file")
        for _, body in _frames(data):
            for action, path, value in _changes(body):
                _apply(tree, action, path, value)
        self._compact()

    def append(self, changes: Iterable[tuple[Any, ...]]) -> None:
        """Write these changes as one whole; when this returns, a killed daemon will have them."""
        frame = _frame(b"".join(part for change in changes for part in _encode(change)))
        self._write(self._fd, frame)
        if self._sync:
            os.fdatasync(self._fd)
        self._size += len(frame)
        if self._size > COMPACT_MIN and self._size > COMPACT_FACTOR * self._compacted:
            self._compact()

    @staticmethod
    def _write(fd: int, data: bytes) -> None:
        while data:
            data = data[os.write(fd, data) :]

    def _compact(self) -> None:
        """Replace the file by the store's present contents. A crash leaves either the old file or the new one."""
        assert self._tree is not None
        temporary = f"{self.path}.new"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._write(fd, MAGIC)
            size = len(MAGIC)
            for frame in self._contents(self._tree):
                self._write(fd, frame)
                size += len(frame)
            os.fdatasync(fd)
            os.rename(temporary, self.path)
        except OSError:
            os.close(fd)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._size = self._compacted = size

    @staticmethod
    def _contents(tree: Tree) -> Iterator[bytes]:
        batch = [_CHANGE.pack(_CLEAR, 0, 0)]
        size = 0
        for path, node in sorted(tree.nodes.items(), key=lambda item: item[0].count(b"/") if len(item[0]) > 1 else 0):
            for part in _encode(("insert", path, node.value, node.perms)):
                batch.append(part)
                size += len(part)
            if size > SNAPSHOT_FRAME:
                yield _frame(b"".join(batch))
                batch, size = [], 0
        yield _frame(b"".join(batch))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
