# SPDX-License-Identifier: GPL-2.0-only
"""Frontends that send what no frontend should: each slot has its answer, or the device is over with a reason."""

from __future__ import annotations

import random

import pytest
import trio

from domU.frontend.net import NetFrontend
from domU.guest import Guest
from tests.net.frames import A, B, frame, ip4, tcp, udp
from tests.net.guests import MAC, backend_of, lab
from xen_py.io import netif
from xen_py.io.netchain import as_request, gso_extra
from xen_py.io.netif import Extra, ExtraType, GsoType, RxRequest, Status, TxFlag, TxRequest
from xen_py.io.ring import REQ_PROD, FrontRing

ONE, TWO = f"mac={MAC}1,ip=10.0.0.1", f"mac={MAC}2"
FRAME = frame(B, A, 0x0800, ip4(B, A, "10.0.0.1", "10.0.0.2", 17, udp(b"x" * 20))[14:])


class Bare(NetFrontend):
    """Its rings are for the test to write."""

    def rings(self) -> tuple[FrontRing, FrontRing]:
        return self._lanes[0].tx, self._lanes[0].rx

    def take_over(self) -> None:
        """Nobody answers events any more."""
        lane = self._lanes[0]
        lane.on_tx = lane.on_rx = lambda: None  # type: ignore[method-assign]

    async def exchange(self, slots: list[TxRequest]) -> list[netif.TxResponse]:
        """Put slots on the tx ring and wait until all are answered."""
        tx, _ = self.rings()
        for slot in slots:
            tx.put(slot)
        tx.push()
        self._notifiers[self._lanes[0]][0]()
        answers: list[netif.TxResponse] = []
        with trio.move_on_after(5):
            while len(answers) < len(slots):
                answers += tx.take()
                await trio.sleep(0)
        return answers


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


async def test_random_slots_pass_nothing_that_the_filter_forbids() -> None:
    async with (
        lab(ONE, TWO, f"mac={MAC}3") as (machine, (one, two, three)),
        two.device(NetFrontend) as other,
        three.device(NetFrontend) as third,
    ):
        seen: list[bytes] = []
        await send_nonsense(one, other, third, random.Random(6), 3000, seen)
        for data in seen:
            assert data[6:12] == A
            assert data[12:14] in (b"\x08\x00", b"\x08\x06")
        ports = machine.statistics()["bridges"]["xenbr0"]["ports"]
        assert ports[f"vif{two.domid}.0"]["rx_packets"] == ports[f"vif{three.domid}.0"]["tx_packets"]


async def send_nonsense(
    guest: Guest, other: NetFrontend, third: NetFrontend, dice: random.Random, count: int, seen: list[bytes]
) -> None:
    """Random slots, some such as a frontend would fill in; the device is opened anew when it was closed for them.

    Meanwhile two neighbours talk; `seen` is what reached one of them from the guest.
    """
    while count > 0:
        async with guest.device(Bare) as card:
            card.take_over()
            pages = [guest.kernel.allocate() for _ in range(4)]
            refs = [card.grant(page) for page in pages]
            while count > 0 and card.connected:
                for page in pages:
                    fill(page.data, dice)
                slots = [slot(refs, dice) for _ in range(dice.randint(1, 40))]
                count -= len(slots)
                tx, rx = card.rings()
                tx.take()
                for each in slots[: tx.free()]:
                    tx.put(each)
                tx.push()
                rx.take()
                for _ in range(min(rx.free(), dice.randint(0, 8))):
                    rx.put(RxRequest(dice.getrandbits(16), dice.choice((*refs, dice.getrandbits(32)))))
                rx.push()
                for notify in card._notifiers[card._lanes[0]]:
                    notify()
                await other.send(frame(third.mac, other.mac, body=b"neighbour"))
                await trio.lowlevel.checkpoint()
                packet = await third.receive()
                while packet.data[6:12] != other.mac:
                    seen.append(packet.data)
                    packet = await third.receive()
                assert packet.data.endswith(b"neighbour")
                while (packet_of_one := other.receive_nowait()) is not None:
                    seen.append(packet_of_one.data)


def fill(data: memoryview, dice: random.Random) -> None:
    kind = dice.random()
    if kind < 0.5:
        whole = ip4(B, A, dice.choice(("10.0.0.1", "10.0.0.9")), "10.0.0.2", 6, tcp(dice.randbytes(3000)))
        data[: len(whole)] = whole
        for _ in range(dice.randint(0, 3)):
            data[dice.randrange(60)] = dice.getrandbits(8)
    else:
        data[:] = dice.randbytes(4096)
        if kind < 0.9:
            data[:14] = frame(dice.choice((B, b"\xff" * 6)), A, dice.choice((0x0800, 0x0806, 0x86DD)))


def slot(refs: list[int], dice: random.Random) -> TxRequest:
    kind = dice.random()
    if kind < 0.15:
        kinds = (1, 1, 2, 3, 4, dice.getrandbits(3))
        return as_request(Extra(dice.choice(kinds), dice.getrandbits(1), dice.randbytes(6)))
    if kind < 0.2:
        return as_request(gso_extra(dice.choice((GsoType.TCPV4, GsoType.TCPV6)), dice.getrandbits(11)))
    ref = dice.choice(refs) if dice.random() < 0.9 else dice.getrandbits(32)
    flags = dice.choice((0, 0, 0, 1, 2, 3, 4, 8, dice.getrandbits(4)))
    if dice.random() < 0.8:
        return TxRequest(ref, dice.randrange(100), flags, dice.getrandbits(16), dice.randrange(4000))
    return TxRequest(ref, dice.getrandbits(16), flags, dice.getrandbits(16), dice.getrandbits(16))
