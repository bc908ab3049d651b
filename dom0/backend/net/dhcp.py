# SPDX-License-Identifier: GPL-2.0-only
"""DHCP for a bridge with a way to the world: each Ethernet address gets an IPv4 address and keeps it.

The user-mode network stack has a server of its own, which knows sixteen clients. This one has the whole network's
addresses, keeps those that configurations name for their guests, and is asked beforehand which address a guest will
have, so that ports can be forwarded to it. Clients that no configuration names may have a part of the addresses only:
one guest cannot take all. Pure; requests are guests' and nothing in them is believed.

Sources: RFC 2131, 2132.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

from xen_py.io.packet import UDP, Csum, Packet, complete, headers, internet_sum

_SERVER, _CLIENT = 67, 68
_MAGIC = b"\x63\x82\x53\x63"
_DISCOVER, _OFFER, _REQUEST, _ACK, _NAK, _INFORM = 1, 2, 3, 5, 6, 8
_PAD, _MASK, _ROUTER, _DNS, _WANTED, _LEASE, _KIND, _WHO, _END = 0, 1, 3, 6, 50, 51, 53, 54, 255
LEASE_SECONDS = 86400
_MOST_STRANGERS = 100
_FIRST = 15
"""The first address that is given out, of the network's."""


class Leases:
    """The addresses of one network, and who has them. `gateway` is the server, too."""

    def __init__(self, network: IPv4Network, gateway: IPv4Address, dns: IPv4Address, mac: bytes) -> None:
        self.network = network
        self._gateway = gateway
        self._dns = dns
        self._mac = mac
        self._by_mac: dict[bytes, IPv4Address] = {}
        self._strangers: dict[bytes, None] = {}

    def reserve(self, mac: bytes, wanted: IPv4Address | None = None) -> IPv4Address | None:
        """The address that this configured guest has or will have; None where there is none left."""
        self._strangers.pop(mac, None)
        if wanted is not None and wanted in self.network:
            for other, address in list(self._by_mac.items()):
                if address == wanted and other != mac:
                    del self._by_mac[other]
            self._by_mac[mac] = wanted
        return self._address(mac)

    def answer(self, data: bytes) -> bytes | None:
        """The frame that answers a frame, where that is a request for an address."""
        found = headers(data)
        if found is None or found.version != 4 or found.protocol != UDP:
            return None
        body = data[found.transport : found.end]
        if len(body) < 8 + 240 or body[2:4] != _SERVER.to_bytes(2, "big"):
            return None
        message = body[8:]
        if message[:3] != b"\1\1\6" or message[28:34] != data[6:12] or message[236:240] != _MAGIC:
            return None
        options = dict(_options(message[240:]))
        kind = options.get(_KIND, b"")[:1]
        if options.get(_WHO, self._gateway.packed) != self._gateway.packed or len(kind) != 1:
            return None
        return self._reply(message, kind[0], options)

    def _reply(self, message: bytes, kind: int, options: dict[int, bytes]) -> bytes | None:
        mac, current = message[28:34], message[12:16]
        if kind == _INFORM:
            return self._frame(message, _ACK, IPv4Address(0), IPv4Address(current))
        if mac not in self._by_mac:
            self._make_room(mac)
        address = self._address(mac)
        if address is None or kind not in (_DISCOVER, _REQUEST):
            return None
        if kind == _DISCOVER:
            return self._frame(message, _OFFER, address, address)
        wanted = options.get(_WANTED, current)
        if wanted != address.packed:
            return self._frame(message, _NAK, IPv4Address(0), IPv4Address("255.255.255.255"))
        return self._frame(message, _ACK, address, address)

    def _frame(self, message: bytes, kind: int, given: IPv4Address, to: IPv4Address) -> bytes:
        mac = message[28:34]
        words = [(_KIND, bytes([kind])), (_WHO, self._gateway.packed)]
        if kind != _NAK:
            words += [
                (_MASK, self.network.netmask.packed),
                (_ROUTER, self._gateway.packed),
                (_DNS, self._dns.packed),
            ]
            words += [(_LEASE, LEASE_SECONDS.to_bytes(4, "big"))] if given != IPv4Address(0) else []
        body = b"\2\1\6\0" + message[4:12] + message[12:16] + given.packed + self._gateway.packed + message[24:28]
        body += message[28:44] + bytes(192) + _MAGIC
        body += b"".join(bytes([name, len(value)]) + value for name, value in words) + bytes([_END])
        body = body.ljust(300, b"\0")
        if message[10] & 0x80 or kind == _NAK:
            to = IPv4Address("255.255.255.255")
        datagram = struct.pack(">HHHH", _SERVER, _CLIENT, 8 + len(body), 0) + body
        head = struct.pack(">BBHHHBBH", 0x45, 0x10, 20 + len(datagram), 0, 0, 64, UDP, 0)
        head += self._gateway.packed + to.packed
        head = head[:10] + (0xFFFF - internet_sum(head)).to_bytes(2, "big") + head[12:]
        target = b"\xff" * 6 if kind == _NAK else mac
        return complete(Packet(target + self._mac + b"\x08\0" + head + datagram, Csum.BLANK)).data

    def _make_room(self, mac: bytes) -> None:
        """For a client that no configuration names: the one of its kind that came first goes."""
        if len(self._strangers) >= _MOST_STRANGERS:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            self._by_mac.pop(oldest, None)
        self._strangers[mac] = None

    def _address(self, mac: bytes) -> IPv4Address | None:
        if (known := self._by_mac.get(mac)) is not None:
            return known
        taken = set(self._by_mac.values())
        first = int(self.network.network_address)
        free = next(
            (
                address
                for number in range(_FIRST, self.network.num_addresses - 1)
                if (address := IPv4Address(first + number)) not in taken
            ),
            None,
        )
        if free is not None:
            self._by_mac[mac] = free
        return free


def _options(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 1 < len(data) and data[at] != _END:
        if data[at] == _PAD:
            at += 1
            continue
        yield data[at], data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + data[at + 1]
