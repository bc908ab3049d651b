# SPDX-License-Identifier: GPL-2.0-only
"""The blocking client: `with Client() as client: client.read("/local/domain/0/name")`.

Over the daemon's socket, the kernel's xenbus device, or a domain's page. One client may be shared by threads:
whoever waits first reads from the connection and hands out what belongs to others, so there is no thread
behind it. Method names are those of pyxs where both have the method. See docs/xenstore.md.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TypeVar

from xenstore import commands
from xenstore.commands import Command, Event, Text
from xenstore.errors import Conflict, ConnectionLost, ProtocolError, XenstoreError
from xenstore.operations import Operations
from xenstore.transports import DeviceTransport, SocketTransport, Transport, default_path
from xenstore.types import TxId

T = TypeVar("T")

XENBUS = "/dev/xen/xenbus"


class Client(Operations):
    """A connection to the store."""

    def __init__(
        self,
        unix_socket_path: str | None = None,
        xen_bus_path: str | None = None,
        transport: Transport | None = None,
    ) -> None:
        """Without arguments: the socket of the local daemon, or /dev/xen/xenbus where there is none."""
        if transport is None:
            transport = _open(unix_socket_path, xen_bus_path)
        self._transport = transport
        self._protocol = commands.Protocol()
        self._monitors: list[Monitor] = []
        self._lock = threading.Condition()
        self._sending = threading.Lock()
        self._reading = False
        """A thread is in `transport.receive`; the others wait for what it brings."""
        self._lost: str | None = None
        self._closed = False
        self._tokens = 0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._lost = self._lost or "the client is closed"
        if not self._closed:
            self._closed = True
            self._transport.close()

    # -- requests and what comes back

    def execute(self, command: Command[T], txid: TxId = commands.NO_TX) -> T:
        """One request and its reply, whatever events come in between."""
        with self._lock:
            self._check()
            number, data = self._protocol.request(command, txid)
        try:
            with self._sending:
                self._transport.send(data)
        except OSError as error:
            self._fail(f"the connection to the store is gone: {error}")
        reply = self._wait(lambda: self._protocol.reply(number, command), None)
        assert reply is not None
        return reply[0]

    def _check(self) -> None:
        if self._lost is not None:
            raise ConnectionLost(self._lost)

    def _fail(self, why: str) -> None:
        with self._lock:
            if self._lost is None:
                self._lost = why
            self._lock.notify_all()
        raise ConnectionLost(why)

    def _wait(self, ready: Callable[[], T | None], timeout: float | None) -> T | None:
        """Until `ready()` gives something (called under the lock), or None when the time is over."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            while True:
                result = ready()
                if result is not None:
                    return result
                self._check()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                if self._reading:
                    self._lock.wait(left)
                else:
                    self._read(left)

    def _read(self, timeout: float | None) -> None:
        """Read once for everyone; called with the lock held, which is free while waiting."""
        self._reading = True
        self._lock.release()
        problem = None
        data: bytes | None = b""
        try:
            data = self._transport.receive(timeout)
        except OSError as error:
            problem = f"the connection to the store is gone: {error}"
        finally:
            self._lock.acquire()
            self._reading = False
            self._lock.notify_all()
        if data == b"":
            self._lost = self._lost or problem or "the store has closed the connection"
        elif data is not None:
            try:
                events = self._protocol.received(data)
            except ProtocolError as error:
                self._lost = f"the store does not speak its protocol: {error}"
                raise ConnectionLost(self._lost) from error
            for event in events:
                for monitor in self._monitors:
                    monitor.offer(event)

    # -- transactions

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A transaction, committed at the end of the block; raises Conflict when what it read has changed.

        It is dropped when the block raises. To have it repeated on a conflict, see `transactions`.
        """
        transaction = Transaction(self, self.execute(commands.transaction_start()))
        try:
            yield transaction
        except BaseException:
            with suppress(XenstoreError):
                transaction.rollback()
            raise
        if not transaction.ended:
            transaction.commit()

    def transactions(self) -> Iterator[Attempt]:
        """`for attempt in client.transactions(): with attempt as transaction: ...` runs until it commits."""
        attempt = Attempt(self)
        while not attempt.committed:
            yield attempt

    def run_transaction(self, body: Callable[[Transaction], T]) -> T:
        """`body(transaction)`, repeated until it commits without a conflict."""
        while True:
            try:
                with self.transaction() as transaction:
                    return body(transaction)
            except Conflict:
                continue

    # -- watches

    def monitor(self) -> Monitor:
        """Something to set watches with and to wait for their events."""
        monitor = Monitor(self)
        with self._lock:
            self._monitors.append(monitor)
        return monitor

    def watch(self, path: Text, token: Text | None = None, depth: int | None = None) -> Monitor:
        """A monitor that watches `path`: `for event in client.watch(path): ...`. The first event comes at once."""
        monitor = self.monitor()
        try:
            monitor.watch(path, token, depth)
        except BaseException:
            self.forget(monitor)
            raise
        return monitor

    def forget(self, monitor: Monitor) -> None:
        with self._lock, suppress(ValueError):
            self._monitors.remove(monitor)

    def next_token(self) -> str:
        with self._lock:
            self._tokens += 1
            return f"xenstore-{self._tokens}"

    def wait_event(self, monitor: Monitor, timeout: float | None) -> Event | None:
        return self._wait(monitor.take, timeout)

    # -- domains and the daemon

    def get_domain_path(self, domid: int) -> str:
        return self.execute(commands.get_domain_path(domid))

    def is_domain_introduced(self, domid: int) -> bool:
        return self.execute(commands.is_domain_introduced(domid))

    def introduce_domain(self, domid: int, mfn: int, eventchn: int) -> None:
        self.execute(commands.introduce_domain(domid, mfn, eventchn))

    def release_domain(self, domid: int) -> None:
        self.execute(commands.release_domain(domid))

    def resume_domain(self, domid: int) -> None:
        self.execute(commands.resume_domain(domid))

    def set_target(self, domid: int, target: int) -> None:
        self.execute(commands.set_target(domid, target))

    def reset_watches(self) -> None:
        """Drop all watches and transactions of this connection."""
        self.execute(commands.reset_watches())

    def get_feature(self, domid: int | None = None) -> int:
        return self.execute(commands.get_feature(domid))

    def set_feature(self, domid: int, features: int) -> None:
        self.execute(commands.set_feature(domid, features))

    def quota_names(self) -> list[str]:
        return self.execute(commands.quota_names())

    def get_quota(self, quota: str, domid: int | None = None) -> int:
        return self.execute(commands.get_quota(quota, domid))

    def set_quota(self, quota: str, value: int, domid: int | None = None) -> None:
        self.execute(commands.set_quota(quota, value, domid))

    def control(self, *words: str) -> str:
        """What `xenstore-control` sends."""
        return self.execute(commands.control(words))


class Transaction(Operations):
    """The store as it was when the transaction began, and changes that nobody sees before it is committed."""

    def __init__(self, client: Client, txid: TxId) -> None:
        self._client = client
        self.id = txid
        self.ended = False

    def execute(self, command: Command[T]) -> T:
        return self._client.execute(command, self.id)

    def commit(self) -> None:
        self.ended = True
        self.execute(commands.transaction_end(True))

    def rollback(self) -> None:
        if not self.ended:
            self.ended = True
            self.execute(commands.transaction_end(False))


class Attempt:
    """One try of a transaction that is repeated on conflict."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._transaction: Transaction | None = None
        self.committed = False

    def __enter__(self) -> Transaction:
        self._transaction = Transaction(self._client, self._client.execute(commands.transaction_start()))
        return self._transaction

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> bool:
        transaction = self._transaction
        assert transaction is not None
        if error is not None:
            with suppress(XenstoreError):
                transaction.rollback()
            return isinstance(error, Conflict)
        if transaction.ended:
            self.committed = True
            return False
        try:
            transaction.commit()
            self.committed = True
        except Conflict:
            pass
        return False


class Monitor:
    """Watches and the queue of their events; iterate over it, or call `wait`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._watches: dict[tuple[str, str], None] = {}
        self._events: deque[Event] = deque()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def watched(self) -> set[str]:
        return {path for path, _ in self._watches}

    def watch(self, path: Text, token: Text | None = None, depth: int | None = None) -> None:
        """Watch `path` and all below it, or `depth` levels of that."""
        key = (commands.shown(path), commands.shown(token) if token is not None else self._client.next_token())
        new = key not in self._watches
        self._watches[key] = None
        try:
            self._client.execute(commands.watch(path, key[1], depth))
        except BaseException:
            if new:
                del self._watches[key]
            raise

    def unwatch(self, path: Text, token: Text) -> None:
        self._client.execute(commands.unwatch(path, token))
        self._watches.pop((commands.shown(path), commands.shown(token)), None)

    def offer(self, event: Event) -> None:
        """The client has an event: is it for one of these watches?"""
        path = event.path
        while (path, event.token) not in self._watches:
            if path == "/" or "/" not in path:
                return
            path = path.rpartition("/")[0] or "/"
        self._events.append(event)

    def take(self) -> Event | None:
        return self._events.popleft() if self._events else None

    def wait(self, timeout: float | None = None) -> Event | None:
        """The next event, None when the time is over."""
        return self._client.wait_event(self, timeout)

    def __iter__(self) -> Iterator[Event]:
        while True:
            event = self.wait()
            assert event is not None
            yield event

    def close(self) -> None:
        """Remove the watches."""
        for path, token in list(self._watches):
            with suppress(XenstoreError):
                self.unwatch(path, token)
        self._client.forget(self)


def _open(unix_socket_path: str | None, xen_bus_path: str | None) -> Transport:
    path = unix_socket_path or (default_path() if xen_bus_path is None else None)
    try:
        if path is not None:
            try:
                return SocketTransport(path)
            except OSError:
                if unix_socket_path is not None:
                    raise
        return DeviceTransport(xen_bus_path or XENBUS)
    except OSError as error:
        where = path or xen_bus_path or XENBUS
        message = f"cannot reach the store at {where} ({error.strerror}): is xenstored running? See XENSTORED_PATH"
        raise ConnectionLost(message) from error
