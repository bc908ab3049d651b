# SPDX-License-Identifier: GPL-2.0-only
"""Ethernet frames made by hand, for the tests of this folder."""

from __future__ import annotations

import struct
from ipaddress import ip_address

from xen_py.io.packet import Csum, Packet, complete, internet_sum

A, B, C = (bytes.fromhex(f"00163e00000{n}") for n in (1, 2, 3))
EVERYONE = b"\xff" * 6


def frame(target: bytes, source: bytes, kind: int = 0x88B5, body: bytes = b"") -> bytes:
    return target + source + struct.pack(">H", kind) + body


def ip4(
    target: bytes, source: bytes, src: str, dst: str, protocol: int, body: bytes, *, identification: int = 0
) -> bytes:
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), identification, 0x4000, 64, protocol, 0)
    head += ip_address(src).packed + ip_address(dst).packed
    head = head[:10] + struct.pack(">H", 0xFFFF - internet_sum(head)) + head[12:]
    return frame(target, source, 0x0800, head + body)


def ip6(target: bytes, source: bytes, src: str, dst: str, protocol: int, body: bytes) -> bytes:
    head = struct.pack(">IHBB", 6 << 28, len(body), protocol, 64) + ip_address(src).packed + ip_address(dst).packed
    return frame(target, source, 0x86DD, head + body)


def tcp(payload: bytes, *, sequence: int = 1, flags: int = 0x18, ports: tuple[int, int] = (1000, 80)) -> bytes:
    return struct.pack(">HHIIBBHHH", *ports, sequence, 7, 0x50, flags, 512, 0, 0) + payload


def udp(payload: bytes, ports: tuple[int, int] = (1000, 53)) -> bytes:
    return struct.pack(">HHHH", *ports, 8 + len(payload), 0) + payload


def whole(data: bytes) -> bytes:
    """With its checksum put in."""
    return complete(Packet(data, Csum.BLANK)).data


def arp(source: bytes, claims: bytes, address: str, target: bytes = EVERYONE) -> bytes:
    body = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 2) + claims + ip_address(address).packed + bytes(10)
    return frame(target, source, 0x0806, body)
