# SPDX-License-Identifier: GPL-2.0-only
"""A writer for cpio archives in the "newc" format, which is what Linux takes as an initramfs.

Pure: entries in, bytes out, the same bytes for the same entries. Everything belongs to root and has time 0.
Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable

import attrs

_BLOCK = 512
_FIELD_MAX = 0xFFFFFFFF


@attrs.frozen
class Entry:
    """One file of an archive. `path` has no leading slash; `mode` holds the file type too."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)
    """Major and minor number of a device node."""


def directory(path: str, mode: int = 0o755) -> Entry:
    return Entry(path, stat.S_IFDIR | mode)


def file(path: str, data: bytes, mode: int = 0o644) -> Entry:
    return Entry(path, stat.S_IFREG | mode, data)


def symlink(path: str, target: str) -> Entry:
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def char_device(path: str, major: int, minor: int, mode: int = 0o600) -> Entry:
    return Entry(path, stat.S_IFCHR | mode, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive of `entries` in their order; directories must come before what is in them."""
    pieces: list[bytes] = []
    for inode, entry in enumerate(entries, start=1):
        pieces += _member(entry, inode)
    pieces += _member(Entry("TRAILER!!!", 0), 0)
    size = sum(len(piece) for piece in pieces)
    pieces.append(bytes(-size % _BLOCK))
    return b"".join(pieces)


def _member(entry: Entry, inode: int) -> list[bytes]:
    name = entry.path.encode() + b"\0"
    if len(entry.data) > _FIELD_MAX:
        raise ValueError(f"{entry.path}: too large for a cpio archive")
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = b"070701" + "".join(f"{field:08X}" for field in fields).encode()
    return [header, name, bytes(-(len(header) + len(name)) % 4), entry.data, bytes(-len(entry.data) % 4)]
