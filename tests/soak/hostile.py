# SPDX-License-Identifier: GPL-2.0-only
"""Block frontends that send nonsense: nothing breaks, and no other disk changes.

    python -m tests.soak.hostile [--requests 100000] [--seeds 200] [--seed N]

A guest sends requests of random content, on raw and qcow2 disks in turn, with persistent grants and without, all of
which are to be answered; then its ring's index is made to lie. Meanwhile a neighbour writes to its own disk and reads
back what it wrote. The disk that the hostile guest may only read and one that the neighbour leaves alone are what they
were, its own has kept its size, and of its grants nothing is left pinned. `--seeds` is how many times the drivers go
through the kit's faults (`dom0.kit.faults`) beside that.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import sys
import time
from pathlib import Path

import trio

from dom0.host.machine import open_machine
from dom0.kit.battery import shrink, try_seed
from domU.frontend.block import BlockFrontend
from domU.guest import Guest
from tests.block import qemu
from tests.block.guests import XVDA, backend_of, grants_of, guest_with, image
from tests.block.nonsense import send_nonsense
from tests.block.test_kit import PAIR
from tests.soak.report import Report
from xen_py.io.ring import REQ_PROD

ROUND = 5000
"""Requests for one machine."""
SECTORS = 2048
REPORT_EVERY = 50


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.hostile", description="Hostile block frontends.")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=200, help="how often the kit's faults are tried on the drivers")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args(arguments)
    with Report("hostile") as report:
        report.say(f"seed {options.seed}")
        os.environ["PATH"] = f"{qemu.tools(report.folder)}:{os.environ['PATH']}"
        dice = random.Random(options.seed)
        sent = 0
        for number, first in enumerate(range(0, options.requests, ROUND)):
            folder = report.folder / f"{number}"
            folder.mkdir()
            form, persistent = ("raw", "qcow2")[number % 2], number % 4 < 2
            count = min(ROUND, options.requests - first)
            written = trio.run(_round, folder, form, persistent, dice, count)
            sent += count
            how = "with" if persistent else "without"
            report.say(f"{sent} requests ({form}, {how} persistent grants), {written} writes of the neighbour checked")
        for seed in range(options.seed, options.seed + options.seeds):
            if (failure := try_seed(PAIR, seed)) is not None:
                raise AssertionError(shrink(PAIR, failure).report())
            if (seed + 1 - options.seed) % REPORT_EVERY == 0:
                report.say(f"{seed + 1 - options.seed} seeds of faults")
    return report.status


async def _round(folder: Path, form: str, persistent: bool, dice: random.Random, count: int) -> int:
    """Gives how often the neighbour wrote and read."""
    names = ("disk", "readonly", "theirs", "idle")
    disk, readonly, theirs, idle = (image(folder / name, SECTORS) for name in names)
    before = {path: _digest(path) for path in (readonly, idle)}
    if form != "raw":
        raw, disk = disk, disk.with_suffix(f".{form}")
        qemu.img("convert", "-f", "raw", "-O", form, raw, disk)

    class Frontend(BlockFrontend):
        pass

    Frontend.persistent = persistent
    async with (
        open_machine() as machine,
        guest_with(machine, f"{theirs},raw,xvda,rw", f"{idle},raw,xvdb,rw", name="neighbour") as (_, neighbour),
        guest_with(machine, f"{disk},{form},xvda,rw", f"{readonly},raw,xvdb,r", name="hostile") as (_, guest),
        trio.open_nursery() as nursery,
    ):
        written = [0]
        nursery.start_soon(_live, neighbour, written)
        for devid, some in ((XVDA, count - count // 4), (XVDA + 16, count // 4)):
            async with guest.device(Frontend, devid) as device:
                await send_nonsense(device, guest, dice, some)
                assert backend_of(machine, guest, devid).statistics()["requests"] >= some
                _, ring = device.shared[0]
                index = slice(4 * REQ_PROD, 4 * REQ_PROD + 4)
                wild = int.from_bytes(ring.data[index], "little") + dice.randint(1 << 16, 1 << 31)
                ring.data[index] = (wild % (1 << 32)).to_bytes(4, "little")
                device._ports[0].notify()
                with trio.fail_after(60):
                    while device.connected:
                        await trio.sleep(0.01)
        grants = grants_of(machine, guest)
        with trio.fail_after(60):
            while grants.statistics().pinned:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert before == {path: _digest(path) for path in before}, "a disk has changed that was not to be written"
    assert form != "raw" or disk.stat().st_size == SECTORS * 512, "the disk has another size"
    if form != "raw":
        qemu.img("check", "-q", "-f", form, disk)
    return written[0]


async def _live(guest: Guest, written: list[int]) -> None:
    """The neighbour, until it is cancelled."""
    async with guest.device(BlockFrontend, XVDA) as disk:
        while True:
            at = written[0] * 37 % (SECTORS - 8) * 512
            data = os.urandom(8 * 512)
            await disk.write(at, data)
            assert await disk.read(at, len(data)) == data, "the neighbour reads what it did not write"
            written[0] += 1


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


if __name__ == "__main__":
    sys.exit(main())
