# SPDX-License-Identifier: GPL-2.0-only
"""Frames such as a guest with `mac=`A and `ip=10.0.0.1 fd00::1` may send, forgeries that it may not, and a judge.

The judge (`permitted`) is written from what docs/network.md says of `ip=`, and shares nothing with what it judges.
"""

from __future__ import annotations

import random
import struct
from ipaddress import ip_address

from tests.net.frames import EVERYONE, A, B, C, arp, frame, ip4, ip6, tcp, udp

OURS_V4, OURS_V6 = "10.0.0.1", "fd00::1"
OUR_LINK_LOCAL = "fe80::216:3eff:fe00:1"
MTU = 1500
_RS, _RA, _NS, _NA, _REDIRECT = range(133, 138)
_HOP, _ROUTING, _FRAGMENT, _OPTIONS = 0, 43, 44, 60


def honest(dice: random.Random) -> bytes:
    """A frame that is permitted."""
    to = dice.choice((B, C, EVERYONE))
    match dice.randrange(8):
        case 0:
            return arp(A, A, dice.choice((OURS_V4, "0.0.0.0")), to)
        case 1:
            return ip4(to, A, OURS_V4, "10.0.0.2", 17, udp(dice.randbytes(dice.randrange(1400))))
        case 2:
            return ip4(to, A, OURS_V4, "10.0.0.2", 6, tcp(dice.randbytes(dice.randrange(1400))))
        case 3:
            return ip4(EVERYONE, A, "0.0.0.0", "255.255.255.255", 17, udp(dice.randbytes(300), (68, 67)))
        case 4:
            source = dice.choice((OURS_V6, OUR_LINK_LOCAL))
            return ip6(to, A, source, "fd00::2", 17, udp(dice.randbytes(dice.randrange(1300))))
        case 5:
            body = tcp(dice.randbytes(dice.randrange(1000)))
            return ip6(to, A, OURS_V6, "fd00::2", *_behind(dice, 6, body, dice.randrange(4)))
        case 6:
            return ip6(to, A, dice.choice((OURS_V6, "::")), "ff02::1:ff00:2", 58, icmp6(_NS, "fd00::2"))
        case _:
            return ip6(to, A, OURS_V6, "ff02::1", 58, icmp6(_NA, OURS_V6, (2, A)))


def forged(dice: random.Random) -> bytes:
    """A frame that is not permitted, whatever is believed of it."""
    to = dice.choice((B, C, EVERYONE))
    other = dice.choice((B, C, b"\2" + dice.randbytes(5)))
    v4 = dice.choice(("10.0.0.2", "10.0.0.11", "127.0.0.1", "255.255.255.255"))
    v6 = dice.choice(("fd00::2", "fe80::216:3eff:fe00:2", "::1", "fd00::11"))
    match dice.randrange(14):
        case 0:
            data = honest(dice)
            return data[:6] + dice.choice((other, A[:5] + b"\7", b"\1" + A[1:])) + data[12:]
        case 1:
            return ip4(to, A, v4, "10.0.0.2", 17, udp(dice.randbytes(100)))
        case 2:
            return ip4(to, A, "0.0.0.0", "10.0.0.2", dice.choice((6, 17)), udp(dice.randbytes(100), (67, 68)))
        case 3:
            return arp(A, other, dice.choice((OURS_V4, v4)), to)
        case 4:
            return arp(A, A, v4, to)
        case 5:
            return ip6(to, A, v6, "fd00::2", *_behind(dice, 6, tcp(dice.randbytes(100)), dice.randrange(3)))
        case 6:
            return ip6(to, A, "::", "fd00::2", 17, udp(dice.randbytes(100)))
        case 7:
            body = icmp6(dice.choice((_RA, _REDIRECT)), "fd00::2", (1, A))
            return ip6(to, A, OUR_LINK_LOCAL, "ff02::1", *_behind(dice, 58, body, dice.randrange(14)))
        case 8:
            body = icmp6(_NA, v6, (2, A))
            return ip6(to, A, OURS_V6, "ff02::1", *_behind(dice, 58, body, dice.randrange(14)))
        case 9:
            kind = dice.choice((_NS, _NA))
            body = icmp6(kind, OURS_V6, (dice.choice((1, 2)), other))
            return ip6(to, A, OURS_V6, "ff02::1", *_behind(dice, 58, body, dice.randrange(14)))
        case 10:
            data = honest(dice)
            tags = [dice.choice((b"\x81\x00", b"\x88\xa8")) + dice.choice((b"\0\0", b"\0\5", b"\0\6")) for _ in "ab"]
            return data[:12] + b"".join(tags[: dice.randint(1, 2)]) + data[12:]
        case 11:
            inner = b"\xaa\xaa\3\0\0\0" + honest(dice)[12:500]
            return frame(to, A, len(inner), inner)
        case 12:
            return frame(to, A, dice.choice((0x8035, 0x8864, 0x88CC, 0x6003, 0x0801)), dice.randbytes(60))
        case _:  # what the first piece leaves open, a second would say
            body = struct.pack(">BBHI", 58, 0, 1, dice.getrandbits(32)) + icmp6(_NA, OURS_V6)
            return ip6(to, A, OURS_V6, "ff02::1", _FRAGMENT, body)


def mutated(dice: random.Random) -> bytes:
    """Nobody knows."""
    data = bytearray(dice.choice((honest, forged))(dice))
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(min(len(data), 90))
        data[at] = dice.choice((dice.getrandbits(8), data[at] ^ 1 << dice.randrange(8), 0, 255))
    return bytes(data[: dice.randint(14, len(data))]) if dice.random() < 0.2 else bytes(data)


def icmp6(kind: int, target: str, option: tuple[int, bytes] | None = None) -> bytes:
    """A message of neighbour discovery, as far as its shape goes."""
    front = {_RS: 8, _RA: 16, _NS: 24, _NA: 24, _REDIRECT: 40}[kind]
    body = (bytes([kind, 0, 0, 0, 0, 0, 0, 0]) + ip_address(target).packed + bytes(16))[:front]
    return body + (bytes([option[0], 1]) + option[1] if option is not None else b"")


def _behind(dice: random.Random, protocol: int, body: bytes, count: int) -> tuple[int, bytes]:
    """The body with so many more headers in front of it."""
    for _ in range(count):
        kind = dice.choice((_OPTIONS, _OPTIONS, _ROUTING, _HOP))
        size = dice.choice((0, 0, 1))
        body = bytes([protocol, size]) + (b"\1\4" + bytes(4) if kind != _ROUTING else bytes(6)) + bytes(8 * size) + body
        protocol = kind
    return protocol, body


# ---- the judge ----


def permitted(data: bytes) -> bool:
    """Whether the guest may have sent such a frame."""
    if len(data) < 14 or data[6:12] != A:
        return False
    kind, body = data[12:14], data[14:]
    if kind == b"\x08\x06":
        right = len(body) >= 28 and body[:6] == b"\0\1\x08\0\6\4" and body[8:14] == A
        return right and _is(body[14:18], OURS_V4, "0.0.0.0")
    if kind == b"\x08\x00":
        return _permitted_v4(body)
    return kind == b"\x86\xdd" and _permitted_v6(body)


def _is(packed: bytes, *addresses: str) -> bool:
    return len(packed) in (4, 16) and ip_address(packed) in map(ip_address, addresses)


def _permitted_v4(body: bytes) -> bool:
    if len(body) < 20 or body[0] >> 4 != 4:
        return False
    front, length = (body[0] & 15) * 4, int.from_bytes(body[2:4], "big")
    if not 20 <= front <= length <= len(body):
        return False
    if _is(body[12:16], "0.0.0.0"):
        whole_or_first = int.from_bytes(body[6:8], "big") & 0x1FFF == 0
        return whole_or_first and body[9] == 17 and body[front : front + 4] == b"\0\x44\0\x43"
    return _is(body[12:16], OURS_V4)


def _permitted_v6(body: bytes) -> bool:
    if len(body) < 40 or body[0] >> 4 != 6 or int.from_bytes(body[4:6], "big") > len(body) - 40:
        return False
    source, kind = body[8:24], body[6]
    rest = body[40 : 40 + int.from_bytes(body[4:6], "big")]
    fragment = later = False
    while kind in (_HOP, _ROUTING, _OPTIONS, _FRAGMENT) and not later:
        if len(rest) < 8:
            return False  # nobody knows what is in it
        size = 8 if kind == _FRAGMENT else 8 + rest[1] * 8
        if kind == _FRAGMENT:
            fragment, later = True, int.from_bytes(rest[2:4], "big") >= 8
        if size > len(rest):
            return False
        kind, rest = rest[0], rest[size:]
    ours = _is(source, OURS_V6, OUR_LINK_LOCAL)
    if later or kind != 58:
        return ours
    return (ours or _is(source, "::")) and _permitted_message(rest, fragment)


def _permitted_message(message: bytes, fragment: bool) -> bool:
    if not message:
        return False
    kind = message[0]
    if kind not in range(_RS, _REDIRECT + 1):
        return True
    if fragment or kind in (_RA, _REDIRECT) or (kind == _NA and not _is(message[8:24], OURS_V6, OUR_LINK_LOCAL)):
        return False
    options = message[8 if kind == _RS else 24 :]
    while options:
        size = options[1] * 8 if len(options) > 1 else 0
        if not 0 < size <= len(options) or (options[0] in (1, 2) and options[2:8] != A):
            return False
        options = options[size:]
    return True
