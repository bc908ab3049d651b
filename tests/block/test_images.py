# SPDX-License-Identifier: GPL-2.0-only
"""`xen-py image create|convert|info`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dom0.image import disks
from dom0.image.errors import ImageError
from tests.block import qemu
from tests.block.guests import image


def test_an_empty_raw_disk_needs_no_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    disks.create(tmp_path / "disk", "3m", "raw")
    status = (tmp_path / "disk").stat()
    assert (status.st_size, status.st_blocks) == (3 << 20, 0)
    with pytest.raises(ImageError, match="there is such a file already"):
        disks.create(tmp_path / "disk", "3m", "raw")
    with pytest.raises(ImageError, match=r"not installed \(Debian package qemu-utils\)"):
        disks.create(tmp_path / "other", "3m", "qcow2")


@pytest.mark.parametrize("size", ["", "0", "-1", "513", "1x", "1.5g", "m", "9" * 30])
def test_sizes_that_are_none(size: str) -> None:
    with pytest.raises(ImageError, match="a multiple of 512 bytes"):
        disks.parse_size(size)


def test_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{qemu.tools(folder)}:{os.environ['PATH']}")
    raw, packed, back = image(tmp_path / "raw"), tmp_path / "disk.qcow2", tmp_path / "back"
    disks.convert(raw, "raw", packed, "qcow2")
    assert "file format: qcow2" in disks.info(packed, "qcow2")
    disks.convert(packed, "qcow2", back, "raw")
    assert back.read_bytes() == raw.read_bytes()
    with pytest.raises(ImageError, match="Image is not in qcow2 format"):
        disks.info(raw, "qcow2")
