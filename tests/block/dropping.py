# SPDX-License-Identifier: GPL-2.0-only
"""Disks that lose what was not synced, as they do when the power fails: under any program, by a preloaded library.

A killed program does not lose what the kernel has taken from it. So `dropping.c` keeps beside each disk what a sync
has made durable, and `lose` puts that in the disk's place once those that wrote it are dead.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import native_build

_SOURCE = Path(__file__).with_suffix(".c")
_LIBRARY = native_build.WORK / "tests" / "dropping.so"


class DroppingLayer:
    """Of these disks, files that nobody writes yet."""

    def __init__(self, *disks: Path) -> None:
        if native_build.is_stale(_LIBRARY, [_SOURCE]):
            flags = ("-target", native_build.ENGINE_TARGET, "-shared", "-fPIC", *native_build.COMMON_FLAGS)
            native_build.zig_cc([*flags, _SOURCE, "-ldl", "-lpthread"], _LIBRARY)
        self._disks = disks
        self.environment = {"LD_PRELOAD": str(_LIBRARY), "DROPPING": ":".join(map(str, disks))}
        """Of the programs that write them, and of what these start."""
        for disk in disks:
            shutil.copyfile(disk, _durable(disk))
            _syncs(disk).write_bytes(b"")

    def syncs(self, disk: Path) -> int:
        """How many there have been."""
        return _syncs(disk).stat().st_size

    def lose(self) -> None:
        """All that was not synced. Whoever wrote the disks has ended."""
        for disk in self._disks:
            shutil.copyfile(_durable(disk), disk)


def _durable(disk: Path) -> Path:
    return disk.with_name(f"{disk.name}.durable")


def _syncs(disk: Path) -> Path:
    return disk.with_name(f"{disk.name}.syncs")
