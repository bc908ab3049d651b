# SPDX-License-Identifier: GPL-2.0-only
"""A guest that attacks its neighbours by its rings: slots of all kinds that carry frames of all kinds.

Used at little length by `tests.net.test_hostile` and at full length by `tests.soak.forgeries`.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable

import trio

from domU.frontend.net import NetFrontend
from domU.guest import Guest
from domU.kernel import Page
from tests.net.forgeries import MTU, forged, honest, mutated
from tests.net.frames import A, B, C, frame, ip4, ip6, tcp
from xen_py.io import netif
from xen_py.io.netchain import as_request, gso_extra, tx_chain
from xen_py.io.netif import Extra, ExtraType, GsoType, RxRequest, TxFlag, TxRequest
from xen_py.io.packet import Csum, Packet
from xen_py.io.ring import FrontRing
from xen_py.types import PAGE_SIZE, GrantRef

PAGES = 48
Offered = tuple[bytes, int, list[Extra]]
"""A frame, its flags and what is said of it."""


class Bare(NetFrontend):
    """Its rings are for the test to write."""

    def rings(self) -> tuple[FrontRing, FrontRing]:
        return self._lanes[0].tx, self._lanes[0].rx

    def take_over(self) -> None:
        """Nobody answers events any more."""
        lane = self._lanes[0]
        lane.on_tx = lane.on_rx = lambda: None  # type: ignore[method-assign]

    def notify_all(self) -> None:
        for notify in self._notifiers[self._lanes[0]]:
            notify()

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


class Listener(NetFrontend):
    """A neighbour that takes segments whole."""

    offloads = True


class Attack:
    """From `guest` on the neighbours `other` and `third`, who meanwhile send each other a stream.

    `judge` says of each frame that reaches one of them and is none of the stream whether it may.
    """

    def __init__(
        self,
        guest: Guest,
        other: NetFrontend,
        third: NetFrontend,
        dice: random.Random,
        judge: Callable[[bytes], bool],
    ) -> None:
        self._guest = guest
        self._other = other
        self._third = third
        self._dice = dice
        self._judge = judge
        self._sequence = 0
        self._lately: deque[Offered] = deque(maxlen=8)
        self.counts: Counter[str] = Counter()

    async def run(self, contents: int) -> None:
        """Until so many slots have been put; the device is opened anew when it was closed for them."""
        while self.counts["slots"] < contents:
            async with self._guest.device(Bare) as card:
                card.take_over()
                self.counts["connections"] += 1
                pages = [self._guest.kernel.allocate() for _ in range(PAGES)]
                refs = [card.grant(page) for page in pages]
                while card.connected and self.counts["slots"] < contents:
                    self._put(card, pages, refs)
                    card.notify_all()
                    await self._stream()
        await self._stream()

    def _put(self, card: Bare, pages: list[Page], refs: list[GrantRef]) -> None:
        dice = self._dice
        tx, rx = card.rings()
        tx.take()
        free = list(zip(pages, refs, strict=True))
        slots: list[TxRequest] = []
        again = None
        if self._lately and dice.random() < 0.5:
            again = dice.choice(self._lately)  # what has passed once may find an easier way
        for _ in range(dice.randint(1, 8)):
            if dice.random() < (0 if again else 0.02):
                slots += [nonsense(refs, dice) for _ in range(dice.randint(1, 5))]
            elif len(free) > 18:
                slots += self._chain(free, again)
        for each in slots[: tx.free()]:
            tx.put(each)
            self.counts["slots"] += 1
        tx.push()
        rx.take()
        for _ in range(min(rx.free(), dice.randint(0, 8))):
            rx.put(RxRequest(dice.getrandbits(16), dice.choice((*refs, dice.getrandbits(32)))))
        rx.push()

    def _chain(self, free: list[tuple[Page, GrantRef]], again: Offered | None) -> list[TxRequest]:
        """That frame, or another, in slots, which may lie about it."""
        dice = self._dice
        data, flags, extras = again or offered(dice)
        if self._judge(data):
            self._lately.append((data, flags, extras))
        cut = dice.choice((len(data), dice.randint(14, len(data)), min(64, len(data))))
        pieces = []
        for at in (*range(0, cut, PAGE_SIZE), *range(cut, len(data), PAGE_SIZE)):
            part = data[at : min(at + PAGE_SIZE, cut if at < cut else len(data))]
            page, ref = free.pop()
            start = dice.randrange(PAGE_SIZE - len(part) + 1)
            page.data[start : start + len(part)] = part
            pieces.append((int(ref), start, len(part)))
        slots = [slot._replace(id=dice.getrandbits(16)) for slot in tx_chain(pieces, flags)]
        slots[1:1] = [as_request(extra) for extra in extras]
        if dice.random() < 0.05:
            at = dice.randrange(len(slots))
            field = dice.choice(("gref", "offset", "size"))
            slots[at] = slots[at]._replace(**{field: dice.choice((0, 1, 14, 4095, dice.getrandbits(16)))})
        return slots

    async def _stream(self) -> None:
        """One frame of the stream arrives, and all that has come before it is judged."""
        self._sequence += 1
        body = self._sequence.to_bytes(4, "big") + random.Random(self._sequence).randbytes(200)
        sent = frame(self._third.mac, self._other.mac, body=body)
        await self._other.send(sent)
        await trio.lowlevel.checkpoint()
        with trio.fail_after(30):
            while (packet := await self._third.receive()).data != sent:
                self._arrived(packet)
        while (found := self._other.receive_nowait()) is not None:
            self._arrived(found)

    def _arrived(self, packet: Packet) -> None:
        self.counts["arrived"] += 1
        self.counts["arrived_large"] += packet.gso is not GsoType.NONE
        assert self._judge(packet.data), f"{packet.data[:100].hex()} is not permitted, and has arrived"
        if packet.gso is GsoType.NONE:
            assert len(packet.data) <= MTU + 18, f"a frame of {len(packet.data)} bytes has arrived"
        else:
            assert packet.csum is Csum.BLANK and packet.gso_size <= MTU


def offered(dice: random.Random) -> Offered:
    kind = dice.random()
    if kind < 0.1:
        make, source, target = dice.choice(((ip4, "10.0.0.1", "10.0.0.2"), (ip6, "fd00::1", "fd00::2")))
        if dice.random() < 0.3:
            source = target
        data = make(dice.choice((B, C)), A, source, target, 6, tcp(dice.randbytes(dice.randint(1, 30000))))
        offload = GsoType.TCPV4 if make is ip4 else GsoType.TCPV6
        size = dice.choice((1400, 1400, 48, 0, 65535, dice.getrandbits(11)))
        if dice.random() < 0.2:
            offload = dice.choice((GsoType.NONE, GsoType.TCPV4, GsoType.TCPV6))
        return data, TxFlag.CSUM_BLANK | TxFlag.DATA_VALIDATED | TxFlag.EXTRA_INFO, [gso_extra(offload, size)]
    data = honest(dice) if kind < 0.35 else forged(dice) if kind < 0.75 else mutated(dice)
    flags = dice.choice((0, 0, 0, TxFlag.CSUM_BLANK, TxFlag.CSUM_BLANK | TxFlag.DATA_VALIDATED, TxFlag.DATA_VALIDATED))
    extras: list[Extra] = []
    if dice.random() < 0.1:
        flags |= TxFlag.EXTRA_INFO
        extras = [Extra(dice.choice((ExtraType.HASH, ExtraType.GSO)), 0, dice.randbytes(6))]
    return data, flags, extras


def nonsense(refs: list[GrantRef], dice: random.Random) -> TxRequest:
    """A slot such as no frontend fills in."""
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
