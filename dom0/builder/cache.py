# SPDX-License-Identifier: GPL-2.0-only
"""Unpacked kernels, kept so that the next boot of the same kernel need not wait for xz again.

An entry is found by the SHA-256 of the packed file's contents, so it can never belong to another kernel, and carries
the checksum of its own, which also finds what a power failure spoilt. It is written to a temporary name and renamed;
holes stand for zeros. The directory is used only if it is the caller's and nobody else may write into it. Whatever
goes wrong here costs time, nothing else: then there is no cache. Any thread, any number of processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dom0.image.paths import cache_dir

_MAGIC = b"xen-py kernel 1\n"
_HEADER_SIZE = 4096
_SMALLEST = 1 << 20
"""Packed files below this size unpack in no time."""
_MOST_ENTRIES = 4
_STEP = 64 << 10
_ZEROS = bytes(_STEP)

Unpack = Callable[[], tuple[bytes, str]]


def unpacked(data: bytes, unpack: Unpack, directory: Path | None = None) -> tuple[bytes, str]:
    """What `unpack` makes of the packed file `data` (contents, and how it was packed), from the cache if possible."""
    if len(data) < _SMALLEST:
        return unpack()
    directory = cache_dir() / "kernels" if directory is None else directory
    entry = directory / hashlib.sha256(data).hexdigest()
    found = _load(entry) if _is_safe(directory) else None
    if found is not None:
        return found
    contents, packing = unpack()
    if contents is not data:
        with suppress(OSError):
            _store(entry, contents, packing)
            _evict(directory)
    return contents, packing


def _is_safe(directory: Path) -> bool:
    try:
        status = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _load(entry: Path) -> tuple[bytes, str] | None:
    try:
        with open(entry, "rb") as file:
            header = file.read(_HEADER_SIZE)
            if not header.startswith(_MAGIC):
                return None
            facts = json.loads(header.removeprefix(_MAGIC).rstrip(b"\0"))
            contents = file.read(os.fstat(file.fileno()).st_size - _HEADER_SIZE)
        if len(contents) != facts["size"] or zlib.crc32(contents) != facts["crc32"]:
            return None
        os.utime(entry)
        return contents, str(facts["packing"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _store(entry: Path, contents: bytes, packing: str) -> None:
    entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_safe(entry.parent):
        return
    facts = {"size": len(contents), "crc32": zlib.crc32(contents), "packing": packing}
    view = memoryview(contents)
    with tempfile.NamedTemporaryFile(dir=entry.parent, prefix=".", delete=False) as file:
        try:
            file.write((_MAGIC + json.dumps(facts).encode()).ljust(_HEADER_SIZE, b"\0"))
            for at in range(0, len(contents), _STEP):
                if not contents.startswith(_ZEROS, at):
                    file.seek(_HEADER_SIZE + at)
                    file.write(view[at : at + _STEP])
            file.truncate(_HEADER_SIZE + len(contents))
            file.flush()
            os.replace(file.name, entry)
        except BaseException:
            with suppress(OSError):
                os.unlink(file.name)
            raise


def _evict(directory: Path) -> None:
    """Keep the entries that were used last; what a killed process left behind ages and goes as well."""
    entries = sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in entries[_MOST_ENTRIES:]:
        path.unlink(missing_ok=True)
