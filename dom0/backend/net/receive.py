# SPDX-License-Identifier: GPL-2.0-only
"""What a guest receives: from the switch to the rx ring of one queue.

The guest posts slots, each a granted frame; a packet takes as many as it has pages, and one each for what is said of
its segments and its hash. Packets that are waiting and have slots go to the domain in one order, which copies them into
the frames; then they are answered. A packet that finds no slots waits, and later ones are dropped at a bound
(`PacketQueue`): a guest that takes nothing costs its own packets.

What the guest cannot take of offloads is made up for here: blank checksums put in, segments cut, anything larger than
its MTU (or than a page, where it has no scatter-gather) dropped. Owner: the trio thread, two tasks a ring.
"""

from __future__ import annotations

from collections import Counter, deque

import attrs

from dom0.backend.grants import GuestGrants
from dom0.backend.net.datapath import Takes
from dom0.backend.net.lane import NEVER, PacketLane, Put, Settled
from dom0.backend.net.switch import PacketQueue
from dom0.host.grantorders import MOST_COPIED
from xen_py.abi.grant_table import GrantStatus
from xen_py.drive import bus
from xen_py.drive.bell import Bell
from xen_py.drive.bus import Nodes
from xen_py.drive.queue import BackQueue
from xen_py.io.netchain import gso_extra, hash_extra, rx_chain, rx_slots
from xen_py.io.netif import Extra, GsoType, HashExtra, RxFlag, RxRequest, RxResponse, Status
from xen_py.io.packet import ETHERNET, VLAN_TAG, Csum, Packet, complete, headers, segment, segment_header
from xen_py.types import PAGE_SIZE, GrantRef


@attrs.frozen
class Offers:
    """What a frontend says it can receive."""

    sg: bool
    gso: frozenset[GsoType]
    blank_v4: bool
    blank_v6: bool
    mtu: int

    @classmethod
    def of(cls, nodes: Nodes, mtu: int) -> Offers:
        """From its directory. BadNode."""
        sg = bus.flag(nodes, "feature-sg")
        gso = {GsoType.TCPV4: "feature-gso-tcpv4", GsoType.TCPV6: "feature-gso-tcpv6"}
        return cls(
            sg,
            frozenset(kind for kind, name in gso.items() if sg and bus.flag(nodes, name)),
            not bus.flag(nodes, "feature-no-csum-offload"),
            bus.flag(nodes, "feature-ipv6-csum-offload"),
            mtu,
        )

    def fit(self, packet: Packet) -> list[Packet]:
        """The packet as this frontend can take it, in one piece or several; nothing if it cannot."""
        if packet.gso is not GsoType.NONE:
            front = segment_header(packet)
            if front is None or front + packet.gso_size > self._longest:
                return []
            if packet.gso in self.gso:
                return [packet]
            pieces = segment(packet)
        else:
            pieces = [packet]
        if any(len(piece.data) > self._longest for piece in pieces):
            return []
        return [self._checked(piece) for piece in pieces]

    def takes(self) -> Takes:
        """The same for the datapath."""
        blank = (self.blank_v4 << 4) | (self.blank_v6 << 6)
        return Takes(self._longest, sum(1 << kind for kind in self.gso), blank)

    @property
    def _longest(self) -> int:
        whole = self.mtu + ETHERNET + VLAN_TAG
        return whole if self.sg else min(whole, PAGE_SIZE)

    def _checked(self, packet: Packet) -> Packet:
        if packet.csum is not Csum.BLANK or (self.blank_v4 and self.blank_v6):
            return packet
        found = headers(packet.data)
        if found is not None and (self.blank_v6 if found.version == 6 else self.blank_v4):
            return packet
        return complete(packet)


class RxServer:
    """One rx ring."""

    def __init__(
        self, queue: BackQueue, grants: GuestGrants, offers: Offers, counts: Counter[str], lane: PacketLane | None
    ) -> None:
        self._queue = queue
        self._grants = grants
        self._offers = offers
        self._counts = counts
        self._lane = lane
        queue.wake = self._on_event
        queue.recall = self._take_back
        self._bell = Bell()
        self._slots: deque[RxRequest] = deque()
        self._closing = False
        self.waiting = PacketQueue(self._bell.ring)

    def deliver(self, packet: Packet, found: HashExtra | None = None) -> bool:
        """A packet for the guest, with its hash if the guest has asked for one; False: it is lost."""
        pieces = self._offers.fit(packet)
        if not pieces:
            self._counts["too_large"] += 1
            return False
        if found is not None:
            pieces = [piece._replace(hash=found) for piece in pieces]
        taken = [self._put(piece) or self.waiting.put(piece) for piece in pieces]
        return all(taken)

    # ---- the lane ----

    def _put(self, packet: Packet) -> bool:
        """Put a packet into the guest's slots through the lane, if that can be."""
        if self._lane is None or not self._queue.lent or self.waiting:
            return False
        return self._put_in_lane(self._lane, packet)

    def _put_in_lane(self, lane: PacketLane, packet: Packet) -> bool:
        put = Put.ODD if packet.hash is not None else lane.put(packet.data, _flags(packet), packet.gso, packet.gso_size)
        if put is Put.ODD:
            self._take_back()
        return put is Put.DONE

    def settle(self) -> None:
        """Show the guest what the lane has put, and have it wake us when what waits finds slots."""
        while self._lane is not None and self._queue.lent:
            first = self.waiting.peek() if self.waiting else None
            settled = self._lane.show(NEVER if first is None else _slots(first))
            if settled & Settled.TELL:
                self._queue.tell()
            if settled & Settled.BROKEN:
                self._take_back()
            if first is None or not settled & Settled.MORE:
                return
            self._drain(self._lane)

    def _drain(self, lane: PacketLane) -> None:
        while self.waiting and self._put_in_lane(lane, self.waiting.peek()):
            self.waiting.take()

    def _on_event(self) -> None:
        if self._lane is not None:
            self._drain(self._lane)
            self.settle()

    def _lend(self) -> None:
        """Let the lane have the ring, if it can do with it what is done here. What waited has gone."""
        queue = self._queue
        if self._lane is None or queue.lent or queue.stopped or queue.observe is not None:
            return
        if self._grants.tracer is None:
            queue.flush()
            self._slots.clear()
            queue.ring.untake()
            self._lane.lend_rx()
            queue.lent = True
            self.settle()

    def _take_back(self) -> None:
        if self._lane is None or not self._queue.lent:
            return
        if self._lane.return_rx() & Settled.TELL:
            self._queue.tell()
        self._queue.lent = False
        self._queue.on_event()
        self._bell.ring()

    def leave_lane(self) -> None:
        """Never use it again."""
        self._take_back()
        self._lane = None

    # ---- without it ----

    async def collect(self) -> None:
        """Take the slots that the guest posts, until the queue ends. RingBroken."""
        while (batch := await self._queue.batch()) is not None:
            self._slots.extend(batch)
            if self.waiting:
                self._bell.ring()

    async def serve(self) -> None:
        """Bring packets and slots together until `stop`. GuestGone."""
        while not self._closing:
            plan = [] if self._queue.lent else self._plan()
            if plan:
                await self._fill(plan)
                continue
            if not self.waiting:
                self._lend()
            await self._bell.wait()

    def stop(self) -> None:
        self._closing = True
        self.waiting.clear()
        self._bell.ring()

    def _plan(self) -> list[tuple[Packet, list[RxRequest]]]:
        """Packets with the slots they get, as many as there are of both."""
        plan: list[tuple[Packet, list[RxRequest]]] = []
        room = MOST_COPIED
        while self.waiting:
            packet = self.waiting.peek()
            count = _slots(packet)
            if count > len(self._slots):
                self._counts["slots_lacking"] += not plan
                break
            if len(packet.data) > room:
                break
            room -= len(packet.data)
            self.waiting.take()
            plan.append((packet, [self._slots.popleft() for _ in range(count)]))
        return plan

    async def _fill(self, plan: list[tuple[Packet, list[RxRequest]]]) -> None:
        parts = [
            (GrantRef(request.gref), 0, packet.data[number * PAGE_SIZE : (number + 1) * PAGE_SIZE])
            for packet, slots in plan
            for number, request in enumerate(_for_data(packet, slots))
        ]
        found = iter(await self._grants.copy_in(parts))
        for packet, slots in plan:
            requests = _for_data(packet, slots)
            if {next(found) for _ in requests} != {GrantStatus.OKAY}:
                self._counts["bad_grants"] += 1
                for slot in slots:
                    self._queue.respond(RxResponse(slot.id, 0, 0, Status.ERROR))
                continue
            ids = [request.id for request in requests]
            for answer in rx_chain(ids, len(packet.data), _flags(packet), _extras(packet)):
                self._queue.respond(answer)
        self._queue.flush()


def _extras(packet: Packet) -> list[Extra]:
    """What is said of a packet beside its data."""
    extras = [gso_extra(packet.gso, packet.gso_size)] if packet.gso is not GsoType.NONE else []
    if packet.hash is not None:
        extras.append(hash_extra(packet.hash))
    return extras


def _slots(packet: Packet) -> int:
    return rx_slots(len(packet.data), _extra_slots(packet))


def _extra_slots(packet: Packet) -> int:
    return (packet.gso is not GsoType.NONE) + (packet.hash is not None)


def _for_data(packet: Packet, slots: list[RxRequest]) -> list[RxRequest]:
    """Those that get data: extras take up the ones behind the first."""
    count = _extra_slots(packet)
    return [slots[0], *slots[1 + count :]] if count else slots


def _flags(packet: Packet) -> int:
    if packet.csum is Csum.BLANK:
        return RxFlag.CSUM_BLANK | RxFlag.DATA_VALIDATED
    return RxFlag.DATA_VALIDATED if packet.csum is Csum.VALID else 0
