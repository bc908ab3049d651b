# SPDX-License-Identifier: GPL-2.0-only
"""The store inside a host process: guests over rings, the toolstack without sockets, unix sockets."""

from __future__ import annotations

import resource
import select
import socket
from pathlib import Path

import pytest
import trio

from tests.xenstore.ring_guest import RingGuest
from xenstore.daemon import Daemon
from xenstore.errors import Conflict, NotFound, PermissionDenied
from xenstore.server import Server
from xenstore.socket_server import SocketServer
from xenstore.wire import MsgType, pack


def introduce(daemon: Daemon, domid: int) -> RingGuest:
    guest = RingGuest()
    ring = daemon.introduce(domid, guest.page, guest.notified)
    guest.doorbell = ring.on_event
    return guest


async def test_toolstack_and_guest_share_a_store() -> None:
    daemon = Daemon()
    dom0 = daemon.client()
    for path, perms in (("/local/domain/5", ["n0", "r5"]), ("/local/domain/5/data", ["n5"])):
        dom0.mkdir(path)
        dom0.set_perms(path, perms)
    channel = dom0.watch("/local/domain/5", "mine")
    assert await channel.receive() == ("/local/domain/5", "mine")
    guest = introduce(daemon, 5)
    guest.call(MsgType.WRITE, "data/x", raw=b"hello")
    assert await channel.receive() == ("/local/domain/5/data/x", "mine")
    assert dom0.read("/local/domain/5/data/x") == b"hello"
    assert dom0.get_perms("/local/domain/5/data/x") == ["n5"]
    with pytest.raises(PermissionDenied):
        guest.call(MsgType.WRITE, "other", raw=b"no")
    guest.call(MsgType.WATCH, "data", "tok")
    guest.drain()
    assert guest.events == [("data", "tok")]
    dom0.write("/local/domain/5/data/y", "1")
    guest.drain()
    assert guest.events[1:] == [("data/y", "tok")]


async def test_domain_death_removes_its_nodes_and_rights() -> None:
    daemon = Daemon()
    dom0 = daemon.client()
    released = dom0.watch("@releaseDomain", "r")
    assert await released.receive() == ("@releaseDomain", "r")
    dom0.mkdir("/g")
    dom0.set_perms("/g", ["n7"])
    dom0.write("/shared", "v")
    dom0.set_perms("/shared", ["n0", "b7"])
    guest = introduce(daemon, 7)
    guest.call(MsgType.WRITE, "/g/a/b", raw=b"x")
    daemon.domain_shutdown(7)
    daemon.domain_shutdown(7)
    assert released.receive_nowait() == ("@releaseDomain", "r")
    with pytest.raises(trio.WouldBlock):
        released.receive_nowait()
    daemon.release(7)
    assert released.receive_nowait() == ("@releaseDomain", "r")
    assert not dom0.exists("/g")
    assert dom0.get_perms("/shared") == ["n0"]
    assert not dom0.is_domain_introduced(7)


async def test_transaction_of_the_host_process() -> None:
    daemon = Daemon()
    dom0 = daemon.client()
    dom0.write("/a", "1")
    with dom0.transaction() as transaction:
        assert transaction.read("/a") == b"1"
        transaction.write("/b", "2")
        assert not dom0.exists("/b")
    assert dom0.read("/b") == b"2"
    with pytest.raises(Conflict), dom0.transaction() as transaction:
        transaction.read("/a")
        dom0.write("/a", "3")
        transaction.write("/b", "4")
    assert dom0.read("/b") == b"2"
    with pytest.raises(NotFound), dom0.transaction() as transaction:
        transaction.write("/b", "5")
        transaction.read("/nothing")
    assert dom0.read("/b") == b"2"


async def test_unix_socket(tmp_path: Path) -> None:
    daemon = Daemon()
    path = str(tmp_path / "socket")
    daemon.client().write("/hello", "world")
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.serve_unix, path)
        stream = await trio.open_unix_socket(path)
        await stream.send_all(pack(MsgType.READ, 9, 0, b"/hello\0"))
        assert await stream.receive_some() == pack(MsgType.READ, 9, 0, b"world")
        await stream.send_all(pack(MsgType.READ, 9, 0, b"x" * 5000))
        assert await stream.receive_some() == b""
        await stream.aclose()
        nursery.cancel_scope.cancel()
    with pytest.raises(FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(path)


async def test_without_descriptors_clients_are_turned_away(tmp_path: Path) -> None:
    sockets = SocketServer(Server())
    path = str(tmp_path / "socket")
    sockets.listen(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as refused, socket.socket(socket.AF_UNIX) as served:
        refused.connect(path)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (served.fileno() + 1, hard))
            while True:
                sockets.poll(0)
                if select.select([refused], [], [], 0)[0]:
                    break
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert refused.recv(1) == b""
        served.connect(path)
        sockets.poll(1)
        served.sendall(pack(MsgType.GET_DOMAIN_PATH, 1, 0, b"1\0"))
        sockets.poll(1)
        assert served.recv(100)
    sockets.close()


def test_ring_reconnects_and_faults() -> None:
    daemon = Daemon()
    guest = introduce(daemon, 3)
    assert guest.words[4] == 15
    guest.call(MsgType.WATCH, "/tool", "t")
    guest.words[1] = guest.words[0] + 5000
    guest.doorbell()
    assert guest.words[6] == 2
    assert daemon.statistics()["watches"] == 0
    guest.words[5] = 1
    guest.doorbell()
    assert [guest.words[i] for i in (0, 1, 2, 3, 5, 6)] == [0] * 6
    assert guest.call(MsgType.GET_DOMAIN_PATH, "3") == b"/local/domain/3\0"
