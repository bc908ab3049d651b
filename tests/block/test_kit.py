# SPDX-License-Identifier: GPL-2.0-only
"""The block drivers through the driver kit's battery: faults on demand, after which the disk works or says why not."""

from __future__ import annotations

import pytest

from dom0.backend.block.backend import BlockBackend
from dom0.backend.block.image import Disk
from dom0.kit.battery import Pair, shrink, try_seed
from domU.frontend.block import BlockFrontend, DiskFailed
from tests.block.memory import MemoryDisk
from xen_py.drive.half import DeviceFailed


class TestedBackend(BlockBackend):
    type = "blocktest"

    async def open_disk(self, params: str, *, readonly: bool) -> Disk:
        return MemoryDisk(1 << 20)  # a worker thread would take time that is not the machine's


class TestedFrontend(BlockFrontend):
    type = "blocktest"
    queues = 2


TestedBackend.__test__ = TestedFrontend.__test__ = False  # type: ignore[attr-defined]


async def use(disk: BlockFrontend) -> None:
    for number in range(4):
        data = bytes([number + 1]) * 512 * 24
        try:
            await disk.write(number * len(data), data)
            await disk.flush()
            assert await disk.read(number * len(data), len(data)) == data
        except DiskFailed as error:
            raise DeviceFailed(str(error)) from error


PAIR = Pair(TestedBackend, TestedFrontend, use)


@pytest.mark.parametrize("seed", range(12))
def test_faults_of_that_seed(seed: int) -> None:
    failure = try_seed(PAIR, seed)
    if failure is not None:
        raise AssertionError(shrink(PAIR, failure).report())
