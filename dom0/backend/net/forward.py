# SPDX-License-Identifier: GPL-2.0-only
"""A port of the host that leads to one of a guest's, as a configuration names it (`forward=`). Plain data."""

from __future__ import annotations

import re
from ipaddress import IPv4Address

import attrs

_FORWARD = re.compile(r"(?:(tcp|udp):)?(?:([0-9.]+):)?([0-9]{1,5}):([0-9]{1,5})")


@attrs.frozen
class Forward:
    """A port of the host that leads to one of a guest's."""

    udp: bool
    host: str
    host_port: int
    guest_port: int

    @classmethod
    def parse(cls, text: str) -> Forward:
        """`[tcp:|udp:][ADDRESS:]PORT:PORT`, the host's first. ValueError."""
        match = _FORWARD.fullmatch(text)
        if match is None or not all(0 < int(port) < 65536 for port in match.group(3, 4)):
            raise ValueError(f"forward={text} is not [tcp:|udp:][ADDRESS:]PORT:PORT, the host's port first")
        host = match[2] or "127.0.0.1"
        try:
            IPv4Address(host)
        except ValueError:
            raise ValueError(f"forward={text}: {host} is not an IPv4 address") from None
        return cls(match[1] == "udp", host, int(match[3]), int(match[4]))

    def __str__(self) -> str:
        return f"{'udp' if self.udp else 'tcp'}:{self.host}:{self.host_port}"


def parse_forwards(text: str) -> tuple[Forward, ...]:
    """The value of `forward=`: one or several between blanks. ValueError."""
    return tuple(Forward.parse(word) for word in text.split())
