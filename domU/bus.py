# SPDX-License-Identifier: GPL-2.0-only
"""The store as a Python guest's drivers use it (`xen_py.drive.bus`): requests over the guest's own ring."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TypeVar

from xen_py.drive.bus import BusError, BusNodes
from xenstore.aclient import AsyncClient, AsyncOperations
from xenstore.errors import NotFound, PermissionDenied, XenstoreError

T = TypeVar("T")


class RingNodes:
    """Nodes of the store, or as one of its transactions sees them.

    A node that is gone together with its directory may not even be looked for: that counts as missing too.
    """

    def __init__(self, operations: AsyncOperations) -> None:
        self._operations = operations

    async def read(self, path: str) -> bytes | None:
        with _bus_errors():
            try:
                return await self._operations.read(path)
            except (NotFound, PermissionDenied):
                return None

    async def write(self, path: str, value: str) -> None:
        with _bus_errors():
            await self._operations.write(path, value)

    async def remove(self, path: str) -> None:
        with _bus_errors(), suppress(NotFound):
            await self._operations.delete(path)

    async def names(self, path: str) -> list[str]:
        with _bus_errors():
            try:
                return await self._operations.list(path)
            except (NotFound, PermissionDenied):
                return []


class RingBus(RingNodes):
    """See `xen_py.drive.bus.Bus`."""

    def __init__(self, client: AsyncClient) -> None:
        super().__init__(client)
        self._client = client

    async def run_transaction(self, body: Callable[[BusNodes], Awaitable[T]]) -> T:
        with _bus_errors():
            return await self._client.run_transaction(lambda transaction: body(RingNodes(transaction)))

    @asynccontextmanager
    async def watch(self, path: str, changed: Callable[[], None]) -> AsyncIterator[None]:
        with _bus_errors():
            async with self._client.watch(path, on_event=changed):
                yield


@contextmanager
def _bus_errors() -> Iterator[None]:
    """The store's errors as drivers know them."""
    try:
        yield
    except XenstoreError as error:
        raise BusError(str(error)) from error
