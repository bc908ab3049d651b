# SPDX-License-Identifier: GPL-2.0-only
"""The stream of Xen's live update: what goes in comes out, also from other hands; nonsense is refused whole."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.xenstore.conftest import CLONE, Xenstored, running
from tests.xenstore.raw import RawClient, contents
from tests.xenstore.ring_guest import RingGuest
from xenstore.client import Client
from xenstore.daemon import Daemon
from xenstore.errors import Conflict, ConnectionLost
from xenstore.migration import CONNECTION, END, GLOBAL_DATA, GLOBAL_QUOTA, NODE, WATCH, StreamError, dump, restore
from xenstore.migration import read as read_stream
from xenstore.server import Server
from xenstore.types import DomId
from xenstore.wire import MsgType, pack


def introduce(daemon: Daemon, domid: int) -> RingGuest:
    guest = RingGuest()
    guest.doorbell = daemon.introduce(domid, guest.page, guest.notified).on_event
    return guest


def filled() -> tuple[Daemon, RingGuest]:
    daemon = Daemon()
    dom0 = RawClient(daemon.store)
    dom0.write("/a/b", b"v\0w")
    dom0.write("/a/c", "")
    dom0.write("/local/domain/5/data", "")
    dom0.chmod("/local/domain/5/data", "n5", "r0", "w7")
    dom0.chmod("@releaseDomain", "n0", "r5")
    dom0.call(MsgType.SET_QUOTA, "nodes", "77")
    dom0.call(MsgType.SET_QUOTA, "5", "watches", "9")
    dom0.call(MsgType.SET_FEATURE, "5", "7")
    guest = introduce(daemon, 5)
    guest.call(MsgType.WATCH, "data", "rel")
    guest.call(MsgType.WATCH, "/local/domain/5/data", "deep", "1")
    guest.drain()
    guest.events.clear()
    return daemon, guest


def test_tree_quotas_and_features_come_back() -> None:
    daemon, _ = filled()
    server = Server()
    RawClient(server).write("/was/here/before", "x")
    restore(server, dump(daemon.store))
    assert contents(server) == contents(daemon.store)
    assert server.control.problems() == []
    assert server.accounts.limits["nodes"] == 77
    assert server.accounts.of(DomId(5)).limits["watches"] == 9
    assert server.domains.get(DomId(5)).features == 7
    assert server.accounts.of(DomId(5)).nodes == 1


def test_a_guest_does_not_notice_that_it_was_moved() -> None:
    """Its watches fire, replies it has not read are there, a request cut in two is answered once."""
    daemon, guest = filled()
    txid = int(guest.call(MsgType.TRANSACTION_START, "")[:-1])
    request = pack(MsgType.READ, 77, 0, b"data\0")
    guest.call(MsgType.WRITE, "data", raw=b"y" * 1500)
    guest.events.clear()
    guest.put(request + request[:10])
    moved = Daemon()
    state = restore(moved.store, dump(daemon.store))
    page = bytes(guest.page)
    daemon.release(5)
    guest.page[:] = page
    guest.doorbell = moved.introduce(5, guest.page, guest.notified, state.connections[DomId(5)]).on_event
    guest.send(request[10:])
    guest.drain()
    assert [(reply.req_id, reply.payload) for reply in guest.replies] == [(77, b"y" * 1500)] * 2
    guest.replies.clear()
    assert guest.events == []
    moved.client().write("/local/domain/5/data/x/y", "")
    guest.drain()
    assert guest.events == [("data/x/y", "rel")]
    with pytest.raises(Conflict):
        guest.call(MsgType.TRANSACTION_END, "T", txid=txid)


def test_a_store_that_is_restarted_in_place() -> None:
    """As above, but store, page and the clients of this process stay; nothing is counted twice."""
    daemon, guest = filled()
    client = daemon.client()
    before = dump(daemon.store)
    nodes = daemon.store.accounts.of(DomId(5)).nodes, daemon.store.accounts.of(DomId(5)).watches
    txid = int(guest.call(MsgType.TRANSACTION_START, "")[:-1])
    request = pack(MsgType.READ, 77, 0, b"data\0")
    guest.put(request[:10])
    daemon.restart()
    guest.send(request[10:])
    guest.drain()
    assert [reply.req_id for reply in guest.replies] == [77]
    guest.replies.clear()
    assert guest.events == []
    with pytest.raises(Conflict):
        guest.call(MsgType.TRANSACTION_END, "T", txid=txid)
    assert read_stream(dump(daemon.store)).nodes == read_stream(before).nodes
    assert (daemon.store.accounts.of(DomId(5)).nodes, daemon.store.accounts.of(DomId(5)).watches) == nodes
    client.write("/local/domain/5/data/x", "")
    guest.drain()
    assert sorted(guest.events) == [("/local/domain/5/data/x", "deep"), ("data/x", "rel")]
    daemon.release(5)
    assert DomId(5) not in [each.domid for each in daemon.store.domains.known()]


def stream(*records: tuple[int, bytes], order: str = "<", version: int = 1) -> bytes:
    parts = [b"xenstore" + struct.pack(">II", version, order == ">")]
    for kind, body in records:
        parts.append(struct.pack(order + "II", kind, len(body)) + body + bytes(-len(body) % 8))
    return b"".join(parts)


def node(path: bytes, value: bytes, perms: list[tuple[str, int, int]], order: str = "<") -> tuple[int, bytes]:
    head = struct.pack(order + "IIHHHH", 0, 0, len(path) + 1, len(value), 0, len(perms))
    entries = b"".join(struct.pack(order + "BBH", ord(letter), flags, domid) for letter, flags, domid in perms)
    return NODE, head + entries + path + b"\0" + value


@pytest.mark.parametrize("order", ["<", ">"])
def test_streams_of_version_one_in_both_byte_orders(order: str) -> None:
    records = [
        (GLOBAL_DATA, struct.pack(order + "ii", 3, 4)),
        (CONNECTION, struct.pack(order + "IHHHHIHHI", 1, 0, 0, 9, 0x7FF4, 3, 2, 0, 3) + b"in" + b"out"),
        (CONNECTION, struct.pack(order + "IHHIIHHI", 2, 1, 0, 7, 0, 0, 0, 0)),
        (WATCH, struct.pack(order + "IHH", 1, 3, 2) + b"/a\0" + b"t\0"),
        (GLOBAL_QUOTA, struct.pack(order + "HHII", 2, 0, 5, 6) + b"nodes\0unheard-of\0"),
        node(b"/", b"", [("n", 0, 0)], order),
        node(b"/a", b"\0\1", [("n", 0, 9), ("r", 1, 4), ("b", 0, 3)], order),
        (END, b""),
    ]
    server = Server()
    state = restore(server, stream(*records, order=order))
    assert contents(server)["/a"] == (b"\0\1", ("n9", "b3"), ())
    assert contents(server)["/"][2] == (b"a",)
    assert server.accounts.limits["nodes"] == 5
    connection = state.connections[DomId(9)]
    assert (connection.received, connection.unsent, connection.target) == (b"in", b"out", None)
    assert connection.watches == [(b"/a", b"t", None)]


def test_broken_streams_change_nothing() -> None:
    daemon, _ = filled()
    good = dump(daemon.store)
    server = Server()
    before = contents(server)
    bad = [good[:length] for length in range(0, len(good) - 8, 13)]
    bad += [
        b"xenstone" + good[8:],
        stream((END, b""), version=3),
        stream((99, b""), (END, b"")),
        stream(node(b"/x/y", b"", [("n", 0, 0)]), (END, b"")),
        stream(node(b"/x y", b"", [("n", 0, 0)]), (END, b"")),
        stream(node(b"/x", b"", [("q", 0, 0)]), (END, b"")),
        stream(node(b"/x", b"", []), (END, b"")),
    ]
    for data in bad:
        with pytest.raises(StreamError):
            restore(server, data)
        assert contents(server) == before


def test_every_flipped_byte_is_survived() -> None:
    daemon, _ = filled()
    good = dump(daemon.store)
    for at in range(len(good)):
        data = bytearray(good)
        data[at] ^= 0x41
        try:
            read_stream(bytes(data))
        except StreamError:
            continue


def test_the_daemon_keeps_its_state_over_a_restart(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    with running(tmp_path, "--state", state) as daemon, Client(daemon.socket) as client:
        client.write("/kept", "yes")
        client.set_perms("/kept", ["n0", "r5"])
        assert daemon.stop() == 0
    with running(tmp_path, "--state", state) as daemon, Client(daemon.socket) as client:
        assert (client.read("/kept"), client.get_perms("/kept")) == (b"yes", ["n0", "r5"])


def test_starting_in_the_background(tmp_path: Path) -> None:
    pid_file, path = tmp_path / "pid", str(tmp_path / "s")
    command = [sys.executable, "-m", "xenstore.tools.xenstored", "--socket", path, "-F", str(pid_file), "-E", "5"]
    subprocess.run([*command, "-Q", "watches=3"], check=True, cwd=CLONE, timeout=20)
    pid = int(pid_file.read_text())
    with Client(path) as client:
        assert (client.get_quota("nodes"), client.get_quota("watches")) == (5, 3)
        again = subprocess.run([*command, "-N"], cwd=CLONE, timeout=20, capture_output=True, text=True)
        assert again.returncode == 1 and "another xenstored serves" in again.stderr
        os.kill(pid, signal.SIGTERM)
        with pytest.raises(ConnectionLost):
            while True:
                client.read("/")
    nonsense = subprocess.run([*command, "-Q", "x"], cwd=CLONE, timeout=20, capture_output=True, text=True)
    assert nonsense.returncode == 1 and "--quota x" in nonsense.stderr


def test_fixture_is_a_whole_daemon(xenstored: Xenstored) -> None:
    with Client(xenstored.socket) as client:
        assert client.list("/") == ["tool"]
    assert xenstored.stop() == 0
