# SPDX-License-Identifier: GPL-2.0-only
"""The store's end of a domain's shared page: two byte rings, indices, features, reconnection, error field.

No I/O and no hypervisor: a writable memoryview of 4096 bytes that the guest can change at any moment, and a
callable that rings its doorbell. The guest's indices are read once per use and checked; our own are kept here
and never read back. Whatever the guest writes, it can break only its own connection.
Owned by the server's task. Source: docs/misc/xenstore-ring.txt, xen/include/public/io/xs_wire.h.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from xenstore.connection import Connection
from xenstore.errors import ProtocolError
from xenstore.migration import ConnectionState, resume
from xenstore.page import (
    CONNECTED,
    CONNECTION,
    ERROR,
    ERROR_NONE,
    ERROR_PROTO,
    ERROR_RINGIDX,
    FEATURES,
    INDICES,
    MASK,
    RECONNECT,
    REQ,
    REQ_CONS,
    REQ_PROD,
    RING_SIZE,
    RSP,
    RSP_CONS,
    RSP_PROD,
    check_page,
)  # fmt: skip
from xenstore.server import Server
from xenstore.types import DomId
from xenstore.wire import FEATURE_ERROR, FEATURE_RECONNECTION

log = logging.getLogger("xenstore")

ROOM: Final = 16384
"""Bytes of replies made before the guest must have read them."""
ROUNDS: Final = 64
"""Rings full of requests served in one go; then the others get their turn."""


class RingFault(Exception):
    """The guest's indices make no sense."""


class RingConnection:
    """One domain's connection to the store through its page."""

    def __init__(
        self,
        server: Server,
        domid: DomId,
        page: memoryview,
        notify: Callable[[], None],
        later: Callable[[Callable[[], None], float], None],
        features: int,
        state: ConnectionState | None = None,
    ) -> None:
        """`later(function, seconds)` has the function called in the server's task after that time.

        With `state` the connection goes on where the one it was taken from stopped, and so does the ring.
        """
        check_page(page)
        self._server = server
        self._notify = notify
        self._later = later
        self._waiting = False
        """`later` will call `on_event`."""
        page = page.cast("B")
        self._bytes: memoryview | None = page
        self._words = page[INDICES : INDICES + 32].cast("I")
        self.connection: Connection = server.connect(domid, self._flush, ROOM)
        self.connection.features = features
        self._req_cons = 0
        self._rsp_prod = 0
        self.fault = ERROR_NONE
        """Why the connection is out of order; it stays so until the guest reconnects."""
        if state is None:
            self._advertise()
        else:
            self._req_cons, self._rsp_prod = self._words[REQ_CONS], self._words[RSP_PROD]
            resume(server, self.connection, state)

    def _advertise(self) -> None:
        """Features before the first byte moves; both rings empty."""
        words = self._words
        words[FEATURES] = self.connection.features
        words[REQ_CONS] = words[REQ_PROD] = words[RSP_CONS] = words[RSP_PROD] = 0
        words[ERROR] = ERROR_NONE
        words[CONNECTION] = CONNECTED

    # -- what the guest causes

    def on_event(self) -> None:
        """The guest rang: serve its requests as far as there is room for the replies. Bounded, never raises."""
        self._waiting = False
        if self._bytes is None:
            return
        if self._words[CONNECTION] == RECONNECT and self.connection.features & FEATURE_RECONNECTION:
            self.reconnect()
        try:
            self._serve()
        except RingFault as fault:
            self._break(ERROR_RINGIDX, str(fault))
        except ProtocolError as error:
            self._server.settle()
            self._break(ERROR_PROTO, str(error))

    def _serve(self) -> None:
        connection = self.connection
        moved = self._send()
        for _ in range(ROUNDS):
            if self._bytes is None or self.fault or connection.stalled:
                break
            if connection.held_until and self._held():
                break
            data = self._take()
            if not data and not connection.more:
                break
            moved = True
            self._server.receive(connection, data)
            self._server.settle()
        else:
            self._again(0.0)
        if moved and self._bytes is not None:
            self._notify()

    def _held(self) -> bool:
        """Whether the domain has to wait because it made too many transactions of others fail."""
        connection = self.connection
        wait = connection.held_until - self._server.clock()
        if wait <= 0:
            connection.held_until = 0.0
            return False
        self._again(wait)
        return True

    def _again(self, delay: float) -> None:
        if not self._waiting:
            self._waiting = True
            self._later(self.on_event, delay)

    def _take(self) -> bytes:
        """What the guest has put into the request ring."""
        page, words = self._bytes, self._words
        assert page is not None
        consumed = self._req_cons
        size = (words[REQ_PROD] - consumed) & MASK
        if size == 0:
            return b""
        if size > RING_SIZE:
            raise RingFault(f"request ring: producer is {size} bytes ahead of consumer")
        start = consumed % RING_SIZE
        first = min(size, RING_SIZE - start)
        data = bytes(page[REQ + start : REQ + start + first])
        if first < size:
            data += bytes(page[REQ : REQ + size - first])
        self._req_cons = words[REQ_CONS] = (consumed + size) & MASK
        return data

    def _put(self, data: bytes) -> int:
        """Into the response ring as much as fits; gives how much that was."""
        page, words = self._bytes, self._words
        assert page is not None
        produced = self._rsp_prod
        used = (produced - words[RSP_CONS]) & MASK
        if used > RING_SIZE:
            raise RingFault(f"response ring: consumer is {used} bytes behind producer")
        size = min(len(data), RING_SIZE - used)
        start = produced % RING_SIZE
        first = min(size, RING_SIZE - start)
        page[RSP + start : RSP + start + first] = data[:first]
        page[RSP : RSP + size - first] = data[first:size]
        self._rsp_prod = words[RSP_PROD] = (produced + size) & MASK
        return size

    # -- what the server has to say

    def _flush(self) -> None:
        """Called by the server when there is something to send, for whatever reason."""
        if self._bytes is None or self.fault:
            self.connection.out.clear()
            return
        try:
            if self._send():
                self._notify()
        except RingFault as fault:
            self._break(ERROR_RINGIDX, str(fault))

    def _send(self) -> bool:
        """Move what waits into the ring; true if the guest should look."""
        connection = self.connection
        moved = False
        while not self.fault:
            if not connection.backlog:
                if connection.stalled:
                    connection.resume()
                if not connection.out:
                    break
                connection.backlog = connection.take()
            size = self._put(connection.backlog)
            moved = moved or size > 0
            connection.backlog = connection.backlog[size:]
            if connection.backlog:
                connection.stalled = True
                break
        return moved

    # -- ends and new beginnings

    def _break(self, error: int, why: str) -> None:
        """Stop talking to this guest until it reconnects; its watches and transactions are gone."""
        log.info("store connection of domain %d is out of order: %s", self.connection.domid, why)
        self.fault = error
        self._forget()
        if self._bytes is not None:
            if self.connection.features & FEATURE_ERROR:
                self._words[ERROR] = error
            self._notify()

    def _forget(self) -> None:
        self._server.reset(self.connection)
        self.connection.forget_output()

    def reconnect(self) -> None:
        """The guest or the toolstack asked for a fresh start: empty rings, no watches, no transactions."""
        self._forget()
        self.fault = ERROR_NONE
        self._req_cons = self._rsp_prod = 0
        self._advertise()
        self._notify()

    def restart(self, state: ConnectionState) -> None:
        """Go on as a new connection of what `state` says, where the old one stopped: the store has been restarted.

        Watches are there again, transactions end in a conflict; the guest's bytes go on where they were.
        """
        if self._bytes is None:
            return
        old = self.connection
        self._server.disconnect(old)
        self.connection = self._server.connect(old.domid, self._flush, ROOM)
        self.connection.features = old.features
        resume(self._server, self.connection, state)

    def close(self) -> None:
        """The domain is gone, or gets another page: the page is not touched any more."""
        if self._bytes is None:
            return
        self._server.disconnect(self.connection)
        self._words.release()
        self._bytes.release()
        self._bytes = None
