# SPDX-License-Identifier: GPL-2.0-only
"""Quotas: each strikes exactly at its limit, says which it was and for whom, and can be set."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.xenstore.raw import RawClient
from xenstore.errors import InvalidRequest, QuotaExceeded, XenstoreError
from xenstore.server import Server
from xenstore.types import DomId
from xenstore.wire import MsgType

Fill = Callable[[RawClient, int], None]


def fill_nodes(guest: RawClient, number: int) -> None:
    guest.write(f"data/n{number}", "")


def fill_watches(guest: RawClient, number: int) -> None:
    guest.call(MsgType.WATCH, "data", f"t{number}")


def fill_transactions(guest: RawClient, number: int) -> None:
    guest.start()


def fill_perms(guest: RawClient, number: int) -> None:
    guest.chmod("data", *["n1"] * (number + 1))


CASES: dict[str, tuple[Fill, int]] = {
    # how to use one more of it, and how much is in use at the start
    "nodes": (fill_nodes, 1),
    "watches": (fill_watches, 0),
    "transactions": (fill_transactions, 0),
    "node-permissions": (fill_perms, 0),
}


class Setup:
    def __init__(self) -> None:
        self.log: list[str] = []
        self.now = 0.0
        self.server = Server(warn=self.log.append, clock=lambda: self.now)
        self.dom0 = RawClient(self.server)
        self.dom0.write("/local/domain/1/data", "")
        self.dom0.chmod("/local/domain/1/data", "n1")
        self.guest = RawClient(self.server, 1)


@pytest.mark.parametrize("quota", CASES)
def test_exactly_at_the_limit(quota: str) -> None:
    fill, used = CASES[quota]
    setup = Setup()
    setup.dom0.call(MsgType.SET_QUOTA, "1", quota, "5")
    for number in range(5 - used):
        fill(setup.guest, number)
    assert setup.log == []
    with pytest.raises(QuotaExceeded):
        fill(setup.guest, 5 - used)
    (line,) = setup.log
    assert "domain 1 " in line and f"'{quota}'" in line and "the limit is 5" in line
    for _ in range(10):
        with pytest.raises(QuotaExceeded):
            fill(setup.guest, 99)
    assert len(setup.log) == 1, "a guest could fill the log"
    setup.now = 60.0
    with pytest.raises(QuotaExceeded):
        fill(setup.guest, 99)
    assert "refused 12 times" in setup.log[1]
    stats = json.loads(setup.dom0.call(MsgType.CONTROL, "stats", "json", "1")[:-1])
    assert stats["domains"]["1"]["refused"] == {quota: 12}
    assert f"{quota}:12" in setup.dom0.call(MsgType.CONTROL, "stats").decode()
    setup.dom0.call(MsgType.SET_QUOTA, "1", quota, "0")
    for number in range(10, 30):
        fill(setup.guest, number)


def test_dom0_has_no_limits() -> None:
    setup = Setup()
    setup.dom0.write("data", "")
    for quota in CASES:
        setup.dom0.call(MsgType.SET_QUOTA, "0", quota, "1")
    for fill, _ in CASES.values():
        for number in range(20):
            if fill is not fill_nodes:
                fill(setup.dom0, number)
            else:
                setup.dom0.write(f"/n{number}", "x" * 3000)


@pytest.mark.parametrize(("size", "fits"), [(2048 - 16 - 8, True), (2048 - 16 - 8 + 1, False)])
def test_node_size(size: int, fits: bool) -> None:
    setup = Setup()
    for path in ("data", "data/new"):
        if fits:
            setup.guest.write(path, "x" * size)
        else:
            with pytest.raises(QuotaExceeded):
                setup.guest.write(path, "x" * size)
        setup.guest.write("data", "")
    assert bool(setup.log) is not fits


def test_many_children_count_for_the_size() -> None:
    setup = Setup()
    with pytest.raises(QuotaExceeded):
        for number in range(1000):
            setup.guest.write(f"data/{number:0100}", "")
    assert "'node-size'" in setup.log[0]


def test_path_max() -> None:
    setup = Setup()
    setup.dom0.call(MsgType.SET_QUOTA, "1", "path-max", "30")
    setup.guest.write("data/" + "x" * 25, "")
    with pytest.raises(InvalidRequest):
        setup.guest.write("data/" + "x" * 26, "")


def test_memory() -> None:
    setup = Setup()
    setup.dom0.call(MsgType.SET_QUOTA, "1", "memory", "10000")
    with pytest.raises(QuotaExceeded):
        for number in range(100):
            setup.guest.write(f"data/{number}", "x" * 1000)
    assert "'memory'" in setup.log[0]
    setup.guest.rm("data/0")
    setup.guest.write("data/small", "x")
    used = setup.server.accounts.of(DomId(1)).memory
    setup.guest.call(MsgType.WATCH, "data", "token")
    setup.guest.close()
    assert setup.server.accounts.of(DomId(1)).memory == used


def test_soft_memory_only_warns() -> None:
    setup = Setup()
    setup.dom0.call(MsgType.SET_QUOTA, "1", "soft-memory", "1000")
    for number in range(3):
        setup.guest.write(f"data/{number}", "x" * 900)
    (line,) = setup.log
    assert "domain 1 is above its quota 'soft-memory'" in line


def test_global_quotas_are_for_new_domains() -> None:
    setup = Setup()
    setup.dom0.call(MsgType.SET_QUOTA, "watches", "7")
    assert setup.dom0.call(MsgType.GET_QUOTA, "watches") == b"7\0"
    assert setup.dom0.call(MsgType.GET_QUOTA, "1", "watches") == b"128\0"
    assert setup.dom0.call(MsgType.GET_QUOTA, "2", "watches") == b"7\0"
    assert setup.dom0.call(MsgType.GET_QUOTA, "2", "permissions") == b"5\0"
    names = setup.dom0.call(MsgType.GET_QUOTA).decode()[:-1].split()
    assert {"nodes", "watches", "transactions", "node-size", "node-permissions", "soft-memory"} <= set(names)
    for name in names:
        setup.dom0.call(MsgType.GET_QUOTA, "2", name)
    for words in (("nonsense",), ("2", "nonsense"), ("x", "nodes"), ("1", "2", "3")):
        with pytest.raises(XenstoreError):
            setup.dom0.call(MsgType.GET_QUOTA, *words)
    for words in (("nodes", "x"), ("nodes", "-1"), ("nodes",), ("1", "nodes", "99999999999")):
        with pytest.raises(XenstoreError):
            setup.dom0.call(MsgType.SET_QUOTA, *words)


def test_control_quota_is_for_everyone() -> None:
    setup = Setup()
    setup.dom0.call(MsgType.CONTROL, "quota", "set", "nodes", "4")
    assert setup.dom0.call(MsgType.GET_QUOTA, "1", "nodes") == b"4\0"
    with pytest.raises(QuotaExceeded):
        setup.guest.write("data/a/b/c/d", "")
    assert setup.guest.names("data") == []
    assert "nodes            :        1 (max        1)" in setup.dom0.call(MsgType.CONTROL, "quota", "1").decode()


def test_a_domain_gives_back_what_it_used() -> None:
    setup = Setup()
    for number in range(20):
        setup.guest.write(f"data/{number}", "x")
    setup.guest.call(MsgType.WATCH, "data", "t")
    setup.guest.start()
    setup.server.domains.gone(DomId(1))
    assert DomId(1) not in setup.server.accounts.by_domain
    assert setup.server.control.problems() == []
