# SPDX-License-Identifier: GPL-2.0-only
"""A guest's side of the store page, for tests: sends requests, reads replies and events."""

from __future__ import annotations

from collections.abc import Callable

from xenstore.errors import from_wire
from xenstore.wire import Message, MsgType, Parser, pack

MASK = 0xFFFFFFFF


class RingGuest:
    """What a guest's xenbus does, on a page it shares with the store."""

    def __init__(self, page: memoryview | None = None) -> None:
        self.page = memoryview(bytearray(4096)) if page is None else page
        self.words = self.page[2048:2080].cast("I")
        self.doorbell: Callable[[], None] = lambda: None
        self.rung = 0
        self.parser = Parser()
        self.events: list[tuple[str, str]] = []
        self.replies: list[Message] = []
        self._req_id = 0

    def notified(self) -> None:
        self.rung += 1

    def put(self, data: bytes) -> int:
        """Put bytes into the request ring, as many as fit, and ring."""
        cons, prod = self.words[0], self.words[1]
        size = min(len(data), 1024 - ((prod - cons) & MASK))
        for i in range(size):
            self.page[(prod + i) & 1023] = data[i]
        self.words[1] = (prod + size) & MASK
        self.doorbell()
        return size

    def drain(self) -> None:
        """Read what is in the response ring, and ring if that made room."""
        while True:
            cons, prod = self.words[2], self.words[3]
            size = (prod - cons) & MASK
            if not size:
                return
            data = bytes(self.page[1024 + ((cons + i) & 1023)] for i in range(size))
            self.words[2] = prod
            for message in self.parser.feed(data):
                if message.type == MsgType.WATCH_EVENT:
                    path, token = message.payload[:-1].decode("utf-8", "backslashreplace").split("\0")
                    self.events.append((path, token))
                else:
                    self.replies.append(message)
            self.doorbell()

    def send(self, data: bytes) -> None:
        while data:
            data = data[self.put(data) :]
            self.drain()

    def request(self, kind: int, payload: bytes, txid: int = 0) -> Message:
        self._req_id += 1
        self.send(pack(kind, self._req_id, txid, payload))
        self.drain()
        reply = self.replies.pop(0)
        assert reply.req_id == self._req_id
        return reply

    def call(self, kind: int, *strings: str | bytes, txid: int = 0, raw: bytes = b"") -> bytes:
        """A request made of strings and a raw tail; gives the payload or raises."""
        payload = b"".join((s.encode() if isinstance(s, str) else s) + b"\0" for s in strings) + raw
        reply = self.request(kind, payload, txid)
        if reply.type == MsgType.ERROR:
            raise from_wire(reply.payload[:-1].decode())
        assert reply.type == kind
        return reply.payload
