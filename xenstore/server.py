# SPDX-License-Identifier: GPL-2.0-only
"""The store as a machine without I/O: bytes of requests in, bytes of replies and events out.

A transport calls `connect`, then `receive` with what it has read and `settle` when it has done so; `settle`
hands the changes to the journal and then calls `flush` of every connection that has something to send, its
own included. Inside, requests fail by raising; `_serve` is the one place where that becomes an ERROR reply.

One task owns all of this; nothing here blocks. Source: docs/misc/xenstore.txt.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

from xenstore.connection import Connection
from xenstore.control import Control
from xenstore.domains import Domains
from xenstore.errors import NotFound, NotImplementedByStore, ProtocolError, TooBig, XenstoreError
from xenstore.fairness import Fairness
from xenstore.journal import Journal
from xenstore.quota import Accounts
from xenstore.requests import Handler, NodeRequests, View
from xenstore.transactions import Transaction
from xenstore.tree import Tree
from xenstore.types import DomId, TxId
from xenstore.watches import Watch, Watches
from xenstore.wire import HEADER, PAYLOAD_MAX, TYPE_COUNT, MsgType

log = logging.getLogger("xenstore")

SOCKET_ROOM: Final = 65536
"""Bytes of replies made for a socket before they must be sent."""

Observer = Callable[[Connection, str, bytes, str, bytes], None]
"""Told of a request and its reply: whose, what, payload, what came back, payload."""

_NO_TRANSACTION: Final = frozenset({MsgType.WATCH, MsgType.UNWATCH})
"""Requests in which the transaction id is ignored."""
_ERROR: Final = int(MsgType.ERROR)


class Server:
    """The whole store: tree, watches, domains, quotas and the connections to it."""

    def __init__(
        self,
        *,
        warn: Callable[[str], None] = log.warning,
        clock: Callable[[], float] = time.monotonic,
        journal: Journal | None = None,
    ) -> None:
        self.clock: Final = clock
        self.warn: Final = warn
        self.accounts: Final = Accounts(warn, clock)
        self.tree: Final = Tree(self.accounts)
        self.watches: Final = Watches(self.tree)
        self.fairness: Final = Fairness(clock)
        self.connections: dict[int, Connection] = {}
        self.dirty: list[Connection] = []
        """Connections that have something to send."""
        self.after: list[tuple[Connection, bytes, bytes]] = []
        """Events (path, token) to be sent behind the reply to the request that is being served."""
        self.requests = 0
        self.domains: Final = Domains(self)
        self.control: Final = Control(self)
        self.journal: Journal | None = None
        self._serve_one = self._serve
        self._observers: list[Observer] = []
        self._numbers = 0
        handlers = NodeRequests(self).handlers() | self.domains.handlers() | self.control.handlers()
        table: dict[int, Handler] = {int(kind): handler for kind, handler in handlers.items()}
        self._handlers: Final = [table.get(kind, _unknown) for kind in range(TYPE_COUNT)]
        if journal is not None:
            self.use_journal(journal)

    def use_journal(self, journal: Journal) -> None:
        """From now on every change is written there before its reply is sent."""
        self.journal = journal
        self.tree.trail = []

    # -- connections

    def connect(self, domid: DomId, flush: Callable[[], None], room: int = SOCKET_ROOM) -> Connection:
        self._numbers += 1
        connection = Connection(self._numbers, domid, self.accounts.of(domid), self.dirty, flush, room)
        self.connections[connection.id] = connection
        return connection

    def reset(self, connection: Connection) -> None:
        """Drop the watches and transactions of a connection."""
        for watch in connection.watches.values():
            self.watches.discard(watch)
            connection.account.memory -= len(watch.path) + len(watch.token)
        connection.account.watches -= len(connection.watches)
        connection.watches.clear()
        for transaction in connection.transactions.values():
            transaction.close()
        connection.account.transactions -= len(connection.transactions)
        connection.transactions.clear()

    def add_watch(self, connection: Connection, watch: Watch) -> None:
        connection.watches[watch.path, watch.token] = watch
        self.watches.add(watch)
        connection.account.watches += 1
        connection.account.memory += len(watch.path) + len(watch.token)

    def add_transaction(self, connection: Connection, txid: TxId) -> Transaction:
        transaction = Transaction(txid, self.tree, self.accounts, connection.account)
        connection.transactions[txid] = transaction
        connection.account.transactions += 1
        return transaction

    def disconnect(self, connection: Connection) -> None:
        """The client is gone."""
        if self.connections.pop(connection.id, None) is not None:
            self.reset(connection)
            connection.forget_output()

    # -- requests

    def receive(self, connection: Connection, data: bytes) -> None:
        """Serve the requests in `data`, as far as there is room for the replies.

        Raises ProtocolError when the framing is broken; what came before it has been served.
        """
        if connection.rest:
            data = connection.rest + data
            connection.rest = b""
        unpack, pack, tree, out = HEADER.unpack_from, HEADER.pack, self.tree, connection.out
        at, end = 0, len(data)
        counted = not connection.privileged and connection.account.limits["outstanding"]
        room = counted or connection.room
        connection.more = False
        first = len(out)
        while end - at >= 16:
            kind, req_id, tx_id, length = unpack(data, at)
            if length > PAYLOAD_MAX:
                break
            body = at + 16
            stop = body + length
            if stop > end:
                break
            if room <= 0 or connection.stalled:
                connection.more = True
                break
            at = stop
            if tx_id:
                kind, reply = self._serve_in_transaction(connection, kind, TxId(tx_id), data[body:stop])
            else:
                kind, reply = self._serve_one(connection, tree, kind, data[body:stop])
            out.append(pack(kind, req_id, tx_id, len(reply)) + reply)
            room -= 1 if counted else 16 + len(reply)
            if self.after:
                self._send_after()
        else:
            length = 0
        if at < end:
            connection.rest = data[at:] if at else data
        if out and not first:
            self.dirty.append(connection)
        if length > PAYLOAD_MAX:
            raise ProtocolError(f"a request of {length} bytes; the protocol allows {PAYLOAD_MAX}")

    def _serve(self, connection: Connection, view: View, kind: int, payload: bytes) -> tuple[int, bytes]:
        """One request; the only place where exceptions become ERROR replies."""
        self.requests += 1
        try:
            reply = (self._handlers[kind] if kind < TYPE_COUNT else _unknown)(connection, view, payload)
            if len(reply) > PAYLOAD_MAX:
                raise TooBig(f"the reply has {len(reply)} bytes, more than a message can carry")
            return kind, reply
        except XenstoreError as error:
            return _ERROR, error.error.encode() + b"\0"
        except Exception:
            log.exception("bug: request %d of domain %d failed inside; please report it", kind, connection.domid)
            return _ERROR, b"EIO\0"

    def _serve_in_transaction(self, connection: Connection, kind: int, txid: TxId, payload: bytes) -> tuple[int, bytes]:
        view: View | None = self.tree if kind in _NO_TRANSACTION else connection.transactions.get(txid)
        if view is None:
            return _ERROR, b"ENOENT\0"
        return self._serve_one(connection, view, kind, payload)

    def observe(self, observer: Observer) -> None:
        """Have `observer` told of every request and its reply, until `forget`."""
        self._observers.append(observer)
        self._serve_one = self._observed

    def forget(self, observer: Observer) -> None:
        self._observers.remove(observer)
        if not self._observers:
            self._serve_one = self._serve

    def trace(self, on: bool) -> None:
        """Log every request and its reply."""
        if on and not self.tracing:
            self.observe(_log_request)
        elif not on and self.tracing:
            self.forget(_log_request)

    @property
    def tracing(self) -> bool:
        return _log_request in self._observers

    def _observed(self, connection: Connection, view: View, kind: int, payload: bytes) -> tuple[int, bytes]:
        """`_serve`, for observers."""
        answer, reply = self._serve(connection, view, kind, payload)
        for observer in self._observers:
            observer(connection, _name(kind), payload, _name(answer), reply)
        return answer, reply

    def call(self, connection: Connection, kind: MsgType, payload: bytes, txid: TxId = TxId(0)) -> bytes:  # noqa: B008
        """One request of a client in this process: gives the reply, or raises."""
        view: View = self.tree
        if txid and kind not in _NO_TRANSACTION:
            if txid not in connection.transactions:
                raise NotFound("no such transaction")
            view = connection.transactions[txid]
        self.requests += 1
        reply, answer = b"", MsgType.ERROR.name
        try:
            reply = self._handlers[kind](connection, view, payload)
            answer = kind.name
            return reply
        finally:
            for observer in self._observers:
                observer(connection, kind.name, payload, answer, reply)
            if self.after:
                self._send_after()
            self.settle()

    def _send_after(self) -> None:
        for connection, path, token in self.after:
            connection.send_event(path, token)
        self.after.clear()

    def settle(self) -> None:
        """Everything received has been served: write the journal, then let everyone send."""
        if self.tree.trail:
            assert self.journal is not None
            self.journal.append(self.tree.trail)
            self.tree.trail.clear()
        dirty = self.dirty
        while dirty:
            dirty.pop().flush()

    def blame(self, culprit: DomId, victim: DomId) -> None:
        """`culprit` made a transaction of `victim` fail."""
        until = self.fairness.blame(culprit, victim)
        if until:
            for connection in self.connections.values():
                if connection.domid == culprit:
                    connection.held_until = max(connection.held_until, until)

    def statistics(self) -> dict[str, Any]:
        """What the store holds and who uses how much of it; plain data."""
        return {
            "nodes": len(self.tree.nodes),
            "watches": len(self.watches),
            "transactions": sum(len(connection.transactions) for connection in self.connections.values()),
            "connections": len(self.connections),
            "requests": self.requests,
            "domains": {domid: self.domains.usage(domid) for domid in sorted(self.accounts.by_domain)},
        }


def _log_request(connection: Connection, kind: str, payload: bytes, answer: str, reply: bytes) -> None:
    who = f"connection {connection.id} (d{connection.domid})"
    log.info("io: IN %s %s (%s)", who, kind, _shown(payload))
    log.info("io: OUT %s %s (%s)", who, answer, _shown(reply))


def _name(kind: int) -> str:
    return MsgType(kind).name if kind < TYPE_COUNT and kind != 20 else f"type {kind}"


def _shown(payload: bytes) -> str:
    return payload.replace(b"\0", b" ").decode("ascii", "backslashreplace")


def _unknown(connection: Connection, view: View, payload: bytes) -> bytes:
    raise NotImplementedByStore("unknown request")
