# SPDX-License-Identifier: GPL-2.0-only
"""A network card for Python guests: Ethernet frames out and in.

    async with guest.device(NetFrontend) as card:
        await card.send(frame)                      # bytes, or a Packet with its offloads
        packet = await card.receive()               # the next that has come

Frames are copied into pages of our own, which stay granted: a page that a backend may read holds nothing but what is
sent, and one it may write is read once. `receive` gives a `Packet`: with `offloads` it may be up to 64 KiB long with a
blank checksum, as the sender left it; without, every packet is whole and its checksum put in. With `hashing`,
`steer` has the backend choose the queue of each packet by a hash of its headers, which comes with the packet.

A full set of rings is posted at once and kept posted; what nobody receives is dropped, oldest first. Owned by the
guest's thread.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from domU.frontend.driver import Frontend
from domU.kernel import Page
from xen_py.drive import bus
from xen_py.drive.bus import Nodes
from xen_py.drive.half import DeviceFailed
from xen_py.drive.queue import FrontQueue, QueueClosed
from xen_py.io import netif
from xen_py.io.netchain import RxAssembler, RxChain, gso_extra, tx_chain
from xen_py.io.netif import (
    CtrlRequest,
    CtrlStatus,
    CtrlType,
    Extra,
    ExtraType,
    GsoType,
    HashAlgorithm,
    HashType,
    RxFlag,
    RxRequest,
    TxFlag,
)
from xen_py.io.packet import ETHERNET, Csum, Packet, flow
from xen_py.io.ring import FrontRing, RingBroken
from xen_py.io.xenbus import State
from xen_py.types import PAGE_SIZE, GrantRef

if TYPE_CHECKING:
    from domU.guest import Guest

POSTED = 64
"""Pages kept on each rx ring."""
MOST_KEPT = 1024
"""Packets kept for who receives."""
ALL_HASHES = HashType.IPV4 | HashType.IPV4_TCP | HashType.IPV6 | HashType.IPV6_TCP
_MOST_IN_PARTS = 17 * PAGE_SIZE


@dataclass(eq=False, slots=True)
class _Buffer:
    """A page of ours that the backend may use."""

    page: Page
    ref: GrantRef


class _Lane:
    """One queue: a ring each way."""

    def __init__(self, card: NetFrontend, tx: FrontRing, rx: FrontRing) -> None:
        self._card = card
        self.tx = tx
        self.rx = rx
        self._ids = list(range(tx.slots - 1, -1, -1))
        self._sending: dict[int, _Buffer] = {}
        self._spare: list[_Buffer] = []
        self._posted: deque[_Buffer] = deque()
        self._held: dict[int, _Buffer] = {}
        """Buffers of responses whose packet is not complete, by position."""
        self._position = 0
        self.received = 0
        """Packets."""
        self._assembler = RxAssembler()
        self.room = trio.lowlevel.ParkingLot()
        self.closed = False

    # ---- out ----

    def try_send(self, packet: Packet, extras: list[Extra], flags: int) -> bool:
        """False: there is no room now. What wants to be told of it is `room`."""
        pages = max(1, -(-len(packet.data) // PAGE_SIZE))
        if len(self._ids) < pages or self.tx.free() < pages + len(extras):
            self.tx.final_check()
            self.on_tx()
            if len(self._ids) < pages or self.tx.free() < pages + len(extras):
                return False
        buffers, parts = [], []
        for number in range(pages):
            piece = packet.data[number * PAGE_SIZE : (number + 1) * PAGE_SIZE]
            buffer = self._spare.pop() if self._spare else self._card.new_buffer(readonly=True)
            buffer.page.data[: len(piece)] = piece
            buffers.append(buffer)
            parts.append((buffer.ref, 0, len(piece)))
        behind = iter(buffers)
        for number, slot in enumerate(tx_chain(parts, flags, extras)):
            if 0 < number <= len(extras):
                self.tx.put(slot)
                continue
            identifier = self._ids.pop()
            self._sending[identifier] = next(behind)
            self.tx.put(slot._replace(id=identifier))
        return True

    def on_tx(self) -> None:
        """The backend has answered."""
        while True:
            for response in self.tx.take():
                if response.status == netif.Status.NULL:
                    continue
                buffer = self._sending.pop(response.id, None)
                if buffer is None:
                    raise RingBroken(f"netif_tx: a response to request {response.id}, which is not under way")
                self._ids.append(response.id)
                self._spare.append(buffer)
                self._card.counts["tx_refused"] += response.status != netif.Status.OKAY
            if not self.tx.final_check():
                break
        self.room.unpark_all()

    # ---- in ----

    def post(self, buffer: _Buffer) -> None:
        self.rx.put(RxRequest((self._position + len(self._posted)) % self.rx.slots, buffer.ref))
        self._posted.append(buffer)

    def on_rx(self) -> None:
        """Packets have come."""
        while True:
            responses = self.rx.take()
            for response in responses:
                self._held[self._position] = self._posted.popleft()
                self._position += 1
                for chain in self._assembler.feed([response]):
                    self._take(chain)
            if responses and self.rx.push():
                self._card.notify_rx(self)
            if not self.rx.final_check():
                return

    def _take(self, chain: RxChain) -> None:
        """Copy a packet out and post its pages again."""
        buffers = {position: self._held.pop(position) for position in chain.slots}
        if chain.refused is None:
            data = b"".join([bytes(buffers[at].page.data[start : start + size]) for at, start, size in chain.parts])
            self.received += 1
            self._card.arrived(data, chain)
        else:
            self._card.counts["rx_refused"] += 1
        for buffer in buffers.values():
            self.post(buffer)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.tx.close()
            self.rx.close()
            self.room.unpark_all()


class HashRefused(Exception):
    """The backend does not hash so."""


class NetFrontend(Frontend):
    """See the module. The first attributes say what is wanted, the backend what there can be."""

    type = "vif"
    published = State.CONNECTED
    queues = 1
    split = True
    """Event channels of their own for sending and receiving."""
    offloads = False
    multicast_control = False
    hashing = False
    """A control ring is wanted, for `steer`."""

    mac = bytes(6)
    mtu = 1500
    can_sg = can_gso = can_gso6 = False

    def __init__(self, guest: Guest, devid: int, backend: str) -> None:
        super().__init__(guest, devid, backend)
        self._lanes: list[_Lane] = []
        self._notifiers: dict[_Lane, tuple[Any, Any]] = {}
        self._packets: deque[Packet] = deque()
        self._waiting = trio.lowlevel.ParkingLot()
        self._control: FrontQueue | None = None
        self._control_buffer: _Buffer | None = None
        self._steering = trio.Lock()
        self.counts: dict[str, int] = dict.fromkeys(
            ("tx_packets", "tx_bytes", "tx_refused", "rx_packets", "rx_bytes", "rx_refused", "rx_dropped"), 0
        )

    async def publish(self, nodes: Nodes) -> Mapping[str, str]:
        count = min(self.queues, bus.number(nodes, "multi-queue-max-queues", 1, 1 << 16, 1))
        split = self.split and bus.flag(nodes, "feature-split-event-channels")
        yes, no = ("1", "0") if self.offloads else ("0", "1")
        published = {"request-rx-copy": "1", "feature-rx-notify": "1", "feature-sg": "1"}
        published |= {"feature-gso-tcpv4": yes, "feature-gso-tcpv6": yes, "feature-ipv6-csum-offload": yes}
        published["feature-no-csum-offload"] = no
        published["request-multicast-control"] = str(int(self.multicast_control))
        if count > 1:
            published["multi-queue-num-queues"] = str(count)
        self._lanes = []
        self._notifiers = {}
        self.on_disconnect(self._close_lanes)
        for number in range(count):
            published |= self._publish_lane(f"queue-{number}/" if count > 1 else "", split)
        self._control = None
        if self.hashing and bus.flag(nodes, "feature-ctrl-ring"):
            published |= self._publish_control()
        return published

    def _publish_control(self) -> Mapping[str, str]:
        page = self.guest.kernel.allocate()
        ref = self.grant(page)
        control = FrontQueue(FrontRing(netif.CTRL_RING, [page.data[:]]), lambda: port.notify(), self.fail)
        port = self.offer(control.on_event)
        self.on_disconnect(control.close)
        self._control = control
        self._control_buffer = self.new_buffer(readonly=True)
        return {"ctrl-ring-ref": str(ref), "event-channel-ctrl": str(port.port)}

    def _publish_lane(self, prefix: str, split: bool) -> Mapping[str, str]:
        pages = [self.guest.kernel.allocate() for _ in range(2)]
        refs = [self.grant(page) for page in pages]
        tx, rx = (
            FrontRing(kind, [page.data[:]]) for kind, page in zip((netif.TX_RING, netif.RX_RING), pages, strict=True)
        )
        lane = _Lane(self, tx, rx)
        for _ in range(POSTED):
            lane.post(self.new_buffer(readonly=False))
        rx.push()
        rx.final_check()
        tx.final_check()
        names = {f"{prefix}tx-ring-ref": str(refs[0]), f"{prefix}rx-ring-ref": str(refs[1])}
        self._lanes.append(lane)
        if split:
            ports = [self.offer(lambda: self._on(lane.on_tx)), self.offer(lambda: self._on(lane.on_rx))]
            self._notifiers[lane] = ports[0].notify, ports[1].notify
            for name, port in zip(("tx", "rx"), ports, strict=True):
                names[f"{prefix}event-channel-{name}"] = str(port.port)
        else:
            port = self.offer(lambda: self._on(lane.on_tx, lane.on_rx))
            self._notifiers[lane] = port.notify, port.notify
            names[f"{prefix}event-channel"] = str(port.port)
        return names

    async def connect(self, nodes: Nodes) -> None:
        own = await bus.read_tree(self.bus, self.own)
        try:
            self.mac = bytes(int(part, 16) for part in bus.text(own, "mac").split(":"))
        except ValueError:
            self.mac = b""
        if len(self.mac) != 6:
            raise DeviceFailed(f"{self.own}/mac is no Ethernet address")
        self.mtu = bus.number(own, "mtu", 68, 65535, 1500)
        self.can_sg = bus.flag(nodes, "feature-sg")
        self.can_gso = self.can_sg and bus.flag(nodes, "feature-gso-tcpv4")
        self.can_gso6 = self.can_sg and bus.flag(nodes, "feature-gso-tcpv6")
        for lane in self._lanes:
            self._notifiers[lane][1]()  # there are pages to fill
            self._on(lane.on_rx)

    # ---- what a guest does with a card ----

    async def send(self, frame: bytes | Packet) -> None:
        """Put a frame on its way; waits while there is no room. QueueClosed where the device goes meanwhile."""
        packet = frame if isinstance(frame, Packet) else Packet(frame)
        if not ETHERNET <= len(packet.data) <= (_MOST_IN_PARTS if self.can_sg else PAGE_SIZE):
            raise ValueError(f"a frame of {len(packet.data)} bytes")
        extras = [gso_extra(packet.gso, packet.gso_size)] if packet.gso is not GsoType.NONE else []
        flags = {Csum.BLANK: TxFlag.CSUM_BLANK | TxFlag.DATA_VALIDATED, Csum.VALID: TxFlag.DATA_VALIDATED}
        await self._send(packet, extras, flags.get(packet.csum, TxFlag(0)))
        self.counts["tx_packets"] += 1
        self.counts["tx_bytes"] += len(packet.data)

    async def join(self, group: bytes) -> None:
        """Have packets to this multicast address, where `multicast_control` keeps others away."""
        await self._send(Packet(b""), [Extra(ExtraType.MCAST_ADD, 0, group)], 0)

    async def leave_group(self, group: bytes) -> None:
        await self._send(Packet(b""), [Extra(ExtraType.MCAST_DEL, 0, group)], 0)

    async def steer(self, key: bytes, mapping: Sequence[int], types: HashType = ALL_HASHES) -> None:
        """Have packets come in the queue `mapping[hash % len(mapping)]`, by the Toeplitz hash of those headers.

        Received packets then have `hash`. HashRefused where the backend does not do so, QueueClosed.
        """
        async with self._steering:
            await self._ask(CtrlType.SET_HASH_ALGORITHM, HashAlgorithm.TOEPLITZ)
            await self._ask(CtrlType.SET_HASH_MAPPING_SIZE, len(mapping))
            table = struct.pack(f"<{len(mapping)}I", *mapping)
            await self._ask(CtrlType.SET_HASH_MAPPING, self._shown(table), len(mapping))
            await self._ask(CtrlType.SET_HASH_KEY, self._shown(key), len(key))
            await self._ask(CtrlType.SET_HASH_FLAGS, types)

    async def leave_steering(self) -> None:
        """The queues are the backend's to choose again. HashRefused, QueueClosed."""
        async with self._steering:
            await self._ask(CtrlType.SET_HASH_ALGORITHM, HashAlgorithm.NONE)

    def _shown(self, data: bytes) -> int:
        """The grant of a page that begins with the data."""
        buffer = self._control_buffer
        if buffer is None or len(data) > PAGE_SIZE:
            raise HashRefused(f"{self.name}: there is no control ring, or no room for {len(data)} bytes")
        buffer.page.data[: len(data)] = data
        return buffer.ref

    async def _ask(self, kind: CtrlType, *data: int) -> int:
        self._check()
        if self._control is None:
            raise HashRefused(f"{self.name} has no control ring")
        words = [*data, 0, 0, 0][:3]
        response = await self._control.call(CtrlRequest(0, kind, *words))
        if response.status != CtrlStatus.SUCCESS:
            raise HashRefused(f"{self.name}: {kind.name.lower()} {words} is answered with status {response.status}")
        answer: int = response.data
        return answer

    async def receive(self) -> Packet:
        """The next packet. QueueClosed where the device goes meanwhile."""
        while not self._packets:
            self._check()
            await self._waiting.park()
        return self._packets.popleft()

    def receive_nowait(self) -> Packet | None:
        return self._packets.popleft() if self._packets else None

    async def _send(self, packet: Packet, extras: list[Extra], flags: int) -> None:
        self._check()
        lanes = self._lanes
        lane = lanes[flow(packet.data) % len(lanes)] if len(lanes) > 1 else lanes[0]
        while not lane.try_send(packet, extras, flags):
            await lane.room.park()
            if lane.closed:
                raise QueueClosed("the device was disconnected")
        if lane.tx.push():
            self._notifiers[lane][0]()
        await trio.lowlevel.checkpoint()

    def _check(self) -> None:
        if not self.connected:
            raise QueueClosed(f"{self.name} is not connected{f': {self.failure}' if self.failure else ''}")

    # ---- what lanes use ----

    def new_buffer(self, *, readonly: bool) -> _Buffer:
        page = self.guest.kernel.allocate()
        return _Buffer(page, self.grant(page, readonly=readonly))

    def notify_rx(self, lane: _Lane) -> None:
        self._notifiers[lane][1]()

    def arrived(self, data: bytes, chain: RxChain) -> None:
        csum = Csum.VALID if chain.flags & RxFlag.DATA_VALIDATED else Csum.UNKNOWN
        if chain.flags & RxFlag.CSUM_BLANK:
            csum = Csum.BLANK
        gso = chain.gso()
        packet = Packet(data, csum, hash=chain.hash())
        if gso is not None:
            packet = packet._replace(gso=GsoType(gso.type) if gso.type in (1, 2) else GsoType.NONE, gso_size=gso.size)
        self.counts["rx_packets"] += 1
        self.counts["rx_bytes"] += len(data)
        if len(self._packets) >= MOST_KEPT:
            self._packets.popleft()
            self.counts["rx_dropped"] += 1
        self._packets.append(packet)
        self._waiting.unpark()

    def _on(self, *handlers: Any) -> None:
        try:
            for handler in handlers:
                if self._lanes and not self._lanes[0].closed:
                    handler()
        except RingBroken as error:
            self.fail(str(error))

    def _close_lanes(self) -> None:
        for lane in self._lanes:
            lane.close()
        self._waiting.unpark_all()

    def statistics(self) -> dict[str, Any]:
        return super().statistics() | self.counts | {"received": [lane.received for lane in self._lanes]}
