# SPDX-License-Identifier: GPL-2.0-only
"""The way to the world: addresses for guests, segments put together, the host at the gateway, forwarded ports."""

from __future__ import annotations

import ctypes
import random
import struct
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0.backend.net.dhcp import Leases
from dom0.backend.net.forward import Forward, parse_forwards
from dom0.backend.net.merge import merged
from dom0.backend.net.world import DNS, GATEWAY, GATEWAY_MAC, NETWORK
from tests import debian as packages
from tests.net.apart import run_apart
from tests.net.frames import A, B, C, frame, ip4, ip6, tcp, udp, whole
from xen_py.io.netif import GsoType
from xen_py.io.packet import Csum, Headers, Packet, checksum_is_right, complete, headers, segment

ANY, ALL = "0.0.0.0", "255.255.255.255"


def request(
    mac: bytes, kind: int, *, wanted: str | None = None, current: str = ANY, chaddr: bytes | None = None
) -> bytes:
    """What a DHCP client says."""
    body = struct.pack(">BBBBIHH", 1, 1, 6, 0, 0x12345678, 0, 0) + IPv4Address(current).packed + bytes(12)
    body += (chaddr or mac) + bytes(10) + bytes(192) + b"\x63\x82\x53\x63" + bytes([53, 1, kind])
    if wanted is not None:
        body += b"\x32\x04" + IPv4Address(wanted).packed
    return ip4(b"\xff" * 6, mac, current, ALL, 17, udp(body + b"\xff", (68, 67)))


def given_by(answer: bytes | None) -> tuple[int, str]:
    """The kind of an answer and the address in it."""
    assert answer is not None
    assert checksum_is_right(answer)
    found = headers(answer)
    assert found is not None
    body = answer[found.transport + 8 :]
    assert body[:4] == b"\2\1\6\0"
    return body[242], str(IPv4Address(body[16:20]))


@pytest.fixture
def leases() -> Leases:
    return Leases(NETWORK, GATEWAY, DNS, GATEWAY_MAC)


def test_an_address_is_given_and_kept(leases: Leases) -> None:
    assert given_by(leases.answer(request(A, 1))) == (2, "10.0.2.15")
    assert given_by(leases.answer(request(A, 3, wanted="10.0.2.15"))) == (5, "10.0.2.15")
    assert given_by(leases.answer(request(B, 3, wanted="10.0.2.15"))) == (6, ANY)
    assert given_by(leases.answer(request(B, 1))) == (2, "10.0.2.16")
    assert given_by(leases.answer(request(A, 3, current="10.0.2.15"))) == (5, "10.0.2.15")
    assert given_by(leases.answer(request(A, 8, current="10.0.2.77"))) == (5, ANY)
    assert leases.answer(request(A, 7)) is None


def test_configured_guests_have_theirs(leases: Leases) -> None:
    assert leases.reserve(A, IPv4Address("10.0.2.50")) == IPv4Address("10.0.2.50")
    assert given_by(leases.answer(request(A, 1))) == (2, "10.0.2.50")
    assert leases.reserve(B) == leases.reserve(B) == IPv4Address("10.0.2.15")
    assert leases.reserve(C, IPv4Address("192.168.1.1")) == IPv4Address("10.0.2.16")
    for number in range(1000):
        leases.answer(request(b"\2\0" + number.to_bytes(4, "big"), 1))
    assert given_by(leases.answer(request(B, 1))) == (2, "10.0.2.15")
    assert leases.reserve(b"\2\1\0\0\0\1") is not None


@given(st.binary(max_size=400))
def test_requests_that_are_none(data: bytes) -> None:
    leases = Leases(NETWORK, GATEWAY, DNS, GATEWAY_MAC)
    good = request(A, 1)
    for text in (data, good[: len(data)], good[:42] + data, good[:282] + data, good[:-1] + data):
        leases.answer(text)
    assert leases.answer(request(A, 1, chaddr=B)) is None
    assert leases.answer(good[:40] + good[42:]) is None


def whatever(_data: bytes, _found: Headers) -> int:
    """The receiver takes segments of any size."""
    return 65535


def segments(payload: bytes, size: int, six: bool) -> list[bytes]:
    body = tcp(payload, flags=0x10)
    data = ip6(B, A, "fd00::1", "fd00::2", 6, body) if six else ip4(B, A, "10.0.0.1", "10.0.0.2", 6, body)
    packet = Packet(data, Csum.BLANK, GsoType.TCPV6 if six else GsoType.TCPV4, size)
    return [complete(piece).data for piece in segment(packet)]


@given(st.binary(min_size=1, max_size=9000), st.booleans(), st.randoms(use_true_random=False))
def test_what_was_cut_is_put_together(payload: bytes, six: bool, dice: random.Random) -> None:
    pieces = segments(payload, 1000, six)
    whole_again = list(merged(pieces, whatever))
    assert len(whole_again) == 1
    (packet,) = whole_again
    if len(pieces) > 1:
        assert (packet.gso, packet.gso_size) == (GsoType.TCPV6 if six else GsoType.TCPV4, 1000)
        again = [complete(piece).data for piece in segment(packet)]
        assert [piece[74 if six else 54 :] for piece in again] == [piece[74 if six else 54 :] for piece in pieces]
    # in any order, among others: nothing is lost, and no stream's order is changed
    mixed = pieces + [whole(ip4(B, A, "10.0.0.1", "10.0.0.2", 17, udp(bytes([n])))) for n in range(3)]
    dice.shuffle(mixed)
    found = [complete(piece).data for packet in merged(mixed, whatever) for piece in segment(packet)]
    front = 74 if six else 54
    assert sorted(data[front:] for data in found) == sorted(data[front:] for data in mixed)
    assert [d for d in found if d[23] == 17 and not six] == [d for d in mixed if d[23] == 17 and not six]


@given(st.binary(max_size=100))
def test_frames_that_are_no_segments_stay(data: bytes) -> None:
    for front in (frame(B, A, 0x0800), frame(B, A, 0x86DD), frame(B, A, 0x0806)):
        assert list(merged([front + data], whatever)) == [Packet(front + data, Csum.VALID)]


def test_forwards_of_a_configuration() -> None:
    assert parse_forwards("8080:80 udp:0.0.0.0:53:5353 [::1]:8080:80 tcp:[::]:1:2") == (
        Forward(False, IPv4Address("127.0.0.1"), 8080, 80),
        Forward(True, IPv4Address("0.0.0.0"), 53, 5353),
        Forward(False, IPv6Address("::1"), 8080, 80),
        Forward(False, IPv6Address("::"), 1, 2),
    )
    assert list(map(str, parse_forwards("80:1 udp:[::1]:8080:80"))) == ["tcp:127.0.0.1:80", "udp:[::1]:8080"]
    for text in ("80", "0:80", "80:65536", "sctp:1:2", "1.2.3:1:2", "a:b", "::1:1:2", "[::1:]:1:2", "[1.2.3.4]:1:2"):
        with pytest.raises(ValueError, match="forward="):
            parse_forwards(text)



@pytest.fixture
def slirp(monkeypatch: pytest.MonkeyPatch) -> None:
    """libslirp is there: the machine's, or Debian's without being installed."""
    try:
        ctypes.CDLL("libslirp.so.0")
    except OSError:
        _, libraries, _ = packages.program("libslirp0", "")
        monkeypatch.setenv(*libraries.split("=", 1))


def test_debians_and_the_world(slirp: None, debian: None, tmp_path: Path) -> None:
    run_apart("tests.net.scene_world", tmp_path)
