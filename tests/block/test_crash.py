# SPDX-License-Identifier: GPL-2.0-only
"""What a flush promises: everything acknowledged before it is on the disk, whatever is lost, whoever is killed."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from dom0.backend.block.backend import BlockBackend
from dom0.backend.block.image import Disk
from dom0.host.machine import open_machine
from dom0.kit.guests import inside
from domU.frontend.block import BlockFrontend
from tests.block.dropping import DroppingLayer
from tests.block.memory import MemoryDisk

RECORD = struct.Struct("<Q504x")


class LossyBackend(BlockBackend):
    type = "lossy"
    disks: list[MemoryDisk] = []  # noqa: RUF012

    async def open_disk(self, params: str, *, readonly: bool) -> Disk:
        self.disks.append(MemoryDisk(1 << 20))
        return self.disks[-1]


class LossyFrontend(BlockFrontend):
    type = "lossy"
    queues = 2


@pytest.mark.parametrize("barrier", [False, True])
async def test_every_acknowledged_flush_is_durable_and_is_one_sync(barrier: bool) -> None:
    """Eight journals at once over a disk that loses all that was not synced; looked at after every flush."""
    flushes = 0
    async with open_machine() as machine:
        machine.backends.register(LossyBackend)
        async with inside(machine, "type=lossy") as guest, guest.device(LossyFrontend) as device:
            (*_, disk) = LossyBackend.disks

            async def journal(first: int) -> None:
                nonlocal flushes
                dice = random.Random(first)
                written = []
                for number in range(1, 40):
                    at = (first + dice.randrange(64)) * 512
                    await device.write(at, RECORD.pack(number), barrier=barrier)
                    written.append((at, number))
                    if not barrier and dice.random() < 0.5:
                        continue
                    if not barrier:
                        await device.flush()
                        flushes += 1
                    latest = dict(written)
                    for place, value in latest.items():
                        assert RECORD.unpack_from(disk.durable, place)[0] == value

            async with trio.open_nursery() as nursery:
                for first in range(0, 512, 64):
                    nursery.start_soon(journal, first)
            if not barrier:
                assert disk.flushes == flushes


HOST = """\
import sys, trio
from dom0.host.machine import open_machine
from domU.frontend.block import BlockFrontend
from tests.block.guests import XVDA, guest_with

async def main():
    async with open_machine() as machine, guest_with(machine, sys.argv[1] + ",raw,xvda,rw") as (_, guest):
        async with guest.device(BlockFrontend, XVDA) as disk:
            number = 0
            while True:
                number += 1
                await disk.write(number % 64 * 512, number.to_bytes(8, "little").ljust(512, b"\\0"))
                await disk.flush()
                print(number, flush=True)

trio.run(main)
"""


@pytest.mark.parametrize("dropping", [False, True], ids=["page_cache", "dropping"])
def test_a_killed_host_has_lost_no_flushed_write(tmp_path: Path, dropping: bool) -> None:
    """Killed after a random number of flushes, with and without what was not synced: all of them are on the disk."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(64 * 512))
    dice = random.Random(7)
    for _ in range(3):
        layer = DroppingLayer(path)
        environment = {**os.environ, **(layer.environment if dropping else {})}
        command = [sys.executable, "-c", HOST, str(path)]
        host = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert host.stdout is not None
        for _ in range(dice.randint(1, 200)):
            last = int(host.stdout.readline())
        os.kill(host.pid, signal.SIGKILL)
        rest = host.stdout.read().split()
        host.wait()
        host.stdout.close()
        last = max([last, *map(int, rest)])
        if dropping:
            layer.lose()
            assert layer.syncs(path) in (last, last + 1), "each flush is one sync"
        kept = path.read_bytes()
        for number in range(max(1, last - 62), last + 1):
            assert int.from_bytes(kept[number % 64 * 512 :][:8], "little") in (number, number + 64)
