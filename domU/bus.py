# SPDX-License-Identifier: GPL-2.0-only
"""The store as a Python guest's drivers use it (`xen_py.drive.bus`): requests over the guest's own ring."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from xen_py.drive.bus import BusNodes
from xenstore.aclient import AsyncClient, AsyncOperations
from xenstore.errors import NotFound

T = TypeVar("T")


class RingNodes:
    """Nodes of the store, or as one of its transactions sees them."""

    def __init__(self, operations: AsyncOperations) -> None:
        self._operations = operations

    async def read(self, path: str) -> bytes | None:
        try:
            return await self._operations.read(path)
        except NotFound:
            return None

    async def write(self, path: str, value: str) -> None:
        await self._operations.write(path, value)

    async def remove(self, path: str) -> None:
        try:
            await self._operations.delete(path)
        except NotFound:
            return

    async def names(self, path: str) -> list[str]:
        try:
            return await self._operations.list(path)
        except NotFound:
            return []


class RingBus(RingNodes):
    """See `xen_py.drive.bus.Bus`."""

    def __init__(self, client: AsyncClient) -> None:
        super().__init__(client)
        self._client = client

    async def run_transaction(self, body: Callable[[BusNodes], Awaitable[T]]) -> T:
        return await self._client.run_transaction(lambda transaction: body(RingNodes(transaction)))

    @asynccontextmanager
    async def watch(self, path: str, changed: Callable[[], None]) -> AsyncIterator[None]:
        async with self._client.watch(path, on_event=changed):
            yield
