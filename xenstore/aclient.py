# SPDX-License-Identifier: GPL-2.0-only
"""The trio client: `async with open_client() as client: await client.read("/local/domain/0/name")`.

One background task reads and hands out replies and events, so any number of tasks may use one client at once.
Method names as in `xenstore.client.Client`. See docs/xenstore.md.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from xenstore import commands
from xenstore.commands import Command, Event, Text
from xenstore.errors import Conflict, ConnectionLost, NotFound, ProtocolError, TooBig, XenstoreError
from xenstore.transports import CHUNK, default_path
from xenstore.types import TxId

T = TypeVar("T")
Names = list[str]

RETRY = 0.01
"""Seconds until a daemon that was too busy to take a connection is asked again."""


class AsyncOperations:
    """What can be done with nodes, by a client or within a transaction."""

    async def execute(self, command: Command[T]) -> T:
        raise AssertionError("AsyncOperations is a base of AsyncClient and AsyncTransaction")

    async def read(self, path: Text, default: bytes | None = None) -> bytes:
        """The value of a node; `default`, if given, when there is no such node."""
        try:
            return await self.execute(commands.read(path))
        except NotFound:
            if default is None:
                raise
            return default

    async def write(self, path: Text, value: Text) -> None:
        await self.execute(commands.write(path, value))

    async def mkdir(self, path: Text) -> None:
        await self.execute(commands.mkdir(path))

    async def delete(self, path: Text) -> None:
        await self.execute(commands.delete(path))

    rm = delete

    async def list(self, path: Text) -> Names:
        """The names of the children, however many."""
        try:
            return await self.execute(commands.directory(path))
        except TooBig:
            return await self._long_list(path)

    async def _long_list(self, path: Text) -> Names:
        parts = commands.LongList(path)
        while (names := parts.add(*await self.execute(parts.next_part()))) is None:
            pass
        return names

    async def exists(self, path: Text) -> bool:
        try:
            await self.execute(commands.read(path))
        except NotFound:
            return False
        return True

    async def get_perms(self, path: Text) -> Names:
        return await self.execute(commands.get_perms(path))

    async def set_perms(self, path: Text, perms: Iterable[Text]) -> None:
        await self.execute(commands.set_perms(path, perms))

    async def walk(self, top: Text, topdown: bool = True) -> AsyncIterator[tuple[str, bytes, Names]]:
        """(path, value, names of children) of a node and all below it."""
        path = commands.shown(top)
        try:
            value, children = await self.read(path), await self.list(path)
        except NotFound:
            return
        if topdown:
            yield path, value, children
        for child in children:
            async for found in self.walk(f"{'' if path == '/' else path}/{child}", topdown):
                yield found
        if not topdown:
            yield path, value, children


class AsyncClient(AsyncOperations):
    """A connection to the store. Made by `open_client`, or `over` any stream."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._protocol = commands.Protocol()
        self._outgoing = bytearray()
        self._more = trio.lowlevel.ParkingLot()
        self._arrived: dict[int, trio.Event] = {}
        self._watches: dict[AsyncWatch, None] = {}
        self._lost: str | None = None
        self._tokens = 0

    @classmethod
    @asynccontextmanager
    async def over(cls, stream: trio.abc.Stream) -> AsyncIterator[AsyncClient]:
        """A client over a stream of the caller's: a socket, or a domain's ring."""
        client = cls(stream)
        failure: Exception | None = None
        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(client._reader)
            nursery.start_soon(client._writer)
            try:
                yield client
            except Exception as error:
                failure = error  # raised below, where the nursery does not put it into a group
            finally:
                client._end("the client is closed")
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    # -- requests and what comes back

    async def execute(self, command: Command[T], txid: TxId = commands.NO_TX) -> T:
        """One request and its reply, whatever comes in between."""
        if self._lost is not None:
            raise ConnectionLost(self._lost)
        number, data = self._protocol.request(command, txid)
        arrived = self._arrived[number] = trio.Event()
        try:
            self._outgoing += data
            self._more.unpark()
            await arrived.wait()
            reply = self._protocol.reply(number, command)
        finally:
            del self._arrived[number]
            self._protocol.forget(number)
        if reply is None:
            raise ConnectionLost(self._lost or "the connection to the store is gone")
        return reply[0]

    async def _writer(self) -> None:
        """Send requests, whole, whatever becomes of the tasks that made them."""
        try:
            while True:
                while not self._outgoing:
                    await self._more.park()
                data, self._outgoing = self._outgoing, bytearray()
                await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._end(f"the connection to the store is gone: {error}")

    async def _reader(self) -> None:
        why = "the store has closed the connection"
        try:
            while data := await self._stream.receive_some(CHUNK):
                for event in self._protocol.received(bytes(data)):
                    for watch in list(self._watches):
                        watch.offer(event)
                for number, arrived in self._arrived.items():
                    if self._protocol.replies[number] is not None:
                        arrived.set()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            why = f"the connection to the store is gone: {error}"
        except ProtocolError as error:
            why = f"the store does not speak its protocol: {error}"
        except trio.Cancelled:
            why = "the client was cancelled"
            raise
        finally:
            self._end(why)  # also when cancelled: who unwatches on its way out must not wait for a reply

    def _end(self, why: str) -> None:
        if self._lost is None:
            self._lost = why
        for arrived in self._arrived.values():
            arrived.set()
        for watch in list(self._watches):
            watch.lost(self._lost)

    # -- transactions

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncTransaction]:
        """A transaction, committed at the end of the block; raises Conflict when what it read has changed."""
        transaction = AsyncTransaction(self, await self.execute(commands.transaction_start()))
        try:
            yield transaction
        except BaseException:
            with trio.CancelScope(shield=True):
                await transaction.drop()
            raise
        if not transaction.ended:
            await transaction.commit()

    async def run_transaction(self, body: Callable[[AsyncTransaction], Awaitable[T]]) -> T:
        """`await body(transaction)`, repeated until it commits without a conflict."""
        while True:
            try:
                async with self.transaction() as transaction:
                    return await body(transaction)
            except Conflict:
                continue

    # -- watches

    @asynccontextmanager
    async def watch(
        self,
        path: Text,
        token: Text | None = None,
        depth: int | None = None,
        on_event: Callable[[], None] | None = None,
    ) -> AsyncIterator[AsyncWatch]:
        """`async with client.watch(path) as events: async for event in events: ...`. The first comes at once.

        With `on_event` that is called instead, for each event and before any later reply is handed out.
        """
        self._tokens += 1
        name = f"async-{self._tokens}" if token is None else commands.shown(token)
        watch = AsyncWatch(commands.shown(path), name, on_event)
        self._watches[watch] = None
        try:
            await self.execute(commands.watch(path, watch.token, depth))
            try:
                yield watch
            finally:
                with trio.CancelScope(shield=True):
                    await self._unwatch(path, watch.token)
        finally:
            del self._watches[watch]

    async def _unwatch(self, path: Text, token: str) -> None:
        if self._lost is None:
            try:
                await self.execute(commands.unwatch(path, token))
            except (NotFound, ConnectionLost):
                return

    # -- domains and the daemon

    async def get_domain_path(self, domid: int) -> str:
        return await self.execute(commands.get_domain_path(domid))

    async def is_domain_introduced(self, domid: int) -> bool:
        return await self.execute(commands.is_domain_introduced(domid))

    async def introduce_domain(self, domid: int, mfn: int, eventchn: int) -> None:
        await self.execute(commands.introduce_domain(domid, mfn, eventchn))

    async def release_domain(self, domid: int) -> None:
        await self.execute(commands.release_domain(domid))

    async def resume_domain(self, domid: int) -> None:
        await self.execute(commands.resume_domain(domid))

    async def set_target(self, domid: int, target: int) -> None:
        await self.execute(commands.set_target(domid, target))

    async def reset_watches(self) -> None:
        await self.execute(commands.reset_watches())

    async def get_feature(self, domid: int | None = None) -> int:
        return await self.execute(commands.get_feature(domid))

    async def set_feature(self, domid: int, features: int) -> None:
        await self.execute(commands.set_feature(domid, features))

    async def get_quota(self, quota: str, domid: int | None = None) -> int:
        return await self.execute(commands.get_quota(quota, domid))

    async def set_quota(self, quota: str, value: int, domid: int | None = None) -> None:
        await self.execute(commands.set_quota(quota, value, domid))

    async def control(self, *words: str) -> str:
        return await self.execute(commands.control(words))


class AsyncTransaction(AsyncOperations):
    """The store as it was when the transaction began, and changes that nobody sees before it is committed."""

    def __init__(self, client: AsyncClient, txid: TxId) -> None:
        self._client = client
        self.id = txid
        self.ended = False

    async def execute(self, command: Command[T]) -> T:
        return await self._client.execute(command, self.id)

    async def commit(self) -> None:
        self.ended = True
        await self.execute(commands.transaction_end(True))

    async def rollback(self) -> None:
        if not self.ended:
            self.ended = True
            await self.execute(commands.transaction_end(False))

    async def drop(self) -> None:
        """`rollback`, when something else has already gone wrong."""
        try:
            await self.rollback()
        except XenstoreError:
            return


class AsyncWatch:
    """The events of one watch, for one task to iterate over. None is lost; equal ones that wait are merged."""

    def __init__(self, path: str, token: str, on_event: Callable[[], None] | None = None) -> None:
        self.path = path
        self.token = token
        self._on_event = on_event
        self._events: dict[Event, None] = {}
        self._lost: str | None = None
        self._waiting = trio.lowlevel.ParkingLot()

    def offer(self, event: Event) -> None:
        if event.token != self.token:
            return
        if self._on_event is not None:
            self._on_event()
            return
        self._events[event] = None
        self._waiting.unpark()

    def lost(self, why: str) -> None:
        self._lost = why
        self._waiting.unpark_all()

    async def wait(self) -> Event:
        """The next event."""
        await trio.lowlevel.checkpoint()
        while not self._events:
            if self._lost is not None:
                raise ConnectionLost(self._lost)
            await self._waiting.park()
        event = next(iter(self._events))
        del self._events[event]
        return event

    def __aiter__(self) -> AsyncWatch:
        return self

    async def __anext__(self) -> Event:
        return await self.wait()


async def _connect(path: str) -> trio.SocketStream:
    """Like trio.open_unix_socket, which takes a daemon whose queue of connections is full for one that answered."""
    await trio.lowlevel.checkpoint()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(path)
                return trio.SocketStream(trio.socket.from_stdlib_socket(sock))
            except BlockingIOError:
                await trio.sleep(RETRY)
    except BaseException:
        sock.close()
        raise


@asynccontextmanager
async def open_client(unix_socket_path: str | None = None) -> AsyncIterator[AsyncClient]:
    """A client over the daemon's socket: the one named, or where Xen's own library would look."""
    path = unix_socket_path or default_path()
    try:
        stream = await _connect(path)
    except OSError as error:
        message = f"cannot reach the store at {path} ({error.strerror}): is xenstored running? See XENSTORED_PATH"
        raise ConnectionLost(message) from error
    async with AsyncClient.over(stream) as client:
        yield client
