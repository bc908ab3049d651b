# SPDX-License-Identifier: GPL-2.0-only
"""Segments of one TCP stream put together again: what a network card's large receive does, for who takes large ones.

Each packet costs a guest far more than its bytes do. Frames that come in one batch, follow each other in one stream and
differ in nothing but their place become one packet that says how it may be cut, which is what cutting would undo. Only
for frames whose checksums are known to be right: those of a network stack of this machine. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator

from xen_py.io.netif import GsoType
from xen_py.io.packet import ETHERNET, IPV4, IPV6, LEAST_SEGMENT, TCP, Csum, Headers, Packet, internet_sum

_LONGEST = 0xFFFF - 256
_ACK, _PSH = 0x10, 0x08


class _Stream:
    """A packet under construction. `data` is the first frame."""

    def __init__(self, data: bytes, network: int, transport: int, behind: int) -> None:
        self.data = data
        self.network = network
        self.transport = transport
        self.behind = behind
        self.size = len(data) - behind
        """Payload of each segment; the last may be shorter."""
        self.parts = [data]
        self.length = len(data)
        self.next = self._sequence(data) + self.size & 0xFFFFFFFF
        self.flags = data[transport + 13]
        self.closed = bool(self.flags & ~_ACK) or self.size < LEAST_SEGMENT

    def _sequence(self, data: bytes) -> int:
        return int.from_bytes(data[self.transport + 4 : self.transport + 8], "big")

    def add(self, other: _Stream) -> bool:
        """Whether the frame goes on where this ends and could be made by cutting."""
        data, at = other.data, self.transport
        if (
            self.closed
            or other.behind != self.behind
            or not 0 < other.size <= self.size
            or self.length + other.size > _LONGEST
            or self._sequence(data) != self.next
            or other.flags & ~_PSH != _ACK
            or data[at + 8 : at + 12] != self.data[at + 8 : at + 12]
            or data[at + 14 : at + 16] != self.data[at + 14 : at + 16]
            or data[at + 20 : self.behind] != self.data[at + 20 : self.behind]
        ):
            return False
        self.parts.append(data[self.behind :])
        self.length += other.size
        self.next = self.next + other.size & 0xFFFFFFFF
        self.flags |= other.flags
        self.closed = other.size < self.size or bool(other.flags & _PSH)
        return True

    @property
    def version(self) -> int:
        return 4 if self.network + 20 == self.transport else 6

    def cut(self) -> Packet:
        """The first frame alone, to be cut into segments of `size`."""
        return Packet(self.data, Csum.BLANK, GsoType.TCPV4 if self.version == 4 else GsoType.TCPV6, self.size)

    def packet(self) -> Packet:
        if len(self.parts) == 1:
            return Packet(self.data, Csum.VALID)
        whole = bytearray().join(self.parts)
        whole[self.transport + 13] = self.flags
        length = len(whole) - self.network
        if self.version == 4:
            struct.pack_into(">H", whole, self.network + 2, length)
            whole[self.network + 10 : self.network + 12] = b"\0\0"
            value = 0xFFFF - internet_sum(whole[self.network : self.transport])
            struct.pack_into(">H", whole, self.network + 10, value)
            return Packet(bytes(whole), Csum.BLANK, GsoType.TCPV4, self.size)
        struct.pack_into(">H", whole, self.network + 4, length - 40)
        return Packet(bytes(whole), Csum.BLANK, GsoType.TCPV6, self.size)


def merged(frames: Iterable[bytes], largest: Callable[[bytes, Headers], int]) -> Iterator[Packet]:
    """The packets of the frames, in an order in which no stream's are changed.

    `largest` is the payload that the receiver of a segment takes: one that has more says how it may be cut.
    """
    streams: dict[bytes, _Stream] = {}
    for data in frames:
        found = _stream(data)
        if found is None:
            # what it is about may be in a stream: nothing overtakes
            yield from (stream.packet() for stream in streams.values())
            streams.clear()
            yield Packet(data, Csum.VALID)
            continue
        key = _key(data, found)
        known = streams.get(key)
        most = largest(data, Headers(found.network, found.version, found.transport, TCP, len(found.data)))
        if found.size > most:
            if known is not None:
                yield known.packet()
                del streams[key]
            found.size = most
            yield found.cut()
            continue
        if known is not None and known.add(found):
            continue
        if known is not None:
            yield known.packet()
            del streams[key]
        streams[key] = found
    yield from (stream.packet() for stream in streams.values())


def _stream(data: bytes) -> _Stream | None:
    """A frame as the start of a packet; None where it is no plain TCP segment."""
    kind = data[12] << 8 | data[13]
    network = ETHERNET
    if kind == IPV4 and len(data) >= network + 40 and data[network] == 0x45 and data[network + 9] == TCP:
        transport = network + 20
        if (data[network + 6] << 8 | data[network + 7]) & 0x3FFF:
            return None
        end = network + (data[network + 2] << 8 | data[network + 3])
    elif kind == IPV6 and len(data) >= network + 60 and data[network + 6] == TCP:
        transport = network + 40
        end = transport + (data[network + 4] << 8 | data[network + 5])
    else:
        return None
    behind = transport + (data[transport + 12] >> 4) * 4
    if not transport + 20 <= behind <= end <= len(data):
        return None
    return _Stream(data[:end], network, transport, behind)


def _key(data: bytes, stream: _Stream) -> bytes:
    """Addresses and ports, of both layers."""
    addresses = data[stream.network + (8 if stream.transport - stream.network == 40 else 12) : stream.transport + 4]
    return data[:12] + addresses
