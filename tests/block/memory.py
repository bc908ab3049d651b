# SPDX-License-Identifier: GPL-2.0-only
"""A disk in memory that knows what was flushed: for tests in virtual time, and for what a loss of power leaves."""

from __future__ import annotations

from typing import Any

import trio

from dom0.backend.block.image import Transfer


class MemoryDisk:
    """Writes go to `data`; `durable` is what would be there after a loss of power that takes every unflushed write."""

    sector_size = physical_sector_size = 512
    readonly = False
    can_discard = True
    can_discard_securely = False

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.durable = bytes(size)
        self.flushes = 0
        self._latest = 0

    @property
    def sectors(self) -> int:
        return len(self.data) // 512

    def attempt(self, transfer: Transfer) -> bool:
        at = transfer.offset
        for piece in transfer.pieces:
            if transfer.write:
                self.data[at : at + len(piece)] = piece
            else:
                piece[:] = self.data[at : at + len(piece)]
            at += len(piece)
        return True

    async def transfer(self, *transfers: Transfer) -> None:
        await trio.lowlevel.checkpoint()
        for transfer in transfers:
            self.attempt(transfer)

    async def flush(self) -> None:
        self.flushes += 1
        number, now = self.flushes, bytes(self.data)
        await trio.sleep(0.001)
        if number > self._latest:  # flushes may end in another order than they began
            self._latest, self.durable = number, now

    async def discard(self, offset: int, length: int, secure: bool) -> None:
        await trio.lowlevel.checkpoint()
        self.data[offset : offset + length] = bytes(length)

    def refresh(self) -> bool:
        return False

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()

    def statistics(self) -> dict[str, Any]:
        return {"sectors": self.sectors, "flushes": self.flushes}
