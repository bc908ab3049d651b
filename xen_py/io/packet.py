# SPDX-License-Identifier: GPL-2.0-only
"""An Ethernet frame on its way, with what its sender left for others to do: checksums and cutting into segments.

A sender with offloads leaves the TCP or UDP checksum blank and hands over a segment of up to 64 KiB in one piece,
saying how long the pieces must be at most. Between two guests nobody needs either: the frame is carried as it is, and
says so. Whoever takes less gets what `complete` and `segment` make of it.

Frames come from guests, so nothing in them is believed: headers are found by `headers`, which returns None where they
do not hold together. Pure functions on immutable data; anyone may use them.

Sources: RFC 1071 (the sum), 791, 8200, 9293 (headers), IEEE 802.1Q (tags).
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from typing import NamedTuple

from xen_py.io.netif import GsoType, HashExtra

ETHERNET = 14
"""Bytes of an Ethernet header."""
VLAN_TAG = 4
IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
VLANS = (0x8100, 0x88A8)
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
LEAST_SEGMENT = 48
"""No TCP has smaller segments; what asks for them asks for much work with little."""
_MOST_TAGS = 2
_MOST_EXTENSIONS = 8
IPV6_FRAGMENT = 44
EXTENSIONS = (0, 43, 60, IPV6_FRAGMENT)
"""IPv6 headers that may be in front of the transport's: hop-by-hop, routing, destination, fragment."""
CHECKSUM_AT = {TCP: 16, UDP: 6}
"""Where in its header a transport has its checksum."""
_FIN_PSH, _CWR = 0x09, 0x80


class Csum(IntEnum):
    """What is known of a frame's TCP or UDP checksum."""

    UNKNOWN = 0
    VALID = 1
    """It has been checked, or never left the machine."""
    BLANK = 2
    """It is still to be put in."""


class Packet(NamedTuple):
    """One Ethernet frame, without its check sequence."""

    data: bytes
    csum: Csum = Csum.UNKNOWN
    gso: GsoType = GsoType.NONE
    gso_size: int = 0
    """Payload bytes of each segment, where `gso` says that it is to be cut."""
    hash: HashExtra | None = None
    """What its receiver has asked to be told of it."""


class Headers(NamedTuple):
    """Where things are in a frame that carries IP."""

    network: int
    """Offset of the IP header."""
    version: int
    transport: int
    """Offset behind the IP headers."""
    protocol: int
    """Of what is there; a later fragment has none: -1. One of EXTENSIONS: there are too many of those, or a cut one."""
    end: int
    """Offset behind the IP packet; a frame may be padded."""


def headers(data: bytes) -> Headers | None:
    """None where the frame carries no IP, or its headers do not fit what there is."""
    at = ETHERNET
    if len(data) < at:
        return None
    kind = data[12] << 8 | data[13]
    tags = 0
    while kind in VLANS and tags < _MOST_TAGS and len(data) >= at + VLAN_TAG:
        kind = data[at + 2] << 8 | data[at + 3]
        at += VLAN_TAG
        tags += 1
    if kind == IPV4:
        return _ipv4(data, at)
    return _ipv6(data, at) if kind == IPV6 else None


def _ipv4(data: bytes, at: int) -> Headers | None:
    if len(data) < at + 20 or data[at] >> 4 != 4:
        return None
    length = (data[at] & 15) * 4
    end = at + (data[at + 2] << 8 | data[at + 3])
    if length < 20 or end > len(data) or at + length > end:
        return None
    later = (data[at + 6] << 8 | data[at + 7]) & 0x1FFF
    return Headers(at, 4, at + length, -1 if later else data[at + 9], end)


def _ipv6(data: bytes, at: int) -> Headers | None:
    if len(data) < at + 40 or data[at] >> 4 != 6:
        return None
    end = at + 40 + (data[at + 4] << 8 | data[at + 5])
    if end > len(data):
        return None
    protocol, transport = data[at + 6], at + 40
    for _ in range(_MOST_EXTENSIONS):
        if protocol not in EXTENSIONS or transport + 8 > end:
            break
        if protocol == IPV6_FRAGMENT:
            later = (data[transport + 2] << 8 | data[transport + 3]) & 0xFFF8
            protocol, transport = (-1 if later else data[transport]), transport + 8
        else:
            protocol, transport = data[transport], transport + 8 + data[transport + 1] * 8
    return Headers(at, 6, transport, protocol, end) if transport <= end else None


def is_fragment(data: bytes, found: Headers) -> bool:
    """Whether the packet is a fragment, or has the header of one."""
    if found.version == 4:
        return bool((data[found.network + 6] << 8 | data[found.network + 7]) & 0x3FFF)
    kind, at = data[found.network + 6], found.network + 40
    while at < found.transport:
        if kind == IPV6_FRAGMENT:
            return True
        kind, at = data[at], at + 8 + data[at + 1] * 8
    return False


def internet_sum(data: bytes | bytearray | memoryview, start: int = 0) -> int:
    """The Internet checksum's sum of the bytes, as words in network order: folded, not complemented."""
    whole = bytes(data) if len(data) % 2 == 0 else bytes(data) + b"\0"
    total = start + int.from_bytes(whole, "big")
    folded = total % 0xFFFF
    return 0xFFFF if total and not folded else folded


def pseudo_header_sum(data: bytes, found: Headers) -> int:
    """The sum of what TCP and UDP have in their checksum of the IP header: what a blank checksum begins with."""
    addresses = data[found.network + 12 : found.network + 20]
    if found.version == 6:
        addresses = data[found.network + 8 : found.network + 40]
    return internet_sum(addresses, found.protocol + found.end - found.transport)


def transport_checksum(data: bytes, found: Headers) -> int:
    """What the TCP or UDP checksum must be, whatever is in its field now."""
    at = found.transport + CHECKSUM_AT[found.protocol]
    start = pseudo_header_sum(data, found) + int.from_bytes(data[found.transport : at], "big")
    value = 0xFFFF - internet_sum(data[at + 2 : found.end], start)
    return 0xFFFF if not value and found.protocol == UDP else value


def checksum_is_right(data: bytes) -> bool:
    """For frames that carry TCP or UDP in IP; other frames have no checksum that can be wrong here."""
    found = headers(data)
    if found is None or not _has_checksum(found):
        return True
    at = found.transport + CHECKSUM_AT[found.protocol]
    value = data[at] << 8 | data[at + 1]
    if found.protocol == UDP and found.version == 4 and not value:
        return True
    return value == transport_checksum(data, found)


def _has_checksum(found: Headers) -> bool:
    room = CHECKSUM_AT.get(found.protocol)
    return room is not None and found.transport + room + 2 <= found.end


def can_complete(data: bytes) -> bool:
    """Whether the frame carries something with a checksum that can be put in."""
    found = headers(data)
    return found is not None and _has_checksum(found)


def complete(packet: Packet) -> Packet:
    """The frame with its checksum put in, if it was blank."""
    if packet.csum is not Csum.BLANK:
        return packet
    found = headers(packet.data)
    if found is None or not _has_checksum(found):
        return packet._replace(csum=Csum.UNKNOWN)
    at = found.transport + CHECKSUM_AT[found.protocol]
    value = transport_checksum(packet.data, found)
    data = b"".join((packet.data[:at], value.to_bytes(2, "big"), packet.data[at + 2 :]))
    return packet._replace(data=data, csum=Csum.VALID)


def segment_header(packet: Packet) -> int | None:
    """Bytes of headers that each segment of the frame gets; None where it cannot be cut as it says."""
    found = headers(packet.data)
    version = {GsoType.TCPV4: 4, GsoType.TCPV6: 6}.get(packet.gso)
    if found is None or found.version != version or found.protocol != TCP or found.transport + 20 > found.end:
        return None
    behind = found.transport + (packet.data[found.transport + 12] >> 4) * 4
    if not found.transport + 20 <= behind <= found.end or packet.gso_size < LEAST_SEGMENT:
        return None
    return behind


def segment(packet: Packet) -> list[Packet]:
    """The frame cut as its `gso` says, each piece's checksum blank; nothing where that cannot be."""
    if packet.gso is GsoType.NONE:
        return [packet]
    behind, found = segment_header(packet), headers(packet.data)
    if behind is None or found is None:
        return []
    data, size = packet.data, packet.gso_size
    front = bytearray(data[:behind])
    flags = front[found.transport + 13]
    sequence = int.from_bytes(front[found.transport + 4 : found.transport + 8], "big")
    identification = int.from_bytes(front[found.network + 4 : found.network + 6], "big")
    pieces = []
    for number, at in enumerate(range(behind, max(found.end, behind + 1), size)):
        piece = data[at : min(at + size, found.end)]
        last = at + size >= found.end
        length = behind - found.network + len(piece)
        if found.version == 4:
            struct.pack_into(">HH", front, found.network + 2, length, (identification + number) & 0xFFFF)
            struct.pack_into(">H", front, found.network + 10, 0)
            struct.pack_into(
                ">H", front, found.network + 10, 0xFFFF - internet_sum(front[found.network : found.transport])
            )
        else:
            struct.pack_into(">H", front, found.network + 4, length - 40)
        struct.pack_into(">I", front, found.transport + 4, (sequence + at - behind) & 0xFFFFFFFF)
        front[found.transport + 13] = flags & ~(0 if last else _FIN_PSH) & ~(_CWR if number else 0)
        pieces.append(Packet(bytes(front) + piece, Csum.BLANK))
    return pieces


def flow(data: bytes) -> int:
    """A number that is the same for all frames of one connection in one direction."""
    found = headers(data)
    if found is None:
        return zlib.crc32(data[:12])
    first, last = (8, 40) if found.version == 6 else (12, 20)
    ports = data[found.transport : found.transport + 4] if found.protocol in CHECKSUM_AT else b""
    return zlib.crc32(data[found.network + first : found.network + last] + ports)
