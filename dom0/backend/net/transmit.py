# SPDX-License-Identifier: GPL-2.0-only
"""What a guest sends: from the tx ring of one queue to the switch.

A visit takes all slots there are and copies each packet out once; only then is anything looked at, so the guest cannot
change what has been checked. With `rate=`, packets over the rate are neither passed on nor answered until there is
credit, so that the guest feels it.

Owner: the trio thread, one task a ring. Sources: xen/include/public/io/netif.h; the credit is netback's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import attrs
import trio

from dom0.backend.grants import GuestGrants
from dom0.backend.net.lane import PacketLane, Settled
from xen_py.drive.queue import BackQueue
from xen_py.io.netchain import TxAssembler, TxChain
from xen_py.io.netif import GSO_EXTRA, ExtraType, GsoExtra, GsoType, Status, TxFlag
from xen_py.io.packet import Csum, Packet, can_complete, segment_header
from xen_py.types import GrantRef

LEAST_BURST = 128 << 10
"""Bytes that may be saved up, however low the rate: the largest packets must get through."""
MOST_GROUPS = 64
"""Multicast addresses a guest may ask for."""
_MOST_TURNS = 8
"""That one event gets in the lane, of a guest whose ring never runs dry."""


@attrs.define
class Credit:
    """`size` bytes may be sent in each interval of so many seconds; what is not used is saved up to a burst."""

    size: int
    interval: float
    _left: int = 0
    _renewed: float = -1.0

    async def spend(self, size: int) -> bool:
        """Wait until there is credit for that; whether there was at once."""
        need = min(size, self._burst)
        self._renew()
        at_once = self._left >= need
        while self._left < need:
            intervals = -(-(need - self._left) // self.size)
            await trio.sleep_until(self._renewed + intervals * self.interval)
            self._renew()
        self._left -= size
        return at_once

    @property
    def _burst(self) -> int:
        return max(LEAST_BURST, self.size)

    def _renew(self) -> None:
        now = trio.current_time()
        if self._renewed < 0:
            self._left, self._renewed = self.size, now
        elapsed = int((now - self._renewed) / self.interval + 1e-6)  # no interval is short by a rounding
        if elapsed > 0:
            self._left = min(self._left + elapsed * self.size, self._burst)
            self._renewed += elapsed * self.interval


class Groups:
    """The multicast addresses that a guest wants, where it controls that. `wanted` is shared with its port."""

    def __init__(self) -> None:
        self.wanted: set[bytes] = set()

    def change(self, chain: TxChain) -> Status | None:
        """Carry out an order to join or leave; None: the chain is none."""
        status = None
        for extra in chain.extras:
            if extra.type == ExtraType.MCAST_ADD:
                if not extra.data[0] & 1 or len(self.wanted | {extra.data}) > MOST_GROUPS:
                    return Status.ERROR
                self.wanted.add(extra.data)
                status = Status.OKAY
            elif extra.type == ExtraType.MCAST_DEL:
                self.wanted.discard(extra.data)
                status = Status.OKAY
        return status


class TxServer:
    """One tx ring. `send` takes the packets; `lane` may be had for this ring."""

    def __init__(
        self,
        queue: BackQueue,
        grants: GuestGrants,
        send: Callable[[Iterable[Packet]], None],
        groups: Groups,
        credit: Credit | None,
        counts: Counter[str],
        lane: PacketLane | None,
    ) -> None:
        self._queue = queue
        self._grants = grants
        self._send = send
        self._groups = groups
        self._credit = credit
        self._counts = counts
        self._assembler = TxAssembler()
        self._lane = lane
        self._in_lane = self._again = False
        self._error: Exception | None = None
        """What went wrong while an event was dealt with in the lane."""
        queue.wake = self._on_event
        queue.recall = self._take_back

    async def serve(self) -> None:
        """Until the queue ends. RingBroken, GuestGone."""
        while True:
            self._lend()
            batch = await self._queue.batch()
            if self._error is not None:
                raise self._error
            if batch is None:
                return
            await self._visit(self._assembler.feed(batch))

    # ---- the lane ----

    def _lend(self) -> None:
        """Let the lane have the ring, if it can do with it what is done here and nothing is under way."""
        queue = self._queue
        if self._lane is None or self._credit is not None or queue.stopped or queue.observe is not None:
            return
        if self._grants.tracer is None and self._assembler.unfinished() is None and not queue.ring.unanswered():
            queue.flush()
            self._lane.lend_tx()
            queue.lent = True
            self._on_event()

    def _on_event(self) -> None:
        if self._in_lane:  # a guest has answered at once
            self._again = True
            return
        self._in_lane = True
        try:
            self._take_from_lane()
        except Exception as error:
            self._error = error
            self._take_back()
        finally:
            self._in_lane = False

    def _take_from_lane(self) -> None:
        lane, queue = self._lane, self._queue
        for _ in range(_MOST_TURNS):
            if lane is None or not queue.lent:
                return
            self._again = False
            sent, odd = lane.take()
            found = [self._made(*each) for each in sent]
            self._send(packet for packet in found if packet is not None)  # who waits for them is told first
            settled = lane.answer([Status.ERROR if packet is None else Status.OKAY for packet in found])
            if settled & Settled.TELL:
                queue.tell()
            if odd or settled & Settled.BROKEN:
                break
            if not settled & Settled.MORE and not self._again:
                return
        self._take_back()  # the server gives way to others, too

    def _take_back(self) -> None:
        if self._queue.lent and self._lane is not None:
            self._lane.return_tx()
            self._queue.lent = False
            self._queue.on_event()

    def leave_lane(self) -> None:
        """Never use it again."""
        self._take_back()
        self._lane = None

    # ---- without it ----

    async def _visit(self, chains: list[TxChain]) -> None:
        statuses: dict[int, Status] = {}
        good: list[TxChain] = []
        for chain in chains:
            if chain.refused is not None:
                self._refuse(chain, statuses, "malformed")
            elif chain.extras and (status := self._groups.change(chain)) is not None:
                statuses[id(chain)] = status
            else:
                good.append(chain)
        data = self._copied(good)
        packets: list[Packet] = []
        for chain in chains:
            if id(chain) in statuses:
                self._answer(chain, statuses[id(chain)])
                continue
            packet = self._packet(chain, data.get(id(chain)))
            if packet is None:
                self._answer(chain, Status.ERROR)
                continue
            if self._credit is not None and not await self._credit.spend(chain.size):
                self._counts["throttled"] += 1
            self._answer(chain, Status.OKAY)
            packets.append(packet)
            if self._credit is not None:
                self._queue.flush()
        self._queue.flush()
        self._send(packets)

    def _copied(self, chains: list[TxChain]) -> dict[int, bytes]:
        """Each packet's bytes, of those whose grants were all good."""
        parts = [chain.pieces() for chain in chains]
        wants = [(GrantRef(ref), start, length) for pieces in parts for ref, start, length in pieces]
        found = iter(self._grants.copy_out(wants))
        copies: dict[int, bytes] = {}
        for chain, pieces in zip(chains, parts, strict=True):
            answers = [next(found) for _ in pieces]
            held = [answer for answer in answers if isinstance(answer, bytes)]
            if len(held) == len(pieces):
                copies[id(chain)] = b"".join(held)
        return copies

    def _packet(self, chain: TxChain, data: bytes | None) -> Packet | None:
        """What a chain with those bytes is; None where it cannot be, which is counted."""
        if data is None:
            self._counts["bad_grants"] += 1
            return None
        gso = chain.extra(ExtraType.GSO)
        wanted = GsoExtra(0, 0, 0) if gso is None else GSO_EXTRA.unpack(gso)
        return self._made(data, chain.requests[0].flags, wanted.type, wanted.size)

    def _made(self, data: bytes, flags: int, gso: int, gso_size: int) -> Packet | None:
        """What those bytes are, sent with those flags and segments; None where they cannot be, which is counted."""
        if gso:
            packet = Packet(data, Csum.BLANK, GsoType(gso), gso_size)
            fits = segment_header(packet) is not None
        elif flags & TxFlag.CSUM_BLANK:
            packet = Packet(data, Csum.BLANK)
            fits = can_complete(data)
        else:
            return Packet(data, Csum.VALID if flags & TxFlag.DATA_VALIDATED else Csum.UNKNOWN)
        if fits:
            return packet
        self._counts["bad_offloads"] += 1
        return None

    def _refuse(self, chain: TxChain, statuses: dict[int, Status], why: str) -> None:
        self._counts[why] += 1
        statuses[id(chain)] = Status.ERROR

    def _answer(self, chain: TxChain, status: Status) -> None:
        for response in chain.responses(status):
            self._queue.respond(response)
