# SPDX-License-Identifier: GPL-2.0-only
"""Whatever clients and guests send, they break only their own connection (a million messages: tests/soak)."""

from __future__ import annotations

import os
import random
import socket

import pytest

from tests.xenstore.conftest import Xenstored
from tests.xenstore.fuzz import fuzz_server, fuzz_socket
from xenstore.client import Client
from xenstore.wire import MsgType, pack


def resident(pid: int) -> float:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * float(os.sysconf("SC_PAGE_SIZE"))


@pytest.mark.parametrize("seed", range(3))
def test_server_and_rings(seed: int) -> None:
    fuzz_server(random.Random(seed), 6000)


def test_sockets(xenstored: Xenstored) -> None:
    pid = xenstored.process.pid
    fuzz_socket(random.Random(7), xenstored.socket, 10000, lambda: resident(pid))
    assert "Traceback" not in xenstored.log.read_text()


def test_a_client_that_does_not_read_stalls_only_itself(xenstored: Xenstored) -> None:
    """Requests without end, and events without end: bounded in memory, and nothing is lost for the reader."""
    with Client(xenstored.socket) as client:
        client.write("/big", b"x" * 4000)
        flood, sleeper = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        flood.connect(xenstored.socket)
        sleeper.connect(xenstored.socket)
        sleeper.sendall(pack(MsgType.WATCH, 1, 0, b"/w\0token\0"))
        flood.setblocking(False)
        before = resident(xenstored.process.pid)
        sent = 0
        for _ in range(200):
            try:
                sent += flood.send(pack(MsgType.READ, 1, 0, b"/big\0") * 1000)
            except BlockingIOError:
                client.read("/big")
        for number in range(30000):
            client.write(f"/w/{number % 10000}", str(number))
        assert resident(xenstored.process.pid) - before < 40e6
        client.rm("/w")
        # The sleeper wakes up: it hears of everything, if only by the path of its watch.
        data = b""
        sleeper.settimeout(20)
        while not data.endswith(b"/w\0token\0"):
            data += sleeper.recv(65536)
        # And the flood gets every answer to what the daemon has taken.
        flood.settimeout(20)
        answers = sent // len(pack(MsgType.READ, 1, 0, b"/big\0")) * 4016
        while answers > 0:
            answers -= len(flood.recv(1 << 20))
        assert answers == 0
        flood.close()
        sleeper.close()
