# SPDX-License-Identifier: GPL-2.0-only
"""A domain's own end of the store page as a trio stream, for `AsyncClient.over`: guests written in Python.

The guest calls `rung` when the store's event arrives. Source: docs/misc/xenstore-ring.txt.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from xenstore.errors import ConnectionLost
from xenstore.transports import RingTransport


class RingStream(trio.abc.Stream):
    """Bytes to and from the store over a page."""

    def __init__(self, page: memoryview, notify: Callable[[], None]) -> None:
        self._ring = RingTransport(page, notify, lambda timeout: None)
        self._waiting = trio.lowlevel.ParkingLot()
        self._closed = False
        self._rung = 0

    def rung(self) -> None:
        """The store has put something into the ring, or taken something out."""
        self._rung += 1
        self._waiting.unpark_all()

    async def _wait(self, since: int) -> None:
        """Until the store rings, if it has not done so since `since`."""
        if self._rung == since:
            await self._waiting.park()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        rest = bytes(data)
        while rest:
            self._check()
            since = self._rung
            rest = rest[self._put(rest) :]
            if rest:
                await self._wait(since)

    def _put(self, data: bytes) -> int:
        try:
            return self._ring.put(data)
        except ConnectionLost as error:
            raise trio.BrokenResourceError(str(error)) from error

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        while True:
            self._check()
            since = self._rung
            try:
                data = self._ring.take()
            except ConnectionLost as error:
                raise trio.BrokenResourceError(str(error)) from error
            if data:
                return data
            await self._wait(since)

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._waiting.unpark_all()
            self._ring.close()
        await trio.lowlevel.checkpoint()
