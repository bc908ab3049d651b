# SPDX-License-Identifier: GPL-2.0-only
"""Learning Ethernet switches inside the host: `xenbr0` and any other bridge a configuration names.

A port hands its frames to the switch (`Port.send`) and is given the frames of others (`deliver`, named when it is
plugged in), in one call: nothing waits here. Who cannot take a frame at once keeps it in a `PacketQueue` of its own,
which is bounded and drops what is too much. A frame that is to be cut or has a blank checksum (`xen_py.io.packet`) is
carried whole.

VLANs: a port has none, and then it and its like are one network to which a tag is payload; or it has a `Vlans`, and
belongs to those networks only, of which one (the PVID) is that of its untagged frames. The two kinds never meet.

What a switch learns is bounded for each port, so that one guest that sends from many addresses forgets its own. The
address that a configuration gave a port is not to be had for others.

Frames of known flows need not come through here: the switch shows the datapath (`dom0.backend.net.datapath`) what it
has done with one, and has it forget all when anything changes. Owner: the trio thread.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address
from itertools import count
from typing import Any, Protocol

import attrs

from dom0.backend.net.datapath import Datapath
from dom0.backend.net.forward import Forward
from xen_py.io.packet import ETHERNET, VLANS, Packet

DEFAULT_BRIDGE = "xenbr0"
AGEING_SECONDS = 300.0
MOST_ADDRESSES = 1024
"""That are learned at one port."""
LONGEST_FRAME = ETHERNET + 2 * 4 + 0xFFFF
SHORTEST_FRAME = ETHERNET
_HIGHEST_VLAN = 4094
_numbers = count(1)
"""Of ports: no two have the same."""


class Check(Protocol):
    """A port's filter: whether the frame may come from there (`dom0.backend.net.filters`)."""

    def __call__(self, data: bytes) -> bool: ...


class PacketQueue:
    """Frames that wait for who takes them: bounded in number and bytes; `wake` is called when it is empty no more."""

    def __init__(self, wake: Callable[[], None], packets: int = 1024, size: int = 8 << 20) -> None:
        self._wake = wake
        self._most_packets = packets
        self._most_bytes = size
        self._queue: deque[Packet] = deque()
        self.bytes = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, packet: Packet) -> bool:
        """False: it is full, the frame is lost."""
        if len(self._queue) >= self._most_packets or self.bytes + len(packet.data) > self._most_bytes:
            self.dropped += 1
            return False
        self._queue.append(packet)
        self.bytes += len(packet.data)
        if len(self._queue) == 1:
            self._wake()
        return True

    def peek(self) -> Packet:
        return self._queue[0]

    def take(self) -> Packet:
        packet = self._queue.popleft()
        self.bytes -= len(packet.data)
        return packet

    def clear(self) -> None:
        self._queue.clear()
        self.bytes = 0


class VlanSyntaxError(ValueError):
    """A `vlan=` that cannot be; one line."""


@attrs.frozen
class Vlans:
    """The VLANs of a port."""

    pvid: int
    """Of frames that come in without a tag."""
    untagged: frozenset[int]
    """Those that go out without one."""
    tagged: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Vlans:
        """`10p/20`, `100+10x4`, `7-9u`: terms between slashes, as libxl's vif-bridge reads them. VlanSyntaxError."""
        pvid: int | None = None
        untagged: set[int] = set()
        tagged: set[int] = set()
        terms = text.split("/")
        for term in terms:
            match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4})|\+([0-9]{1,4})x([0-9]{1,4}))?([pu]?)", term.strip())
            if match is None:
                raise VlanSyntaxError(f"vlan={text}: {term!r} is not a VLAN, a range (7-9) or a row (100+10x4)")
            first, suffix = int(match[1]), match[5]
            vids = [first]
            if match[2]:
                vids = list(range(first, int(match[2]) + 1))
            elif match[3]:
                vids = [first + n * int(match[3]) for n in range(int(match[4]) + 1)]
            if not vids or min(vids) < 1 or max(vids) > _HIGHEST_VLAN:
                raise VlanSyntaxError(f"vlan={text}: {term!r} is not within 1 and {_HIGHEST_VLAN}")
            if suffix == "p" or (len(terms) == 1 and len(vids) == 1 and not suffix):
                if pvid is not None or len(vids) > 1:
                    raise VlanSyntaxError(f"vlan={text}: only one VLAN can be that of untagged frames (p)")
                pvid = first
            (untagged if suffix or pvid == first else tagged).update(vids)
        if pvid is None:
            raise VlanSyntaxError(f"vlan={text}: one VLAN must be that of untagged frames: put a p behind it")
        return cls(pvid, frozenset(untagged), frozenset(tagged - untagged))


@attrs.define(eq=False)
class _Learned:
    port: Port
    seen: float


class Port:
    """One place of a switch; made by `Switch.plug`."""

    def __init__(
        self,
        switch: Switch,
        name: str,
        deliver: Callable[[Packet], bool],
        mac: bytes | None,
        vlans: Vlans | None,
        check: Check | None,
    ) -> None:
        self.addresses: tuple[IPv4Address | IPv6Address, ...] = ()
        """That its configuration names."""
        self.forwards: tuple[Forward, ...] = ()
        """Ports of the host's that are to lead here."""
        self.switch = switch
        self.name = name
        self.mac = mac
        """The address its configuration gave it."""
        self.vlans = vlans
        self.check = check
        self.groups: set[bytes] | None = None
        """The multicast addresses it wants; None: all."""
        self.deliver = deliver
        self.settle: Callable[[], None] | None = None
        """Called when a sender's packets have all been delivered, where that is worth waiting for."""
        self.learned: set[tuple[int, bytes]] = set()
        self.counts: Counter[str] = Counter()
        self.number = next(_numbers)
        self.seen_by_datapath = False
        """Frames come in here by the datapath, too, which knows them by `number`."""
        self.way: Callable[[Packet], int | None] = lambda packet: None
        """The datapath's place to which frames of this one's flow go; None: they come here."""
        self.longest: Callable[[Packet], int] = lambda packet: LONGEST_FRAME
        """Bytes of the largest frames of this one's flow, which came in here, that need nothing done."""
        self.counts_elsewhere: Callable[[], Mapping[str, int]] = dict
        """What the datapath has counted for it."""

    def send(self, packet: Packet) -> None:
        """A frame comes in at this port."""
        self.send_all([packet])

    def send_all(self, packets: Iterable[Packet]) -> None:
        """Frames come in at this port, one after the other."""
        for packet in packets:
            self.switch.forward(self, packet)
        self.switch.settle()

    def unplug(self) -> None:
        """Idempotent."""
        self.switch.unplug(self)

    def statistics(self) -> dict[str, int]:
        return {"learned": len(self.learned), **(self.counts + Counter(self.counts_elsewhere()))}


class Switch:
    """One bridge. `now` is a clock in seconds."""

    def __init__(self, name: str, now: Callable[[], float], datapath: Datapath) -> None:
        self.name = name
        self._now = now
        self.datapath = datapath
        self.ports: list[Port] = []
        self._learned: dict[tuple[int, bytes], _Learned] = {}
        self._own: dict[bytes, Port] = {}
        """Addresses that configurations have given."""
        self.watchers: list[Callable[[Port, bool], None]] = []
        """Told of each port that has come (True) or goes."""
        self.observers: list[Callable[[Port, bool, Packet], None]] = []
        """Told of each frame that comes in at a port (True) or goes out there: see `observe`."""
        self._touched: dict[Port, None] = {}
        """Ports that are to settle."""

    def plug(
        self,
        name: str,
        deliver: Callable[[Packet], bool],
        mac: bytes | None = None,
        vlans: Vlans | None = None,
        check: Check | None = None,
    ) -> Port:
        """A new port. `deliver` takes a frame that goes out there, or returns False: it is lost."""
        return self.add(Port(self, name, deliver, mac, vlans, check))

    def add(self, port: Port) -> Port:
        """Plug in a port made before."""
        mac = port.mac
        self.ports.append(port)
        if mac is not None:
            self._own.setdefault(mac, port)
        self.datapath.forget()
        for watcher in list(self.watchers):
            watcher(port, True)
        return port

    def unplug(self, port: Port) -> None:
        if port not in self.ports:
            return
        self.ports.remove(port)
        self.datapath.forget()
        for watcher in list(self.watchers):
            watcher(port, False)
        for key in port.learned:
            self._learned.pop(key, None)
        port.learned.clear()
        if port.mac is not None and self._own.get(port.mac) is port:
            del self._own[port.mac]
            heir = next((other for other in self.ports if other.mac == port.mac), None)
            if heir is not None:
                self._own[port.mac] = heir

    def observe(self, observer: Callable[[Port, bool, Packet], None]) -> None:
        """Have it told of all frames from now on: for captures."""
        self.observers.append(observer)
        self.datapath.forget()

    def observe_no_more(self, observer: Callable[[Port, bool, Packet], None]) -> None:
        self.observers.remove(observer)

    def forward(self, source: Port, packet: Packet) -> None:
        """Have a frame that came in at `source` go out where it belongs."""
        counts, data = source.counts, packet.data
        if not SHORTEST_FRAME <= len(data) <= LONGEST_FRAME:
            counts["rx_malformed"] += 1
            return
        if self.observers:
            self._observe(source, True, packet)
        vlan, packet = _come_in(source.vlans, packet)
        if vlan < 0:
            counts["rx_wrong_vlan"] += 1
            return
        data = packet.data
        sender, target = data[6:12], data[:6]
        if sender[0] & 1 or self._own.get(sender, source) is not source:
            counts["rx_spoofed"] += 1
            return
        if source.check is not None and not source.check(data):
            counts["rx_filtered"] += 1
            return
        counts["rx_packets"] += 1
        counts["rx_bytes"] += len(data)
        self._learn(source, vlan, sender)
        if target[0] & 1:
            counts["rx_multicast"] += 1
            self._flood(source, vlan, packet)
            return
        place = self._place(vlan, target)
        if place is None:
            self._flood(source, vlan, packet)
        elif place is not source:
            self._go_out(place, vlan, packet)
            if source.seen_by_datapath and source.vlans is None and place.vlans is None and not self.observers:
                self._show_the_way(source, place, packet)

    def _show_the_way(self, source: Port, place: Port, packet: Packet) -> None:
        """All that was decided by is in the packet's flow: the datapath may do it with those that follow."""
        target, longest = place.way(packet), source.longest(packet)
        if target is not None and len(packet.data) <= longest:
            self.datapath.learn(source.number, packet.data, target, longest)

    def _learn(self, port: Port, vlan: int, address: bytes) -> None:
        key = vlan, address
        known = self._learned.get(key)
        if known is None:
            if len(port.learned) >= MOST_ADDRESSES:
                self._forget_oldest(port)
            self._learned[key] = _Learned(port, self._now())
            port.learned.add(key)
            self.datapath.forget()
            return
        if known.port is not port:
            self.datapath.forget()
            known.port.learned.discard(key)
            if len(port.learned) >= MOST_ADDRESSES:
                self._forget_oldest(port)
            port.learned.add(key)
            known.port = port
        known.seen = self._now()

    def _forget_oldest(self, port: Port) -> None:
        """A quarter of what was learned there, so that this is not done for every frame."""
        self.datapath.forget()
        for key in sorted(port.learned, key=lambda key: self._learned[key].seen)[: MOST_ADDRESSES // 4]:
            port.learned.discard(key)
            del self._learned[key]

    def _place(self, vlan: int, address: bytes) -> Port | None:
        known = self._learned.get((vlan, address))
        if known is None:
            port = self._own.get(address)
            return port if port is not None and _carries(port.vlans, vlan) else None
        if self._now() - known.seen > AGEING_SECONDS:
            self.datapath.forget()
            del self._learned[vlan, address]
            known.port.learned.discard((vlan, address))
            return None
        return known.port

    def _flood(self, source: Port, vlan: int, packet: Packet) -> None:
        group = packet.data[:6]
        for port in self.ports:
            if port is source or not _carries(port.vlans, vlan):
                continue
            if group[0] & 1 and port.groups is not None and group != b"\xff" * 6 and group not in port.groups:
                port.counts["tx_unwanted"] += 1
                continue
            self._go_out(port, vlan, packet)

    def _go_out(self, port: Port, vlan: int, packet: Packet) -> None:
        if port.vlans is not None and vlan not in port.vlans.untagged:
            tag = b"\x81\x00" + vlan.to_bytes(2, "big")
            packet = packet._replace(data=packet.data[:12] + tag + packet.data[12:])
        if port.settle is not None:
            self._touched[port] = None
        if not port.deliver(packet):
            port.counts["tx_dropped"] += 1
            return
        port.counts["tx_packets"] += 1
        port.counts["tx_bytes"] += len(packet.data)
        if self.observers:
            self._observe(port, False, packet)

    def settle(self) -> None:
        """Have ports finish with what they were given."""
        touched, self._touched = self._touched, {}
        for port in touched:
            if port.settle is not None:
                port.settle()

    def _observe(self, port: Port, inward: bool, packet: Packet) -> None:
        for observer in list(self.observers):
            observer(port, inward, packet)

    def statistics(self) -> dict[str, Any]:
        return {"addresses": len(self._learned), "ports": {port.name: port.statistics() for port in self.ports}}


def _come_in(vlans: Vlans | None, packet: Packet) -> tuple[int, Packet]:
    """The VLAN of a frame that comes in, -1 for none of the port's, and the frame without the tag."""
    if vlans is None:
        return 0, packet
    data = packet.data
    if (data[12] << 8 | data[13]) != VLANS[0]:
        return vlans.pvid, packet
    if len(data) < ETHERNET + 4:
        return -1, packet
    vlan = (data[14] << 8 | data[15]) & 0xFFF
    bare = packet._replace(data=data[:12] + data[16:])
    if vlan == 0:  # a priority and no VLAN
        return vlans.pvid, bare
    return (vlan, bare) if vlan in vlans.tagged or vlan in vlans.untagged else (-1, packet)


def _carries(vlans: Vlans | None, vlan: int) -> bool:
    return vlan == 0 if vlans is None else vlan in vlans.untagged or vlan in vlans.tagged


class Bridges:
    """All switches of one host, by name: one comes to be when it is first asked for."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.datapath = Datapath()
        self._switches: dict[str, Switch] = {}
        self.on_new: Callable[[Switch], None] = lambda switch: None
        """Told of each switch that comes to be."""

    def get(self, name: str) -> Switch:
        if name not in self._switches:
            self._switches[name] = Switch(name, self._now, self.datapath)
            self.on_new(self._switches[name])
        return self._switches[name]

    def find(self, name: str) -> Switch | None:
        return self._switches.get(name)

    def apart(self, name: str) -> Switch:
        """A switch that is none of these: nobody finds it by its name."""
        return Switch(name, self._now, self.datapath)

    def all(self) -> list[Switch]:
        return list(self._switches.values())

    def statistics(self) -> dict[str, Any]:
        return {name: switch.statistics() for name, switch in self._switches.items()}
