# SPDX-License-Identifier: GPL-2.0-only
"""How a blocking client reaches a store: a unix socket, the kernel's xenbus device, or a shared page.

Each has `send`, `receive` (what is there, waiting up to a timeout for something; b"" at the end) and `close`.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from typing import Final, Protocol

from xenstore.errors import ConnectionLost
from xenstore.page import INDICES, MASK, REQ, REQ_CONS, REQ_PROD, RING_SIZE, RSP, RSP_CONS, RSP_PROD, check_page

CHUNK: Final = 65536


class Transport(Protocol):
    def send(self, data: bytes) -> None:
        """All of it; waits while the store does not take it. Raises OSError."""

    def receive(self, timeout: float | None) -> bytes | None:
        """Something from the store, b"" when it has closed the connection, None when the time is over."""

    def close(self) -> None: ...


def default_path() -> str:
    """Where the store's socket is: as Xen's own library finds it."""
    path = os.environ.get("XENSTORED_PATH")
    if path:
        return path
    return os.path.join(os.environ.get("XENSTORED_RUNDIR") or "/var/run/xenstored", "socket")


class SocketTransport:
    """A unix socket."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(path)
        except BaseException:
            self._socket.close()
            raise

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self, timeout: float | None) -> bytes | None:
        if timeout is not None:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            if not poll.poll(timeout * 1000):
                return None
        return self._socket.recv(CHUNK)

    def close(self) -> None:
        self._socket.close()


class DeviceTransport:
    """/dev/xen/xenbus inside a guest."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def send(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._fd, data) :]

    def receive(self, timeout: float | None) -> bytes | None:
        if timeout is not None:
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            if not poll.poll(timeout * 1000):
                return None
        return os.read(self._fd, CHUNK)

    def close(self) -> None:
        os.close(self._fd)


class RingTransport:
    """A domain's own page: what its kernel does, for guests written in Python and for tests.

    `notify` rings the store; `wait(seconds or None)` returns when the store has rung, or the time is over.
    """

    def __init__(
        self, page: memoryview, notify: Callable[[], None], wait: Callable[[float | None], None]
    ) -> None:
        check_page(page)
        self._page = page.cast("B")
        self._words = self._page[INDICES : INDICES + 32].cast("I")
        self._notify = notify
        self._wait = wait

    def _used(self, consumer: int, producer: int) -> int:
        used = (self._words[producer] - self._words[consumer]) & MASK
        if used > RING_SIZE:
            raise ConnectionLost("the indices of the store's page make no sense: reconnect")
        return used

    def put(self, data: bytes) -> int:
        """Into the request ring as much as fits; gives how much that was."""
        words, page = self._words, self._page
        size = min(len(data), RING_SIZE - self._used(REQ_CONS, REQ_PROD))
        if size:
            produced = words[REQ_PROD]
            at = produced % RING_SIZE
            first = min(size, RING_SIZE - at)
            page[REQ + at : REQ + at + first] = data[:first]
            page[REQ : REQ + size - first] = data[first:size]
            words[REQ_PROD] = (produced + size) & MASK
            self._notify()
        return size

    def take(self) -> bytes:
        """What is in the response ring."""
        words, page = self._words, self._page
        size = self._used(RSP_CONS, RSP_PROD)
        if not size:
            return b""
        consumed = words[RSP_CONS]
        at = consumed % RING_SIZE
        first = min(size, RING_SIZE - at)
        data = bytes(page[RSP + at : RSP + at + first]) + bytes(page[RSP : RSP + size - first])
        words[RSP_CONS] = (consumed + size) & MASK
        self._notify()
        return data

    def send(self, data: bytes) -> None:
        while data:
            size = self.put(data)
            data = data[size:]
            if data and not size:
                self._wait(None)

    def receive(self, timeout: float | None) -> bytes | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not (data := self.take()):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            self._wait(left)
        return data

    def close(self) -> None:
        self._words.release()
        self._page.release()
