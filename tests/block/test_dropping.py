# SPDX-License-Identifier: GPL-2.0-only
"""The layer that drops what was not synced: it loses that, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.block.dropping import DroppingLayer

WRITER = """\
import os, sys
disk = os.open(sys.argv[1], os.O_RDWR)
other = os.open(sys.argv[2], os.O_RDWR)
os.pwrite(disk, b"a" * 5000, 100)
os.pwritev(disk, [b"b", b"bb"], 9000)
os.ftruncate(disk, 15000)
os.fdatasync(disk)
os.pwrite(disk, b"c" * 5000, 2000)
os.ftruncate(disk, 30000)
os.pwrite(disk, b"d", 29000)
os.pwrite(other, b"e", 0)
"""


def test_what_was_synced_is_there_and_nothing_else(tmp_path: Path) -> None:
    disk, other = tmp_path / "disk", tmp_path / "other"
    for path in (disk, other):
        path.write_bytes(b"." * 20000)
    layer = DroppingLayer(disk)
    command = [sys.executable, "-c", WRITER, str(disk), str(other)]
    subprocess.run(command, env={**os.environ, **layer.environment}, check=True)
    assert disk.read_bytes()[2000:7000] == b"c" * 5000
    assert layer.syncs(disk) == 1
    layer.lose()
    kept = bytearray(b"." * 15000)
    kept[100:5100] = b"a" * 5000
    kept[9000:9003] = b"bbb"
    assert disk.read_bytes() == kept
    assert other.read_bytes()[:2] == b"e.", "it is not of the layer"
