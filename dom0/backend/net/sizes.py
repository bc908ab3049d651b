# SPDX-License-Identifier: GPL-2.0-only
"""Sizes on the way between the switch and libslirp, which is no wire: its frames may be as large as IP has them.

A TCP segment costs the stack, its process and us the same whatever its size, so the stack is told that guests take
large ones: what a guest announces as its largest segment (RFC 9293, the MSS option of a SYN) is remembered and larger
in what goes out. What comes back larger than that becomes a packet that says how it may be cut, as after a card's large
receive. Other datagrams that are larger than a wire's are put into fragments, as any router does (RFC 791), or for
IPv6, where routers do not, as a sender does (RFC 8200).

Pure but for the table of connections. Owner: the trio thread.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable

from xen_py.io.packet import IPV6_FRAGMENT, LEAST_SEGMENT, TCP, Csum, Headers, Packet, complete, headers, internet_sum

LINK_MTU = 65520
"""What libslirp is told; it takes no more."""
_LARGEST_SEGMENT = 32768
"""libslirp's own limit."""
_MOST_CONNECTIONS = 4096
_SYN = 2
_MSS, _END, _NOTHING = 2, 0, 1
_UNTOLD = {4: 536, 6: 1220}
"""What a host takes that has said nothing."""


class SegmentSizes:
    """The largest segments that guests take, by connection; those longest unused are forgotten first."""

    def __init__(self) -> None:
        self._sizes: OrderedDict[bytes, int] = OrderedDict()
        self.on_change: Callable[[], None] = lambda: None
        """Called when a connection that is known takes others than before."""

    def outward(self, packet: Packet) -> Packet:
        """A guest's packet as the stack is to see it."""
        data = packet.data
        found = headers(data)
        if found is None or found.protocol != TCP or found.transport + 20 > found.end:
            return packet
        if not data[found.transport + 13] & _SYN:
            return packet
        at = _announced(data, found)
        size = int.from_bytes(data[at : at + 2], "big") if at else _UNTOLD[found.version]
        key = _connection(data, found, outward=True)
        known, self._sizes[key] = self._sizes.get(key), max(size, LEAST_SEGMENT)
        if known not in (None, self._sizes[key]):
            self.on_change()
        self._sizes.move_to_end(key)
        if len(self._sizes) > _MOST_CONNECTIONS:
            self._sizes.popitem(last=False)
        if not at:
            return packet
        larger = data[:at] + _LARGEST_SEGMENT.to_bytes(2, "big") + data[at + 2 :]
        return complete(packet._replace(data=larger, csum=Csum.BLANK))

    def of(self, data: bytes, found: Headers) -> int:
        """The largest segment that the guest takes to which this one of the stack's goes."""
        key = _connection(data, found, outward=False)
        if key in self._sizes:
            self._sizes.move_to_end(key)
            return self._sizes[key]
        return _UNTOLD[found.version]

    def statistics(self) -> dict[str, int]:
        return {"connections": len(self._sizes)}


def _connection(data: bytes, found: Headers, *, outward: bool) -> bytes:
    """Addresses and ports, the guest's first."""
    start, length = (found.network + 8, 16) if found.version == 6 else (found.network + 12, 4)
    source, target = data[start : start + length], data[start + length : start + 2 * length]
    ports = data[found.transport : found.transport + 2], data[found.transport + 2 : found.transport + 4]
    if outward:
        return source + ports[0] + target + ports[1]
    return target + ports[1] + source + ports[0]


def _announced(data: bytes, found: Headers) -> int:
    """Where the MSS is in the options of a TCP segment; 0 where there is none."""
    at = found.transport + 20
    end = min(found.transport + (data[found.transport + 12] >> 4) * 4, found.end)
    while at < end:
        kind = data[at]
        if kind == _END:
            break
        if kind == _NOTHING:
            at += 1
            continue
        if at + 2 > end or data[at + 1] < 2 or at + data[at + 1] > end:
            break
        if kind == _MSS and data[at + 1] == 4:
            return at + 2
        at += data[at + 1]
    return 0


def fragments(data: bytes, mtu: int, identification: int) -> list[bytes]:
    """A frame of the stack's as a link with that MTU has it: in fragments, if it is larger."""
    found = headers(data)
    if found is None or found.end - found.network <= mtu:
        return [data]
    front = data[: found.network]
    if found.version == 4:
        head = bytearray(data[found.network : found.transport])
        rest = data[found.transport : found.end]
        most = (mtu - len(head)) & ~7
        pieces = []
        for at in range(0, len(rest), most):
            piece = rest[at : at + most]
            more = at + most < len(rest)
            struct.pack_into(">HHH", head, 2, len(head) + len(piece), identification & 0xFFFF, more << 13 | at >> 3)
            struct.pack_into(">H", head, 10, 0)
            struct.pack_into(">H", head, 10, 0xFFFF - internet_sum(head))
            pieces.append(front + bytes(head) + piece)
        return pieces
    # the stack puts nothing between its header and what it carries
    head = bytearray(data[found.network : found.network + 40])
    following, head[6] = head[6], IPV6_FRAGMENT
    rest = data[found.network + 40 : found.end]
    most = (mtu - 48) & ~7
    pieces = []
    for at in range(0, len(rest), most):
        piece = rest[at : at + most]
        struct.pack_into(">H", head, 4, 8 + len(piece))
        extension = struct.pack(">BBHI", following, 0, at | (at + most < len(rest)), identification)
        pieces.append(front + bytes(head) + extension + piece)
    return pieces
