# SPDX-License-Identifier: GPL-2.0-only
"""Transactions: what they see, when they conflict, that they are whole or nothing, and that nobody starves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.xenstore.raw import RawClient, contents
from tests.xenstore.ring_guest import RingGuest
from xenstore.errors import Busy, Conflict, NotFound, QuotaExceeded
from xenstore.ring import RingConnection
from xenstore.server import Server
from xenstore.types import DomId
from xenstore.wire import FEATURES, MsgType, pack


@pytest.fixture
def dom0() -> RawClient:
    client = RawClient(Server())
    for path in ("/a", "/b", "/dir/one", "/dir/two"):
        client.write(path, "old")
    return client


def test_sees_the_store_as_it_was(dom0: RawClient) -> None:
    other = RawClient(dom0.server)
    txid = dom0.start()
    other.write("/a", "new")
    other.rm("/dir/one")
    other.write("/dir/three", "")
    other.chmod("/b", "r0")
    assert dom0.read("/a", txid) == b"old"
    assert dom0.names("/dir", txid) == ["one", "two"]
    assert dom0.read("/dir/one", txid) == b"old"
    assert dom0.perms("/b", txid) == ["n0"]
    with pytest.raises(Conflict):
        dom0.end(txid)
    assert other.read("/a") == b"new"


def test_sees_its_own_changes_and_nobody_else_does(dom0: RawClient) -> None:
    other = RawClient(dom0.server)
    txid = dom0.start()
    dom0.write("/a", "mine", txid)
    dom0.write("/x/y", "1", txid)
    dom0.rm("/dir/one", txid)
    dom0.write("/dir/three", "3", txid)
    dom0.chmod("/b", "r0", txid=txid)
    assert (dom0.read("/a", txid), dom0.read("/x/y", txid)) == (b"mine", b"1")
    assert dom0.names("/dir", txid) == ["two", "three"]
    assert dom0.names("/", txid) == ["tool", "a", "b", "dir", "x"]
    assert dom0.perms("/b", txid) == ["r0"]
    assert other.read("/a") == b"old"
    assert other.names("/dir") == ["one", "two"]
    dom0.end(txid)
    assert other.names("/dir") == ["two", "three"]
    assert other.read("/x/y") == b"1"
    assert dom0.server.tree.newest is None


def test_dropped_leaves_no_trace(dom0: RawClient) -> None:
    before = contents(dom0.server)
    txid = dom0.start()
    dom0.write("/a", "mine", txid)
    dom0.rm("/dir", txid)
    dom0.end(txid, commit=False)
    assert contents(dom0.server) == before
    with pytest.raises(NotFound):
        dom0.read("/a", txid)


Step = Callable[[RawClient, int], object]
READ_A: Step = lambda client, txid: client.read("/a", txid)  # noqa: E731
CASES: dict[str, tuple[Step, Step, bool]] = {
    # what the transaction does, what another client does meanwhile, whether that is a conflict
    "read, then written": (READ_A, lambda other, _: other.write("/a", "x"), True),
    "read, then written with the same value": (READ_A, lambda other, _: other.write("/a", "old"), True),
    "read, then removed": (READ_A, lambda other, _: other.rm("/a"), True),
    "read, then other permissions": (READ_A, lambda other, _: other.chmod("/a", "r0"), True),
    "read, then a child": (READ_A, lambda other, _: other.write("/a/kid", ""), False),
    "read, another written": (READ_A, lambda other, _: other.write("/b", "x"), False),
    "missing, then made": (lambda c, t: c.request(MsgType.READ, b"/n\0", t), lambda o, _: o.write("/n", ""), True),
    "missing below, then its parent made": (
        lambda c, t: c.request(MsgType.READ, b"/n/m\0", t),
        lambda o, _: o.write("/n", ""),
        False,
    ),
    "listed, then a child more": (lambda c, t: c.names("/dir", t), lambda o, _: o.write("/dir/three", ""), True),
    "listed, then a child less": (lambda c, t: c.names("/dir", t), lambda o, _: o.rm("/dir/one"), True),
    "listed, then a child written": (lambda c, t: c.names("/dir", t), lambda o, _: o.write("/dir/one", "x"), False),
    "written by both": (lambda c, t: c.write("/a", "t", t), lambda o, _: o.write("/a", "x"), False),
    "written, then removed": (lambda c, t: c.write("/a", "t", t), lambda o, _: o.rm("/a"), True),
    "made by both": (lambda c, t: c.write("/n", "t", t), lambda o, _: o.write("/n", "x"), True),
    "different children made in one directory": (
        lambda c, t: c.write("/dir/mine", "t", t),
        lambda o, _: o.write("/dir/theirs", "x"),
        False,
    ),
    "made below a directory that is removed": (
        lambda c, t: c.write("/dir/mine", "t", t),
        lambda o, _: o.rm("/dir"),
        True,
    ),
    "removed, meanwhile a child more": (lambda c, t: c.rm("/dir", t), lambda o, _: o.write("/dir/three", ""), False),
    "removed by both": (lambda c, t: c.rm("/a", t), lambda o, _: o.rm("/a"), True),
    "permissions read and changed": (lambda c, t: c.perms("/a", t), lambda o, _: o.chmod("/a", "r0"), True),
    "permissions read, value changed": (lambda c, t: c.perms("/a", t), lambda o, _: o.write("/a", "x"), False),
}


@pytest.mark.parametrize("case", CASES)
def test_conflict(dom0: RawClient, case: str) -> None:
    inside, outside, conflict = CASES[case]
    other = RawClient(dom0.server)
    txid = dom0.start()
    inside(dom0, txid)
    outside(other, 0)
    dom0.write("/done", "yes", txid)
    if conflict:
        with pytest.raises(Conflict):
            dom0.end(txid)
    else:
        dom0.end(txid)
    assert ("done" in other.names("/")) is not conflict
    assert dom0.server.control.problems() == []
    assert dom0.server.tree.newest is None


def test_two_transactions_that_read_each_others_writes_cannot_both_commit(dom0: RawClient) -> None:
    other = RawClient(dom0.server)
    mine, theirs = dom0.start(), other.start()
    dom0.write("/b", dom0.read("/a", mine) + b"1", mine)
    other.write("/a", other.read("/b", theirs) + b"2", theirs)
    dom0.end(mine)
    with pytest.raises(Conflict):
        other.end(theirs)
    assert (dom0.read("/a"), dom0.read("/b")) == (b"old", b"old1")


def test_an_old_snapshot_outlives_newer_ones(dom0: RawClient) -> None:
    other = RawClient(dom0.server)
    first = dom0.start()
    for number in range(5):
        txid = other.start()
        other.write("/a", str(number), txid)
        other.write(f"/new{number}", "", txid)
        other.rm(f"/new{number}", txid)
        other.end(txid)
    middle = other.start()
    other.write("/b", "after")
    assert other.read("/a", middle) == b"4"
    other.end(middle, commit=False)
    assert (dom0.read("/a", first), dom0.read("/b", first)) == (b"old", b"old")
    assert dom0.names("/", first) == ["tool", "a", "b", "dir"]


def test_snapshots_do_not_grow_with_nodes_that_come_and_go(dom0: RawClient) -> None:
    dom0.start()
    for number in range(1000):
        dom0.write(f"/dir/n{number}", "")
        dom0.rm(f"/dir/n{number}")
    snapshot = dom0.server.tree.newest
    assert snapshot is not None and len(snapshot.images) < 10


def test_events_come_with_the_commit_and_once(dom0: RawClient) -> None:
    watcher = RawClient(dom0.server)
    watcher.call(MsgType.WATCH, "/a", "t")
    watcher.events()
    txid = dom0.start()
    dom0.write("/a", "1", txid)
    dom0.write("/a", "2", txid)
    assert watcher.events() == []
    dom0.end(txid)
    assert watcher.events() == [("/a", "t")]


def test_no_nesting_and_no_strangers(dom0: RawClient) -> None:
    txid = dom0.start()
    with pytest.raises(Busy):
        dom0.call(MsgType.TRANSACTION_START, "", txid=txid)
    with pytest.raises(NotFound):
        RawClient(dom0.server).read("/a", txid)


def test_quotas_hold_inside(dom0: RawClient) -> None:
    server = dom0.server
    dom0.chmod("/dir", "n1")
    server.accounts.of(DomId(1)).limits["nodes"] = 3
    guest = RawClient(server, 1)
    txid = guest.start()
    guest.write("/dir/g1", "", txid)
    guest.write("/dir/g2", "", txid)
    with pytest.raises(QuotaExceeded):
        guest.write("/dir/g3", "", txid)
    guest.write("/dir/h1", "")
    with pytest.raises(QuotaExceeded):
        guest.end(txid)
    assert guest.names("/dir") == ["one", "two", "h1"]
    server.accounts.of(DomId(1)).limits["transaction-nodes"] = 2
    txid = guest.start()
    guest.read("/dir", txid)
    guest.read("/dir/h1", txid)
    guest.read("/dir", txid)
    with pytest.raises(QuotaExceeded):
        guest.read("/dir/one", txid)


def test_a_domain_that_keeps_conflicting_cannot_starve_others() -> None:
    """The victim's transaction takes time; the culprit would change what it reads each time, but has to wait."""
    now = 0.0
    timers: list[tuple[float, Callable[[], None]]] = []
    server = Server(clock=lambda: now)
    dom0 = RawClient(server)
    dom0.write("/shared", "0")
    dom0.chmod("/shared", "n0", "b1", "b2")
    guests = {}
    for domid in (1, 2):
        guest = RingGuest()
        ring = RingConnection(
            server, DomId(domid), guest.page, guest.notified, lambda f, d: timers.append((now + d, f)), FEATURES
        )
        guest.doorbell = ring.on_event
        guests[domid] = guest
    victim, culprit = guests[1], guests[2]
    attempts = 0
    done = False
    while not done:
        attempts += 1
        txid = int(victim.call(MsgType.TRANSACTION_START, "")[:-1])
        value = int(victim.call(MsgType.READ, "/shared", txid=txid))
        victim.call(MsgType.WRITE, "/shared", raw=b"%d" % (value + 1), txid=txid)
        culprit.put(pack(MsgType.WRITE, 1, 0, b"/shared\x00100"))
        culprit.drain()
        done = victim.request(MsgType.TRANSACTION_END, b"T\0", txid).type != MsgType.ERROR
        now += 0.001
        assert attempts < 20
    assert attempts == 7  # the burst of five, the one that used up the credit, and then the victim's turn
    assert dom0.read("/shared") == b"101"
    assert server.statistics()["domains"][2]["conflicts_caused"] == 6
    culprit.replies.clear()
    while not culprit.replies:
        due, function = timers.pop(0)
        now = max(now, due)
        function()
        culprit.drain()
    assert dom0.read("/shared") == b"100"
