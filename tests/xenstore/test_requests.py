# SPDX-License-Identifier: GPL-2.0-only
"""Requests one by one: paths, payloads, lists, watches, domains. What permissions and quotas do is elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.xenstore.raw import RawClient, contents
from xenstore.errors import BY_NAME, XenstoreError, from_wire
from xenstore.server import Server
from xenstore.types import DomId
from xenstore.wire import HEADER, MsgType, pack

M = MsgType
LONG = "/" + "x" * 3071

PATHS = [
    # path, is it one
    ("/", True), ("/a", True), ("/a/b-c_d@e/F9", True), (LONG, True), (LONG + "y", False), ("", False), ("//", False),
    ("/a/", False), ("/a//b", False), ("a/", False), ("/a b", False), ("/a\x01", False), ("/ä", False), ("/a.b", False),
    ("relative/x", True), ("@releaseDomain", False), ("@x/y", False), ("/@x", True),
]  # fmt: skip

MALFORMED = [
    (M.READ, b""), (M.READ, b"/a"), (M.READ, b"/a\0x"), (M.READ, b"/a\0\0"), (M.DIRECTORY, b"/a"), (M.MKDIR, b"/a\0x"),
    (M.RM, b"/a"), (M.GET_PERMS, b""), (M.WRITE, b"/a"), (M.WRITE, b""), (M.SET_PERMS, b"/a\0"),
    (M.SET_PERMS, b"/a\0r"),
    (M.SET_PERMS, b"/a\0x1\0"), (M.SET_PERMS, b"/a\0r\0"), (M.SET_PERMS, b"/a\0r99999\0"), (M.SET_PERMS, b"/a\0\0"),
    (M.SET_PERMS, b"/a\0r-1\0"), (M.WATCH, b"/a\0"), (M.WATCH, b"/a"), (M.WATCH, b"/a\0t\0x\0"),
    (M.WATCH, b"/a\0t\x001\0x\0"),
    (M.WATCH, b"/a//b\0t\0"), (M.WATCH, b"@a b\0t\0"), (M.UNWATCH, b"/a\0"), (M.DIRECTORY_PART, b"/a\0"),
    (M.DIRECTORY_PART, b"/a\0x\0"), (M.DIRECTORY_PART, b"/a\x00-1\0"), (M.GET_DOMAIN_PATH, b"x\0"),
    (M.GET_DOMAIN_PATH, b"65536\0"), (M.IS_DOMAIN_INTRODUCED, b"\0"), (M.INTRODUCE, b"1\x002\0"),
    (M.INTRODUCE, b"1\x002\x000\0"),
    (M.INTRODUCE, b"x\x002\x003\0"), (M.INTRODUCE, b"1\0x\x003\0"), (M.RELEASE, b"0\0"), (M.RESUME, b"0\0"),
    (M.SET_TARGET, b"1\0"), (M.SET_FEATURE, b"9\x00999\0"), (M.SET_FEATURE, b"9\0"), (M.GET_QUOTA, b"a\0b\0c\0"),
    (M.SET_QUOTA, b"nodes\0"), (M.CONTROL, b""), (M.CONTROL, b"nonsense\0"), (M.CONTROL, b"\xff\0"),
    (M.TRANSACTION_END, b"X\0"),
]  # fmt: skip


@pytest.fixture
def dom0() -> RawClient:
    return RawClient(Server())


@pytest.mark.parametrize(("path", "good"), PATHS)
def test_paths(dom0: RawClient, path: str, good: bool) -> None:
    payload = path.encode() + b"\0value"
    reply = dom0.request(M.WRITE, payload)
    assert (reply.type == M.WRITE) is good
    if good:
        assert dom0.read(path) == b"value"
    else:
        assert reply.payload == b"EINVAL\0"
        for kind in (M.READ, M.DIRECTORY, M.MKDIR, M.RM):
            assert dom0.request(kind, path.encode() + b"\0").payload == b"EINVAL\0"


@pytest.mark.parametrize(("kind", "payload"), MALFORMED)
def test_malformed(dom0: RawClient, kind: int, payload: bytes) -> None:
    dom0.write("/a", "v")
    before = contents(dom0.server)
    assert dom0.request(kind, payload).payload == b"EINVAL\0"
    assert contents(dom0.server) == before
    assert dom0.events() == []


@pytest.mark.parametrize("value", [b"", b"x", b"a\0b\0", bytes(range(256)), b"y" * 4093])
def test_values(dom0: RawClient, value: bytes) -> None:
    dom0.write("/v", value)
    assert dom0.read("/v") == value


def test_write_makes_parents_and_rm_takes_all(dom0: RawClient) -> None:
    dom0.write("/a/b/c", "1")
    dom0.write("/a/b/d", "2")
    assert (dom0.read("/a"), dom0.names("/a/b")) == (b"", ["c", "d"])
    dom0.call(M.MKDIR, "/a/b")
    assert dom0.names("/a/b") == ["c", "d"]
    dom0.rm("/a/b/c")
    dom0.write("/a/b/c", "again")
    assert dom0.names("/a/b") == ["d", "c"]
    dom0.rm("/a")
    assert dom0.names("/") == ["tool"]
    dom0.rm("/a")
    assert dom0.request(M.RM, b"/a/b\0").payload == b"ENOENT\0"
    assert dom0.request(M.RM, b"/\0").payload == b"EINVAL\0"


def test_long_directories_come_in_parts(dom0: RawClient) -> None:
    names = [f"a-child-with-a-long-name-{number:05}" for number in range(500)]
    for name in names:
        dom0.write(f"/dir/{name}", "")
    assert dom0.request(M.DIRECTORY, b"/dir\0").payload == b"E2BIG\0"
    whole, generations = b"", set()
    while True:
        generation, _, part = dom0.call(M.DIRECTORY_PART, "/dir", str(len(whole))).partition(b"\0")
        generations.add(generation)
        assert len(part) <= 4096
        if part.endswith(b"\0\0") or part == b"\0":
            whole += part[:-1]
            break
        whole += part
    assert whole.decode().split("\0")[:-1] == names
    assert len(generations) == 1
    dom0.write("/dir/more", "")
    assert dom0.call(M.DIRECTORY_PART, "/dir", "0").partition(b"\0")[0] not in generations


def test_watch_events(dom0: RawClient) -> None:
    watcher = RawClient(dom0.server, 5)
    dom0.write("/local/domain/5/data", "")
    dom0.chmod("/local/domain/5", "n5")
    dom0.chmod("/local/domain/5/data", "n5")
    for path, token in (("data", "rel"), ("/local/domain/5/data", "abs"), ("/local/domain/5/data/x", "below")):
        watcher.call(M.WATCH, path, token)
    assert watcher.events() == [
        ("data", "rel"), ("/local/domain/5/data", "abs"), ("/local/domain/5/data/x", "below"),
    ]  # fmt: skip
    watcher.write("data/x", "1")
    expected = [("data/x", "rel"), ("/local/domain/5/data/x", "abs"), ("/local/domain/5/data/x", "below")]
    assert watcher.events() == expected
    watcher.write("data/xy", "1")
    assert watcher.events() == [("data/xy", "rel"), ("/local/domain/5/data/xy", "abs")]
    watcher.rm("data")
    assert set(watcher.events()) == {
        ("/local/domain/5/data/x", "below"), ("data", "rel"), ("/local/domain/5/data", "abs"),
    }  # fmt: skip
    assert watcher.request(M.WATCH, b"data\0rel\0").payload == b"EEXIST\0"
    watcher.call(M.UNWATCH, "/local/domain/5/data", "rel")
    assert watcher.request(M.UNWATCH, b"data\0rel\0").payload == b"ENOENT\0"
    watcher.call(M.RESET_WATCHES, "")
    watcher.request(M.WRITE, b"/local/domain/5/data\0x")
    assert watcher.events() == []
    assert len(dom0.server.watches) == 0


@pytest.mark.parametrize(
    ("depth", "heard"),
    [(None, ["/w", "/w/a", "/w/a/b", "/w/a/b/c"]), (0, ["/w"]), (1, ["/w", "/w/a"]), (2, ["/w", "/w/a", "/w/a/b"])],
)
def test_watch_depth(dom0: RawClient, depth: int | None, heard: list[str]) -> None:
    dom0.write("/w/a/b/c", "")
    watcher = RawClient(dom0.server)
    watcher.call(M.WATCH, "/w", "t", *([] if depth is None else [str(depth)]))
    watcher.events()
    for path in ("/w", "/w/a", "/w/a/b", "/w/a/b/c", "/other"):
        dom0.write(path, "x")
    assert [path for path, _ in watcher.events()] == heard


def test_watch_depth_at_the_root(dom0: RawClient) -> None:
    dom0.call(M.WATCH, "/", "t", "1")
    dom0.events()
    for path in ("/", "/a", "/a/b"):
        dom0.write(path, "x")
    assert [path for path, _ in dom0.events()] == ["/", "/a"]


def test_special_watches(dom0: RawClient) -> None:
    watches = (["@releaseDomain"], ["@releaseDomain", "1"], ["@releaseDomain/7"], ["@introduceDomain"])
    for number, words in enumerate(watches):
        dom0.call(M.WATCH, words[0], f"t{number}", *words[1:])
    dom0.events()
    domains = dom0.server.domains
    dom0.call(M.INTRODUCE, "7", "1", "2")
    assert dom0.call(M.IS_DOMAIN_INTRODUCED, "7") == b"T\0"
    assert dom0.events() == [("@introduceDomain", "t3")]
    dom0.call(M.INTRODUCE, "7", "1", "2")
    assert dom0.events() == []
    shutdown = {("@releaseDomain", "t0"), ("@releaseDomain/7", "t1"), ("@releaseDomain/7", "t2")}
    domains.shut_down(DomId(7))
    domains.shut_down(DomId(7))
    assert (set(dom0.events()), dom0.events()) == (shutdown, [])
    dom0.call(M.RESUME, "7")
    domains.shut_down(DomId(7))
    assert set(dom0.events()) == shutdown
    dom0.call(M.RELEASE, "7")
    assert set(dom0.events()) == shutdown
    assert dom0.call(M.IS_DOMAIN_INTRODUCED, "7") == b"F\0"
    assert dom0.request(M.RELEASE, b"7\0").payload == b"ENOENT\0"
    assert dom0.request(M.SET_TARGET, b"7\x001\0").payload == b"ENOENT\0"


def test_features(dom0: RawClient) -> None:
    assert dom0.call(M.GET_FEATURE) == b"15\0"
    dom0.call(M.SET_FEATURE, "5", "3")
    guest = RawClient(dom0.server, 5)
    dom0.server.domains.introduced(DomId(5), guest.connection)
    assert (guest.call(M.GET_FEATURE), dom0.call(M.GET_FEATURE, "5")) == (b"3\0", b"3\0")
    assert guest.request(M.WATCH, b"/a\0t\x001\0").payload == b"EINVAL\0"
    assert dom0.request(M.SET_FEATURE, b"5\x001\0").payload == b"EBUSY\0"


def test_control(dom0: RawClient) -> None:
    for name in dom0.server.control.commands:
        assert name in dom0.call(M.CONTROL, "help").decode()
    assert dom0.call(M.CONTROL, "check") == b"OK\0"
    dom0.server.tree.nodes[b"/lost/child"] = dom0.server.tree.nodes[b"/tool"]
    assert any("orphaned" in problem for problem in dom0.server.control.problems())


def test_the_log_shows_requests(dom0: RawClient, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "xenstore")
    file = tmp_path / "log"
    dom0.call(M.CONTROL, "logfile", str(file))
    assert "io      : off" in dom0.call(M.CONTROL, "log").decode()
    dom0.call(M.CONTROL, "log", "+io")
    assert "io      : on" in dom0.call(M.CONTROL, "log").decode()
    dom0.write("/a", "value")
    dom0.request(M.READ, b"/none\0")
    dom0.request(99, b"")
    dom0.call(M.CONTROL, "log", "-io")
    dom0.write("/b", "quiet")
    dom0.call(M.CONTROL, "print", "to the log")
    dom0.call(M.CONTROL, "memreport", str(tmp_path / "report"))
    dom0.call(M.CONTROL, "log", "off")
    text = file.read_text()
    for part in ("(d0) WRITE (/a value)", "WRITE (OK )", "ERROR (ENOENT )", "type 99", "control: to the log"):
        assert part in text
    assert "quiet" not in text
    assert '"nodes": 7' in (tmp_path / "report").read_text()


def test_pipelined_and_torn_requests(dom0: RawClient) -> None:
    """Many requests in one piece, and one in many pieces, get the same answers in order."""
    stream = b""
    for n in range(300):
        stream += pack(M.WRITE, n, 0, b"/n%d\0%d" % (n, n)) + pack(M.READ, n + 1000, 0, b"/n%d\0" % n)
    for size in (1, 7, 100, len(stream)):
        client = RawClient(Server())
        answers = b""
        sent: list[bytes] = []
        for at in range(0, len(stream), size):
            client.server.receive(client.connection, stream[at : at + size])
            while True:
                sent.append(client.connection.take())
                if not client.connection.more:
                    break
                client.server.receive(client.connection, b"")
        answers = b"".join(sent)
        at, ids = 0, []
        while at < len(answers):
            _, req_id, _, length = HEADER.unpack_from(answers, at)
            ids.append(req_id)
            at += 16 + length
        assert ids == [number for n in range(300) for number in (n, n + 1000)]


def test_a_bug_inside_is_one_error_reply(dom0: RawClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> bytes:
        raise ZeroDivisionError

    monkeypatch.setattr(dom0.server, "_handlers", [broken] * 27)
    assert dom0.request(M.READ, b"/\0").payload == b"EIO\0"


def test_error_names() -> None:
    assert len(BY_NAME) == 16
    for name in BY_NAME:
        error = from_wire(name, "", "/a")
        assert error.error == name and str(error).startswith(name) and str(error).endswith(": /a")
    assert from_wire("EQUOTA").error == "EQUOTA"
    assert isinstance(from_wire("EQUOTA"), XenstoreError)
