# SPDX-License-Identifier: GPL-2.0-only
"""The blocking client and the trio client, over a socket and over a ring, against our daemon and Xen's."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from tests.xenstore.conftest import Xenstored
from tests.xenstore.reference import CDaemon
from xenstore import AsyncClient, Client, Event, open_client
from xenstore.daemon import Daemon
from xenstore.errors import AlreadyExists, Conflict, ConnectionLost, NotFound, PermissionDenied, TooBig
from xenstore.ring_stream import RingStream
from xenstore.transports import RingTransport
from xenstore.wire import MsgType, event, pack


@pytest.fixture(params=["ours", "theirs"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A daemon's socket: the client must work with Xen's own as well."""
    if request.param == "ours":
        yield request.getfixturevalue("xenstored").socket
        return
    with CDaemon(tmp_path / "c") as daemon:
        yield daemon.socket


def test_nodes(path: str) -> None:
    with Client(path) as client:
        client.write("/a/b", b"v\0w")
        client.write(b"/a/c", "text")
        assert (client.read("/a/b"), client.read(b"/a/c")) == (b"v\0w", b"text")
        assert client.list("/a") == ["b", "c"]
        client.mkdir("/a/d")
        assert client.exists("/a/d") and not client.exists("/a/e")
        client.set_perms("/a/d", ["r0", "w0"])
        assert client.get_perms("/a/d") == ["r0", "w0"]
        assert list(client.walk("/a")) == [
            ("/a", b"", ["b", "c", "d"]), ("/a/b", b"v\0w", []), ("/a/c", b"text", []), ("/a/d", b"", []),
        ]  # fmt: skip
        assert [name for name, _, _ in client.walk("/a", topdown=False)][-1] == "/a"
        client.delete("/a/b")
        with pytest.raises(NotFound) as caught:
            client.read("/a/b")
        assert caught.value.path == "/a/b" and "/a/b" in str(caught.value)
        assert client.read("/a/b", b"default") == b"default"
        with pytest.raises(TooBig):
            client.write("/a", b"x" * 5000)
        assert client.get_domain_path(7) == "/local/domain/7"
        assert client.is_domain_introduced(0)


def test_a_list_too_long_for_one_message(path: str) -> None:
    with Client(path) as client:
        names = [f"child-with-a-long-name-{number:04}" for number in range(400)]
        with client.transaction() as transaction:
            for name in names:
                transaction.write(f"/dir/{name}", "")
        assert client.list("/dir") == names


def test_transactions(path: str) -> None:
    with Client(path) as client, Client(path) as other:
        client.write("/n", "1")
        with client.transaction() as transaction:
            transaction.write("/n", "2")
            assert (transaction.read("/n"), other.read("/n")) == (b"2", b"1")
        assert other.read("/n") == b"2"
        with pytest.raises(RuntimeError), client.transaction() as transaction:
            transaction.write("/n", "3")
            raise RuntimeError
        with client.transaction() as transaction:
            transaction.write("/n", "4")
            transaction.rollback()
        assert other.read("/n") == b"2"
        tries = 0
        with pytest.raises(Conflict), client.transaction() as transaction:
            transaction.read("/n")
            other.write("/n", "5")
            transaction.write("/m", "")
        for attempt in client.transactions():
            with attempt as transaction:
                value = int(transaction.read("/n"))
                if tries == 0:
                    other.write("/n", "10")
                tries += 1
                transaction.write("/n", str(value + 1))
        assert (tries, other.read("/n")) == (2, b"11")

        def double(transaction: object) -> int:
            nonlocal tries
            assert hasattr(transaction, "read") and hasattr(transaction, "write")
            value = int(transaction.read("/n"))
            if tries == 2:
                other.write("/n", "20")
            tries += 1
            transaction.write("/n", str(value * 2))
            return value * 2

        assert client.run_transaction(double) == 40
        assert client.read("/n") == b"40"


def test_watches(path: str) -> None:
    with Client(path) as client, Client(path) as other:
        with client.watch("/w", "token") as monitor:
            assert monitor.wait() == Event("/w", "token")
            other.write("/w/x", "1")
            client.write("/w/y", "2")  # the event comes before this reply
            assert [monitor.wait(), monitor.wait()] == [Event("/w/x", "token"), Event("/w/y", "token")]
            assert monitor.wait(0.0) is None
            second = client.watch("/w/x")
            first = second.wait(10)
            assert first is not None and first.path == "/w/x"
            with pytest.raises(AlreadyExists):
                monitor.watch("/w", "token")
            other.write("/w/x", "3")
            for events in (monitor, second):
                found = next(iter(events))
                assert found.path == "/w/x"
            second.close()
            monitor.unwatch("/w", "token")
            other.write("/w/x", "4")
            assert monitor.wait(0.0) is None
        client.write("/w/z", "")


def test_threads_share_a_client(path: str) -> None:
    with Client(path) as client:
        monitor = client.watch("/t")
        monitor.wait()
        seen: list[Event] = []

        def listen() -> None:
            for event in monitor:
                seen.append(event)
                if event.path == "/t/end":
                    return

        def work(name: str) -> None:
            for number in range(100):
                client.write(f"/{name}/{number}", str(number))
                assert client.read(f"/{name}/{number}") == str(number).encode()

        listener = threading.Thread(target=listen)
        workers = [threading.Thread(target=work, args=(name,)) for name in "abc"]
        for thread in (listener, *workers):
            thread.start()
        for thread in workers:
            thread.join()
        client.write("/t/end", "")
        listener.join(20)
        assert seen[-1].path == "/t/end"


def test_events_between_request_and_reply() -> None:
    """A peer that puts events everywhere, even before the reply to the WATCH that causes them."""
    ours, theirs = socket.socketpair()

    class Transport:
        def send(self, data: bytes) -> None:
            kind, req_id = data[0], int.from_bytes(data[4:8], "little")
            theirs.sendall(event(b"/w", b"t") + pack(kind, req_id, 0, b"OK\0") + event(b"/w/x", b"t"))

        def receive(self, timeout: float | None) -> bytes | None:
            return ours.recv(5)

        def close(self) -> None:
            ours.close()
            theirs.close()

    with Client(transport=Transport()) as client:
        monitor = client.watch("/w", "t")
        assert monitor.wait() == Event("/w", "t")
        assert client.read("/other") == b"OK\0"
        assert [monitor.wait().path for _ in range(3)] == ["/w/x", "/w", "/w/x"]  # type: ignore[union-attr]


def test_a_daemon_that_goes_away(xenstored: Xenstored) -> None:
    client = Client(xenstored.socket)
    client.write("/a", "1")
    xenstored.kill()
    for _ in range(2):
        with pytest.raises(ConnectionLost):
            client.read("/a")
    client.close()
    with pytest.raises(ConnectionLost) as caught:
        Client(xenstored.socket)
    assert xenstored.socket in str(caught.value)


def over_ring(daemon: Daemon) -> Client:
    """A guest's client on the page itself; the store runs whenever the guest would wait."""
    page = memoryview(bytearray(4096))
    ring = daemon.introduce(5, page, lambda: None)
    return Client(transport=RingTransport(page, lambda: None, lambda timeout: ring.on_event()))


def test_over_a_ring() -> None:
    daemon = Daemon()
    dom0 = daemon.client()
    dom0.mkdir("/local/domain/5/data")
    dom0.set_perms("/local/domain/5/data", ["n5"])
    client = over_ring(daemon)
    client.write("data/x", b"v" * 2000)
    assert client.read("/local/domain/5/data/x") == b"v" * 2000
    monitor = client.watch("data")
    assert monitor.wait() is not None
    dom0.write("/local/domain/5/data/x", "")
    changed = monitor.wait()
    assert changed is not None and changed.path == "data/x"
    with client.transaction() as transaction:
        transaction.write("data/y", "")
    with pytest.raises(PermissionDenied):
        client.read("/tool")


# -- trio


async def test_async_nodes_and_transactions(path: str) -> None:
    async with open_client(path) as client, open_client(path) as other:
        await client.write("/a/b", "v")
        assert await other.read("/a/b") == b"v"
        assert await client.list("/a") == ["b"]
        assert [found async for found in client.walk("/a")] == [("/a", b"", ["b"]), ("/a/b", b"v", [])]
        with pytest.raises(NotFound):
            await client.read("/none")
        async with client.transaction() as transaction:
            await transaction.write("/a/b", "w")
            assert await other.read("/a/b") == b"v"
        assert await other.read("/a/b") == b"w"
        tries = 0

        async def body(transaction: object) -> None:
            nonlocal tries
            tries += 1
            await transaction.read("/a/b")  # type: ignore[attr-defined]
            if tries == 1:
                await other.write("/a/b", "x")
            await transaction.write("/done", "")  # type: ignore[attr-defined]

        await client.run_transaction(body)
        assert tries == 2
        with pytest.raises(Conflict):
            async with client.transaction() as transaction:
                await transaction.read("/a/b")
                await other.write("/a/b", "y")


async def test_async_watches(path: str) -> None:
    async with open_client(path) as client, client.watch("/w", "t") as events:
        assert await events.wait() == Event("/w", "t")
        await client.write("/w/x", "")
        async for found in events:
            assert found == Event("/w/x", "t")
            break
    async with open_client(path) as client:
        await client.write("/w/x", "")


async def test_async_many_tasks(path: str) -> None:
    async with open_client(path) as client:

        async def work(number: int) -> None:
            for step in range(20):
                await client.write(f"/{number}", str(step))
                assert await client.read(f"/{number}") == str(step).encode()

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(work, number)


async def test_async_cancelled_request_leaves_the_client_usable(path: str) -> None:
    async with open_client(path) as client:
        await client.write("/a", "1")
        for _ in range(20):
            with trio.CancelScope() as scope:
                scope.cancel()
                await client.read("/a")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.read, "/a")
                await trio.lowlevel.cancel_shielded_checkpoint()
                nursery.cancel_scope.cancel()
        assert await client.read("/a") == b"1"


async def test_async_daemon_goes_away(xenstored: Xenstored) -> None:
    async with open_client(xenstored.socket) as client:
        async with client.watch("/a") as events:
            await events.wait()
            xenstored.kill()
            with pytest.raises(ConnectionLost):
                await events.wait()
        with pytest.raises(ConnectionLost):
            await client.read("/a")
    with pytest.raises(ConnectionLost):
        async with open_client(xenstored.socket):
            pass


async def test_async_over_a_ring() -> None:
    daemon = Daemon()
    daemon.client().set_perms("/", ["b0"])
    page = memoryview(bytearray(4096))
    rings: list[Callable[[], None]] = []
    stream = RingStream(page, lambda: rings[0]())
    rings.append(daemon.introduce(5, page, stream.rung).on_event)
    async with AsyncClient.over(stream) as client:
        await client.write("/big", b"x" * 1900)
        assert await client.read("/big") == b"x" * 1900
        async with client.watch("/big") as events:
            await events.wait()
            daemon.client().write("/big", "")
            assert (await events.wait()).path == "/big"


def test_messages_have_the_types_of_the_protocol() -> None:
    assert (MsgType.READ, MsgType.SET_QUOTA) == (2, 26)
