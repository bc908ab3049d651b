# SPDX-License-Identifier: GPL-2.0-only
"""Who a guest may say it is: the filter of a vif whose configuration names its addresses (`ip=`).

Such a vif sends from its own Ethernet address only, and from the IP addresses named, whatever carries them: IPv4 and
IPv6 headers, ARP, neighbour discovery. Left to it is what it needs to come by an address and to be found: DHCP from
0.0.0.0, ARP probes, IPv6's unspecified address and the link-local one made of its Ethernet address. It cannot be a
router to others: no router advertisements, no redirects. Frames of other protocols are not passed on, nor is what hides
behind more IPv6 extension headers than anybody looks through.

Pure; the switch calls it for each frame (`dom0.backend.net.switch.Check`).
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address

from xen_py.io.packet import ETHERNET, EXTENSIONS, ICMPV6, UDP, headers, is_fragment

_ANY_V4 = bytes(4)
_ANY_V6 = bytes(16)
_ADVERTISES_ROUTER, _SOLICITS, _ADVERTISES, _REDIRECTS = 134, 135, 136, 137
_SOURCE_LINK, _TARGET_LINK = 1, 2
_ROUTER_SOLICITATION = 133
_DISCOVERY = range(_ROUTER_SOLICITATION, _REDIRECTS + 1)


def parse_addresses(text: str) -> tuple[IPv4Address | IPv6Address, ...]:
    """The value of `ip=`: addresses between blanks. ValueError names the one that is none."""
    found = []
    for word in text.split():
        try:
            found.append(ip_address(word.partition("/")[0]))
        except ValueError:
            raise ValueError(f"ip={text}: {word!r} is not an IP address") from None
    return tuple(found)


class AddressFilter:
    """See the module."""

    def __init__(self, mac: bytes, addresses: Iterable[IPv4Address | IPv6Address]) -> None:
        named = list(addresses)
        self._mac = mac
        self._v4 = {address.packed for address in named if address.version == 4} | {_ANY_V4}
        self._v6 = {address.packed for address in named if address.version == 6} | {_link_local(mac)}

    def __call__(self, data: bytes) -> bool:
        if data[6:12] != self._mac:
            return False
        match data[12] << 8 | data[13]:
            case 0x0806:
                return self._arp(data)
            case 0x0800:
                return self._ipv4(data)
            case 0x86DD:
                return self._ipv6(data)
        return False

    def _arp(self, data: bytes) -> bool:
        body = data[ETHERNET:]
        if len(body) < 28 or body[:6] != b"\0\1\x08\0\6\4":
            return False
        return body[8:14] == self._mac and body[14:18] in self._v4

    def _ipv4(self, data: bytes) -> bool:
        found = headers(data)
        if found is None:
            return False
        source = data[found.network + 12 : found.network + 16]
        if source == _ANY_V4:
            ports = data[found.transport : found.transport + 4]
            return found.protocol == UDP and ports == b"\0\x44\0\x43"  # bootpc to bootps
        return source in self._v4

    def _ipv6(self, data: bytes) -> bool:
        found = headers(data)
        if found is None:
            return False
        source = data[found.network + 8 : found.network + 24]
        if found.protocol in EXTENSIONS:
            return False  # more of them than anybody looks behind
        if found.protocol != ICMPV6:
            return source in self._v6
        if source not in self._v6 and source != _ANY_V6:
            return False
        return self._message(data[found.transport : found.end], is_fragment(data, found))

    def _message(self, body: bytes, fragment: bool) -> bool:
        """ICMPv6: of neighbour discovery only what tells the truth of us, in one piece (RFC 6980)."""
        if not body:
            return False
        kind = body[0]
        if kind in (_ADVERTISES_ROUTER, _REDIRECTS) or (fragment and kind in _DISCOVERY):
            return False
        if kind == _ADVERTISES and body[8:24] not in self._v6:
            return False
        start = {_ROUTER_SOLICITATION: 8, _SOLICITS: 24, _ADVERTISES: 24}.get(kind)
        return start is None or self._options(body, start)

    def _options(self, body: bytes, at: int) -> bool:
        while at + 2 <= len(body):
            length = body[at + 1] * 8
            if not length or at + length > len(body):
                return False
            if body[at] in (_SOURCE_LINK, _TARGET_LINK) and body[at + 2 : at + 8] != self._mac:
                return False
            at += length
        return at == len(body)


def _link_local(mac: bytes) -> bytes:
    return b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]


