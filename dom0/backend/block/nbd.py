# SPDX-License-Identifier: GPL-2.0-only
"""One connection to an NBD server, as a block backend needs it: negotiated, then one request at a time.

Blocking; a connection belongs to one thread at a time. Data goes straight between the socket and the memory it is for.
After an OSError the connection cannot be used any more. Fixed newstyle negotiation and simple replies, as in the NBD
project's doc/proto.md.
"""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress
from enum import IntEnum, IntFlag

_GREETING = struct.Struct(">8s8sH")
_OPTION = struct.Struct(">8sII")
_OPTION_REPLY = struct.Struct(">QIII")
_EXPORT = struct.Struct(">HQH")
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_OPTION_MAGIC, _OPTION_REPLY_MAGIC = b"IHAVEOPT", 0x3E889045565A9
_REQUEST_MAGIC, _REPLY_MAGIC = 0x25609513, 0x67446698
_FIXED_NEWSTYLE_NO_ZEROES = 3
_OPT_GO, _REP_ACK, _REP_INFO, _INFO_EXPORT = 7, 1, 3, 0
_LONGEST_OPTION = 1 << 16
_MOST_PIECES = 1024


class Command(IntEnum):
    READ = 0
    WRITE = 1
    DISCONNECT = 2
    FLUSH = 3
    TRIM = 4


class Offer(IntFlag):
    """What a server says of an export."""

    READ_ONLY = 2
    FLUSH = 4
    TRIM = 32
    MULTI_CONN = 256
    """A flush on one connection covers what others have written."""


class Connection:
    """See the module."""

    def __init__(self, path: str) -> None:
        """Connect to a unix socket and take its default export. OSError."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._cookie = 0
        try:
            self._socket.connect(path)
            self.size, self.offers = self._negotiate()
        except BaseException:
            self._socket.close()
            raise

    def _negotiate(self) -> tuple[int, Offer]:
        magic, second, _ = _GREETING.unpack(self._exactly(_GREETING.size))
        if magic != b"NBDMAGIC" or second != _OPTION_MAGIC:
            raise _nonsense("it is no NBD server")
        name_and_infos = struct.pack(">IH", 0, 0)
        option = _OPTION.pack(_OPTION_MAGIC, _OPT_GO, len(name_and_infos)) + name_and_infos
        self._socket.sendall(struct.pack(">I", _FIXED_NEWSTYLE_NO_ZEROES) + option)
        found: tuple[int, Offer] | None = None
        while True:
            reply_magic, _, kind, length = _OPTION_REPLY.unpack(self._exactly(_OPTION_REPLY.size))
            if reply_magic != _OPTION_REPLY_MAGIC or length > _LONGEST_OPTION:
                raise _nonsense("its answer to an option makes no sense")
            data = self._exactly(length)
            if kind == _REP_ACK and found is not None:
                return found
            if kind == _REP_INFO and length == _EXPORT.size and data[:2] == bytes(2):
                _, size, flags = _EXPORT.unpack(data)
                found = size, Offer(flags & sum(Offer))
            elif kind != _REP_INFO:
                raise _nonsense(f"it refuses the export: {data.decode(errors='replace')}")

    def read(self, offset: int, pieces: list[memoryview]) -> None:
        self._request(Command.READ, offset, sum(map(len, pieces)), [])
        rest = [piece for piece in pieces if len(piece)]
        while rest:
            count = self._socket.recvmsg_into(rest[:_MOST_PIECES])[0]
            if not count:
                raise _nonsense("it hung up")
            rest = _after(rest, count)

    def write(self, offset: int, pieces: list[memoryview]) -> None:
        self._request(Command.WRITE, offset, sum(map(len, pieces)), pieces)

    def flush(self) -> None:
        self._request(Command.FLUSH, 0, 0, [])

    def trim(self, offset: int, length: int) -> None:
        """The server may forget these bytes."""
        while length:
            piece = min(length, 1 << 30)
            self._request(Command.TRIM, offset, piece, [])
            offset, length = offset + piece, length - piece

    def close(self) -> None:
        with suppress(OSError):  # it may have gone before
            self._socket.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, Command.DISCONNECT, 0, 0, 0))
        self._socket.close()

    def _request(self, command: Command, offset: int, length: int, pieces: list[memoryview]) -> None:
        """Send it, and take the reply's head. OSError of the server's number where it has refused."""
        self._cookie += 1
        rest: list[memoryview] = [
            memoryview(_REQUEST.pack(_REQUEST_MAGIC, 0, command, self._cookie, offset, length)),
            *pieces,
        ]
        while rest:
            rest = _after(rest, self._socket.sendmsg(rest[:_MOST_PIECES]))
        magic, error, cookie = _REPLY.unpack(self._exactly(_REPLY.size))
        if magic != _REPLY_MAGIC or cookie != self._cookie:
            raise _nonsense("a reply makes no sense")
        if error:
            raise RefusedByServer(error, f"NBD server: error {error}")

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self._socket.recv(count - len(data))
            if not piece:
                raise _nonsense("it hung up")
            data += piece
        return bytes(data)


class RefusedByServer(OSError):
    """The server answers a request with an error; the connection goes on."""


def _nonsense(what: str) -> OSError:
    return OSError(errno.EPROTO, f"the NBD server cannot be used: {what}")


def _after(pieces: list[memoryview], count: int) -> list[memoryview]:
    """What is left of the pieces behind the first `count` bytes."""
    for number, piece in enumerate(pieces):
        if count < len(piece):
            return [piece[count:], *pieces[number + 1 :]] if count else pieces[number:]
        count -= len(piece)
    return []
