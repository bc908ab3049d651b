# SPDX-License-Identifier: GPL-2.0-only
"""The shared page: wrap-around, back-pressure, features, errors, reconnection, a page that comes and goes."""

from __future__ import annotations

import random

import pytest

from tests.xenstore.ring_guest import RingGuest
from xenstore.daemon import Daemon
from xenstore.errors import NotFound
from xenstore.ring import RingConnection
from xenstore.server import Server
from xenstore.types import DomId
from xenstore.wire import FEATURES, MsgType, pack

REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD, SERVER_FEATURES, CONNECTION, ERROR = range(7)


class Connected:
    """A guest with a home of its own, connected."""

    def __init__(self, domid: int = 5, features: int = FEATURES) -> None:
        self.daemon = Daemon()
        self.dom0 = self.daemon.client()
        self.dom0.mkdir(f"/local/domain/{domid}/data")
        self.dom0.set_perms(f"/local/domain/{domid}/data", [f"n{domid}"])
        self.dom0.set_feature(domid, features)
        self.guest = RingGuest()
        self.ring = self.daemon.introduce(domid, self.guest.page, self.guest.notified)
        self.guest.doorbell = self.ring.on_event

    def alive(self) -> None:
        self.guest.call(MsgType.WRITE, "data/alive", raw=b"1")
        assert self.guest.call(MsgType.READ, "data/alive") == b"1"


@pytest.fixture
def it() -> Connected:
    return Connected()


def test_many_requests_wrap_the_rings(it: Connected) -> None:
    rng = random.Random(3)
    for number in range(300):
        value = rng.randbytes(rng.randrange(1900))
        it.guest.call(MsgType.WRITE, f"data/{number % 7}", raw=value)
        assert it.guest.call(MsgType.READ, f"data/{number % 7}") == value
    assert it.guest.words[REQ_PROD] > 1024 and it.guest.words[REQ_CONS] == it.guest.words[REQ_PROD]


def test_indices_wrap_at_32_bits() -> None:
    server = Server()
    guest = RingGuest()
    near = 0xFFFFFFF0
    ring = RingConnection(server, DomId(5), guest.page, guest.notified, lambda f, d: None, FEATURES)
    guest.doorbell = ring.on_event
    ring._req_cons = ring._rsp_prod = near
    for word in range(4):
        guest.words[word] = near
    assert guest.call(MsgType.GET_DOMAIN_PATH, "5") == b"/local/domain/5\0"
    assert guest.words[REQ_CONS] < near and guest.words[RSP_PROD] < near


def test_a_guest_that_does_not_read_is_not_served_for_ever(it: Connected) -> None:
    it.dom0.write("/local/domain/5/data", b"x" * 900)
    request = pack(MsgType.READ, 1, 0, b"data\0")
    put = 0
    for _ in range(2000):
        put += it.guest.put(request[put % len(request) :])
    assert it.daemon.statistics()["requests"] < 100
    it.guest.drain()
    while it.guest.words[REQ_CONS] != it.guest.words[REQ_PROD]:
        it.guest.drain()
    it.guest.drain()
    assert len(it.guest.replies) == put // len(request)


def test_events_for_a_guest_that_does_not_read_are_merged(it: Connected) -> None:
    it.guest.call(MsgType.WATCH, "data", "t")
    it.guest.drain()
    it.guest.events.clear()
    for number in range(20000):
        it.dom0.write(f"/local/domain/5/data/n{number % 9000}", "x")
    assert len(it.ring.connection.unsent()) < 1 << 19
    it.guest.drain()
    assert it.guest.events[-1] == ("data", "t"), "the last event must cover what was merged"
    it.guest.events.clear()
    it.dom0.write("/local/domain/5/data/again", "x")
    it.guest.drain()
    assert it.guest.events == [("data/again", "t")]


@pytest.mark.parametrize(
    ("word", "value", "error"),
    [(REQ_PROD, 5000, 2), (REQ_PROD, 0xFFFFFFFF, 2), (RSP_CONS, 1, 2), (RSP_CONS, 0x80000000, 2)],
)
def test_nonsense_in_the_indices(it: Connected, word: int, value: int, error: int) -> None:
    it.guest.call(MsgType.WATCH, "data", "t")
    it.guest.drain()
    if word == RSP_CONS:
        it.guest.words[word] = (it.guest.words[RSP_PROD] + value) & 0xFFFFFFFF
        it.dom0.write("/local/domain/5/data", "x")
    else:
        it.guest.words[word] = (it.guest.words[REQ_CONS] + value) & 0xFFFFFFFF
        it.ring.on_event()
    assert it.guest.words[ERROR] == error
    assert it.daemon.statistics()["domains"][5]["watches"] == 0
    it.guest.words[CONNECTION] = 1
    it.ring.on_event()
    assert list(it.guest.words[:7]) == [0, 0, 0, 0, FEATURES, 0, 0]
    it.alive()


def test_too_long_a_message(it: Connected) -> None:
    it.guest.put(pack(MsgType.GET_DOMAIN_PATH, 1, 0, b"1\0") + b"\x02\0\0\0" * 3 + b"\0\x20\0\0")
    assert it.guest.words[ERROR] == 3
    it.guest.put(pack(MsgType.GET_DOMAIN_PATH, 1, 0, b"1\0"))
    assert it.daemon.statistics()["requests"] < 20
    it.guest.words[CONNECTION] = 1
    it.ring.on_event()
    it.guest.replies.clear()
    it.alive()


def test_features_that_were_not_granted() -> None:
    it = Connected(features=0)
    assert it.guest.words[SERVER_FEATURES] == 0
    it.guest.words[REQ_PROD] = 5000
    it.ring.on_event()
    assert it.guest.words[ERROR] == 0
    it.guest.words[CONNECTION] = 1
    it.ring.on_event()
    assert it.guest.words[CONNECTION] == 1


def test_reconnection_drops_everything_under_way(it: Connected) -> None:
    it.guest.call(MsgType.WATCH, "data", "t")
    txid = it.guest.call(MsgType.TRANSACTION_START, "")[:-1]
    it.guest.put(pack(MsgType.READ, 1, 0, b"data\0")[:9])
    it.guest.words[CONNECTION] = 1
    rung = it.guest.rung
    it.ring.on_event()
    assert it.guest.words[CONNECTION] == 0 and it.guest.rung > rung
    usage = it.daemon.statistics()["domains"][5]
    assert (usage["watches"], usage["transactions"]) == (0, 0)
    it.guest.events.clear()
    it.alive()
    with pytest.raises(NotFound):
        it.guest.call(MsgType.READ, "data", txid=int(txid))
    assert it.guest.events == []


def test_introduced_again_with_another_page(it: Connected) -> None:
    old = it.ring
    it.guest.call(MsgType.WATCH, "data", "t")
    again = RingGuest()
    again.words[CONNECTION] = 1
    again.doorbell = it.daemon.introduce(5, again.page, again.notified).on_event
    assert again.words[CONNECTION] == 0 and again.rung == 1
    assert again.call(MsgType.GET_DOMAIN_PATH, "1") == b"/local/domain/1\0"
    old.on_event()
    old.close()
    assert it.daemon.statistics()["domains"][5]["watches"] == 0
    it.dom0.control("check")


def test_introduce_and_release_from_the_toolstack(it: Connected) -> None:
    it.guest.call(MsgType.WATCH, "data", "t")
    it.dom0._raw(MsgType.INTRODUCE, b"5\x000\x001\0")
    assert it.daemon.statistics()["domains"][5]["watches"] == 0
    it.alive()
    with pytest.raises(NotFound):
        it.dom0._raw(MsgType.INTRODUCE, b"6\x000\x001\0")
    it.dom0._raw(MsgType.RELEASE, b"5\0")
    it.ring.on_event()
    assert not it.dom0.exists("/local/domain/5/data")


def test_only_whole_writable_pages() -> None:
    daemon = Daemon()
    for page in (memoryview(bytes(4096)), memoryview(bytearray(100))):
        with pytest.raises(ValueError, match="store page"):
            daemon.introduce(5, page, lambda: None)
    with pytest.raises(ValueError, match="dom0"):
        daemon.introduce(0, memoryview(bytearray(4096)), lambda: None)
