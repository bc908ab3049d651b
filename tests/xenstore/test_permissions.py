# SPDX-License-Identifier: GPL-2.0-only
"""Who may do what: every message type as owner, reader, writer, stranger and dom0."""

from __future__ import annotations

import pytest

from tests.xenstore.raw import RawClient, contents
from xenstore.server import Server
from xenstore.types import DomId
from xenstore.wire import MsgType

ROLES = {"owner": 1, "reader": 2, "writer": 3, "stranger": 4, "dom0": 0}
EVERYONE = dict.fromkeys(ROLES, "OK")
PRIVILEGED = {**dict.fromkeys(ROLES, "EACCES"), "dom0": "OK"}
READING = {"owner": "OK", "reader": "OK", "writer": "EACCES", "stranger": "EACCES", "dom0": "OK"}
WRITING = {"owner": "OK", "reader": "EACCES", "writer": "OK", "stranger": "EACCES", "dom0": "OK"}
OWNING = {"owner": "OK", "reader": "EACCES", "writer": "EACCES", "stranger": "EACCES", "dom0": "OK"}
NOWHERE = dict.fromkeys(ROLES, "ENOSYS")
# A node that does not exist: told to those who may do with the one above what they wanted to do with it.
MISSING_READ = {**dict.fromkeys(ROLES, "EACCES"), "owner": "ENOENT", "reader": "ENOENT", "dom0": "ENOENT"}
MISSING_OWN = {"owner": "ENOENT", "reader": "EACCES", "writer": "ENOENT", "stranger": "EACCES", "dom0": "ENOENT"}

M = MsgType
Row = tuple[int, bytes, dict[str, str]]
NODES: list[Row] = [
    (M.READ, b"/p\0", READING),
    (M.READ, b"/p/none\0", MISSING_READ),
    (M.DIRECTORY, b"/p\0", READING),
    (M.DIRECTORY, b"/p/none\0", MISSING_READ),
    (M.DIRECTORY_PART, b"/p\x000\0", READING),
    (M.DIRECTORY_PART, b"/p/none\x000\0", MISSING_READ),
    (M.GET_PERMS, b"/p\0", READING),
    (M.GET_PERMS, b"/p/none\0", MISSING_READ),
    (M.WRITE, b"/p\0new", WRITING),
    (M.WRITE, b"/p/none\0new", WRITING),
    (M.WRITE, b"/p/none/deep\0new", WRITING),
    (M.WRITE, b"/q\0new", {**dict.fromkeys(ROLES, "EACCES"), "dom0": "OK"}),
    (M.MKDIR, b"/p\0", WRITING),
    (M.MKDIR, b"/p/none\0", WRITING),
    (M.MKDIR, b"/p/none/deep\0", WRITING),
    (M.RM, b"/p/kid\0", WRITING),
    (M.RM, b"/p/none\0", WRITING),
    (M.RM, b"/p/none/deep\0", {**WRITING, "owner": "ENOENT", "writer": "ENOENT", "dom0": "ENOENT"}),
    (M.RM, b"/\0", {**dict.fromkeys(ROLES, "EACCES"), "dom0": "EINVAL"}),
    (M.SET_PERMS, b"/p\0r1\0", OWNING),
    (M.SET_PERMS, b"/p\0n2\0", {**OWNING, "owner": "EPERM"}),
    (M.SET_PERMS, b"/p/none\0n1\0", MISSING_OWN),
    (M.GET_PERMS, b"@releaseDomain\0", PRIVILEGED),
    (M.SET_PERMS, b"@releaseDomain\0n0\0r1\0", PRIVILEGED),
]
OTHERS: list[Row] = [
    (M.CONTROL, b"help\0", PRIVILEGED),
    (M.WATCH, b"/p\0t\0", EVERYONE),
    (M.WATCH, b"/p\0t\x001\0", EVERYONE),
    (M.WATCH, b"@releaseDomain\0t\0", EVERYONE),
    (M.UNWATCH, b"/p\0t\0", dict.fromkeys(ROLES, "ENOENT")),
    (M.TRANSACTION_START, b"\0", EVERYONE),
    (M.TRANSACTION_END, b"T\0", dict.fromkeys(ROLES, "ENOENT")),
    (M.INTRODUCE, b"9\x001\x002\0", PRIVILEGED),
    (M.RELEASE, b"4\0", PRIVILEGED),
    (M.GET_DOMAIN_PATH, b"4\0", EVERYONE),
    (M.WATCH_EVENT, b"/p\0t\0", NOWHERE),
    (M.ERROR, b"EINVAL\0", NOWHERE),
    (M.IS_DOMAIN_INTRODUCED, b"4\0", PRIVILEGED),
    (M.RESUME, b"4\0", PRIVILEGED),
    (M.SET_TARGET, b"4\x001\0", PRIVILEGED),
    (20, b"1\0", NOWHERE),
    (M.RESET_WATCHES, b"\0", EVERYONE),
    (M.GET_FEATURE, b"", EVERYONE),
    (M.GET_FEATURE, b"4\0", PRIVILEGED),
    (M.SET_FEATURE, b"9\x001\0", PRIVILEGED),
    (M.GET_QUOTA, b"", PRIVILEGED),
    (M.GET_QUOTA, b"nodes\0", PRIVILEGED),
    (M.SET_QUOTA, b"4\0nodes\x005\0", PRIVILEGED),
    (27, b"", NOWHERE),
    (65535, b"", NOWHERE),
    (0xFFFFFFFF, b"", NOWHERE),
]


def prepared() -> tuple[Server, dict[str, RawClient]]:
    server = Server()
    dom0 = RawClient(server)
    dom0.write("/p/kid", "value")
    for path in ("/p", "/p/kid"):
        dom0.chmod(path, "n1", "r2", "w3")
    clients = {role: RawClient(server, domid) for role, domid in ROLES.items()}
    for client in clients.values():
        server.domains.introduced(DomId(client.domid), client.connection)
    return server, clients


def test_every_type_is_in_the_table() -> None:
    assert {kind for kind, _, _ in NODES + OTHERS} >= set(MsgType)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("kind", "payload", "expected"), NODES + OTHERS)
def test_request(kind: int, payload: bytes, expected: dict[str, str], role: str) -> None:
    server, clients = prepared()
    before = contents(server)
    reply = clients[role].request(kind, payload)
    outcome = reply.payload[:-1].decode() if reply.type == MsgType.ERROR else "OK"
    assert outcome == expected[role]
    if outcome != "OK":
        assert contents(server) == before
    assert server.control.problems() == []


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("kind", "payload", "expected"), NODES)
def test_request_in_a_transaction(kind: int, payload: bytes, expected: dict[str, str], role: str) -> None:
    """The same answers, and after the commit the same store as without a transaction."""
    direct, direct_clients = prepared()
    direct_clients[role].request(kind, payload)
    server, clients = prepared()
    before = contents(server)
    txid = clients[role].start()
    reply = clients[role].request(kind, payload, txid)
    assert (reply.payload[:-1].decode() if reply.type == MsgType.ERROR else "OK") == expected[role]
    assert contents(server) == before
    clients[role].end(txid)
    assert contents(server) == contents(direct)
    assert server.control.problems() == []


def test_what_a_domain_makes_is_its_own() -> None:
    server, clients = prepared()
    clients["writer"].write("/p/a/b", "x")
    assert clients["writer"].perms("/p/a/b") == ["n3", "r2", "w3"]
    clients["dom0"].write("/p/c", "x")
    assert clients["dom0"].perms("/p/c") == ["n1", "r2", "w3"]
    assert server.accounts.of(DomId(3)).nodes == 2


@pytest.mark.parametrize(("role", "hears"), [("owner", 3), ("reader", 3), ("writer", 0), ("stranger", 0), ("dom0", 3)])
def test_who_hears_of_changes(role: str, hears: int) -> None:
    _, clients = prepared()
    watcher = clients[role]
    watcher.call(MsgType.WATCH, "/p", "t")
    assert watcher.events() == [("/p", "t")]
    clients["dom0"].write("/p/kid", "1")
    clients["dom0"].write("/p", "1")
    clients["dom0"].rm("/p/kid")
    assert len(watcher.events()) == hears


def test_who_loses_its_rights_hears_of_it() -> None:
    _, clients = prepared()
    clients["reader"].call(MsgType.WATCH, "/p", "t")
    clients["reader"].events()
    clients["dom0"].chmod("/p", "n1")
    assert clients["reader"].events() == [("/p", "t")]
    clients["dom0"].write("/p", "secret")
    assert clients["reader"].events() == []


def test_special_names_need_permission() -> None:
    server, clients = prepared()
    stranger = clients["stranger"]
    stranger.call(MsgType.WATCH, "@releaseDomain", "t")
    stranger.events()
    server.domains.gone(DomId(3))
    assert stranger.events() == []
    clients["dom0"].chmod("@releaseDomain", "n0", "r4")
    assert stranger.events() == [("@releaseDomain", "t")]
    server.domains.gone(DomId(2))
    assert stranger.events() == [("@releaseDomain", "t")]


def test_a_domain_acts_for_its_target() -> None:
    _, clients = prepared()
    clients["dom0"].call(MsgType.SET_TARGET, "4", "1")
    clients["stranger"].write("/p", "for my target")
    clients["stranger"].chmod("/p", "n1", "b4")
    clients["dom0"].call(MsgType.RELEASE, "1")
    assert clients["dom0"].request(MsgType.READ, b"/p\0").payload == b"ENOENT\0"


def test_everyone_by_permission_for_any_domain() -> None:
    _, clients = prepared()
    clients["dom0"].chmod("/p", "n0", "r32757")
    assert clients["stranger"].read("/p") == b""


def test_a_domain_with_the_id_of_a_dead_one_gains_nothing() -> None:
    server, clients = prepared()
    server.domains.gone(DomId(2))
    again = RawClient(server, 2)
    server.domains.introduced(DomId(2), again.connection)
    assert again.request(MsgType.READ, b"/p\0").payload == b"EACCES\0"
    assert clients["dom0"].perms("/p") == ["n1", "w3"]
    server.domains.gone(DomId(1))
    assert clients["dom0"].names("/") == ["tool"]
