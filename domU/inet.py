# SPDX-License-Identifier: GPL-2.0-only
"""Enough of IPv4 for a Python guest to serve and to ask: ARP, echoes to pings, and TCP streams, on a network card.

    async with guest.device(NetFrontend) as card, open_inet(card, "10.0.0.1/24", gateway=None) as inet:
        listener = inet.listen(80)
        stream = await listener.accept()
        data = await stream.receive_some()              # b"" when the other side has ended
        await stream.send_all(b"...")
        await stream.aclose()
        stream = await inet.connect("10.0.0.2", 80)

Small on purpose: no fragments, no options but the segment size, segments out of order are left to be sent again, what
is not acknowledged is sent again from the start with doubling patience, and no congestion is looked out for: it is for
guests on one switch. Frames come from other guests: lengths and checksums are checked, connections and what they keep
are bounded. Owned by the guest's thread. Sources: RFC 826, 792, 9293.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

import trio

from domU.frontend.net import NetFrontend
from xen_py.drive.bell import Bell
from xen_py.drive.queue import QueueClosed
from xen_py.io.packet import (
    ARP,
    ETHERNET,
    ICMP,
    IPV4,
    TCP,
    Csum,
    Packet,
    checksum_is_right,
    complete,
    headers,
    internet_sum,
)

_SEGMENT = 1460
_WINDOW = 0xFFFF
_FIN, _SYN, _RST, _PSH, _ACK = 1, 2, 4, 8, 16
_FIRST_PATIENCE, _LAST_PATIENCE = 0.3, 60.0
_TRIES = 8
_MOST_STREAMS = 256
_BACKLOG = 16
_MOST_UNSENT = 1 << 18
_MASK = 0xFFFFFFFF
_FIRST_PORT, _PORTS = 49152, 16384


class Unreachable(Exception):
    """Nobody answers there, or who does refuses."""


class StreamBroken(Exception):
    """The other side has reset the connection, or answers no more."""


class Stream:
    """One TCP connection; made by `Inet.connect` and `Listener.accept`."""

    def __init__(self, inet: Inet, key: tuple[bytes, int, int], sequence: int) -> None:
        self._inet = inet
        self._key = key
        self._unacked = bytearray()
        """What was given to be sent, from the first byte that is not acknowledged on."""
        self._base = sequence
        """The sequence number of the first byte of that."""
        self._sent = 0
        """How much of it has been sent."""
        self._window = _SEGMENT
        self._segment = _SEGMENT
        self._expected = 0
        self._received = bytearray()
        self._established = self._ended = self._finished = self._fin_acked = False
        self._syn = _SYN
        self._broken: str | None = None
        self._patience = _FIRST_PATIENCE
        self._tries = 0
        self._progress = Bell()
        self._readable = trio.lowlevel.ParkingLot()
        self._writable = trio.lowlevel.ParkingLot()

    # ---- for its user ----

    async def receive_some(self, most: int = 1 << 16) -> bytes:
        """Some bytes, b"" when the other side has ended. StreamBroken."""
        while not self._received and not self._ended:
            if self._broken is not None:
                raise StreamBroken(self._broken)
            await self._readable.park()
        data = bytes(self._received[:most])
        was_full = len(self._received) > _WINDOW // 2
        del self._received[:most]
        if was_full and data:
            await self._send_segment(_ACK)
        await trio.lowlevel.checkpoint()
        return data

    async def send_all(self, data: bytes) -> None:
        """Returns when all of it is on its way, or kept. StreamBroken."""
        for at in range(0, len(data), _MOST_UNSENT // 2):
            while len(self._unacked) > _MOST_UNSENT:
                self._check()
                await self._writable.park()
            self._check()
            self._unacked += data[at : at + _MOST_UNSENT // 2]
            await self._push()

    async def aclose(self) -> None:
        """End our side, and wait until the other knows it. Idempotent."""
        if not self._finished:
            self._finished = True
            await self._push()
        while not self._fin_acked and self._broken is None:
            await self._writable.park()
        if self._ended or self._broken is not None:
            self._inet.forget(self._key)

    def _check(self) -> None:
        if self._broken is not None:
            raise StreamBroken(self._broken)
        if self._finished:
            raise StreamBroken("this side has been closed")

    # ---- sending ----

    @property
    def _outstanding(self) -> bool:
        return bool(self._syn or self._unacked or (self._finished and not self._fin_acked))

    async def open(self, flags: int) -> None:
        """The first segment."""
        self._syn = flags
        await self._send_segment(flags, self._base, struct.pack(">BBH", 2, 4, _SEGMENT))
        self._inet.nursery.start_soon(self._persist)

    async def _push(self) -> None:
        """Send what the other side's window has room for."""
        if not self._established or self._broken is not None:
            return
        while self._sent < len(self._unacked) and self._sent < self._window:
            size = min(self._segment, self._window - self._sent, len(self._unacked) - self._sent)
            piece = bytes(self._unacked[self._sent : self._sent + size])
            at = self._base + self._sent
            self._sent += size
            await self._send_segment(_ACK | _PSH, at, payload=piece)
        if self._finished and not self._fin_acked and self._sent == len(self._unacked):
            await self._send_segment(_FIN | _ACK, self._base + self._sent)
        self._progress.ring()

    async def _persist(self) -> None:
        """Send again what is not acknowledged in time, for as long as there is anything to wait for."""
        while self._broken is None and not (self._fin_acked and self._ended):
            if not self._outstanding:
                await self._progress.wait()
                continue
            base = self._base
            with trio.move_on_after(self._patience):
                while self._base == base and self._outstanding and self._broken is None:
                    await self._progress.wait()
                continue
            self._tries += 1
            self._patience = min(2 * self._patience, _LAST_PATIENCE)
            if self._tries > _TRIES:
                self.broke("the other side does not answer")
                return
            if self._syn:
                await self._send_segment(self._syn, self._base, struct.pack(">BBH", 2, 4, _SEGMENT))
            else:
                self._sent = 0
                self._window = max(self._window, 1)  # a closed window is looked into
                await self._push()

    async def _send_segment(
        self, flags: int, sequence: int | None = None, options: bytes = b"", payload: bytes = b""
    ) -> None:
        behind = self._base + self._sent + self._fin_acked  # the end of our side has a number, too
        at = (behind if sequence is None else sequence) & _MASK
        window = max(0, _WINDOW - len(self._received))
        await self._inet.send_tcp(self._key, at, self._expected, flags, window, options, payload)

    # ---- receiving ----

    def expect(self, sequence: int, segment: int) -> None:
        """What the other side's first segment says: where it begins, and how much it takes at once."""
        self._expected = sequence + 1 & _MASK
        self._segment = min(self._segment, segment)

    async def arrived(
        self, sequence: int, acknowledged: int, flags: int, window: int, segment: int, data: bytes
    ) -> None:
        """A segment for this connection."""
        if flags & _RST:
            if not self._established or sequence == self._expected:
                self.broke("the other side has refused or reset the connection")
            return
        if flags & _SYN:
            if self._syn == _SYN and flags & _ACK and acknowledged == self._base + 1 & _MASK:
                self.expect(sequence, segment)
                self._is_established(window)
                await self._send_segment(_ACK)
            return  # one that asked before asks again: the answer is on its way, again
        if self._syn & _ACK and flags & _ACK and acknowledged == self._base + 1 & _MASK:
            self._is_established(window)
            self._inet.accepted(self, self._key)
        if not self._established:
            return
        if flags & _ACK:
            self._acknowledge(acknowledged, window)
        await self._take(sequence, data, bool(flags & _FIN))
        await self._push()

    def _is_established(self, window: int) -> None:
        self._base = self._base + 1 & _MASK
        self._syn = 0
        self._established = True
        self._window = window
        self._moved()

    def _acknowledge(self, number: int, window: int) -> None:
        progress = number - self._base & _MASK
        self._window = window
        if progress == len(self._unacked) + 1 and self._finished and self._sent == len(self._unacked):
            self._fin_acked = True
            progress -= 1
        if 0 < progress <= self._sent:
            del self._unacked[:progress]
            self._base = self._base + progress & _MASK
            self._sent -= progress
            self._moved()
        if self._fin_acked:
            self._moved()

    def _moved(self) -> None:
        self._tries, self._patience = 0, _FIRST_PATIENCE
        self._progress.ring()
        self._writable.unpark_all()

    async def _take(self, sequence: int, data: bytes, fin: bool) -> None:
        """Bytes in order; all else is left to come again."""
        if not data and not fin:
            return
        known = self._expected - sequence & _MASK
        if known <= len(data) and len(self._received) + len(data) - known <= _WINDOW:
            fresh = data[known:]
            self._received += fresh
            self._expected = self._expected + len(fresh) & _MASK
            if fin and not self._ended:
                self._expected = self._expected + 1 & _MASK
                self._ended = True
            self._readable.unpark_all()
        await self._send_segment(_ACK)
        if self._ended and self._fin_acked:
            self._progress.ring()
            self._inet.forget(self._key)

    def broke(self, why: str) -> None:
        if self._broken is None:
            self._broken = why
            self._inet.forget(self._key)
            self._progress.ring()
            self._readable.unpark_all()
            self._writable.unpark_all()

    async def wait_open(self) -> None:
        while not self._established:
            if self._broken is not None:
                raise Unreachable(self._broken)
            await self._writable.park()


class Listener:
    """A port that takes connections."""

    def __init__(self) -> None:
        self._waiting: deque[Stream] = deque()
        self._parked = trio.lowlevel.ParkingLot()

    def full(self) -> bool:
        return len(self._waiting) >= _BACKLOG

    def put(self, stream: Stream) -> None:
        self._waiting.append(stream)
        self._parked.unpark()

    async def accept(self) -> Stream:
        while not self._waiting:
            await self._parked.park()
        return self._waiting.popleft()


class Inet:
    """See the module; made by `open_inet`."""

    def __init__(self, card: NetFrontend, address: IPv4Interface, gateway: IPv4Address | None, nursery: Any) -> None:
        self.nursery: trio.Nursery = nursery
        self._card = card
        self._address = address
        self._own = address.ip.packed
        self._gateway = gateway
        self._neighbours: dict[bytes, bytes] = {}
        self._asking: set[bytes] = set()
        self._streams: dict[tuple[bytes, int, int], Stream] = {}
        self._listeners: dict[int, Listener] = {}
        self._opened = 0

    def listen(self, port: int) -> Listener:
        """Take connections to that port from now on."""
        return self._listeners.setdefault(port, Listener())

    async def connect(self, host: str, port: int) -> Stream:
        """Unreachable."""
        other = IPv4Address(host).packed
        self._opened += 1
        key = other, port, _FIRST_PORT + self._opened % _PORTS
        stream = self._streams[key] = Stream(self, key, self._sequence(key))
        await stream.open(_SYN)
        await stream.wait_open()
        return stream

    async def run(self) -> None:
        """Answer what comes until the card goes."""
        try:
            await self._card.send(self._arp(1, b"\xff" * 6, bytes(6), self._own))  # here we are
            while True:
                packet = await self._card.receive()
                await self._arrived(packet)
        except QueueClosed:
            for stream in list(self._streams.values()):
                stream.broke("the network card has gone")

    # ---- what comes ----

    async def _arrived(self, packet: Packet) -> None:
        data = packet.data
        if data[12:14] == ARP.to_bytes(2, "big"):
            await self._arrived_arp(data[ETHERNET:])
            return
        found = headers(data)
        if found is None or found.version != 4 or data[found.network + 16 : found.network + 20] != self._own:
            return
        source = data[found.network + 12 : found.network + 16]
        body = data[found.transport : found.end]
        if found.protocol == ICMP and body[:2] == b"\x08\0" and internet_sum(body) == 0xFFFF:
            answer = b"\0\0\0\0" + body[4:]
            value = 0xFFFF - internet_sum(answer)
            await self._send_ip(source, ICMP, answer[:2] + value.to_bytes(2, "big") + answer[4:])
        elif found.protocol == TCP and len(body) >= 20 and (packet.csum is not Csum.UNKNOWN or checksum_is_right(data)):
            await self._arrived_tcp(source, body)

    async def _arrived_arp(self, body: bytes) -> None:
        if len(body) < 28 or body[:6] != b"\0\1\x08\0\6\4":
            return
        mac, sender, target = body[8:14], body[14:18], body[24:28]
        if sender in self._asking or sender in self._neighbours:
            self._asking.discard(sender)
            self._neighbours[sender] = mac
        if body[6:8] == b"\0\1" and target == self._own and sender != self._own:
            if len(self._neighbours) < _MOST_STREAMS:
                self._neighbours[sender] = mac  # it will be spoken to
            await self._card.send(self._arp(2, mac, mac, sender))

    async def _arrived_tcp(self, source: bytes, body: bytes) -> None:
        remote, local, sequence, acknowledged, offset, flags, window = struct.unpack_from(">HHIIBBH", body)
        length = (offset >> 4) * 4
        if not 20 <= length <= len(body):
            return
        key = source, remote, local
        stream = self._streams.get(key)
        segment = _segment_size(body[20:length])
        if stream is None:
            listener = self._listeners.get(local)
            if flags & (_SYN | _ACK | _RST) != _SYN or listener is None or listener.full():
                if not flags & _RST:
                    at = acknowledged if flags & _ACK else 0
                    seen = sequence + len(body) - length + bool(flags & _SYN) + bool(flags & _FIN) & _MASK
                    await self.send_tcp(key, at, seen, _RST | _ACK, 0)
                return
            if len(self._streams) >= _MOST_STREAMS:
                return
            stream = self._streams[key] = Stream(self, key, self._sequence(key))
            stream.expect(sequence, segment)
            await stream.open(_SYN | _ACK)
            return
        await stream.arrived(sequence, acknowledged, flags, window, segment, body[length:])

    def accepted(self, stream: Stream, key: tuple[bytes, int, int]) -> None:
        """A connection to one of our ports is complete."""
        self._listeners[key[2]].put(stream)

    def forget(self, key: tuple[bytes, int, int]) -> None:
        self._streams.pop(key, None)

    # ---- what goes ----

    async def send_tcp(
        self,
        key: tuple[bytes, int, int],
        sequence: int,
        expected: int,
        flags: int,
        window: int,
        options: bytes = b"",
        payload: bytes = b"",
    ) -> None:
        other, remote, local = key
        head = struct.pack(
            ">HHIIBBHHH", local, remote, sequence & _MASK, expected, (20 + len(options)) << 2, flags, window, 0, 0
        )
        await self._send_ip(other, TCP, head + options + payload)

    async def _send_ip(self, other: bytes, protocol: int, body: bytes) -> None:
        mac = await self._mac_of(other)
        if mac is None:
            return
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0x4000, 64, protocol, 0) + self._own + other
        head = head[:10] + (0xFFFF - internet_sum(head)).to_bytes(2, "big") + head[12:]
        data = mac + self._card.mac + IPV4.to_bytes(2, "big") + head + body
        packet = complete(Packet(data, Csum.BLANK)) if protocol == TCP else Packet(data)
        await self._card.send(packet)

    async def _mac_of(self, other: bytes) -> bytes | None:
        """The Ethernet address by which to reach it; None where it is not known, and is asked for: TCP tries again."""
        hop = other
        if IPv4Address(other) not in self._address.network:
            if self._gateway is None:
                return None
            hop = self._gateway.packed
        known = self._neighbours.get(hop)
        if known is None and len(self._asking) < _MOST_STREAMS:
            self._asking.add(hop)
            await self._card.send(self._arp(1, b"\xff" * 6, bytes(6), hop))
        return known

    def _arp(self, kind: int, to: bytes, mac: bytes, address: bytes) -> bytes:
        body = struct.pack(">HHBBH", 1, IPV4, 6, 4, kind) + self._card.mac + self._own + mac + address
        return to + self._card.mac + ARP.to_bytes(2, "big") + body

    def _sequence(self, key: tuple[bytes, int, int]) -> int:
        """Where a new connection begins to count."""
        return zlib.crc32(repr((key, trio.current_time(), self._opened)).encode())


def _segment_size(options: bytes) -> int:
    """The largest segment that the other side takes."""
    at = 0
    while at + 1 < len(options) and options[at]:
        if options[at] == 1:
            at += 1
            continue
        if options[at] == 2 and options[at + 1] == 4 and at + 4 <= len(options):
            return max(64, options[at + 2] << 8 | options[at + 3])
        at += max(2, options[at + 1])
    return 536


@asynccontextmanager
async def open_inet(card: NetFrontend, address: str, gateway: str | None = None) -> AsyncIterator[Inet]:
    """IPv4 on a card: our address with the network's length behind it, and where the rest of the world is."""
    async with trio.open_nursery() as nursery:
        inet = Inet(card, IPv4Interface(address), IPv4Address(gateway) if gateway else None, nursery)
        nursery.start_soon(inet.run)
        yield inet
        nursery.cancel_scope.cancel()
