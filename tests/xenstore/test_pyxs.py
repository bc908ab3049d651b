# SPDX-License-Identifier: GPL-2.0-only
"""The client from PyPI, pyxs, against our daemon: nodes, permissions, transactions, watches."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import pyxs  # type: ignore[import-untyped]

from tests.xenstore.conftest import Xenstored
from xenstore import Client


@pytest.fixture
def client(xenstored: Xenstored) -> Any:
    with pyxs.Client(unix_socket_path=xenstored.socket) as client:
        yield client


def test_nodes_and_permissions(client: Any, xenstored: Xenstored) -> None:
    client.write(b"/a/b", b"value")
    client.mkdir(b"/a/c")
    assert client.read(b"/a/b") == b"value"
    assert client[b"/a/b"] == b"value"
    assert client.list(b"/a") == [b"b", b"c"]
    assert client.exists(b"/a") and not client.exists(b"/x")
    assert client.read(b"/x", b"default") == b"default"
    client.set_perms(b"/a/b", [b"n0", b"r5"])
    assert client.get_perms(b"/a/b") == [b"n0", b"r5"]
    with Client(xenstored.socket) as ours:
        assert ours.get_perms("/a/b") == ["n0", "r5"]
        assert [(path.encode(), value) for path, value, _ in ours.walk("/a")] == [
            (path, value) for path, value, _ in client.walk(b"/a")
        ]
    client.delete(b"/a")
    with pytest.raises(pyxs.PyXSError):
        client.read(b"/a/b")


def test_domains(client: Any) -> None:
    assert client.get_domain_path(5) == b"/local/domain/5"
    assert not client.is_domain_introduced(5)
    client.introduce_domain(5, 1, 2)
    assert client.is_domain_introduced(5)


def test_transactions(client: Any, xenstored: Xenstored) -> None:
    client.write(b"/n", b"1")
    with pyxs.Client(unix_socket_path=xenstored.socket) as other:
        client.transaction()
        assert client.read(b"/n") == b"1"
        client.write(b"/n", b"2")
        assert other.read(b"/n") == b"1"
        assert client.commit()
        assert other.read(b"/n") == b"2"
        client.transaction()
        client.write(b"/n", b"3")
        client.rollback()
        assert other.read(b"/n") == b"2"
        client.transaction()
        client.read(b"/n")
        other.write(b"/n", b"4")
        client.write(b"/m", b"x")
        assert not client.commit()
        assert not other.exists(b"/m")


def test_watches(client: Any, xenstored: Xenstored) -> None:
    client.write(b"/w", b"x")
    monitor = client.monitor()
    monitor.watch(b"/w", b"token")
    events = monitor.wait()
    assert tuple(next(events)) == (b"/w", b"token")
    with Client(xenstored.socket) as ours:

        def write() -> None:
            for number in range(100):
                ours.write(f"/w/{number}", "")

        writer = threading.Thread(target=write)
        writer.start()
        for number in range(100):
            client.read(b"/w")  # replies and events come mixed
            assert tuple(next(events)) == (b"/w/%d" % number, b"token")
        writer.join()
    monitor.unwatch(b"/w", b"token")
