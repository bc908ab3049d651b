# SPDX-License-Identifier: GPL-2.0-only
"""A port of the host that leads to one of a guest's, as a configuration names it (`forward=`). Plain data."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address

import attrs

_FORWARD = re.compile(r"(?:(tcp|udp):)?(?:([0-9.]+):|\[([0-9a-fA-F:.]+)\]:)?([0-9]{1,5}):([0-9]{1,5})")
_LOOPBACK = IPv4Address("127.0.0.1")


@attrs.frozen
class Forward:
    """A port of the host that leads to one of a guest's, by the version of IP that the host's address has."""

    udp: bool
    host: IPv4Address | IPv6Address
    host_port: int
    guest_port: int

    @classmethod
    def parse(cls, text: str) -> Forward:
        """`[tcp:|udp:][ADDRESS:]PORT:PORT`, the host's first, an IPv6 address in brackets. ValueError."""
        match = _FORWARD.fullmatch(text)
        if match is None or not all(0 < int(port) < 65536 for port in match.group(4, 5)):
            raise ValueError(
                f"forward={text} is not [tcp:|udp:][ADDRESS:]PORT:PORT, the host's port first, IPv6 in brackets"
            )
        try:
            host = IPv6Address(match[3]) if match[3] else IPv4Address(match[2]) if match[2] else _LOOPBACK
        except ValueError:
            raise ValueError(f"forward={text}: {match[3] or match[2]} is not an IP address") from None
        return cls(match[1] == "udp", host, int(match[4]), int(match[5]))

    def __str__(self) -> str:
        host = f"[{self.host}]" if self.host.version == 6 else self.host
        return f"{'udp' if self.udp else 'tcp'}:{host}:{self.host_port}"


def parse_forwards(text: str) -> tuple[Forward, ...]:
    """The value of `forward=`: one or several between blanks. ValueError."""
    return tuple(Forward.parse(word) for word in text.split())
