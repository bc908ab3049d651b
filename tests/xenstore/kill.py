# SPDX-License-Identifier: GPL-2.0-only
"""A daemon with a journal is killed under load at random moments: nothing it has acknowledged may be lost.

Two writers: one writes nodes one by one, the other moves a number between pairs of nodes in transactions, so that
half a transaction would show. Used by a quick test and by the soak.
"""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

from tests.xenstore.conftest import Xenstored
from xenstore.client import Client
from xenstore.errors import XenstoreError

PAIRS = 10
TOTAL = 1000


class _Writer(threading.Thread):
    """Writes n to /log/<n % 200> for n = start, start + 1, ..., until the daemon is gone."""

    def __init__(self, path: str, start: int) -> None:
        super().__init__()
        self._path = path
        self.acknowledged = start

    def run(self) -> None:
        try:
            with Client(self._path) as client:
                while True:
                    number = self.acknowledged + 1
                    client.write(f"/log/{number % 200}", str(number))
                    self.acknowledged = number
                    if number % 50 == 0:
                        client.rm(f"/log/{(number + 100) % 200}")
        except XenstoreError:
            return


class _Mover(threading.Thread):
    """Each transaction takes from one node of a pair, adds to the other, and counts itself."""

    def __init__(self, path: str, seed: int) -> None:
        super().__init__()
        self._path = path
        self._rng = random.Random(seed)
        self.begun = self.committed = 0

    def run(self) -> None:
        try:
            with Client(self._path) as client:
                self.begun = self.committed = int(client.read("/moves", b"0"))
                while True:
                    pair = self._rng.randrange(PAIRS)
                    with client.transaction() as transaction:
                        left = int(transaction.read(f"/pair/{pair}/left"))
                        amount = self._rng.randrange(-50, 50)
                        transaction.write(f"/pair/{pair}/left", str(left + amount))
                        transaction.write(f"/pair/{pair}/right", str(TOTAL - left - amount))
                        transaction.write("/moves", str(self.begun + 1))
                        self.begun += 1
                    self.committed = self.begun
        except XenstoreError:
            return


def kill_rounds(folder: Path, rounds: int, seed: int, *options: str) -> None:
    rng = random.Random(seed)
    journal = folder / "journal"
    acknowledged = 0
    for number in range(rounds):
        daemon = Xenstored(folder, "--journal", str(journal), *options)
        try:
            with Client(daemon.socket) as client:
                if number == 0:
                    for pair in range(PAIRS):
                        client.write(f"/pair/{pair}/left", "0")
                        client.write(f"/pair/{pair}/right", str(TOTAL))
                    client.set_perms("/pair", ["n0", "r5"])
                assert client.get_perms("/pair") == ["n0", "r5"]
            writer, mover = _Writer(daemon.socket, acknowledged), _Mover(daemon.socket, rng.randrange(1 << 30))
            writer.start()
            mover.start()
            time.sleep(rng.random() * 0.15)
        finally:
            daemon.kill()
        writer.join()
        mover.join()
        check(folder, journal, writer, mover)
        acknowledged = writer.acknowledged + 1


def check(folder: Path, journal: Path, writer: _Writer, mover: _Mover) -> None:
    """What a fresh daemon finds in the journal."""
    if not mover.is_alive() and mover.begun == 0 and writer.acknowledged == 0:
        return
    daemon = Xenstored(folder, "--journal", str(journal))
    try:
        with Client(daemon.socket) as client:
            names = client.list("/log") if client.exists("/log") else []
            newest = max((int(client.read(f"/log/{name}")) for name in names), default=0)
            assert newest in (writer.acknowledged, writer.acknowledged + 1)
            moves = int(client.read("/moves", b"0"))
            assert moves in (mover.committed, mover.begun)
            for pair in range(PAIRS):
                left, right = (int(client.read(f"/pair/{pair}/{side}")) for side in ("left", "right"))
                assert left + right == TOTAL
            assert client.control("check") == "OK"
    finally:
        daemon.kill()
    assert "orphaned" not in daemon.log.read_text()
