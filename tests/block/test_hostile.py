# SPDX-License-Identifier: GPL-2.0-only
"""Frontends that send what no frontend should: every request has its answer, and nothing else is touched."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
import trio

from dom0.backend.block.backend import PERSISTENT
from domU.frontend.block import BlockFrontend
from tests.block.guests import XVDA, backend_of, grants_of, image, one_guest
from tests.block.nonsense import ERROR, OKAY, UNKNOWN, plain, send_nonsense
from xen_py.io.blkif import SEGMENT, DiscardRequest, IndirectRequest, Operation, Segment
from xen_py.io.ring import REQ_PROD

SECTORS = 256


@pytest.mark.parametrize("persistent", [False, True])
async def test_each_mistake_has_its_answer(
    tmp_path: Path, persistent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PERSISTENT, str(int(persistent)))
    path, other = image(tmp_path / "disk", SECTORS), image(tmp_path / "other", SECTORS)
    before = path.read_bytes()

    async with (
        one_guest(f"{path},raw,xvda,rw", f"{other},raw,xvdb,rw") as (_, guest),
        guest.device(BlockFrontend, XVDA) as disk,
    ):
        page = guest.kernel.allocate()
        ref = disk.grant(page)
        readonly = disk.grant(guest.kernel.allocate(), readonly=True)
        table = guest.kernel.allocate()
        table_ref = disk.grant(table).to_bytes(4, "little")
        table.data[: SEGMENT.size] = SEGMENT.pack(Segment(ref, 5, 4))
        good = Segment(ref, 0, 7)
        for request, status in (
            (plain(Operation.READ, 0, good), OKAY),
            (plain(Operation.READ, 0, Segment(ref, 3, 2)), ERROR),
            (plain(Operation.READ, 0, Segment(ref, 0, 8)), ERROR),
            (plain(Operation.READ, 0, Segment(ref, 255, 255)), ERROR),
            (plain(Operation.READ, 0, Segment(0xFFFFFFFF, 0, 7)), ERROR),
            (plain(Operation.READ, 0, good, Segment(5, 0, 7)), ERROR),
            (plain(Operation.READ, 0, Segment(readonly, 0, 7)), ERROR),
            (plain(Operation.READ, 0), ERROR),
            (plain(Operation.WRITE, 0), ERROR),
            (plain(Operation.READ, 0, good, count=12), ERROR),
            (plain(Operation.READ, 0, good, count=255), ERROR),
            (plain(Operation.WRITE, SECTORS - 7, good), ERROR),
            (plain(Operation.WRITE, SECTORS, good), ERROR),
            (plain(Operation.WRITE, (1 << 64) - 1, good), ERROR),
            (plain(Operation.WRITE_BARRIER, SECTORS, good), ERROR),
            (plain(Operation.RESERVED_1, 0, good), UNKNOWN),
            (plain(7, 0, good), UNKNOWN),
            (plain(255, 0, good), UNKNOWN),
            (plain(Operation.FLUSH_DISKCACHE, (1 << 64) - 1), OKAY),
            (plain(Operation.WRITE_BARRIER, (1 << 64) - 1), OKAY),
            (DiscardRequest(Operation.DISCARD, 0, 0, 0, SECTORS - 1, 2), ERROR),
            (DiscardRequest(Operation.DISCARD, 0, 0, 0, 1, (1 << 64) - 1), ERROR),
            (DiscardRequest(Operation.DISCARD, 0, 0, 0, 0, 0), ERROR),
            (DiscardRequest(Operation.DISCARD, 1, 0, 0, 0, 8), UNKNOWN),
            (IndirectRequest(Operation.INDIRECT, Operation.READ, 1, 0, 0, 0, table_ref + bytes(28)), ERROR),
            (IndirectRequest(Operation.INDIRECT, Operation.READ, 0, 0, 0, 0, table_ref + bytes(28)), ERROR),
            (IndirectRequest(Operation.INDIRECT, Operation.READ, 257, 0, 0, 0, table_ref + bytes(28)), ERROR),
            (IndirectRequest(Operation.INDIRECT, Operation.READ, 65535, 0, 0, 0, table_ref + bytes(28)), ERROR),
            (IndirectRequest(Operation.INDIRECT, Operation.READ, 1, 0, 0, 0, b"\xff" * 32), ERROR),
            (IndirectRequest(Operation.INDIRECT, Operation.DISCARD, 1, 0, 0, 0, table_ref + bytes(28)), UNKNOWN),
            (IndirectRequest(Operation.INDIRECT, Operation.INDIRECT, 1, 0, 0, 0, table_ref + bytes(28)), UNKNOWN),
            (plain(Operation.READ, 8, good), OKAY),
        ):
            response = await disk.queue.call(request)
            assert response.status == status, request
            named = request.indirect_op if isinstance(request, IndirectRequest) else request.operation
            assert response.operation == named
        assert bytes(page.data) == before[4096:8192]
    assert path.read_bytes() == before
    assert other.read_bytes() == image(tmp_path / "same", SECTORS).read_bytes()


async def test_random_requests_touch_nothing_but_the_disk(tmp_path: Path) -> None:
    path, other = image(tmp_path / "disk", SECTORS), image(tmp_path / "other", SECTORS)
    checksum = hashlib.sha256(other.read_bytes()).digest()
    async with (
        one_guest(f"{path},raw,xvda,rw", f"{other},raw,xvdb,rw") as (machine, guest),
        guest.device(BlockFrontend, XVDA) as disk,
    ):
        await send_nonsense(disk, guest, random.Random(5), 3000)
        assert backend_of(machine, guest).statistics()["requests"] == 3000
        assert await disk.read(0, 512) is not None
    assert path.stat().st_size == SECTORS * 512
    assert hashlib.sha256(other.read_bytes()).digest() == checksum


async def test_a_producer_index_gone_wild_ends_the_device_and_nothing_else(tmp_path: Path) -> None:
    path, other = image(tmp_path / "disk", SECTORS), image(tmp_path / "other", SECTORS)
    async with (
        one_guest(f"{path},raw,xvda,rw", f"{other},raw,xvdb,rw") as (machine, guest),
        guest.device(BlockFrontend, XVDA + 16) as neighbour,
    ):
        async with guest.device(BlockFrontend, XVDA) as disk:
            _, ring = disk.shared[0]
            ring.data[4 * REQ_PROD : 4 * REQ_PROD + 4] = (99).to_bytes(4, "little")
            disk._ports[0].notify()
            while disk.connected:
                await trio.sleep(0.01)
        reason = machine.store.read(f"/local/domain/0/error/backend/vbd/{guest.domid}/{XVDA}/error").decode()
        assert "producer index is 0x63" in reason
        assert await neighbour.read(0, 512) == other.read_bytes()[:512]
        assert grants_of(machine, guest).statistics().pinned < 64
