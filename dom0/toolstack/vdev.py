# SPDX-License-Identifier: GPL-2.0-only
"""Names of virtual disks and their numbers, by which they stand in the store: xen-vbd-interface(7).

Pure functions. Names are those libxl takes: xvdXX, dN, dNpM, hdX, sdX, each with or without a partition, or the number
itself.
"""

from __future__ import annotations

import re

_NAME = re.compile(r"(xvd|hd|sd)([a-z]{1,6})(0|[1-9][0-9]{0,5})?")
_PLAIN = re.compile(r"d(0|[1-9][0-9]{0,6})(?:p(0|[1-9][0-9]{0,5}))?")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|[0-9]+")
_LARGEST_NUMBER = (1 << 31) - 1
_LARGEST_DISK = (1 << 20) - 1
_LARGEST_PARTITION = 255
_IDE_PARTITIONS, _SCSI_DISKS, _SCSI_PARTITIONS = 63, 15, 15


def number(name: str) -> int | None:
    """The number of the disk with that name; None where it is no name of a disk."""
    if (plain := _PLAIN.fullmatch(name)) is not None:
        return _xvd(int(plain[1]), int(plain[2] or 0))
    if _NUMBER.fullmatch(name):
        value = _to_number(name)
        return value if value is not None and value <= _LARGEST_NUMBER else None
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    disk, partition = _disk_of(match[2]), int(match[3] or 0)
    if match[1] == "xvd":
        return _xvd(disk, partition)
    if match[1] == "hd" and disk <= 3 and partition <= _IDE_PARTITIONS:
        return (3 if disk < 2 else 22) << 8 | (disk & 1) << 6 | partition
    if match[1] == "sd" and disk <= _SCSI_DISKS and partition <= _SCSI_PARTITIONS:
        return 8 << 8 | disk << 4 | partition
    return None


def _xvd(disk: int, partition: int) -> int | None:
    if disk > _LARGEST_DISK or partition > _LARGEST_PARTITION:
        return None
    if disk <= 15 and partition <= 15:
        return 202 << 8 | disk << 4 | partition
    return 1 << 28 | disk << 8 | partition


def _disk_of(letters: str) -> int:
    """a is 0, z is 25, aa is 26."""
    value = 0
    for letter in letters:
        value = value * 26 + ord(letter) - ord("a") + 1
    return value - 1


def _to_number(text: str) -> int | None:
    """As C's strtoul with base 0 reads it."""
    try:
        return int(text, 16 if text[:2] in ("0x", "0X") else 8 if text[0] == "0" and len(text) > 1 else 10)
    except ValueError:
        return None
