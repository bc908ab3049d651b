# SPDX-License-Identifier: GPL-2.0-only
"""Unix sockets: one epoll loop for all clients, no task per client and none per request.

`poll(timeout)` serves everyone who is ready. `xenstored` on its own calls it for ever; inside a trio program
`serve` waits for the epoll descriptor and calls it with timeout 0. Every client is dom0: only root and the
user the daemon runs as may connect. A client that does not read is served again once it has.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import stat
import struct
from typing import Final

import trio

from xenstore.errors import ProtocolError
from xenstore.server import Server
from xenstore.types import DOM0

log = logging.getLogger("xenstore")

CHUNK: Final = 65536
"""Bytes of requests taken from one client in one go."""
BACKLOG: Final = 128
_CREDENTIALS: Final = struct.Struct("3i")


def peer_uid(sock: socket.socket) -> int:
    """The user at the other end of a unix socket."""
    return int(_CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1])


class _Client:
    """One connected socket."""

    __slots__ = ("_loop", "_server", "connection", "fd", "sock")

    def __init__(self, loop: SocketServer, server: Server, sock: socket.socket) -> None:
        self._loop = loop
        self._server = server
        self.sock: socket.socket | None = sock
        self.fd = sock.fileno()
        self.connection = server.connect(DOM0, self.flush)

    def readable(self) -> None:
        try:
            data = os.read(self.fd, CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._serve(data)
        else:
            self.close()

    def _serve(self, data: bytes) -> None:
        connection, server = self.connection, self._server
        while True:
            try:
                server.receive(connection, data)
            except ProtocolError as error:
                log.info("a client is disconnected: %s", error)
                server.settle()
                self.close()
                return
            server.settle()
            if not connection.more or connection.stalled:
                return
            data = b""

    def writable(self) -> None:
        """The kernel takes data again."""
        self._send()
        connection = self.connection
        if self.sock is not None and not connection.stalled:
            self._loop.watch(self, select.EPOLLIN)
            if connection.more:
                self._serve(b"")

    def flush(self) -> None:
        if not self.connection.backlog:
            self._send()

    def _send(self) -> None:
        connection = self.connection
        while self.sock is not None:
            if connection.backlog:
                data = connection.backlog
            elif connection.out:
                data = connection.take()
            elif connection.stalled:
                connection.resume()
                continue
            else:
                return
            try:
                sent = os.write(self.fd, data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.close()
                return
            if sent < len(data):
                if not connection.backlog:
                    self._loop.watch(self, select.EPOLLOUT)
                connection.backlog = data[sent:]
                connection.stalled = True
                return
            connection.backlog = b""

    def close(self) -> None:
        if self.sock is not None:
            self._loop.forget(self)
            self.sock.close()
            self.sock = None
            self._server.disconnect(self.connection)


class SocketServer:
    """Listening sockets and their clients."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._epoll = select.epoll()
        self._clients: dict[int, _Client] = {}
        self._listeners: dict[int, tuple[socket.socket, str, tuple[int, int]]] = {}
        self._allowed = {0, os.geteuid()}
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def listen(self, path: str) -> None:
        """Serve clients at this path; a socket file left there by a dead daemon is replaced."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._remove_stale(path)
            mask = os.umask(0o177)
            try:
                listener.bind(path)
            finally:
                os.umask(mask)
            listener.listen(BACKLOG)
            listener.setblocking(False)
            info = os.stat(path)
        except BaseException:
            listener.close()
            raise
        self._listeners[listener.fileno()] = (listener, path, (info.st_dev, info.st_ino))
        self._epoll.register(listener, select.EPOLLIN)

    def wake_on(self, fd: int) -> None:
        """`poll` also returns when this descriptor, a signal's pipe, can be read."""
        self._epoll.register(fd, select.EPOLLIN)

    @staticmethod
    def _remove_stale(path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                raise FileExistsError(f"{path} exists and is not a socket")
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                try:
                    probe.connect(path)
                except OSError:
                    os.unlink(path)
                else:
                    raise FileExistsError(f"another xenstored serves {path}")

    def poll(self, timeout: float) -> None:
        """Serve all who are ready, waiting up to `timeout` seconds (-1: for ever) until someone is."""
        clients = self._clients
        for fd, events in self._epoll.poll(timeout):
            client = clients.get(fd)
            if client is None:
                if fd in self._listeners:
                    self._accept(fd)
            elif events & select.EPOLLOUT:
                client.writable()
            elif events & select.EPOLLIN:
                client.readable()
            else:
                client.close()

    def _accept(self, fd: int) -> None:
        listener = self._listeners[fd][0]
        try:
            sock, _ = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away(listener)
            return
        uid = peer_uid(sock)
        if uid not in self._allowed:
            log.warning("user %d may not use the store: disconnected", uid)
            sock.close()
            return
        sock.setblocking(False)
        client = _Client(self, self._server, sock)
        self._clients[client.fd] = client
        self._epoll.register(client.fd, select.EPOLLIN)

    def _turn_away(self, listener: socket.socket) -> None:
        """No descriptors are left: use the spare one to take the client and tell it so by closing."""
        log.warning("a client is turned away: no more file descriptors")
        os.close(self._spare)
        try:
            with contextlib.suppress(OSError):
                listener.accept()[0].close()
        finally:
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def watch(self, client: _Client, events: int) -> None:
        self._epoll.modify(client.fd, events)

    def forget(self, client: _Client) -> None:
        del self._clients[client.fd]
        self._epoll.unregister(client.fd)

    async def serve(self) -> None:
        """Serve inside a trio program until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            self.poll(0)

    def close(self) -> None:
        for client in list(self._clients.values()):
            client.close()
        for listener, path, identity in self._listeners.values():
            listener.close()
            with contextlib.suppress(OSError):
                info = os.stat(path)
                if (info.st_dev, info.st_ino) == identity:
                    os.unlink(path)
        self._listeners.clear()
        self._epoll.close()
        os.close(self._spare)
