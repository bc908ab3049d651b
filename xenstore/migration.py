# SPDX-License-Identifier: GPL-2.0-only
"""The store as a stream of records, Xen's own format for live update and migration: dump and restore.

`dump` writes the tree, quotas, domains and the rings' connections with their watches and transactions;
`restore` reads any stream of version 1 or 2 in either byte order, checks it all before it changes anything,
and puts a domain's connection state aside for the moment its page is connected. A transaction that was open
is restored as one that will end with EAGAIN: its client starts it again. Socket connections cannot outlive
the process and are not written.

Source: docs/designs/xenstore-migration.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from xenstore.connection import Connection
from xenstore.errors import InvalidRequest
from xenstore.paths import absolute, parent
from xenstore.perms import Perms, intern
from xenstore.quota import ALL as QUOTAS
from xenstore.server import Server
from xenstore.tree import Node
from xenstore.types import DOM0, DOMID_INVALID, READ, WRITE, DomId, TxId
from xenstore.watches import Watch
from xenstore.wire import FEATURES

IDENT: Final = b"xenstore"
VERSION: Final = 2
END, GLOBAL_DATA, CONNECTION, WATCH, TRANSACTION, NODE, GLOBAL_QUOTA, DOMAIN, WATCH_EXTENDED = range(9)
RING: Final = 0
NO_DEPTH: Final = 0xFFFF
STALE: Final = 1
_BITS: Final = {ord("n"): 0, ord("r"): READ, ord("w"): WRITE, ord("b"): READ | WRITE}
_LETTERS: Final = {bits: letter for letter, bits in _BITS.items()}


class StreamError(Exception):
    """The stream is not what it should be; nothing has been restored."""


@dataclass
class ConnectionState:
    """A domain's connection: what it has set up, and bytes that were under way."""

    domid: DomId
    target: DomId | None = None
    evtchn: int = 0
    received: bytes = b""
    """Requests read from the ring and not served."""
    unsent: bytes = b""
    """Replies and events not yet written to the ring."""
    watches: list[tuple[bytes, bytes, int | None]] = field(default_factory=list)
    transactions: list[TxId] = field(default_factory=list)


@dataclass
class State:
    """What a stream says."""

    nodes: list[tuple[bytes, bytes, Perms]] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)
    domains: dict[DomId, tuple[int, dict[str, int]]] = field(default_factory=dict)
    """Features and quotas of single domains."""
    connections: dict[DomId, ConnectionState] = field(default_factory=dict)


# -- writing


def dump(server: Server) -> bytes:
    """The whole store."""
    parts = [IDENT + struct.pack(">II", VERSION, 0)]
    limits = server.accounts.limits
    parts.append(_record(GLOBAL_QUOTA, struct.pack("<HH", len(limits), 0) + _quotas(limits)))
    for domid, state in sorted(connections(server).items()):
        parts += _connection_records(domid + 1, state)
    for domain in server.domains.known():
        own = server.accounts.of(domain.domid).limits
        head = struct.pack("<HHI", domain.domid, len(own), domain.features)
        parts.append(_record(DOMAIN, head + _quotas(own)))
    parts += _node_records(server)
    parts.append(_record(END, b""))
    return b"".join(parts)


def connections(server: Server) -> dict[DomId, ConnectionState]:
    """The state of all domains' connections."""
    found = {}
    for domain in server.domains.known():
        connection = domain.connection
        if connection is None:
            continue
        state = ConnectionState(domain.domid, domain.target, received=connection.rest, unsent=connection.unsent())
        state.watches = [(watch.wire_path, watch.token, watch.depth) for watch in connection.watches.values()]
        state.transactions = list(connection.transactions)
        found[domain.domid] = state
    return found


def _record(kind: int, body: bytes) -> bytes:
    return struct.pack("<II", kind, len(body)) + body + bytes(-len(body) % 8)


def _quotas(limits: dict[str, int]) -> bytes:
    values = struct.pack(f"<{len(limits)}I", *limits.values())
    return values + b"".join(name.encode() + b"\0" for name in limits)


def _connection_records(number: int, state: ConnectionState) -> Iterator[bytes]:
    target = DOMID_INVALID if state.target is None else state.target
    head = struct.pack("<IHHHHI", number, RING, 0, state.domid, target, state.evtchn)
    sizes = struct.pack("<HHI", len(state.received), 0, len(state.unsent))
    yield _record(CONNECTION, head + sizes + state.received + state.unsent)
    for path, token, depth in state.watches:
        strings = path + b"\0" + token + b"\0"
        sizes = struct.pack("<IHH", number, len(path) + 1, len(token) + 1)
        if depth is None:
            yield _record(WATCH, sizes + strings)
        else:
            yield _record(WATCH_EXTENDED, sizes + struct.pack("<HH", min(depth, NO_DEPTH - 1), 0) + strings)
    for txid in state.transactions:
        yield _record(TRANSACTION, struct.pack("<II", number, txid))


def _node_records(server: Server) -> Iterator[bytes]:
    """Parents before children, children in their order."""
    nodes = server.tree.nodes
    special = [(path, node) for path, node in nodes.items() if path[:1] == b"@"]
    stack = [*reversed(special), (b"/", nodes[b"/"])]
    while stack:
        path, node = stack.pop()
        yield _record(NODE, _node(path, node))
        prefix = b"/" if path == b"/" else path + b"/"
        stack.extend((prefix + name, nodes[prefix + name]) for name in reversed(node.children or {}))


def _node(path: bytes, node: Node) -> bytes:
    entries = node.perms.entries
    head = struct.pack("<IIHHHH", 0, 0, len(path) + 1, len(node.value), 0, len(entries))
    perms = b"".join(struct.pack("<BBH", _LETTERS[bits], 0, domid) for domid, bits in entries)
    return head + perms + path + b"\0" + node.value


# -- reading


class _Reader:
    """The body of a record, taken piece by piece."""

    def __init__(self, data: bytes, order: str) -> None:
        self._data = data
        self._order = order
        self._at = 0

    def numbers(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(self._order + layout, self.take(struct.calcsize(self._order + layout)))

    def take(self, size: int) -> bytes:
        data = self._data[self._at : self._at + size]
        if len(data) != size:
            raise StreamError("a record is shorter than what it announces")
        self._at += size
        return data

    def string(self, size: int) -> bytes:
        text = self.take(size)
        if text[-1:] != b"\0" or b"\0" in text[:-1]:
            raise StreamError("a string is not ended by NUL")
        return text[:-1]

    def names(self, count: int) -> list[str]:
        names = self._data[self._at :].split(b"\0")[:count]
        if len(names) < count:
            raise StreamError("names are missing")
        return [name.decode("ascii", "backslashreplace") for name in names]


def read(stream: bytes) -> State:
    """What a stream says. Raises StreamError."""
    if len(stream) < 16 or stream[:8] != IDENT:
        raise StreamError("not a xenstore stream")
    version, flags = struct.unpack(">II", stream[8:16])
    if version not in (1, VERSION) or flags > 1:
        raise StreamError(f"version {version} with flags {flags:#x} is not known")
    order = ">" if flags else "<"
    state = State()
    by_number: dict[int, ConnectionState] = {}
    at = 16
    while at + 8 <= len(stream):
        kind, size = struct.unpack_from(order + "II", stream, at)
        body = stream[at + 8 : at + 8 + size]
        if len(body) != size:
            break
        if kind == END:
            return state
        at += 8 + size + -size % 8
        _read_record(state, by_number, kind, _Reader(body, order), version)
    raise StreamError("the stream ends before its end record")


def _read_record(state: State, by_number: dict[int, ConnectionState], kind: int, body: _Reader, version: int) -> None:
    if kind == NODE:
        _read_node(state, body)
    elif kind == CONNECTION:
        _read_connection(state, by_number, body)
    elif kind in (WATCH, WATCH_EXTENDED):
        number, path_size, token_size = body.numbers("IHH")
        depth = body.numbers("HH")[0] if kind == WATCH_EXTENDED else NO_DEPTH
        path, token = body.string(path_size), body.string(token_size)
        if number in by_number:
            by_number[number].watches.append((path, token, None if depth == NO_DEPTH else depth))
    elif kind == TRANSACTION:
        number, txid = body.numbers("II")
        if number in by_number:
            by_number[number].transactions.append(TxId(txid))
    elif kind == GLOBAL_QUOTA:
        count = sum(body.numbers("HH"))
        state.limits = _read_quotas(body, count)
    elif kind == DOMAIN:
        domid, count, features = body.numbers("HHI")
        state.domains[DomId(domid)] = (features if version > 1 else FEATURES, _read_quotas(body, count))
    elif kind != GLOBAL_DATA:
        raise StreamError(f"unknown record type {kind}")


def _read_quotas(body: _Reader, count: int) -> dict[str, int]:
    values = body.numbers(f"{count}I")
    return {name: value for name, value in zip(body.names(count), values, strict=True) if name in QUOTAS}


def _read_node(state: State, body: _Reader) -> None:
    number, _, path_size, value_size, _, count = body.numbers("IIHHHH")
    entries: list[tuple[DomId, int]] = []
    for _ in range(count):
        letter, flags, domid = body.numbers("BBH")
        if letter not in _BITS:
            raise StreamError(f"unknown permission {letter}")
        if not flags & STALE or not entries:
            entries.append((DomId(domid), _BITS[letter]))
    path, value = body.string(path_size), body.take(value_size)
    if number:
        return  # belongs to a transaction, which will be started again
    if not entries:
        raise StreamError("a node without permissions")
    try:
        path = absolute(path, b"", special=True)
    except InvalidRequest as error:
        raise StreamError(str(error)) from error
    state.nodes.append((path, value, intern(tuple(entries))))


def _read_connection(state: State, by_number: dict[int, ConnectionState], body: _Reader) -> None:
    number, kind, _ = body.numbers("IHH")
    if kind != RING:
        return
    domid, target, evtchn = body.numbers("HHI")
    received_size, _, unsent_size = body.numbers("HHI")
    known = ConnectionState(DomId(domid), None if target == DOMID_INVALID else DomId(target), evtchn)
    known.received, known.unsent = body.take(received_size), body.take(unsent_size)
    by_number[number] = state.connections[known.domid] = known


def resume(server: Server, connection: Connection, state: ConnectionState) -> None:
    """Give a domain's new connection what its old one had; no watch fires for it."""
    connection.target = state.target
    connection.rest, connection.backlog = state.received, state.unsent
    connection.stalled = bool(state.unsent)
    for raw, token, depth in state.watches:
        path = absolute(raw, connection.base, special=True)
        server.add_watch(connection, Watch(connection, path, token, raw[:1] not in (b"/", b"@"), depth))
    for txid in state.transactions:
        server.add_transaction(connection, txid).doomed = True


def restore(server: Server, stream: bytes) -> State:
    """Make the store what the stream says; gives the state of connections, for `resume`."""
    state = read(stream)
    known = {b"/"} | {path for path in server.tree.nodes if path[:1] == b"@"}
    for path, _, _ in state.nodes:
        if path[:1] == b"/" and parent(path) not in known:
            raise StreamError(f"{path!r} comes before its parent")
        known.add(path)
    tree = server.tree
    for name in list(tree.nodes[b"/"].children or ()):
        tree.remove(b"/" + name)
    for path, value, perms in state.nodes:
        node = tree.find(path)
        if node is None:
            tree.insert(path, value, perms)
        else:
            tree.write(path, node, value)
            tree.set_perms(path, node, perms)
    server.accounts.limits.update(state.limits)
    for domid, (features, limits) in state.domains.items():
        server.accounts.of(domid).limits.update(limits)
        if domid != DOM0:
            server.domains.get(domid).features = features & FEATURES
    return state
