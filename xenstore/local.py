# SPDX-License-Identifier: GPL-2.0-only
"""A client inside the host process: dom0's toolstack and backends talk to the store without a socket.

Every call runs at once against the server, with the checks and watches any client gets; nothing blocks.
Watches are trio channels. Used from the task that owns the server. See `xenstore.daemon.Daemon.client`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio

from xenstore.errors import Conflict, NotFound
from xenstore.server import Server
from xenstore.types import DOM0, DomId, TxId
from xenstore.wire import HEADER_SIZE, MsgType

T = TypeVar("T")


class WatchChannel(trio.abc.ReceiveChannel[tuple[str, str]]):
    """The events of one watch as (path, token). None is lost; equal ones that wait are merged.

    With `on_event` they go there, at once, and not into the channel.
    """

    def __init__(self, client: LocalClient, path: str, token: str, on_event: Callable[[], None] | None = None) -> None:
        self._client = client
        self.path = path
        self.token = token
        self._on_event = on_event
        self._events: dict[tuple[str, str], None] = {}
        self._waiting = trio.lowlevel.ParkingLot()
        self._closed = False

    def deliver(self, path: str, token: str) -> None:
        if self._on_event is not None:
            self._on_event()
            return
        self._events[path, token] = None
        self._waiting.unpark()

    def receive_nowait(self) -> tuple[str, str]:
        if self._closed:
            raise trio.ClosedResourceError
        if not self._events:
            raise trio.WouldBlock
        event = next(iter(self._events))
        del self._events[event]
        return event

    async def receive(self) -> tuple[str, str]:
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return self.receive_nowait()
            except trio.WouldBlock:
                await self._waiting.park()

    def close(self) -> None:
        """Remove the watch; who waits for it gets ClosedResourceError."""
        if not self._closed:
            self._closed = True
            self._client.forget_watch(self)
            self._waiting.unpark_all()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()


class Operations:
    """What can be done with nodes, by a client or within one of its transactions. Paths are text, values bytes."""

    def __init__(self, call: Callable[[MsgType, bytes, TxId], bytes], txid: TxId = TxId(0)) -> None:  # noqa: B008
        self._call = call
        self._txid = txid

    def _request(self, kind: MsgType, path: str, rest: bytes = b"") -> bytes:
        return self._call(kind, path.encode() + b"\0" + rest, self._txid)

    def read(self, path: str) -> bytes:
        return self._request(MsgType.READ, path)

    def read_or_none(self, path: str) -> bytes | None:
        try:
            return self.read(path)
        except NotFound:
            return None

    def exists(self, path: str) -> bool:
        return self.read_or_none(path) is not None

    def write(self, path: str, value: bytes | str) -> None:
        self._request(MsgType.WRITE, path, value.encode() if isinstance(value, str) else value)

    def mkdir(self, path: str) -> None:
        self._request(MsgType.MKDIR, path)

    def rm(self, path: str) -> None:
        self._request(MsgType.RM, path)

    def directory(self, path: str) -> list[str]:
        return [name.decode() for name in self._request(MsgType.DIRECTORY, path).split(b"\0")[:-1]]

    def get_perms(self, path: str) -> list[str]:
        return [text.decode() for text in self._request(MsgType.GET_PERMS, path).split(b"\0")[:-1]]

    def set_perms(self, path: str, perms: list[str]) -> None:
        self._request(MsgType.SET_PERMS, path, b"".join(text.encode() + b"\0" for text in perms))


class LocalClient(Operations):
    """A client in this process, with dom0's rights."""

    def __init__(self, server: Server, domid: DomId = DOM0) -> None:
        super().__init__(self._raw)
        self._server = server
        self._connection = server.connect(domid, self._dispatch)
        self._channels: dict[str, WatchChannel] = {}
        self._numbers = 0

    def _raw(self, kind: MsgType, payload: bytes, txid: TxId = TxId(0)) -> bytes:  # noqa: B008
        return self._server.call(self._connection, kind, payload, txid)

    def _dispatch(self) -> None:
        """The server has events for us."""
        connection = self._connection
        while connection.out:
            messages = connection.out.copy()
            connection.out.clear()
            for message in messages:
                path, token = message[HEADER_SIZE:-1].decode().split("\0", 1)
                channel = self._channels.get(token)
                if channel is not None:
                    channel.deliver(path, channel.token)
            connection.resume()

    def watch(
        self, path: str, token: str = "", depth: int | None = None, on_event: Callable[[], None] | None = None
    ) -> WatchChannel:
        """Events for `path` and below it; the first one comes at once."""
        self._numbers += 1
        key = f"{self._numbers}"
        channel = WatchChannel(self, path, token, on_event)
        self._channels[key] = channel
        payload = path.encode() + b"\0" + key.encode() + b"\0"
        try:
            self._raw(MsgType.WATCH, payload if depth is None else payload + b"%d\0" % depth)
        except BaseException:
            del self._channels[key]
            raise
        return channel

    def forget_watch(self, channel: WatchChannel) -> None:
        for key, known in self._channels.items():
            if known is channel:
                del self._channels[key]
                self._raw(MsgType.UNWATCH, channel.path.encode() + b"\0" + key.encode() + b"\0")
                return

    @contextmanager
    def transaction(self) -> Iterator[Operations]:
        """A transaction, committed at the end of the block (Conflict when what it read has changed), or dropped."""
        txid = TxId(int(self._raw(MsgType.TRANSACTION_START, b"\0")[:-1]))
        try:
            yield Operations(self._raw, txid)
        except BaseException:
            self._raw(MsgType.TRANSACTION_END, b"F\0", txid)
            raise
        self._raw(MsgType.TRANSACTION_END, b"T\0", txid)

    def run_transaction(self, body: Callable[[Operations], T]) -> T:
        """`body(transaction)` until it commits without a conflict."""
        while True:
            try:
                with self.transaction() as transaction:
                    return body(transaction)
            except Conflict:
                continue

    def get_domain_path(self, domid: int) -> str:
        return self._raw(MsgType.GET_DOMAIN_PATH, b"%d\0" % domid)[:-1].decode()

    def is_domain_introduced(self, domid: int) -> bool:
        return self._raw(MsgType.IS_DOMAIN_INTRODUCED, b"%d\0" % domid) == b"T\0"

    def resume(self, domid: int) -> None:
        """The domain runs again; its next end will be announced by @releaseDomain again."""
        self._raw(MsgType.RESUME, b"%d\0" % domid)

    def set_target(self, domid: int, target: int) -> None:
        self._raw(MsgType.SET_TARGET, b"%d\0%d\0" % (domid, target))

    def set_feature(self, domid: int, features: int) -> None:
        self._raw(MsgType.SET_FEATURE, b"%d\0%d\0" % (domid, features))

    def get_quota(self, domid: int, quota: str) -> int:
        return int(self._raw(MsgType.GET_QUOTA, b"%d\0%s\0" % (domid, quota.encode()))[:-1])

    def set_quota(self, domid: int, quota: str, value: int) -> None:
        self._raw(MsgType.SET_QUOTA, b"%d\0%s\0%d\0" % (domid, quota.encode(), value))

    def control(self, *words: str) -> str:
        return self._raw(MsgType.CONTROL, b"".join(word.encode() + b"\0" for word in words)).rstrip(b"\0").decode()

    def close(self) -> None:
        for channel in list(self._channels.values()):
            channel.close()
        self._server.disconnect(self._connection)
