# SPDX-License-Identifier: GPL-2.0-only
"""The same requests to Xen's C daemon and to ours: dom0 over a socket, three guests over rings.

Replies must be equal and so must the events each client gets. Left out is what differs on purpose: what
transactions that overlap see (theirs see each other's writes until they end with EAGAIN, ours a snapshot), the
sizes at which quotas strike, and requests that came after 4.17.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest

from tests.xenstore.raw import RawClient
from tests.xenstore.reference import CDaemon
from tests.xenstore.ring_guest import RingGuest
from xenstore.daemon import Daemon
from xenstore.wire import Message, MsgType, Parser, pack

GUESTS = (1, 2, 3)
VAGUE = (b"EACCES\0", b"ENOENT\0", b"ENOMEM\0")
PATHS = (
    "/", "/tool", "/a", "/a/b", "/a/b/c", "/local/domain/1", "/local/domain/1/data", "/local/domain/1/data/x",
    "/local/domain/2/data", "/local/domain/2/data/y/z", "data", "data/x", "data/y", "data/y/z", "", "a//b", "/a/",
    "//", "@releaseDomain", "@introduceDomain", "/bad path", "/a/b!", "/missing/very/deep",
    "/local/domain/3/data",
)  # fmt: skip
PERMS = ("n0", "r0", "b0", "n1", "r1", "w1", "b1", "n2", "r2", "b2", "n3", "r3", "x1", "", "n")

class Client(Protocol):
    """One client of one daemon: requests, and the events it has got."""

    def request(self, kind: int, payload: bytes, txid: int = 0) -> Message: ...

    def events(self) -> list[tuple[str, str]]: ...


class SocketClient:
    def __init__(self, sock: socket.socket, settle: Callable[[], None]) -> None:
        self._socket = sock
        self._settle = settle
        self._parser = Parser()
        self._events: list[tuple[str, str]] = []
        self._replies: list[Message] = []

    def request(self, kind: int, payload: bytes, txid: int = 0) -> Message:
        self._socket.sendall(pack(kind, 1, txid, payload))
        while True:
            self._settle()
            self._read(self._socket.recv(65536))
            if self._replies:
                return self._replies.pop()

    def _read(self, data: bytes) -> None:
        for message in self._parser.feed(data):
            if message.type == MsgType.WATCH_EVENT:
                path, token = message.payload[:-1].decode().split("\0")
                self._events.append((path, token))
            else:
                self._replies.append(message)

    def events(self) -> list[tuple[str, str]]:
        with contextlib.suppress(BlockingIOError):
            self._read(self._socket.recv(65536, socket.MSG_DONTWAIT))
        events = list(self._events)
        self._events.clear()
        return events


class GuestClient:
    def __init__(self, guest: RingGuest, settle: Callable[[], None]) -> None:
        self._guest = guest
        self._settle = settle

    def request(self, kind: int, payload: bytes, txid: int = 0) -> Message:
        self._guest.send(pack(kind, 1, txid, payload))
        while not self._guest.replies:
            self._settle()
            self._guest.drain()
        return self._guest.replies.pop()

    def events(self) -> list[tuple[str, str]]:
        self._guest.drain()
        events = list(self._guest.events)
        self._guest.events.clear()
        return events


class Ours:
    """Our store, with the same clients."""

    def __init__(self) -> None:
        self.daemon = Daemon()
        self.guests = {domid: RingGuest() for domid in GUESTS}
        self.clients: dict[int, Client] = {0: RawClient(self.daemon.store)}
        for domid, guest in self.guests.items():
            guest.doorbell = self.daemon.introduce(domid, guest.page, guest.notified).on_event
            self.clients[domid] = GuestClient(guest, lambda: None)

    def settle(self) -> None:
        """Everything happens at once."""

    def destroy(self, domid: int) -> None:
        del self.clients[domid]
        self.daemon.release(domid)


class Theirs:
    """Xen's daemon, with the same clients."""

    def __init__(self, daemon: CDaemon) -> None:
        self._daemon = daemon
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(daemon.socket)
        self._barrier = socket.socket(socket.AF_UNIX)
        self._barrier.connect(daemon.socket)
        self._dom0 = sock
        self.clients: dict[int, Client] = {0: SocketClient(sock, lambda: None)}
        for domid in GUESTS:
            guest = RingGuest(memoryview(daemon.page(domid)))
            guest.doorbell = partial(daemon.ring, 3 + domid)
            payload = b"%d\0%d\0%d\0" % (domid, 0, 7)
            assert self.clients[0].request(MsgType.INTRODUCE, payload, 0).type == MsgType.INTRODUCE
            self.clients[domid] = GuestClient(guest, self.settle)

    def settle(self) -> None:
        """A few turns of the daemon's loop: it sends one message per client and turn."""
        for _ in range(3):
            self._barrier.sendall(pack(MsgType.GET_DOMAIN_PATH, 0, 0, b"0\0"))
            self._barrier.recv(4096)

    def events(self, domid: int) -> list[tuple[str, str]]:
        self.settle()
        return self.clients[domid].events()

    def destroy(self, domid: int) -> None:
        del self.clients[domid]
        self._daemon.destroy(domid)
        self.settle()

    def close(self) -> None:
        self._barrier.close()
        self._dom0.close()


def setup() -> list[tuple[int, int, bytes]]:
    """What a toolstack would have prepared."""
    steps: list[tuple[int, int, bytes]] = []
    for domid in GUESTS:
        home = b"/local/domain/%d" % domid
        for path, perms in ((home, b"n0\0r%d\0" % domid), (home + b"/data", b"n%d\0" % domid)):
            steps.append((0, MsgType.MKDIR, path + b"\0"))
            steps.append((0, MsgType.SET_PERMS, path + b"\0" + perms))
    steps.append((0, MsgType.MKDIR, b"/a\0"))
    steps.append((0, MsgType.SET_PERMS, b"/a\0n0\0r1\0b2\0"))
    return steps


def random_request(rng: random.Random) -> tuple[int, bytes]:
    path = rng.choice(PATHS).encode()
    kind = rng.choice(
        (
            MsgType.READ, MsgType.READ, MsgType.DIRECTORY, MsgType.DIRECTORY, MsgType.GET_PERMS, MsgType.WRITE,
            MsgType.WRITE, MsgType.WRITE, MsgType.MKDIR, MsgType.MKDIR, MsgType.RM, MsgType.SET_PERMS,
            MsgType.SET_PERMS,
            MsgType.WATCH, MsgType.UNWATCH, MsgType.GET_DOMAIN_PATH, MsgType.IS_DOMAIN_INTRODUCED,
            MsgType.RESET_WATCHES, MsgType.TRANSACTION_END, MsgType.DIRECTORY_PART,
        )
    )  # fmt: skip
    if kind in (MsgType.GET_PERMS, MsgType.SET_PERMS) and path[:1] == b"@":
        path = b"/a"  # 4.17 has rules of its own for the permissions of special names
    if kind == MsgType.SET_PERMS and path == b"/":
        path = b"/a"  # the death of the root's owner would take everything along
    if kind == MsgType.WRITE:
        return kind, path + b"\0" + rng.choice((b"", b"v", b"a\0b", b"x" * 100))
    if kind == MsgType.SET_PERMS:
        count = rng.randrange(1, 4)
        perms = b"".join(rng.choice(PERMS).encode() + b"\0" for _ in range(count))
        return kind, path + b"\0" + perms
    if kind in (MsgType.WATCH, MsgType.UNWATCH):
        return kind, path + b"\0" + rng.choice((b"t1", b"t2", b"")) + b"\0"
    if kind in (MsgType.GET_DOMAIN_PATH, MsgType.IS_DOMAIN_INTRODUCED):
        return kind, rng.choice((b"0", b"1", b"9")) + b"\0"
    if kind == MsgType.RESET_WATCHES:
        return kind, b"\0"
    if kind == MsgType.TRANSACTION_END:
        return kind, rng.choice((b"T\0", b"F\0", b"X\0", b""))
    if kind == MsgType.DIRECTORY_PART:
        return kind, path + b"\0" + b"99999\0"
    return kind, path + b"\0"  # anything else makes 4.17 die of an assertion


def malformed(payload: bytes) -> bool:
    """Whether the path at the start of this payload is none."""
    return not re.fullmatch(rb"/|/?[\w-]+(/[\w-]+)*", payload.partition(b"\0")[0])


def answer(message: Message) -> tuple[int, bytes]:
    payload = message.payload
    if message.type == MsgType.DIRECTORY_PART:
        payload = payload[payload.index(b"\0") :]  # the generation is a number of the daemon's own
    return message.type, payload


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[Theirs]:
    with CDaemon(tmp_path / "c") as daemon:
        sides = Theirs(daemon)
        yield sides
        sides.close()


@pytest.mark.parametrize("seed", range(8))
def test_same_replies_and_events(seed: int, theirs: Theirs) -> None:
    rng = random.Random(seed)
    ours = Ours()
    script: list[str] = []

    def both(client: int, kind: int, payload: bytes, txids: tuple[int, int] = (0, 0)) -> tuple[Message, Message]:
        script.append(f"dom{client} {MsgType(kind).name} {payload!r} {'in a transaction' if txids[0] else ''}")
        mine = ours.clients[client].request(kind, payload, txids[0])
        other = theirs.clients[client].request(kind, payload, txids[1])
        context = "\n".join(script[-12:])
        if kind != MsgType.TRANSACTION_START:
            # 4.17 looks for the node or watch before it checks the path, later daemons and ours after.
            refused = mine.payload == b"EINVAL\0" and other.payload in VAGUE and malformed(payload)
            if not refused:
                assert answer(mine) == answer(other), f"{context}\nours {mine}, theirs {other}"
        for domid in list(ours.clients):
            mine_events, other_events = ours.clients[domid].events(), theirs.events(domid)
            patience = 1000
            while not set(mine_events) <= set(other_events) and (patience := patience - 1):
                other_events += theirs.events(domid)
            # For a node removed in a transaction 4.17 does not ask whether a watcher may read the parent.
            more = set(mine_events) - set(other_events) if kind == MsgType.TRANSACTION_END else set()
            assert set(mine_events) == set(other_events) | more, f"{context}\nfor dom{domid}"
        return mine, other

    for step in setup():
        both(*step)
    for _ in range(600):
        client = rng.choice((0, *GUESTS))
        if client not in ours.clients:
            continue
        if rng.random() < 0.1:
            started = both(client, MsgType.TRANSACTION_START, b"\0")
            txids = (int(started[0].payload[:-1]), int(started[1].payload[:-1]))
            for _ in range(rng.randrange(6)):
                kind, payload = random_request(rng)
                # In a transaction 4.17 has no special names.
                if payload[:1] != b"@" and kind not in (MsgType.TRANSACTION_END, MsgType.RESET_WATCHES):
                    both(client, kind, payload, txids)
            both(client, MsgType.TRANSACTION_END, rng.choice((b"T\0", b"T\0", b"F\0")), txids)
        else:
            both(client, *random_request(rng))
    ours.destroy(2)
    theirs.destroy(2)
    script.append("dom2 is destroyed")
    # Not the permissions: 4.17 still lists those of the dead domain, though it does not heed them.
    for path in PATHS:
        for kind in (MsgType.READ, MsgType.DIRECTORY):
            for client in (0, 1):
                both(client, kind, path.encode() + b"\0")
