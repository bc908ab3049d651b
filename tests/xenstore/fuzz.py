# SPDX-License-Identifier: GPL-2.0-only
"""Random and mutated messages for a socket and a ring, indices included; used by a quick test and by the soak.

After each burst another client must still get its answers, the tree must hang together, and memory be bounded.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable

from tests.xenstore.raw import RawClient
from tests.xenstore.ring_guest import RingGuest
from xenstore.daemon import Daemon
from xenstore.errors import ProtocolError
from xenstore.wire import MsgType, Parser, pack

WORDS = (
    b"/", b"/fuzz", b"/fuzz/a", b"data", b"data/x", b"@releaseDomain", b"", b"T", b"F", b"1", b"0", b"65535", b"n1",
    b"r2", b"tok",
    b"/fuzz/" + b"y" * 500, b"//", b"-1", b"99999999999", b"quota", b"help", b"stats", b"\xff\xfe", b"soft-memory",
)  # fmt: skip


def random_message(rng: random.Random) -> bytes:
    """Mostly well formed, sometimes not at all."""
    kind = rng.randrange(30) if rng.random() < 0.97 else rng.randrange(1 << 32)
    if kind in (MsgType.RELEASE, MsgType.SET_FEATURE):
        kind = MsgType.READ  # dom0 may do that to the guests whose life is watched here
    payload = b"".join(rng.choice(WORDS) + rng.choice((b"\0", b"\0", b"\0", b"")) for _ in range(rng.randrange(4)))
    if rng.random() < 0.05:
        payload += rng.randbytes(rng.randrange(4200 - min(len(payload), 4100)))
    txid = rng.choice((0, 0, 0, 1, 2, rng.randrange(1 << 32)))
    message = bytearray(pack(kind, rng.randrange(1 << 32), txid, payload[:4096]))
    for _ in range(rng.choice((0, 0, 0, 0, 1, 3))):
        message[rng.randrange(1, len(message))] = rng.randrange(256)
    return bytes(message)


def fuzz_server(rng: random.Random, messages: int) -> None:
    """Bytes as they come out of sockets and rings, without the kernel in between."""
    daemon = Daemon()
    watched = RawClient(daemon.store)
    watched.write("/mine", "0")
    attacker = _Attacker(daemon)
    guests = {domid: _Guest(daemon, domid) for domid in (1, 2)}
    for number in range(messages):
        who = rng.randrange(4)
        if who < 2:
            attacker.feed(b"".join(random_message(rng) for _ in range(rng.choice((1, 1, 1, 20)))), rng)
        else:
            guests[1 + who % 2].attack(rng)
        if number % 100 == 0:
            watched.write("/mine", str(number))
            assert watched.read("/mine") == str(number).encode()
        if number % 5000 == 0:
            watched.rm("/fuzz")
            for guest in guests.values():
                guest.check_alive()
    assert daemon.store.control.problems() == []
    for guest in guests.values():
        guest.check_alive()


class _Attacker:
    """A privileged client that keeps breaking its connection."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._client = RawClient(daemon.store)

    def feed(self, data: bytes, rng: random.Random) -> None:
        server = self._daemon.store
        try:
            server.receive(self._client.connection, data)
            server.settle()
            while self._client.connection.more:
                server.receive(self._client.connection, b"")
                server.settle()
        except ProtocolError:
            server.settle()
            self._client.close()
            self._client = RawClient(server)
        if rng.random() < 0.01 or len(self._client.connection.transactions) > 50:
            self._client.close()
            self._client = RawClient(server)
        self._client.events()
        self._client._replies.clear()


class _Guest:
    """A guest that writes anything into its page."""

    def __init__(self, daemon: Daemon, domid: int) -> None:
        self._guest = RingGuest()
        self._daemon = daemon
        self._domid = domid
        self._make_home()
        self._ring = daemon.introduce(domid, self._guest.page, self._guest.notified)
        self._guest.doorbell = self._ring.on_event

    def _make_home(self) -> None:
        dom0 = self._daemon.client()
        dom0.mkdir(f"/local/domain/{self._domid}/data")
        dom0.set_perms(f"/local/domain/{self._domid}/data", [f"n{self._domid}"])
        dom0.close()

    def attack(self, rng: random.Random) -> None:
        guest = self._guest
        choice = rng.random()
        if choice < 0.6:
            guest.put(random_message(rng)[:1024])
        elif choice < 0.7:
            guest.words[rng.randrange(8)] = rng.choice((0, 1, 1024, 1025, 0xFFFFFFFF, rng.randrange(1 << 32)))
            self._ring.on_event()
        elif choice < 0.8:
            at = rng.randrange(4096)
            guest.page[at] = rng.randrange(256)
            self._ring.on_event()
        elif choice < 0.95:
            guest.words[2] = guest.words[3]
            self._ring.on_event()
        else:
            guest.words[5] = 1
            self._ring.on_event()
        assert len(self._ring.connection.unsent()) < 1 << 20
        assert len(self._ring.connection.rest) < 1 << 13

    def check_alive(self) -> None:
        """After a reconnection everything works again; the guest may have removed its home."""
        guest = self._guest
        self._make_home()
        guest.words[5] = 1
        self._ring.on_event()
        assert guest.words[5] == 0 and guest.words[6] == 0
        guest.parser = Parser()
        guest.replies.clear()
        guest.call(MsgType.WRITE, "data/alive", raw=b"yes")
        assert guest.call(MsgType.READ, "data/alive") == b"yes"
        guest.call(MsgType.RM, "data/alive")


def fuzz_socket(rng: random.Random, path: str, messages: int, resident: Callable[[], float]) -> None:
    """The same over real sockets, by clients of which some never read."""
    watched = socket.socket(socket.AF_UNIX)
    watched.connect(path)
    attackers: list[socket.socket] = []
    before = resident()
    for number in range(messages):
        if len(attackers) < 4:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(path)
            sock.setblocking(False)
            attackers.append(sock)
        attacker = rng.choice(attackers)
        try:
            attacker.send(random_message(rng))
            if rng.random() < 0.7:
                attacker.recv(65536)
        except BlockingIOError:
            if rng.random() < 0.01:
                attackers.remove(attacker)
                attacker.close()
        except OSError:
            attackers.remove(attacker)
            attacker.close()
        if number % 500 == 0:
            value = b"%d" % number
            watched.sendall(pack(MsgType.WRITE, 1, 0, b"/mine\0" + value) + pack(MsgType.READ, 2, 0, b"/mine\0"))
            expected = pack(MsgType.WRITE, 1, 0, b"OK\0") + pack(MsgType.READ, 2, 0, value)
            got = b""
            while len(got) < len(expected):
                got += watched.recv(len(expected) - len(got))
            assert got == expected
    for sock in (*attackers, watched):
        sock.close()
    assert resident() - before < 64e6
