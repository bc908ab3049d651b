# SPDX-License-Identifier: GPL-2.0-only
"""A client that puts bytes straight into the server, without a transport: what most tests need."""

from __future__ import annotations

from xenstore.errors import from_wire
from xenstore.server import Server
from xenstore.types import DomId
from xenstore.wire import Message, MsgType, Parser, pack


class RawClient:
    """One connection of a domain (0: dom0's socket)."""

    def __init__(self, server: Server, domid: int = 0) -> None:
        self.server = server
        self.domid = domid
        self.connection = server.connect(DomId(domid), self._flush)
        self._parser = Parser()
        self._events: list[tuple[str, str]] = []
        self._replies: list[Message] = []

    def _flush(self) -> None:
        while self.connection.out:
            for message in self._parser.feed(self.connection.take()):
                if message.type == MsgType.WATCH_EVENT:
                    path, token = message.payload[:-1].decode("utf-8", "backslashreplace").split("\0")
                    self._events.append((path, token))
                else:
                    self._replies.append(message)
            self.connection.resume()

    def request(self, kind: int, payload: bytes, txid: int = 0) -> Message:
        self.server.receive(self.connection, pack(kind, 7, txid, payload))
        self.server.settle()
        reply = self._replies.pop()
        assert not self._replies and (reply.req_id, reply.tx_id) == (7, txid)
        return reply

    def call(self, kind: int, *strings: str | bytes, raw: bytes = b"", txid: int = 0) -> bytes:
        """A request made of strings and a raw tail; gives the reply's payload, or raises what the store said."""
        payload = b"".join((text.encode() if isinstance(text, str) else text) + b"\0" for text in strings) + raw
        reply = self.request(kind, payload, txid)
        if reply.type == MsgType.ERROR:
            raise from_wire(reply.payload[:-1].decode())
        assert reply.type == kind
        return reply.payload

    def events(self) -> list[tuple[str, str]]:
        self._flush()
        events = list(self._events)
        self._events.clear()
        return events

    def start(self) -> int:
        return int(self.call(MsgType.TRANSACTION_START, "")[:-1])

    def end(self, txid: int, commit: bool = True) -> None:
        self.call(MsgType.TRANSACTION_END, "T" if commit else "F", txid=txid)

    def read(self, path: str, txid: int = 0) -> bytes:
        return self.call(MsgType.READ, path, txid=txid)

    def write(self, path: str, value: bytes | str, txid: int = 0) -> None:
        self.call(MsgType.WRITE, path, raw=value.encode() if isinstance(value, str) else value, txid=txid)

    def rm(self, path: str, txid: int = 0) -> None:
        self.call(MsgType.RM, path, txid=txid)

    def names(self, path: str, txid: int = 0) -> list[str]:
        return self.call(MsgType.DIRECTORY, path, txid=txid).decode().split("\0")[:-1]

    def perms(self, path: str, txid: int = 0) -> list[str]:
        return self.call(MsgType.GET_PERMS, path, txid=txid).decode().split("\0")[:-1]

    def chmod(self, path: str, *perms: str, txid: int = 0) -> None:
        self.call(MsgType.SET_PERMS, path, *perms, txid=txid)

    def close(self) -> None:
        self.server.disconnect(self.connection)


def contents(server: Server) -> dict[str, tuple[bytes, tuple[str, ...], tuple[bytes, ...]]]:
    """The whole tree as plain data."""
    return {
        path.decode(): (node.value, tuple(node.perms.texts()), tuple(node.children or ()))
        for path, node in server.tree.nodes.items()
    }
