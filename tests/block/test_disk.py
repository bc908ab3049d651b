# SPDX-License-Identifier: GPL-2.0-only
"""The block device between a Python guest and the backend: what is written is there, what is wrong is refused."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio

from dom0.backend.block.backend import PERSISTENT, BlockBackend
from dom0.backend.block.image import Disk, RawDisk
from dom0.toolstack.diskspec import parse
from dom0.toolstack.domain import ToolstackError
from domU.frontend.block import BlockFrontend, DiskFailed
from tests.block.guests import XVDA, backend_of, grants_of, image, one_guest
from xen_py.drive.bus import Nodes
from xen_py.drive.half import DeviceFailed
from xen_py.drive.queue import QueueClosed
from xen_py.io.blkif import DiskInfo, Operation, Request, Segment, Status, pack_segments


class Wide(BlockFrontend):
    queues = 3
    ring_page_order = 2


class Forgetful(BlockFrontend):
    persistent = False


class WideAndForgetful(Wide, Forgetful):
    pass


KINDS = (BlockFrontend, Wide, Forgetful, WideAndForgetful)


@pytest.mark.parametrize("asked", [False, True])
async def test_persistent_grants_are_for_who_asks(tmp_path: Path, asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw files are served without a pin: there they would only cost the guest its copies."""
    offered: list[bytes] = []

    class Curious(BlockFrontend):
        async def publish(self, nodes: Nodes) -> Mapping[str, str]:
            offered.append(nodes["feature-persistent"])
            return await super().publish(nodes)

    monkeypatch.setenv(PERSISTENT, str(int(asked)))
    async with one_guest(f"{image(tmp_path / 'disk')},raw,xvda,rw") as (_, guest), guest.device(Curious, XVDA) as disk:
        assert await disk.read(0, 512)
    assert offered == [b"1" if asked else b"0"]


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_written_is_read_and_in_the_file(
    tmp_path: Path, kind: type[BlockFrontend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PERSISTENT, "1")
    path = image(tmp_path / "disk")
    model = bytearray(path.read_bytes())
    dice = random.Random(kind.__name__)
    async with one_guest(f"{path},raw,xvda,rw") as (machine, guest):
        async with guest.device(kind, XVDA) as disk:
            assert disk.sectors == 2048
            assert disk.max_segments > 11

            async def work(first: int) -> None:
                for _ in range(40):
                    at = first + 512 * dice.randrange(256)
                    size = 512 * dice.randint(1, min(400, (first + 256 * 512 - at) // 512))
                    if dice.random() < 0.5:
                        data = dice.randbytes(size)
                        model[at : at + size] = data
                        await disk.write(at, data)
                    else:
                        assert await disk.read(at, size) == model[at : at + size]

            async with trio.open_nursery() as nursery:
                for first in range(0, 2048, 256):  # each in a part of the disk of its own
                    nursery.start_soon(work, first * 512)
            assert await disk.read(0, 2048 * 512) == model
            await disk.flush()
        assert backend_of(machine, guest).statistics()["disk"]["flushes"] == 1
    assert path.read_bytes() == model


async def test_requests_that_adjoin_become_one_transfer(tmp_path: Path) -> None:
    path = image(tmp_path / "disk")
    async with one_guest(f"{path},raw,xvda,rw") as (machine, guest), guest.device(BlockFrontend, XVDA) as disk:
        pages = [guest.kernel.allocate() for _ in range(8)]
        segments = [Segment(disk.grant(page), 0, 7) for page in pages]
        requests = [
            Request(Operation.READ, 1, 0, 0, 8 * number, pack_segments([segment]))
            for number, segment in enumerate(segments)
        ]
        responses = await disk.queue.calls(requests)
        assert [response.status for response in responses] == [Status.OKAY] * 8
        assert b"".join(page.data for page in pages) == path.read_bytes()[: 8 * 4096]
        counts = backend_of(machine, guest).statistics()
        assert counts["requests"] == 8
        assert counts["disk"]["at_once"] + counts["disk"]["in_thread"] == 1


@pytest.mark.parametrize(("offset", "length"), [(2048 * 512, 512), (2040 * 512, 9 * 512), ((1 << 60) * 512, 512)])
async def test_beyond_the_end(tmp_path: Path, offset: int, length: int) -> None:
    path = image(tmp_path / "disk")
    before = path.read_bytes()
    async with one_guest(f"{path},raw,xvda,rw") as (_, guest), guest.device(BlockFrontend, XVDA) as disk:
        with pytest.raises(DiskFailed, match="read at sector"):
            await disk.read(offset, length)
        with pytest.raises(DiskFailed, match="write at sector"):
            await disk.write(offset, bytes(length))
        assert await disk.read(0, 512) == before[:512]
    assert path.read_bytes() == before


async def test_a_disk_that_may_only_be_read(tmp_path: Path) -> None:
    path = image(tmp_path / "disk")
    os.chmod(path, 0o444)
    before = path.read_bytes()
    async with (
        one_guest(f"{path},raw,xvda,ro", f"{path},raw,xvdb,devtype=cdrom") as (_, guest),
        guest.device(BlockFrontend, XVDA) as disk,
        guest.device(BlockFrontend, XVDA + 16) as cdrom,
    ):
        assert disk.info == DiskInfo.READONLY
        assert cdrom.info == DiskInfo.READONLY | DiskInfo.CDROM | DiskInfo.REMOVABLE
        assert not disk.can_discard
        assert await cdrom.read(512, 512) == before[512:1024]
        with pytest.raises(DiskFailed):
            await disk.write(0, bytes(512))
        with pytest.raises(DiskFailed):
            await disk.write(0, bytes(512), barrier=True)
        with pytest.raises(DiskFailed, match="-2"):
            await disk.discard(0, 4096)
        await disk.flush()
    assert path.read_bytes() == before


async def test_discard_gives_the_space_back(tmp_path: Path) -> None:
    path = image(tmp_path / "disk")
    async with one_guest(f"{path},raw,xvda,rw") as (_, guest), guest.device(BlockFrontend, XVDA) as disk:
        before = os.stat(path).st_blocks
        await disk.discard(0, 512 * 1024)
        assert await disk.read(0, 4096) == bytes(4096)
        assert os.stat(path).st_blocks <= before - 1000
        with pytest.raises(DiskFailed, match="-2"):
            await disk.discard(0, 4096, secure=True)
        with pytest.raises(DiskFailed, match="-1"):
            await disk.discard(2047 * 512, 1024)


async def test_discard_is_not_offered_where_the_configuration_forbids_it(tmp_path: Path) -> None:
    path = image(tmp_path / "disk")
    async with one_guest(f"{path},raw,xvda,rw,no-discard") as (_, guest), guest.device(BlockFrontend, XVDA) as disk:
        assert not disk.can_discard
        with pytest.raises(DiskFailed, match="-2"):
            await disk.discard(0, 4096)


class LargeSectors(BlockBackend):
    """As on a block device with sectors of 4096 bytes, which takes root to make."""

    async def open_disk(self, params: str, *, readonly: bool) -> Disk:
        return RawDisk(params, readonly, 4096)


async def test_sectors_of_4096_bytes(tmp_path: Path) -> None:
    path = image(tmp_path / "disk", 2053)
    model = bytearray(path.read_bytes())
    async with one_guest() as (machine, guest):
        machine.backends.register(LargeSectors)
        await machine.toolstack.attach_disk(guest.domid, parse([f"{path},raw,xvda,rw"]))
        async with guest.device(BlockFrontend, XVDA) as disk:
            assert (disk.sector_size, disk.sectors) == (4096, 2048)
            assert await disk.read(0, 1 << 20) == model[: 1 << 20]
            model[4096 : 3 * 4096] = bytes(2 * 4096)
            await disk.write(4096, bytes(2 * 4096))
            await disk.discard(8192, 4096)
            await disk.flush()
            page = guest.kernel.allocate()
            for sector, first, last, status in [
                (8, 0, 7, Status.OKAY),  # the ring counts 512 bytes
                (1, 0, 7, Status.ERROR),  # not at the start of a sector
                (8, 0, 3, Status.ERROR),  # not all of one
                (2048, 0, 7, Status.ERROR),  # the part of a sector at the file's end is not the disk's
            ]:
                segment = Segment(disk.grant(page), first, last)
                request = Request(Operation.READ, 1, 0, 0, sector, pack_segments([segment]))
                assert (await disk.queue.call(request)).status == status
        await machine.toolstack.detach_disk(guest.domid, "xvda")
    assert path.read_bytes() == model


async def test_an_empty_drive(tmp_path: Path) -> None:
    async with one_guest("vdev=xvda,cdrom") as (_, guest), guest.device(BlockFrontend, XVDA) as disk:
        assert disk.sectors == 0
        with pytest.raises(DiskFailed):
            await disk.read(0, 512)


async def test_a_file_that_grows_and_shrinks_under_the_guest(tmp_path: Path) -> None:
    path = image(tmp_path / "disk")
    async with one_guest(f"{path},raw,xvda,rw") as (_, guest), guest.device(BlockFrontend, XVDA) as disk:
        for sectors in (4096, 1024):
            os.truncate(path, sectors * 512)
            while await disk.refresh() != sectors:
                await trio.sleep(0.05)
            await disk.read((sectors - 1) * 512, 512)
            with pytest.raises(DiskFailed):
                await disk.read(sectors * 512, 512)


async def test_a_writable_disk_has_one_user(tmp_path: Path) -> None:
    path = image(tmp_path / "disk")
    async with one_guest(f"{path},raw,xvda,rw") as (machine, guest):
        with pytest.raises(ToolstackError, match="in use by another guest"):
            await machine.toolstack.attach_disk(guest.domid, parse([f"{path},raw,xvdb,r"]))
        assert len(machine.toolstack.disk_rows(guest.domid)) == 1
        with pytest.raises(ToolstackError, match=r"Disk vdev=xvdc failed to stat: /no/such: No such file"):
            await machine.toolstack.attach_disk(guest.domid, parse(["/no/such,raw,xvdc,r"]))


async def test_disks_come_and_go_while_the_guest_uses_others(tmp_path: Path) -> None:
    first, second = image(tmp_path / "one"), image(tmp_path / "two")
    async with one_guest(f"{first},raw,xvda,rw") as (machine, guest), guest.device(BlockFrontend, XVDA) as disk:
        stop = trio.Event()

        async def keep_busy() -> None:
            while not stop.is_set():
                await disk.write(0, b"busy" * 1024)
                assert await disk.read(0, 4096) == b"busy" * 1024

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_busy)
            for number in range(5):
                await machine.toolstack.attach_disk(guest.domid, parse([f"{second},raw,xvdb,rw"]))
                async with guest.device(BlockFrontend, XVDA + 16) as other:
                    await other.write(512, bytes([number]) * 512)
                    await other.flush()
                await machine.toolstack.detach_disk(guest.domid, "xvdb")
                assert second.read_bytes()[512:1024] == bytes([number]) * 512
            stop.set()
        assert [row["devid"] for row in machine.toolstack.disk_rows(guest.domid)] == [XVDA]


async def test_a_disk_taken_by_force_fails_its_user(tmp_path: Path) -> None:
    path = image(tmp_path / "disk")
    async with one_guest(f"{path},raw,xvda,rw") as (machine, guest):
        with pytest.raises((DeviceFailed, QueueClosed)):
            async with guest.device(BlockFrontend, XVDA) as disk:
                await machine.toolstack.detach_disk(guest.domid, "xvda", force=True)
                while True:
                    await disk.read(0, 512)
        assert grants_of(machine, guest).statistics().pinned == 0


async def test_a_flush_that_failed_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = image(tmp_path / "disk")

    def fails(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    async with one_guest(f"{path},raw,xvda,rw") as (_, guest), guest.device(BlockFrontend, XVDA) as disk:
        await disk.flush()
        with monkeypatch.context() as patched:
            patched.setattr(os, "fdatasync", fails)
            with pytest.raises(DiskFailed, match="flush"):
                await disk.flush()
        with pytest.raises(DiskFailed, match="flush"):
            await disk.flush()
        assert await disk.read(0, 512) == path.read_bytes()[:512]


async def test_a_request_that_fails_takes_no_other_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of requests that adjoin and were put together, one lies where the file cannot be read."""
    path = image(tmp_path / "disk")
    true_preadv = os.preadv

    def preadv(fd: int, pieces: list[memoryview], offset: int, flags: int = 0) -> int:
        if offset <= 8 * 4096 < offset + sum(map(len, pieces)):
            raise OSError(5, "Input/output error")
        return true_preadv(fd, pieces, offset, flags)

    async with one_guest(f"{path},raw,xvda,rw") as (_, guest), guest.device(BlockFrontend, XVDA) as disk:
        pages = [guest.kernel.allocate() for _ in range(16)]
        requests = [
            Request(Operation.READ, 1, 0, 0, 8 * number, pack_segments([Segment(disk.grant(page), 0, 7)]))
            for number, page in enumerate(pages)
        ]
        monkeypatch.setattr(os, "preadv", preadv)
        responses = await disk.queue.calls(requests)
        assert [number for number, r in enumerate(responses) if r.status != Status.OKAY] == [8]
        for number, page in enumerate(pages):
            if number != 8:
                assert bytes(page.data) == path.read_bytes()[number * 4096 : (number + 1) * 4096]
