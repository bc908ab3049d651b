# SPDX-License-Identifier: GPL-2.0-only
"""The network backend: what netback is on a Xen host, for one vif of one guest, on a switch instead of a Linux bridge.

What the toolstack writes for it is what libxl writes: `mac`, `bridge`, `ip`, `rate` (bytes and microseconds), `mtu`,
`vlan`, `vifname`; and `forward` and `linux-bridge`, which are ours. What it offers: scatter-gather, checksum and
segmentation offload for TCP over IPv4 and IPv6, several queues, event channels of their own for sending and receiving,
multicast control, hashes by the frontend's key (`hashing`). The only way to receive is rx-copy.

A vif is on its switch while both halves are connected: that is its carrier. The rings' work is in `transmit` and
`receive`. There is no hotplug script to wait for: the switch is in this process, or what the script would do on a Linux
bridge is done here (`tap`), and `hotplug-status` says so at once.
Owner: the trio thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from dom0.backend.driver import Backend, Frontend
from dom0.backend.net.datapath import LanePlace, NoRoom
from dom0.backend.net.filters import AddressFilter, parse_addresses
from dom0.backend.net.forward import Forward, parse_forwards
from dom0.backend.net.hashing import Hashing
from dom0.backend.net.lane import PacketLane
from dom0.backend.net.receive import Offers, RxServer
from dom0.backend.net.switch import DEFAULT_BRIDGE, Port, Switch, Vlans, VlanSyntaxError
from dom0.backend.net.tap import Tap, TapFailed, open_tap
from dom0.backend.net.transmit import Credit, Groups, TxServer
from xen_py.drive import bus
from xen_py.drive.bus import BadNode, Bus, Nodes
from xen_py.drive.half import DeviceFailed
from xen_py.drive.queue import BackQueue
from xen_py.io import netif
from xen_py.io.packet import Packet, flow
from xen_py.types import GrantRef
from xen_py.types import Port as EventPort

MAX_QUEUES = 4
DEFAULT_MTU = 1500
_LARGEST_MTU = 65535 - 18
_LARGEST_REF = (1 << 32) - 1
_LARGEST_PORT = 4095
_MULTICAST = "request-multicast-control"
_FEATURES = (
    "feature-sg",
    "feature-gso-tcpv4",
    "feature-gso-tcpv6",
    "feature-ipv6-csum-offload",
    "feature-rx-copy",
    "feature-multicast-control",
    "feature-dynamic-multicast-control",
    "feature-split-event-channels",
    "feature-ctrl-ring",
)


class NetBackend(Backend):
    """See the module."""

    type = "vif"
    ring = netif.TX_RING

    def __init__(self, frontend: Frontend, bus: Bus, path: str, frontend_path: str, devid: int) -> None:
        super().__init__(frontend, bus, path, frontend_path, devid)
        self.vif = f"vif{frontend.domid}.{devid}"
        self.port: Port | None = None
        self.bridge = DEFAULT_BRIDGE
        self._tap: Tap | None = None
        self._mac = bytes(6)
        self._mtu = DEFAULT_MTU
        self._vlans: Vlans | None = None
        self._filter: AddressFilter | None = None
        self._addresses: tuple[IPv4Address | IPv6Address, ...] = ()
        self._forwards: tuple[Forward, ...] = ()
        self._credit: Credit | None = None
        self._receivers: list[RxServer] = []
        self._senders: list[TxServer] = []
        self._lanes: list[PacketLane] = []
        self._places: list[LanePlace] = []
        """In the datapath: one for each queue, or none."""
        self._tally: Counter[str] = Counter()
        self._groups = Groups()
        self._hashing = Hashing(frontend.grants, 1)

    async def open(self, settings: Nodes) -> Mapping[str, str]:
        try:
            self._mac = parse_mac(bus.text(settings, "mac"))
            addresses = bus.text(settings, "ip", "")
            self._addresses = parse_addresses(addresses)
            self._filter = AddressFilter(self._mac, self._addresses) if addresses else None
            self._forwards = parse_forwards(bus.text(settings, "forward", ""))
            vlan = bus.text(settings, "vlan", "")
            self._vlans = Vlans.parse(vlan) if vlan else None
        except (ValueError, VlanSyntaxError) as error:
            raise DeviceFailed(str(error)) from error
        self.bridge = bus.text(settings, "bridge", DEFAULT_BRIDGE)
        self._mtu = bus.number(settings, "mtu", 68, _LARGEST_MTU, DEFAULT_MTU)
        self._credit = _credit(bus.text(settings, "rate", ""))
        if bus.flag(settings, "linux-bridge") and self._tap is None:
            name = bus.text(settings, "vifname", self.vif)
            try:
                self._tap = open_tap(name, self.bridge, self._mtu, self.frontend.bridges.apart(name))
            except TapFailed as error:
                await self.bus.write(f"{self.own}/hotplug-error", str(error))
                await self.bus.write(f"{self.own}/hotplug-status", "error")
                raise DeviceFailed(f"the card cannot be put on the Linux bridge {self.bridge}: {error}") from error
        return {
            **dict.fromkeys(_FEATURES, "1"),
            "feature-rx-flip": "0",
            "multi-queue-max-queues": str(MAX_QUEUES),
            "hotplug-status": "connected",
        }

    @property
    def switch(self) -> Switch:
        """Where its port is, or will be."""
        return self._tap.switch if self._tap is not None else self.frontend.bridges.get(self.bridge)

    async def close(self) -> None:
        if self._tap is not None:
            self._tap.close()
            self._tap = None

    async def connect(self, nodes: Nodes) -> Mapping[str, str]:
        if not bus.flag(nodes, "request-rx-copy"):
            raise BadNode("the frontend does not ask for rx-copy, and there is no other way to receive")
        offers = Offers.of(nodes, self._mtu)
        groups = self._groups = Groups()
        switch = self.switch
        port = self.port = Port(switch, self.vif, self._deliver, self._mac, self._vlans, self._filter)
        port.settle = self._settle
        port.way = self._way
        port.counts_elsewhere = self._counted_by_datapath
        port.addresses, port.forwards = self._addresses, self._forwards
        switch.add(port)
        port.groups = groups.wanted if bus.flag(nodes, _MULTICAST) else None
        queues = bus.number(nodes, "multi-queue-num-queues", 1, MAX_QUEUES, 1)
        self._hashing = Hashing(self.frontend.grants, queues)
        if "ctrl-ring-ref" in nodes:
            await self._open_control(nodes)
        for number in range(queues):
            await self._open_lane(port, nodes, f"queue-{number}/" if queues > 1 else "", offers)
        if self._tap is not None:
            self._tap.plug_in()
            self.start(lambda tap: tap.serve(), self._tap)
        return {}

    def _watched(self) -> list[str]:
        return [*super()._watched(), f"{self.other}/{_MULTICAST}"]

    async def look_further(self) -> None:
        """The frontend may choose between all multicast and its list at any time."""
        await super().look_further()
        port = self.port
        if port is not None and self.connected:
            value = await self.bus.read(f"{self.other}/{_MULTICAST}")
            try:
                chosen = bus.flag({} if value is None else {_MULTICAST: value}, _MULTICAST)
            except BadNode as error:
                self.fail(str(error))
                return
            port.groups = self._groups.wanted if chosen else None

    async def _open_control(self, nodes: Nodes) -> None:
        ref = GrantRef(bus.number(nodes, "ctrl-ring-ref", 0, _LARGEST_REF))
        control = await self.map_ring(netif.CTRL_RING, [ref], lambda: port.notify())
        port = self.bind(bus.number(nodes, "event-channel-ctrl", 0, _LARGEST_PORT), control.on_event)
        self.start(self._serve_control, control)

    async def _serve_control(self, control: BackQueue) -> None:
        hashing = self._hashing
        async for requests in control.batches():
            for request in requests:
                control.respond(hashing.answer(request))
            self.switch.datapath.forget()

    async def _open_lane(self, port: Port, nodes: Nodes, prefix: str, offers: Offers) -> None:
        """A pair of rings."""

        def number(name: str, highest: int) -> int:
            return bus.number(nodes, prefix + name, 0, highest)

        refs = [GrantRef(number(name, _LARGEST_REF)) for name in ("tx-ring-ref", "rx-ring-ref")]
        tx = await self.map_ring(netif.TX_RING, refs[:1], lambda: ports[0].notify())
        rx = await self.map_ring(netif.RX_RING, refs[1:], lambda: ports[-1].notify())
        if prefix + "event-channel-tx" in nodes:
            peers = [number(f"event-channel-{name}", _LARGEST_PORT) for name in ("tx", "rx")]
            ports = [self.bind(peer, queue.on_event) for peer, queue in zip(peers, (tx, rx), strict=True)]
        else:
            peers = [number("event-channel", _LARGEST_PORT)] * 2
            ports = [self.bind(peers[0], lambda: _both(tx, rx))]
        grants = self.frontend.grants
        lane = self._lane(tx, rx)
        if lane is not None:
            self._join(port, lane, (tx, rx), (EventPort(peers[0]), EventPort(peers[1])), offers)
        sender = TxServer(tx, grants, port.send_all, self._groups, self._credit, self._tally, lane)
        receiver = RxServer(rx, grants, offers, self._tally, lane)
        self._receivers.append(receiver)
        self._senders.append(sender)
        for task in (sender.serve, receiver.collect, receiver.serve):
            self.start(lambda task: task(), task)

    def _lane(self, tx: BackQueue, rx: BackQueue) -> PacketLane | None:
        """The short way, where events need not be seen by others."""
        if not self.frontend.direct:
            return None
        lane = PacketLane(tx.ring, rx.ring, self.frontend.grants.memory)
        self._lanes.append(lane)
        return lane

    def _join(
        self,
        port: Port,
        lane: PacketLane,
        queues: tuple[BackQueue, BackQueue],
        peers: tuple[EventPort, EventPort],
        offers: Offers,
    ) -> None:
        """Have the datapath serve the rings, too, unless events must be seen, or it cannot."""
        doorbell = self.frontend.doorbell()
        if doorbell is None:
            return
        datapath, route = self.switch.datapath, self.frontend.route
        with suppress(NoRoom):
            place = LanePlace(datapath, port.number, lane, queues, doorbell, peers, route, offers.takes())
            self._places.append(place)
            port.seen_by_datapath = True
            self.start(lambda place: place.listen(), place)

    def observe_rings(self, observer: Callable[[str, str, Any], None] | None) -> None:
        super().observe_rings(observer)
        for place in self._places:
            place.look()

    def _settle(self) -> None:
        for receiver in self._receivers:
            receiver.settle()

    def _deliver(self, packet: Packet) -> bool:
        """From the switch to the queue that the frontend has said, or to that of the packet's connection."""
        receivers = self._receivers
        if not receivers:
            return False
        if self._hashing.wanted:
            found = self._hashing.of(packet.data)
            return receivers[self._hashing.queue(found)].deliver(packet, found)
        return receivers[self._queue_of(packet)].deliver(packet)

    def _queue_of(self, packet: Packet) -> int:
        """That of its connection, where the frontend has said nothing."""
        count = len(self._receivers)
        return flow(packet.data) % count if count > 1 else 0

    def _way(self, packet: Packet) -> int | None:
        """Of those that `_deliver` would give to the lane as they are."""
        receivers = self._receivers
        if self._hashing.wanted or not receivers or len(self._places) != len(receivers):
            return None
        return self._places[self._queue_of(packet)].number

    def _counted_by_datapath(self) -> Counter[str]:
        return sum((Counter(place.counts()) for place in self._places), Counter())

    async def do_disconnect(self) -> None:
        if self._tap is not None:
            self._tap.stop()
        if self.port is not None:
            self.port.unplug()
        for sender in self._senders:
            sender.leave_lane()
        for receiver in self._receivers:
            receiver.leave_lane()
        places, self._places = self._places, []
        for place in places:
            await place.close()
        for lane in self._lanes:
            lane.close()
        for receiver in self._receivers:
            receiver.stop()
        self._receivers, self._senders, self._lanes = [], [], []
        await super().do_disconnect()

    def statistics(self) -> dict[str, Any]:
        found = super().statistics() | {"bridge": self.bridge, **{f"vif_{k}": v for k, v in self._tally.items()}}
        if self.port is not None:
            found["port"] = self.port.statistics()
        if self._tap is not None:
            found["tap"] = self._tap.statistics()
        found["hashing"] = self._hashing.statistics()
        for lane in self._lanes:
            found |= {name: found.get(name, 0) + count for name, count in lane.statistics().items()}
        found["waiting"] = [len(receiver.waiting) for receiver in self._receivers]
        return found


def _both(tx: BackQueue, rx: BackQueue) -> None:
    tx.on_event()
    rx.on_event()


def parse_mac(text: str) -> bytes:
    """An Ethernet address of one station. ValueError."""
    parts = text.split(":")
    try:
        mac = bytes(int(part, 16) for part in parts)
    except ValueError:
        mac = b""
    if len(mac) != 6 or mac[0] & 1 or mac == bytes(6):
        raise ValueError(f"mac={text} is not the Ethernet address of a card")
    return mac


def _credit(text: str) -> Credit | None:
    """The node `rate`: bytes in each interval, and its microseconds."""
    if not text:
        return None
    size, comma, interval = text.partition(",")
    if not (comma and size.isdecimal() and interval.isdecimal() and len(text) < 40 and int(size) and int(interval)):
        raise DeviceFailed(f"rate={text} is not bytes and microseconds")
    return Credit(int(size), int(interval) / 1e6)
