# SPDX-License-Identifier: GPL-2.0-only
"""The store as dom0's drivers use it (`xen_py.drive.bus`): calls on the host's own store, which never wait.

Owner: the trio thread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TypeVar

from xen_py.drive.bus import BusError, BusNodes
from xenstore.errors import Conflict, NotFound, XenstoreError
from xenstore.local import LocalClient, Operations

T = TypeVar("T")


class LocalNodes:
    """Nodes of the store, or as one of its transactions sees them."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def read(self, path: str) -> bytes | None:
        with _bus_errors():
            return self._operations.read_or_none(path)

    async def write(self, path: str, value: str) -> None:
        with _bus_errors():
            self._operations.write(path, value)

    async def remove(self, path: str) -> None:
        with _bus_errors(), suppress(NotFound):
            self._operations.rm(path)

    async def names(self, path: str) -> list[str]:
        with _bus_errors():
            try:
                return self._operations.directory(path)
            except NotFound:
                return []


class LocalBus(LocalNodes):
    """See `xen_py.drive.bus.Bus`."""

    def __init__(self, client: LocalClient) -> None:
        super().__init__(client)
        self._client = client

    async def run_transaction(self, body: Callable[[BusNodes], Awaitable[T]]) -> T:
        while True:
            try:
                with _bus_errors(), self._client.transaction() as transaction:
                    return await body(LocalNodes(transaction))
            except Conflict:
                continue

    @asynccontextmanager
    async def watch(self, path: str, changed: Callable[[], None]) -> AsyncIterator[None]:
        with _bus_errors():
            channel = self._client.watch(path, on_event=changed)
        try:
            yield
        finally:
            channel.close()


@contextmanager
def _bus_errors() -> Iterator[None]:
    """The store's errors as drivers know them; a conflict is the transaction's own affair."""
    try:
        yield
    except Conflict:
        raise
    except XenstoreError as error:
        raise BusError(str(error)) from error
