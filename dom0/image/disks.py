# SPDX-License-Identifier: GPL-2.0-only
"""`xen-py image create|convert|info`: thin fronts of qemu-img; an empty raw disk needs none.

A format is what the caller says, never what a file looks like: a guest may have written any header into a raw disk.
Blocking.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from dom0.image.errors import ImageError

FORMATS = {"raw": "raw", "qcow": "qcow", "qcow2": "qcow2", "vhd": "vpc", "qed": "qed", "vmdk": "vmdk"}
"""Names as in xl's `disk`, and qemu-img's for the same."""
_SIZE = re.compile(r"([0-9]{1,15})([kKmMgGtT]?)[bB]?")
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SECTOR = 512


def create(path: Path, size: str, form: str) -> None:
    """A new empty disk; nothing that is there is overwritten. ImageError."""
    length = parse_size(size)
    if path.exists():
        raise ImageError(f"{path}: there is such a file already")
    if form == "raw":
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                os.truncate(fd, length)
            finally:
                os.close(fd)
        except OSError as error:
            raise ImageError(f"{path}: {error.strerror}") from None
    else:
        _qemu_img("create", "-q", "-f", FORMATS[form], str(path), str(length))


def convert(source: Path, source_form: str, target: Path, target_form: str) -> None:
    """The same disk in another format, in a new file. ImageError."""
    if target.exists():
        raise ImageError(f"{target}: there is such a file already")
    _qemu_img("convert", "-f", FORMATS[source_form], "-O", FORMATS[target_form], str(source), str(target))


def info(path: Path, form: str) -> str:
    """What qemu-img says of it. ImageError."""
    return _qemu_img("info", "-f", FORMATS[form], str(path))


def parse_size(text: str) -> int:
    """Bytes, or with k, m, g or t for powers of 1024; whole sectors. ImageError."""
    match = _SIZE.fullmatch(text)
    size = int(match[1]) * _UNITS[match[2].lower()] if match else 0
    if not size or size % _SECTOR:
        raise ImageError(f"size {text!r}: it takes a multiple of {_SECTOR} bytes, as a number with k, m, g or t")
    return size


def _qemu_img(*arguments: str) -> str:
    program = shutil.which("qemu-img")
    if program is None:
        raise ImageError("this needs qemu-img, which is not installed (Debian package qemu-utils)")
    done = subprocess.run([program, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise ImageError(done.stderr.strip().removeprefix("qemu-img: ") or f"qemu-img ended with {done.returncode}")
    return done.stdout
