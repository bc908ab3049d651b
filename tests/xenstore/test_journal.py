# SPDX-License-Identifier: GPL-2.0-only
"""The journal: what it restores, torn and damaged files, rewriting, and a daemon killed under load."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.xenstore.kill import kill_rounds
from tests.xenstore.raw import RawClient, contents
from xenstore.journal import COMPACT_MIN, Journal, JournalError
from xenstore.server import Server


def open_server(path: Path, sync: bool = False) -> Server:
    server = Server()
    journal = Journal(str(path), sync)
    journal.load(server.tree)
    server.use_journal(journal)
    return server


def some_history(client: RawClient) -> None:
    client.write("/a/b/c", b"v\0\xff")
    client.write("/a/d", "x" * 3000)
    client.chmod("/a/b", "n1", "r2")
    client.rm("/a/b/c")
    txid = client.start()
    client.write("/t/1", "1", txid)
    client.write("/t/2", "2", txid)
    client.end(txid)
    client.chmod("@releaseDomain", "n0", "r3")
    client.write("/", "root")


@pytest.mark.parametrize("sync", [False, True])
def test_comes_back_as_it_was(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "journal"
    server = open_server(path, sync)
    some_history(RawClient(server))
    for _ in range(3):
        again = open_server(path)
        assert contents(again) == contents(server)
        assert again.control.problems() == []


def test_every_prefix_of_the_file_is_a_store_of_the_past(tmp_path: Path) -> None:
    """Cut anywhere: what comes back is the store as it was after some request, and never half a transaction."""
    path = tmp_path / "journal"
    server = open_server(path)
    client = RawClient(server)
    past = [contents(server)]
    for number in range(6):
        txid = client.start()
        client.write(f"/t/{number}/left", str(number), txid)
        client.write(f"/t/{number}/right", str(-number), txid)
        client.end(txid)
        past.append(contents(server))
    data = path.read_bytes()
    found = []
    for length in range(len(data) + 1):
        (tmp_path / "cut").write_bytes(data[:length])
        found.append(contents(open_server(tmp_path / "cut")))
    assert all(state in past for state in found)
    assert [past.index(state) for state in found] == sorted(past.index(state) for state in found)
    assert found[-1] == past[-1]


def test_damage_in_the_middle_ends_the_story_there(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    server = open_server(path)
    some_history(RawClient(server))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert open_server(path).control.problems() == []


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text("my thesis, the only copy")
    with pytest.raises(JournalError):
        open_server(path)
    assert path.read_text() == "my thesis, the only copy"


def test_the_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    server = open_server(path)
    client = RawClient(server)
    for number in range(3000):
        client.write("/a", "x" * 2000)
        client.write(f"/n{number % 10}", str(number))
    assert os.path.getsize(path) < 2 * COMPACT_MIN
    assert contents(open_server(path)) == contents(server)


def test_killed_under_load(tmp_path: Path) -> None:
    kill_rounds(tmp_path, 8, seed=1)


def test_killed_under_load_when_synced(tmp_path: Path) -> None:
    kill_rounds(tmp_path, 2, 2, "--journal-sync")
