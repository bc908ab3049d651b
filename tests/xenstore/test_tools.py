# SPDX-License-Identifier: GPL-2.0-only
"""The xenstore-* tools next to Debian's own, on one daemon of ours: the same bytes, the same exit codes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.xenstore.conftest import Xenstored, running
from tests.xenstore.reference import tool
from xenstore.client import Client
from xenstore.tools.live import LiveTree

# Each line is one step: a tool, its arguments. State carries over from step to step, for both alike.
STEPS = [
    ["write", "/a/b", "hello"],
    ["ls"],
    ["ls", "-p"],
    ["write", "/a/c", r"x\ty\x01\\ \101\7 \n\q\x", "/a/d", "", "/local/domain/7/name", "guest"],
    ["read", "/a/b"],
    ["read", "-p", "/a/b", "/a/c"],
    ["read", "-R", "/a/c"],
    ["read", "--raw", "/a/c", "/a/b"],
    ["read", "/nope"],
    ["read", "/a/b", "/nope", "/a/c"],
    ["read", "bad path"],
    ["read", "/a/"],
    ["read"],
    ["read", "-h"],
    ["read", "-f", "/a"],
    ["read", "-s", "/a/b"],
    ["write", "-R", "/raw", r"a\tb"],
    ["read", "/raw"],
    ["write", "/x"],
    ["write", "/x y", "v"],
    ["write", "-h"],
    ["write"],
    ["write", "/utf8", "grün €"],
    ["read", "/utf8"],
    ["list", "/"],
    ["list", "-p", "/a", "/"],
    ["list", "/nope"],
    ["list"],
    ["list", "-h"],
    ["exists", "/a"],
    ["exists", "/a", "/nope"],
    ["exists"],
    ["exists", "-h"],
    ["ls", "/a"],
    ["ls", "/a", "/local"],
    ["ls", "-f"],
    ["ls", "-fp", "/a"],
    ["ls", "-p", "-z", "--foo", "/a", "--", "/local"],
    ["ls", "--fl"],
    ["ls", "--prefix=3"],
    ["ls", "/nope"],
    ["ls", "/a/b"],
    ["ls", "-h"],
    ["write", "/long", "x" * 200, "/" + "n" * 90, "v", "/l2", "y" * 68, "/l3", "z" * 69],
    ["ls"],
    ["ls", "-p"],
    ["ls", "-f"],
    ["chmod", "/a", "n0", "r0", "b0"],
    ["ls", "-p", "/"],
    ["chmod", "-r", "/a", "r0", "w0"],
    ["chmod", "-u", "/a/b", "b0"],
    ["ls", "-p"],
    ["chmod", "/a", "q5"],
    ["chmod", "/a"],
    ["chmod", "/nope", "r0"],
    ["chmod", "/a", "r"],
    ["chmod"],
    ["chmod", "-h"],
    ["rm", "/nope/x"],
    ["rm", "/nope"],
    ["rm", "/"],
    ["write", "/t/u/v/w", "", "/t/k", "v"],
    ["rm", "-t", "/t/u/v/w"],
    ["ls", "/t"],
    ["rm", "-t", "/t/k"],
    ["ls"],
    ["rm", "/a", "/raw"],
    ["rm"],
    ["rm", "-h"],
    ["ls"],
    ["watch", "-n", "1", "/a"],
    ["watch", "-n", "2", "/a", "@releaseDomain"],
    ["watch", "-n"],
    ["watch", "--number"],
    ["watch"],
    ["watch", "-n", "1", "/bad path"],
    ["watch", "-h"],
    ["control"],
    ["control", "help"],
    ["control", "quota"],
    ["control", "quota", "set", "nodes", "500"],
    ["control", "quota", "0"],
    ["control", "quota", "77"],
    ["control", "quota", "max"],
    ["control", "quota-soft"],
    ["control", "nonsense"],
    ["control", "check"],
    ["control", "log"],
    ["control", "print", "hello"],
    ["control", "stats", "0"],
]


def run(path: str, words: list[str], environment: dict[str, str]) -> tuple[int, str, str]:
    done = subprocess.run([path, *words], env=environment, capture_output=True, timeout=30)
    # A usage message names the program by its path.
    return done.returncode, done.stdout.decode(), done.stderr.decode().replace(path, os.path.basename(path))


def contents(client: Client) -> list[tuple[str, bytes, list[str]]]:
    return [(path, value, client.get_perms(path)) for path, value, _ in client.walk("/")]


def test_same_bytes_as_debian(tmp_path: Path, our_tool: Callable[[str], str]) -> None:
    """One daemon for their tools, one for ours: the same output, and the same store afterwards."""
    for side in ("theirs", "ours"):
        (tmp_path / side).mkdir()
    with (
        running(tmp_path / "theirs") as for_theirs,
        running(tmp_path / "ours") as for_ours,
        Client(for_theirs.socket) as theirs,
        Client(for_ours.socket) as ours,
    ):
        for name, *words in STEPS:
            path, libraries = tool(f"xenstore-{name}")
            expected = run(str(path), words, for_theirs.environment | libraries)
            assert run(our_tool(f"xenstore-{name}"), words, for_ours.environment) == expected, (name, words)
            assert contents(ours) == contents(theirs), (name, words)


def test_no_daemon(tmp_path: Path, our_tool: Callable[[str], str]) -> None:
    environment = os.environ | {"XENSTORED_PATH": str(tmp_path / "nothing")}
    for name, words in (("ls", []), ("read", ["/a"]), ("watch", ["/a"]), ("control", ["help"])):
        path, libraries = tool(f"xenstore-{name}")
        ours = run(our_tool(f"xenstore-{name}"), words, environment)
        assert ours == run(str(path), words, environment | libraries)


def in_terminal(command: list[str], environment: dict[str, str], columns: int) -> bytes:
    """What a program prints on a terminal of that width."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    process = subprocess.Popen(command, env=environment, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    data = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(master, 65536):
            data += chunk
    os.close(master)
    process.wait()
    return data


@pytest.mark.parametrize("columns", [20, 50, 80, 200])
def test_ls_fits_the_terminal_as_debians(xenstored: Xenstored, our_tool: Callable[[str], str], columns: int) -> None:
    with Client(xenstored.socket) as client:
        client.write("/a/long-name-of-a-node/deeper/still", "some value that is rather long, longer than a line")
        client.write("/b", "short")
    for options in ([], ["-p"], ["-f"], ["-fp"]):
        path, libraries = tool("xenstore-ls")
        theirs = in_terminal([str(path), *options], xenstored.environment | libraries, columns)
        assert in_terminal([our_tool("xenstore-ls"), *options], xenstored.environment, columns) == theirs


def test_watch_prints_changes(xenstored: Xenstored, our_tool: Callable[[str], str]) -> None:
    outputs = []
    path, libraries = tool("xenstore-watch")
    for command, extra in ((our_tool("xenstore-watch"), {}), (str(path), libraries)):
        process = subprocess.Popen(
            [command, "-n", "4", "/w"], env=xenstored.environment | extra, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        with Client(xenstored.socket) as client:
            client.write("/w/x", "1")
            lines.append(process.stdout.readline())
            client.mkdir("/w/y/z")
            lines.append(process.stdout.readline())
            client.rm("/w")
            lines.append(process.stdout.readline())
        assert process.wait(20) == 0
        process.stdout.close()
        outputs.append(lines)
    assert outputs[0] == outputs[1] == ["/w\n", "/w/x\n", "/w/y/z\n", "/w\n"]


def test_json(xenstored: Xenstored, our_tool: Callable[[str], str]) -> None:
    with Client(xenstored.socket) as client:
        client.write("/j/a", "1")
        client.write("/j/b/c", b"\xff")
    environment = xenstored.environment
    assert json.loads(run(our_tool("xenstore-read"), ["--json", "/j/a", "/j/b/c"], environment)[1]) == {
        "/j/a": "1",
        "/j/b/c": "\\xff",
    }
    assert json.loads(run(our_tool("xenstore-list"), ["--json", "/j"], environment)[1]) == {"/j": ["a", "b"]}
    tree = json.loads(run(our_tool("xenstore-ls"), ["--json", "/j"], environment)[1])
    assert tree["/j"]["children"]["b"]["children"]["c"] == {"value": "\\xff", "perms": ["n0"]}
    filtered = json.loads(run(our_tool("xenstore-ls"), ["--json", "--filter", "*/a", "/j"], environment)[1])
    assert list(filtered["/j"]["children"]) == ["a"]
    lines = run(our_tool("xenstore-ls"), ["-f", "--filter", "/j/b*", "/j"], environment)[1]
    assert lines == '/j/b = ""\n/j/b/c = "\\xff"\n'
    watched = run(our_tool("xenstore-watch"), ["--json", "-n", "1", "/j"], environment)[1]
    assert json.loads(watched) == {"path": "/j", "token": "/j"}
    stats = json.loads(run(our_tool("xenstore-control"), ["stats", "json", "0"], environment)[1])
    assert stats["domains"]["0"]["nodes"] == 9


def test_live(xenstored: Xenstored, our_tool: Callable[[str], str]) -> None:
    """On a terminal: the tree, and each change as it happens."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 40, 100, 0, 0))
    with Client(xenstored.socket) as client:
        client.write("/live/first", "one")
        client.write("/live/hidden", "never shown")
        command = [our_tool("xenstore-ls"), "--live", "--filter", "*t*", "/live"]
        environment = xenstored.environment | {"TERM": "xterm"}
        process = subprocess.Popen(command, env=environment, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        seen = b""

        def until(text: bytes) -> None:
            nonlocal seen
            while text not in seen:
                seen += os.read(master, 65536)

        until(b"one")
        client.write("/live/late/t2", "two")
        until(b"two")
        client.write("/live/first", "changed")
        until(b"changed")
        assert b"never shown" not in seen
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):
            while os.read(master, 65536):
                pass
        os.close(master)
        assert process.wait(20) == 130


def test_live_marks_and_forgets(xenstored: Xenstored) -> None:
    now = 0.0
    with Client(xenstored.socket) as client:
        client.write("/m/a", "1")
        tree = LiveTree(client, clock=lambda: now)
        tree.load("/m")
        assert {path: entry.mark for path, entry in tree.entries.items()} == {"/m": "", "/m/a": ""}
        client.write("/m/n/x", "2")
        tree.changed("/m/n/x")
        client.write("/m/a", "3")
        tree.changed("/m/a")
        assert {path: entry.mark for path, entry in tree.entries.items()} == {
            "/m": "", "/m/a": "changed", "/m/n": "new", "/m/n/x": "new",
        }  # fmt: skip
        client.rm("/m/n")
        tree.changed("/m/n")
        assert tree.entries["/m/n/x"].mark == "removed"
        now = 10.0
        tree.fade()
        assert list(tree.entries) == ["/m", "/m/a"]
