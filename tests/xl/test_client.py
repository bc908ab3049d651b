# SPDX-License-Identifier: GPL-2.0-only
"""The control-socket client: what a host may do to it, and how a host is started."""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgpack  # type: ignore[import-untyped]
import pytest

from dom0.xl.client import Client, HostError, HostUnavailable, NoHost
from tests.xl.conftest import Xl
from tests.xl.fake_host import FakeHost, exactly


@pytest.fixture
def pair() -> Iterator[tuple[Client, socket.socket]]:
    ours, theirs = socket.socketpair()
    with Client(ours) as client, theirs:
        yield client, theirs


def framed(message: object) -> bytes:
    packed: bytes = msgpack.packb(message)
    return struct.pack("<I", len(packed)) + packed


def test_a_question_and_its_answer(pair: tuple[Client, socket.socket]) -> None:
    client, theirs = pair
    for number, payload in ((1, {"a": [1, None]}), (2, None)):
        theirs.sendall(framed([number, "ok", payload]))
        assert client.call("host.hello", {"x": number}) == payload
        (length,) = struct.unpack("<I", exactly(theirs, 4))
        assert msgpack.unpackb(exactly(theirs, length)) == [number, "host.hello", {"x": number}]


def test_an_answer_in_pieces(pair: tuple[Client, socket.socket]) -> None:
    client, theirs = pair
    data = framed([1, "ok", "x" * 300_000])

    def dribble() -> None:
        for start in range(0, len(data), 1111):
            theirs.sendall(data[start : start + 1111])

    thread = threading.Thread(target=dribble)
    thread.start()
    assert client.call("m") == "x" * 300_000
    thread.join()


def test_progress_comes_before_the_answer(pair: tuple[Client, socket.socket]) -> None:
    client, theirs = pair
    for done in (1, 2):
        theirs.sendall(framed([1, "progress", {"stage": "unpack", "done": done, "total": 2}]))
    theirs.sendall(framed([1, "ok", 7]))
    seen: list[tuple[str, int, int]] = []
    assert client.call("m", {}, lambda stage, done, total: seen.append((stage, done, total))) == 7
    assert seen == [("unpack", 1, 2), ("unpack", 2, 2)]


@pytest.mark.parametrize(
    ("payload", "code", "lines"),
    [
        ({"code": 3, "message": "no", "lines": ["a", 5]}, 3, ["a", "5"]),
        ({"message": "no"}, 1, []),
        ({"code": -3, "message": "no", "lines": None}, 1, []),
        ({"code": 256, "message": "no", "lines": []}, 1, []),
    ],
)
def test_errors(pair: tuple[Client, socket.socket], payload: object, code: int, lines: list[str]) -> None:
    client, theirs = pair
    theirs.sendall(framed([1, "error", payload]))
    with pytest.raises(HostError) as caught:
        client.call("m")
    assert (caught.value.message, caught.value.code, caught.value.lines) == ("no", code, lines)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "closed the connection"),
        (b"\x05\0\0\0abc", "closed the connection"),
        (struct.pack("<I", 1 << 31), "a message of 2147483648 bytes"),
        (b"\x01\0\0\0\xc1", "not msgpack"),
        (framed([1, "ok"]), "of the wrong form"),
        (framed({"ok": 1}), "of the wrong form"),
        (framed([1, 2, 3]), "of the wrong form"),
        (framed([9, "ok", 1]), "the answer to request 9"),
        (framed([1, "maybe", 1]), "an answer of kind 'maybe'"),
        (framed([1, "error", "no"]), "an answer of kind 'error'"),
        (framed([1, "progress", [1]]), "progress of the wrong form"),
    ],
)
def test_a_host_gone_wrong_is_one_line(pair: tuple[Client, socket.socket], data: bytes, words: str) -> None:
    client, theirs = pair
    theirs.sendall(data)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(HostUnavailable, match=words) as caught:
        client.call("m", {}, lambda stage, done, total: None)
    assert "\n" not in str(caught.value)


def test_a_host_gone_before_the_question(pair: tuple[Client, socket.socket]) -> None:
    client, theirs = pair
    theirs.close()
    with pytest.raises(HostUnavailable, match="lost the xen-py host"):
        client.call("m")


def test_no_host(rundir: Path) -> None:
    with pytest.raises(NoHost, match="no xen-py host runs"):
        Client.connect(rundir, start=False)


def test_a_dead_host_s_socket_is_no_host(host: FakeHost, rundir: Path) -> None:
    left_behind = socket.socket(socket.AF_UNIX)
    left_behind.bind(os.fspath(rundir / "stale"))
    left_behind.close()
    os.replace(rundir / "stale", rundir / "control.sock")
    with pytest.raises(NoHost):
        Client.connect(rundir, start=False)


@pytest.fixture
def host_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the interpreter that would run the host."""
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho "$@" >"$XENPY_RUNDIR/words"\necho first >&2\necho out of luck >&2\nexit 3\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return program


def test_a_host_is_started_when_needed(host_program: Path, rundir: Path, xl: Xl) -> None:
    assert xl("list") == (1, "", "xl: cannot start the xen-py host: out of luck\n")
    assert (rundir / "words").read_text() == "-P -m dom0.host.main start\n"


def test_a_host_that_starts_and_does_not_listen(host_program: Path, rundir: Path, xl: Xl) -> None:
    host_program.write_text("#!/bin/sh\nexit 0\n")
    status, _, err = xl("info")
    assert (status, err) == (1, f"xl: the xen-py host was started, but {rundir}/control.sock does not answer\n")


def test_a_host_that_cannot_be_run(host_program: Path, rundir: Path, xl: Xl) -> None:
    host_program.unlink()
    assert xl("list") == (1, "", "xl: cannot start the xen-py host: No such file or directory\n")
    host_program.write_text("#!/bin/sh\nexit 7\n")
    host_program.chmod(0o755)
    assert xl("list") == (1, "", "xl: cannot start the xen-py host: exit status 7\n")


@pytest.mark.parametrize("words", [("pause", "gpv"), ("destroy", "3"), ("shutdown", "gpv"), ("console", "gpv")])
def test_nothing_is_started_to_act_on_a_domain(
    host_program: Path, rundir: Path, xl: Xl, words: tuple[str, str]
) -> None:
    assert xl(*words) == (1, "", f"{words[1]} is an invalid domain identifier (rc=-6)\n")
    assert not (rundir / "words").exists()


def test_shutting_down_all_of_nothing(host_program: Path, rundir: Path, xl: Xl) -> None:
    assert xl("shutdown", "-a") == (0, "", "")
    assert not (rundir / "words").exists()


def test_the_host_may_die_in_the_middle(host: FakeHost, xl: Xl) -> None:
    host.hangs_up_on.add("domain.pause")
    assert xl("pause", "gpv") == (1, "", "xl: lost the xen-py host: it closed the connection\n")
