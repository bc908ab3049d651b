# SPDX-License-Identifier: GPL-2.0-only
"""Disks in QEMU's formats: what the guest writes is what qemu-img finds in them, and a dead engine is a failed disk."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
import trio

from dom0.toolstack.diskspec import parse
from dom0.toolstack.domain import ToolstackError
from domU.frontend.block import BlockFrontend, DiskFailed
from tests.block import qemu
from tests.block.guests import XVDA, backend_of, image, one_guest
from xen_py.drive.half import DeviceFailed
from xen_py.drive.queue import QueueClosed


@pytest.fixture
def tools(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = qemu.tools(tmp_path_factory.mktemp("tools"))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def converted(tmp_path: Path, form: str) -> Path:
    path = tmp_path / f"disk.{form}"
    qemu.img("convert", "-f", "raw", "-O", form, image(tmp_path / "raw", 4096), path)
    return path


@pytest.mark.parametrize(("form", "theirs"), [("qcow2", "qcow2"), ("vhd", "vpc"), ("qed", "qed")])
async def test_what_is_written_is_in_the_image(tmp_path: Path, tools: None, form: str, theirs: str) -> None:
    path = converted(tmp_path, theirs)
    model = bytearray((tmp_path / "raw").read_bytes())
    dice = random.Random(form)
    async with one_guest(f"{path},{form},xvda,rw") as (_, guest), guest.device(BlockFrontend, XVDA) as disk:
        assert disk.sectors >= 4096  # vhd rounds up to whole cylinders

        async def work(first: int) -> None:
            for _ in range(10):
                at = first + 512 * dice.randrange(512)
                size = 512 * dice.randint(1, min(500, (first + 512 * 512 - at) // 512))
                data = dice.randbytes(size)
                model[at : at + size] = data
                await disk.write(at, data)
                assert await disk.read(at, size) == data

        async with trio.open_nursery() as nursery:
            for first in range(0, 4096, 512):
                nursery.start_soon(work, first * 512)
        await disk.flush()
        with pytest.raises(DiskFailed):
            await disk.read(disk.sectors * 512, 512)
        assert await disk.read(0, 4096 * 512) == model
    back = tmp_path / "back"
    qemu.img("convert", "-f", theirs, "-O", "raw", path, back)
    assert back.read_bytes()[: len(model)] == model


async def test_a_dead_engine_fails_the_disk_with_a_reason(tmp_path: Path, tools: None) -> None:
    path = converted(tmp_path, "qcow2")
    async with one_guest(f"{path},qcow2,xvda,rw") as (machine, guest):
        with pytest.raises((DeviceFailed, QueueClosed)):
            async with guest.device(BlockFrontend, XVDA) as disk:
                os.kill(backend_of(machine, guest).statistics()["disk"]["engine"], signal.SIGKILL)
                with pytest.raises(DiskFailed):
                    await disk.read(0, 512)
                while True:
                    await trio.sleep(0.05)
                    _ = disk.queue
        error = machine.store.read(f"/local/domain/0/error/backend/vbd/{guest.domid}/{XVDA}/error").decode()
        assert "qemu-nbd has ended" in error


async def test_what_is_no_image_of_that_format_is_refused(tmp_path: Path, tools: None) -> None:
    path = image(tmp_path / "disk")
    async with one_guest() as (machine, guest):
        with pytest.raises(ToolstackError, match="Image is not in qcow2 format"):
            await machine.toolstack.attach_disk(guest.domid, parse([f"{path},qcow2,xvda,rw"]))
        assert machine.toolstack.disk_rows(guest.domid) == []


async def test_a_missing_engine_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = image(tmp_path / "disk")
    async with one_guest() as (machine, guest):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(ToolstackError, match=r"qcow2 needs qemu-nbd, which is not there \(Debian: qemu-utils\)"):
            await machine.toolstack.attach_disk(guest.domid, parse([f"{path},qcow2,xvda,rw"]))
