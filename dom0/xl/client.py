# SPDX-License-Identifier: GPL-2.0-only
"""The control socket, seen from xl: one question, one answer, on a plain blocking socket.

Every message is a little-endian 32-bit length and that many bytes of msgpack. A request is `[id, method, params]`. The
answer is `[id, "ok", result]` or `[id, "error", {"code", "message", "lines"}]`, after any number of
`[id, "progress", {"stage", "done", "total"}]`. A `Client` belongs to the thread that made it.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import msgpack  # type: ignore[import-untyped]

from dom0.toolstack.text import printable

SOCKET_NAME = "control.sock"
LARGEST_MESSAGE = 64 << 20
_LENGTH = struct.Struct("<I")

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with stage, done, total."""


class HostUnavailable(Exception):
    """There is no host to talk to, or it went away; the text is one line for the user."""


class NoHost(HostUnavailable):
    """Nothing listens, and none was to be started."""


class HostError(Exception):
    """The host could not do what was asked."""

    def __init__(self, code: int, message: str, lines: list[str]) -> None:
        super().__init__(message)
        self.code = code
        """The exit status the host suggests."""
        self.message = message
        self.lines = lines
        """The circumstances, for `xl -v`."""


class Client:
    """A connection to the host process."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._next_id = 1
        self._part_kind = ""

    @classmethod
    def connect(cls, rundir: Path, *, start: bool) -> Self:
        """Connect to the host of `rundir`, after starting it if there is none and `start` allows."""
        path = rundir / SOCKET_NAME
        connection = _connected(path)
        if connection is None and start:
            start_host()
            connection = _connected(path)
            if connection is None:
                raise HostUnavailable(f"xl: the xen-py host was started, but {path} does not answer")
        if connection is None:
            raise NoHost(f"xl: no xen-py host runs (nothing answers at {path}); start it: xen-py start")
        return cls(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """So that several clients can wait together; see `send` and `receive`."""
        return self._socket.fileno()

    def call(self, method: str, params: Mapping[str, Any] | None = None, progress: Progress | None = None) -> Any:
        """Ask and wait for the answer. Raises `HostError` and `HostUnavailable`."""
        self.send(method, params)
        return self.receive(progress)

    def send(self, method: str, params: Mapping[str, Any] | None = None) -> None:
        """Ask without waiting; the next `receive` is the answer."""
        try:
            packed: bytes = msgpack.packb([self._next_id, method, dict(params or {})])
        except UnicodeEncodeError as error:
            # a word of the command line, or a path below a directory, whose bytes are no text
            raise HostError(1, f"xl: {error.object!a} is not UTF-8 text", []) from error
        try:
            self._socket.sendall(_LENGTH.pack(len(packed)) + packed)
        except OSError as error:
            raise _gone(error.strerror) from error

    def receive(self, progress: Progress | None = None) -> Any:
        """The answer to what was sent last."""
        while True:
            kind, payload = self._message()
            if kind == "progress":
                if progress is not None:
                    progress(*_progress(payload))
                continue
            if kind == self._part_kind:
                return payload
            self._next_id += 1
            if kind == "ok":
                return payload
            if kind == "error" and isinstance(payload, dict) and isinstance(payload.get("message"), str):
                code, lines = payload.get("code"), payload.get("lines")
                raise HostError(
                    code if isinstance(code, int) and 0 < code < 256 else 1,
                    printable(payload["message"]),
                    [printable(str(line)) for line in lines] if isinstance(lines, list) else [],
                )
            raise _nonsense(f"an answer of kind {kind!r}")

    def next_part(self, kind: str) -> dict[str, Any]:
        """The next part of an answer that comes in parts of that kind. Raises `HostError` when it ends in an error."""
        self._part_kind = kind
        payload = self.receive()
        if not isinstance(payload, dict):
            raise _nonsense(f"{kind} of the wrong form")
        return payload

    def _message(self) -> tuple[str, Any]:
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if length > LARGEST_MESSAGE:
            raise _nonsense(f"a message of {length} bytes")
        try:
            message = msgpack.unpackb(self._exactly(length), strict_map_key=False)
        except (ValueError, msgpack.exceptions.UnpackException) as error:
            raise _nonsense("a message that is not msgpack") from error
        if not isinstance(message, list) or len(message) != 3 or not isinstance(message[1], str):
            raise _nonsense("a message of the wrong form")
        if message[0] != self._next_id:
            raise _nonsense(f"the answer to request {message[0]!r}, not {self._next_id}")
        return message[1], message[2]

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            try:
                piece = self._socket.recv(min(count - len(data), 1 << 20))
            except OSError as error:
                raise _gone(error.strerror) from error
            if not piece:
                raise _gone("it closed the connection")
            data += piece
        return bytes(data)


def _gone(why: str | None) -> HostUnavailable:
    return HostUnavailable(f"xl: lost the xen-py host: {why or 'unknown error'}")


def _nonsense(what: str) -> HostUnavailable:
    return HostUnavailable(f"xl: the xen-py host sent {what}; is it of another version?")


def _progress(payload: object) -> tuple[str, int, int]:
    if isinstance(payload, dict):
        stage, done, total = payload.get("stage"), payload.get("done"), payload.get("total")
        if isinstance(stage, str) and isinstance(done, int) and isinstance(total, int):
            return stage, done, total
    raise _nonsense("progress of the wrong form")


def _connected(path: Path) -> socket.socket | None:
    """A connected socket, or None when no host listens there."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(os.fspath(path))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError as error:
        connection.close()
        raise HostUnavailable(f"xl: cannot connect to {path}: {error.strerror}") from error
    return connection


def start_host() -> None:
    """Start a host in the background; returns once it answers. Raises `HostUnavailable`.

    The child's complaints go to a file, not to a pipe: the host it leaves behind would hold a pipe open for ever.
    """
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryFile() as complaints:
        try:
            status = subprocess.run(
                [sys.executable, "-P", "-m", "dom0.host.main", "start"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                env=os.environ | {"PYTHONPATH": path},
                check=False,
            ).returncode
        except OSError as error:
            raise HostUnavailable(f"xl: cannot start the xen-py host: {error.strerror}") from error
        if status == 0:
            return
        complaints.seek(0)
        said = complaints.read().decode(errors="replace").strip().splitlines()
    raise HostUnavailable(f"xl: cannot start the xen-py host: {said[-1] if said else f'exit status {status}'}")
