# SPDX-License-Identifier: GPL-2.0-only
"""The console backend: what Xen's xenconsoled does, for one domain's console 0.

Output is taken out of the ring the moment the guest announces it and appended to the domain's log file; nobody has
to be attached and nobody can slow the guest down. Whoever wants to see it (`xl console`, a test) reads the log file
at an offset of their own, so a slow reader loses nothing and costs no memory. Input goes the other way only as
fast as the guest takes it.

Owner: the trio thread. The guest writes the ring page at any moment; `xen_py.io.console` checks what it finds there.
Protocol: xen/include/public/io/console.h. Console 0 has no xenbus states: the builder made its page and port.
"""

from __future__ import annotations

import logging
import os
import select
import socket as stdlib_socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from xen_py.io.console import Connection, ConsoleRing, ConsoleRingStatistics, RingBroken

_log = logging.getLogger("xen-py.console")
_CHUNK = 64 * 1024


class ConsoleClosed(Exception):
    """The domain is gone and all it wrote has been read."""


class ConsoleLog:
    """Every byte one domain writes, in a file that outlives it; earlier domains of the same name come before."""

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self.path = path
        self._warn = warn
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.start = self.size = os.fstat(self._fd).st_size
        self.seen = self.start
        """Bytes up to here some client has been given."""
        self.lost = 0
        """Bytes that could not be written to the file (a full disk)."""
        self.over = False
        self._readers = 0
        self._grown = trio.lowlevel.ParkingLot()

    def append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                count = os.write(self._fd, view)
            except OSError as error:
                if not self.lost:
                    self._warn(f"console log {self.path} cannot be written, output is lost: {error.strerror}")
                self.lost += len(view)
                break
            self.size += count
            view = view[count:]
        self._grown.unpark_all()

    def finish(self) -> None:
        """No more bytes will come: readers end after the last one."""
        self.over = True
        self._grown.unpark_all()
        self._release()

    async def read(self, offset: int) -> bytes:
        """Some bytes from `offset` on, waiting for them if there are none yet; b"" at the very end."""
        while True:
            if offset < self.size:
                return os.pread(self._fd, min(_CHUNK, self.size - offset), offset)
            if self.over:
                return b""
            await self._grown.park()

    def reader(self) -> LogReader:
        """A reader that starts with the first byte no client has seen."""
        return LogReader(self, self.seen)

    def attach(self) -> None:
        self._readers += 1

    def detach(self) -> None:
        self._readers -= 1
        self._release()

    def _release(self) -> None:
        if self.over and self._readers == 0 and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class LogReader:
    """One reader's place in a log. A context manager: the file stays open while any reader is."""

    def __init__(self, log: ConsoleLog, offset: int) -> None:
        self._log = log
        self.offset = offset

    def __enter__(self) -> LogReader:
        self._log.attach()
        return self

    def __exit__(self, *exc: object) -> None:
        self._log.detach()

    async def peek(self) -> bytes:
        """The bytes at the reader's place, b"" at the end; `advance` says how many of them were used."""
        return await self._log.read(self.offset)

    def advance(self, count: int) -> None:
        self.offset += count
        self._log.seen = max(self._log.seen, self.offset)


@dataclass(frozen=True)
class ConsoleStatistics:
    output_bytes: int
    lost_bytes: int
    input_bytes: int
    clients: int
    broken: bool
    ring: ConsoleRingStatistics | None


class Console:
    """Console 0 of one domain. `notify` sends an event to the guest."""

    def __init__(
        self, ring: ConsoleRing, log: ConsoleLog, notify: Callable[[], None], warn: Callable[[str], None]
    ) -> None:
        self.log = log
        self._ring: ConsoleRing | None = ring
        self._notify = notify
        self._warn = warn
        self._room = trio.lowlevel.ParkingLot()
        self._feeding = trio.Lock()
        self._broken = False
        self._input_bytes = 0
        self._clients = 0
        ring.set_connection(Connection.CONNECTED)

    def on_event(self) -> None:
        """The guest has written output or taken input."""
        self.drain()
        self._room.unpark_all()

    def drain(self) -> None:
        """Move the ring's output to the log. Also called when the domain has ended, for what it could not announce."""
        if self._ring is None:
            return
        try:
            data = self._ring.take_output()
        except RingBroken as error:
            if not self._broken:
                self._broken = True
                self._warn(f"{error}; its output is ignored until the guest repairs it")
            return
        self._broken = False
        if data:
            self.log.append(data)
            self._notify()

    def write(self, data: bytes) -> None:
        """Bytes that reach the log by another way than the ring (the console_io hypercall)."""
        self.drain()
        self.log.append(data)

    async def feed(self, data: bytes) -> None:
        """Give the guest all of `data`, as fast as it takes it. ConsoleClosed when it is gone."""
        async with self._feeding:
            view = data
            while view:
                if self._ring is None:
                    raise ConsoleClosed("the domain is gone")
                try:
                    count = self._ring.put_input(view)
                except RingBroken:
                    count = 0
                if count:
                    self._input_bytes += count
                    self._notify()
                    view = view[count:]
                else:
                    await self._room.park()

    async def serve(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        """Take clients, each in a task of `nursery`: one that still reads may outlive the domain."""
        while True:
            try:
                stream = await listener.accept()
            except OSError:
                # out of file descriptors, say: one client is turned away, the console goes on
                await trio.sleep(0.1)
                continue
            nursery.start_soon(self.serve_client, stream)

    async def serve_client(self, stream: trio.SocketStream) -> None:
        """One client: its bytes to the guest, the log from the first unseen byte to it."""
        self._clients += 1
        try:
            async with stream, trio.open_nursery() as nursery:
                nursery.start_soon(self._pump_input, stream, nursery.cancel_scope)
                with self.log.reader() as reader:
                    while data := await reader.peek():
                        reader.advance(await stream.socket.send(data))
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass  # the client went away; that is its right
        except* Exception:
            _log.exception("a console client could not be served")
        finally:
            self._clients -= 1

    async def _pump_input(self, stream: trio.SocketStream, client: trio.CancelScope) -> None:
        try:
            while data := await stream.receive_some(4096):
                await self.feed(data)
        except ConsoleClosed:
            return
        # It has closed its writing half (`xl console </dev/null`) and may go on reading, or has gone altogether.
        await _hung_up(stream)
        client.cancel()

    def close(self) -> None:
        """The domain is gone: take what is left in the ring, let go of the page, let readers come to the end."""
        if self._ring is None:
            return
        self.drain()
        ring, self._ring = self._ring, None
        ring.close()
        self._room.unpark_all()
        self.log.finish()

    def statistics(self) -> ConsoleStatistics:
        return ConsoleStatistics(
            self.log.size - self.log.start,
            self.log.lost,
            self._input_bytes,
            self._clients,
            self._broken,
            self._ring.statistics() if self._ring else None,
        )


async def _hung_up(stream: trio.SocketStream) -> None:
    """Return when the peer has closed both directions: the one event an epoll set with no events asked for tells."""
    with select.epoll() as hangup:
        hangup.register(stream.socket.fileno(), 0)
        await trio.lowlevel.wait_readable(hangup.fileno())


def open_listener(path: Path) -> trio.SocketListener:
    """A unix stream socket at `path`, for the owner only."""
    path.unlink(missing_ok=True)
    sock = stdlib_socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        os.chmod(path, 0o600)
        sock.listen(64)
        return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    except BaseException:
        sock.close()
        raise
