# SPDX-License-Identifier: GPL-2.0-only
"""A bridge's way to the world: an address for each guest, names, connections outward, ports forwarded inward.

A process with libslirp (`dom0.backend.net.slirp`) has one port of the switch, as a router would. It is started when
the bridge's first vif comes and again when it has died; without libslirp the guests still reach each other, and what
is missing is said once. Guests' requests for addresses are answered here (`dom0.backend.net.dhcp`).

    network 10.0.2.0/24     gateway 10.0.2.2, which is the host    names 10.0.2.3    guests from 10.0.2.15 on
    fd0a:0:2::/64           gateway fd0a:0:2::2                    names fd0a:0:2::3

Between the process and us segments are large both ways (`dom0.backend.net.sizes`); what comes from there in pieces all
the same is put together again (`dom0.backend.net.merge`). Owner: the trio thread.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import trio

from dom0.backend.net.datapath import LinkPlace, NoRoom
from dom0.backend.net.dhcp import Leases
from dom0.backend.net.forward import Forward
from dom0.backend.net.merge import merged
from dom0.backend.net.sizes import LINK_MTU, SegmentSizes, fragments
from dom0.backend.net.slirp import LIBRARY, LONGEST, MISSING
from dom0.backend.net.switch import PacketQueue, Port, Switch
from dom0.host.sandbox import TITLE_ROOM
from xen_py.drive.bell import Bell
from xen_py.io.netif import GsoType
from xen_py.io.packet import ETHERNET, TCP, VLANS, Csum, Packet, complete, headers

NETWORK = IPv4Network("10.0.2.0/24")
GATEWAY, DNS = IPv4Address("10.0.2.2"), IPv4Address("10.0.2.3")
NETWORK6 = IPv6Network("fd0a:0:2::/64")
GATEWAY_MAC = b"\x52\x55" + GATEWAY.packed
_BEHIND_US = (b"\x52\x55", b"\x52\x56")
"""How libslirp begins the Ethernet addresses of its own, of IPv4 and IPv6."""
MTU = 1500
_AGAIN_SECONDS = 1.0
_MOST_IN_A_ROW = 128
_SETTINGS = {
    "network": str(NETWORK.network_address),
    "netmask": str(NETWORK.netmask),
    "gateway": str(GATEWAY),
    "dns": str(DNS),
    "first": "10.0.2.15",
    "network6": str(NETWORK6.network_address),
    "gateway6": "fd0a:0:2::2",
    "dns6": "fd0a:0:2::3",
    "mtu": LINK_MTU,
}


class World:
    """One bridge's. `say` is told what a user should know."""

    def __init__(self, switch: Switch, log_fd: int, say: Callable[[str], None]) -> None:
        self._switch = switch
        self._log_fd = log_fd
        self._say = say
        self._leases = Leases(NETWORK, GATEWAY, DNS, GATEWAY_MAC)
        self._bell = Bell()
        self._outward = PacketQueue(self._bell.ring, packets=4096)
        self._orders: list[bytes] = []
        self._forwards: dict[Port, list[tuple[Forward, IPv4Address | IPv6Address]]] = {}
        self._asked: dict[int, str] = {}
        self._numbers = 0
        self._counts: Counter[str] = Counter()
        self._sizes = SegmentSizes()
        self._sizes.on_change = switch.datapath.forget
        self._fragmented = 0
        self._link: socket.socket | None = None
        self._place: LinkPlace | None = None
        self._port = switch.plug("world", self._deliver)
        self._port.way = self._way
        self._port.longest = self._longest
        self._port.counts_elsewhere = lambda: {} if self._place is None else self._place.counts()
        for port in switch.ports:
            self._plugged(port, True)
        switch.watchers.append(self._plugged)

    @property
    def running(self) -> bool:
        """Whether there is a process that takes frames."""
        return self._link is not None

    # ---- from the switch ----

    def _deliver(self, packet: Packet) -> bool:
        data = packet.data
        if data[0] & 1 or data[:6] == GATEWAY_MAC:
            answer = self._leases.answer(data)
            if answer is not None:
                self._counts["addresses_given"] += 1
                self._port.send(Packet(answer, Csum.VALID))
                return True
        if not self.running or (data[12] << 8 | data[13]) in VLANS:
            return False
        if not data[0] & 1 and data[:2] not in _BEHIND_US:
            return True  # for somebody whom the switch does not know, and who is not behind us
        packet = complete(self._sizes.outward(packet))
        if self._send_now(packet.data):
            return True
        self._hold(True)
        return self._outward.put(packet)

    def _hold(self, on: bool) -> None:
        """Have the datapath send nothing for as long as something of ours waits."""
        if self._place is not None:
            self._place.hold(on)

    def _way(self, packet: Packet) -> int | None:
        """Of those that `_deliver` would send to the process."""
        return self._place.number if self._place is not None and packet.data[:2] in _BEHIND_US else None

    def _longest(self, packet: Packet) -> int:
        """Large ones are put together here first, and those that are larger than their receiver takes are to be cut."""
        found = headers(packet.data)
        if found is None or found.protocol != TCP or found.transport + 20 > found.end:
            return ETHERNET + MTU
        behind = found.transport + (packet.data[found.transport + 12] >> 4) * 4
        return min(ETHERNET + MTU, behind + self._sizes.of(packet.data, found))

    def _send_now(self, data: bytes) -> bool:
        """Hand a frame to the process at once, if nothing is before it and it is taken."""
        if self._link is None or self._orders or self._outward:
            return False
        try:
            self._link.sendmsg((b"F", data))
        except OSError:
            return False
        return True

    def _plugged(self, port: Port, there: bool) -> None:
        """A vif has come or gone: it keeps its address, and its ports lead to it."""
        if not there:
            for forward, _ in self._forwards.pop(port, []):
                self._order(b"-", [forward.udp, str(forward.host), forward.host_port])
            return
        if port.mac is None:
            return
        wanted = next((address for address in port.addresses if isinstance(address, IPv4Address)), None)
        address = self._leases.reserve(port.mac, wanted)
        guests = {4: wanted or address, 6: _address6(port.mac, port.addresses)}
        found = []
        for forward in port.forwards:
            guest = guests[forward.host.version]
            if guest is None:
                self._say(f"{port.name}: {forward} leads nowhere: the guest has no IPv{forward.host.version} address")
            else:
                found.append((forward, guest))
        if found:
            self._forwards[port] = found
        if found and self.running:
            self._ask(port)

    def _ask(self, port: Port) -> None:
        for forward, guest in self._forwards[port]:
            self._numbers += 1
            self._asked[self._numbers] = f"{port.name}: {forward}"
            places = [str(forward.host), forward.host_port, str(guest), forward.guest_port]
            self._order(b"+", [self._numbers, forward.udp, *places])

    def _order(self, kind: bytes, words: list[Any]) -> None:
        self._orders.append(kind + msgpack.packb(words))
        self._hold(True)
        self._bell.ring()

    # ---- the process ----

    async def run(self) -> None:
        """Keep a process at work until cancelled, or until there is no library for it."""
        while True:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            ours.setblocking(False)
            with ours, self._started(theirs) as process:
                try:
                    await self._serve(ours)
                    ours.close()
                    status = await trio.to_thread.run_sync(process.wait)
                finally:
                    process.kill()
            if status == MISSING:
                self._say(
                    f"{LIBRARY} is not here (Debian package libslirp0): guests on {self._switch.name} reach each "
                    "other, and nothing else"
                )
                return
            self._say(f"the network process of {self._switch.name} has ended ({status}), another is started")
            self._counts["restarts"] += 1
            await trio.sleep(_AGAIN_SECONDS)

    def _started(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        with theirs:
            arguments = [str(theirs.fileno()), str(os.getpid()), " " * TITLE_ROOM]
            root = str(Path(__file__).resolve().parents[3])
            path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "dom0.backend.net.slirp", *arguments],
                env=os.environ | {"PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=self._log_fd,
                stderr=self._log_fd,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    async def _serve(self, link: socket.socket) -> None:
        link.send(msgpack.packb(_SETTINGS))
        self._orders.clear()
        self._outward.clear()
        for port in self._forwards:
            self._ask(port)
        try:
            place = LinkPlace(self._switch.datapath, self._port.number, link.fileno())
        except NoRoom as error:
            self._say(f"the network process of {self._switch.name} cannot be used: {error}")
            return
        self._link, self._place = link, place
        self._port.seen_by_datapath = True
        self._hold(bool(self._orders))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, link)
                await self._receive(link, place)
                nursery.cancel_scope.cancel()
        finally:
            self._port.seen_by_datapath = False
            self._port.counts.update(place.counts())
            self._link = self._place = None
            place.close()

    async def _send(self, link: socket.socket) -> None:
        while True:
            while self._orders or self._outward:
                message = (self._orders[0],) if self._orders else (b"F", self._outward.peek().data)
                try:
                    link.sendmsg(message)
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(link)
                    continue
                except OSError:
                    return  # the other side is gone, as the receiving task finds
                if self._orders:
                    self._orders.pop(0)
                else:
                    self._outward.take()
            self._hold(False)
            await self._bell.wait()

    async def _receive(self, link: socket.socket, place: LinkPlace) -> None:
        while True:
            await place.called()
            frames: list[bytes] = []
            try:
                for _ in range(_MOST_IN_A_ROW):
                    message = link.recv(LONGEST)
                    if not message:
                        return
                    if message[:1] == b"F":
                        frames.append(message[1:])
                    else:
                        self._answered(*msgpack.unpackb(message[1:]))
            except BlockingIOError:
                pass
            except ConnectionError:
                return
            self._port.send_all(self._arrived(frames))
            place.resume()

    def _arrived(self, frames: list[bytes]) -> Iterator[Packet]:
        """What the stack has sent, as a wire would bring it but for segments, which may be large."""
        for packet in merged((frame for frame in frames if len(frame) >= ETHERNET), self._sizes.of):
            if packet.gso is not GsoType.NONE or len(packet.data) <= ETHERNET + MTU:
                yield packet
                continue
            self._fragmented += 1
            yield from (Packet(piece, Csum.VALID) for piece in fragments(packet.data, MTU, self._fragmented))

    def _answered(self, number: int, error: str) -> None:
        what = self._asked.pop(number, "")
        if error:
            self._counts["forwards_refused"] += 1
            self._say(f"{what} cannot be forwarded: {error}")
        else:
            self._counts["forwards"] += 1

    def statistics(self) -> dict[str, Any]:
        return {
            "running": self.running,
            "waiting": len(self._outward),
            **self._sizes.statistics(),
            "fragmented": self._fragmented,
            **self._counts,
        }


def _address6(mac: bytes, addresses: Sequence[IPv4Address | IPv6Address]) -> IPv6Address | None:
    """By which IPv6 address a guest is reached: one of its `ip=`, or what it makes of the network and its MAC."""
    if addresses:
        return next((address for address in addresses if isinstance(address, IPv6Address)), None)
    identifier = bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]
    return IPv6Address(NETWORK6.network_address.packed[:8] + identifier)
