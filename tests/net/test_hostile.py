# SPDX-License-Identifier: GPL-2.0-only
"""Frontends that send what no frontend should: each slot has its answer, or the device is over with a reason."""

from __future__ import annotations

import random
from collections.abc import Callable
from ipaddress import ip_address

import pytest
import trio

from dom0.backend.net.filters import AddressFilter
from domU.frontend.net import NetFrontend
from tests.net.attack import Attack, Bare, Listener
from tests.net.forgeries import OURS_V4, OURS_V6, forged, honest, mutated, permitted
from tests.net.frames import A, B, C, frame, ip4, udp
from tests.net.guests import MAC, backend_of, lab
from xen_py.io import netif
from xen_py.io.netchain import as_request, gso_extra
from xen_py.io.netif import Extra, ExtraType, GsoType, RxRequest, Status, TxFlag, TxRequest
from xen_py.io.ring import REQ_PROD

ONE, TWO, THREE = f"mac={MAC}1,ip=10.0.0.1", f"mac={MAC}2", f"mac={MAC}3"
FRAME = frame(B, A, 0x0800, ip4(B, A, "10.0.0.1", "10.0.0.2", 17, udp(b"x" * 20))[14:])
pytestmark = pytest.mark.usefixtures("way")


async def test_each_mistake_has_its_answer() -> None:
    async with lab(ONE, TWO) as (machine, (one, two)), two.device(NetFrontend) as other, one.device(Bare) as card:
        card.take_over()
        page = one.kernel.allocate()
        page.data[: len(FRAME)] = FRAME
        ref = card.grant(page, readonly=True)
        free = 3000
        size = len(FRAME)
        good = TxRequest(ref, 0, 0, 7, size)
        for slots, statuses in (
            ([good], [Status.OKAY]),
            ([good._replace(gref=free)], [Status.ERROR]),
            ([good._replace(gref=0xFFFFFFFF)], [Status.ERROR]),
            ([good._replace(size=13)], [Status.ERROR]),
            ([good._replace(offset=4090)], [Status.ERROR]),
            ([good._replace(size=65535)], [Status.ERROR]),
            ([good._replace(flags=TxFlag.MORE_DATA), good._replace(gref=free, size=5)], [Status.ERROR] * 2),
            ([good._replace(flags=TxFlag.MORE_DATA), good._replace(size=size + 1)], [Status.ERROR] * 2),
            (
                [good._replace(flags=TxFlag.EXTRA_INFO), as_request(gso_extra(GsoType.TCPV4, 1400))],
                [Status.ERROR, Status.NULL],  # it is no TCP
            ),
            (
                [good._replace(flags=TxFlag.EXTRA_INFO), as_request(Extra(ExtraType.HASH, 0, bytes(6)))],
                [Status.OKAY, Status.NULL],
            ),
            ([good._replace(flags=TxFlag.CSUM_BLANK)], [Status.OKAY]),
            ([good._replace(flags=TxFlag.CSUM_BLANK, size=30)], [Status.ERROR]),
            ([good], [Status.OKAY]),
        ):
            answers = await card.exchange(slots)
            assert [answer.status for answer in answers] == statuses, slots
        for _ in range(4):
            assert (await other.receive()).data[:14] == FRAME[:14]
        assert backend_of(machine, one).connected


@pytest.mark.parametrize(
    "slots",
    [
        [TxRequest(1, 0, TxFlag.EXTRA_INFO, 0, 60), as_request(Extra(9, 0, bytes(6)))],
        [TxRequest(1, 0, TxFlag.MORE_DATA, 0, 60)] * 21,
    ],
)
async def test_what_leaves_nobody_knowing_ends_the_device_and_nothing_else(slots: list[TxRequest]) -> None:
    async with (
        lab(ONE, TWO, f"mac={MAC}3") as (machine, (one, two, three)),
        two.device(NetFrontend) as other,
        three.device(NetFrontend) as third,
    ):
        async with one.device(Bare) as card:
            tx, _ = card.rings()
            for slot in slots:
                tx.put(slot)
            tx.push()
            card._notifiers[card._lanes[0]][0]()
            while card.connected:
                await trio.sleep(0.01)
        reason = machine.store.read(f"/local/domain/0/error/backend/vif/{one.domid}/0/error")
        assert reason.startswith(b"netif_tx: ")
        await other.send(frame(third.mac, other.mac, body=b"on"))
        assert (await third.receive()).data.endswith(b"on")


async def test_an_index_gone_wild() -> None:
    async with lab(ONE, TWO) as (machine, (one, two)), two.device(NetFrontend):
        for ring in (0, 1):
            async with one.device(Bare) as card:
                _, page = card.shared[ring]
                page.data[4 * REQ_PROD : 4 * REQ_PROD + 4] = (9999).to_bytes(4, "little")
                card._notifiers[card._lanes[0]][ring]()
                while card.connected:
                    await trio.sleep(0.01)
            reason = machine.store.read(f"/local/domain/0/error/backend/vif/{one.domid}/0/error")
            assert b"producer index is 0x270f" in reason


async def test_pages_that_cannot_be_written_are_answered_with_an_error() -> None:
    async with lab(ONE, TWO) as (machine, (one, two)), one.device(NetFrontend) as sender, two.device(Bare) as card:
        lane = card._lanes[0]
        card.take_over()
        _, rx = card.rings()
        readonly = card.grant(two.kernel.allocate(), readonly=True)
        for number in range(rx.free()):
            rx.put(RxRequest(number, readonly if number % 2 else 0xFFFFFF))
        rx.push()
        card._notifiers[lane][1]()
        for _ in range(100):
            await sender.send(FRAME)
        answers: list[netif.RxResponse] = []
        with trio.fail_after(10):
            while len(answers) < 100:
                answers += rx.take()
                await trio.sleep(0)
        assert {answer.status for answer in answers[:64]} == {len(FRAME)}
        assert {answer.status for answer in answers[64:]} == {Status.ERROR}
        assert backend_of(machine, two).statistics()["vif_bad_grants"] == 36


def never(_data: bytes) -> bool:
    return False


def from_nobody_here(data: bytes) -> bool:
    """A guest without `ip=` may claim any address but those that are its neighbours'."""
    return data[6:12] not in (B, C) and not data[6] & 1


SCENES: dict[str, tuple[tuple[str, ...], Callable[[bytes], bool], bool]] = {
    "ip": ((f"mac={MAC}1,ip={OURS_V4} {OURS_V6}", TWO, THREE), permitted, True),
    "mac": ((f"mac={MAC}1", TWO, THREE), from_nobody_here, True),
    "vlan": ((f"mac={MAC}1,vlan=5p/7", f"{TWO},vlan=6", f"{THREE},vlan=6"), never, False),
}
"""The cards of the attacker and its neighbours, who judges what arrives, and whether much does."""


@pytest.mark.parametrize("scene", SCENES)
async def test_nothing_that_the_filters_forbid_arrives(scene: str) -> None:
    cards, judge, much = SCENES[scene]
    async with (
        lab(*cards) as (_, (one, two, three)),
        two.device(NetFrontend) as other,
        three.device(Listener) as third,
    ):
        attack = Attack(one, other, third, random.Random(6), judge)
        await attack.run(6000)
        assert (attack.counts["arrived"] > 200) is much
        assert (attack.counts["arrived_large"] > 10) is much
        assert attack.counts["connections"] > 3


def test_the_judge_knows_forgeries() -> None:
    dice = random.Random(7)
    for _ in range(5000):
        assert permitted(data := honest(dice)), data.hex()
        assert not permitted(data := forged(dice)), data.hex()


@pytest.mark.parametrize("make", [honest, forged, mutated])
def test_what_the_filter_lets_pass_the_judge_permits(make: Callable[[random.Random], bytes]) -> None:
    dice = random.Random(8)
    check = AddressFilter(A, [ip_address(OURS_V4), ip_address(OURS_V6)])
    for _ in range(20_000):
        data = make(dice)
        assert permitted(data) or not check(data), data.hex()
        assert check(data) or make is not honest, data.hex()
