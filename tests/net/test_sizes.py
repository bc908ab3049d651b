# SPDX-License-Identifier: GPL-2.0-only
"""Large segments between the switch and the world: what each side is told, and what the guest gets."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0.backend.net.merge import merged
from dom0.backend.net.sizes import SegmentSizes, fragments
from tests.net.frames import A, B, ip4, ip6, tcp, udp, whole
from xen_py.io.netif import GsoType
from xen_py.io.packet import Csum, Packet, checksum_is_right, headers, internet_sum, segment

GUEST = {False: "10.0.2.15", True: "fd0a:0:2::15"}
STACK = {False: "10.0.2.2", True: "fd0a:0:2::2"}
MSS = bytes([2, 4])


def to_stack(body: bytes, six: bool, protocol: int = 6) -> bytes:
    return (ip6 if six else ip4)(B, A, GUEST[six], STACK[six], protocol, body)


def to_guest(body: bytes, six: bool, protocol: int = 6) -> bytes:
    return (ip6 if six else ip4)(A, B, STACK[six], GUEST[six], protocol, body)


def syn(options: bytes, flags: int = 2) -> bytes:
    head = bytearray(tcp(b"", flags=flags))
    head[12] = 5 + len(options) // 4 << 4
    return bytes(head) + options


@pytest.mark.parametrize("six", [False, True])
@pytest.mark.parametrize("csum", [Csum.BLANK, Csum.VALID])
def test_the_stack_hears_of_large_segments_and_the_guest_gets_its_own(six: bool, csum: Csum) -> None:
    sizes = SegmentSizes()
    data = to_stack(syn(b"\1\1\1\1" + MSS + (1400).to_bytes(2, "big") + b"\4\2\0\0"), six)
    packet = sizes.outward(Packet(data if csum is Csum.BLANK else whole(data), csum))
    assert packet.csum is Csum.VALID
    assert checksum_is_right(packet.data)
    changed = [n for n, (one, two) in enumerate(zip(packet.data, data, strict=True)) if one != two]
    at = data.index(MSS) + 2
    assert packet.data[at : at + 2] == (32768).to_bytes(2, "big")
    assert {n for n in changed if n not in (at, at + 1)} <= {at - 10, at - 9}  # the checksum
    payload = bytes(n % 251 for n in range(20000))
    (large,) = merged([whole(to_guest(tcp(payload, ports=(80, 1000)), six))], sizes.of)
    assert (large.gso, large.gso_size, large.csum) == (GsoType.TCPV6 if six else GsoType.TCPV4, 1400, Csum.BLANK)
    pieces = segment(large)
    front = len(large.data) - len(payload)
    assert b"".join(piece.data[front:] for piece in pieces) == payload
    assert max(len(piece.data) - front for piece in pieces) == 1400
    (other,) = merged([whole(to_guest(tcp(payload, ports=(80, 1001)), six))], sizes.of)
    assert other.gso_size == (1220 if six else 536)  # nothing has been heard of that one
    (small,) = merged([whole(to_guest(tcp(payload[:1400], ports=(80, 1000)), six))], sizes.of)
    assert small.gso is GsoType.NONE


def test_large_ones_do_not_overtake_small_ones() -> None:
    sizes = SegmentSizes()
    sizes.outward(Packet(to_stack(syn(MSS + (1000).to_bytes(2, "big")), False)))
    frames = [
        whole(to_guest(tcp(bytes(size), sequence=sequence, flags=0x10, ports=(80, 1000)), False))
        for sequence, size in ((1, 500), (501, 500), (1001, 9000))
    ]
    found = list(merged(frames, sizes.of))
    assert [(len(packet.data) - 54, packet.gso_size) for packet in found] == [(1000, 500), (9000, 1000)]


@pytest.mark.parametrize(
    "options",
    [b"", b"\0\0\0\0", b"\1\1\1\1", bytes([2, 3, 0, 0]), bytes([2, 0, 0, 0]), bytes([9, 40, 0, 0]), b"\1\1\1\2"],
)
def test_options_that_say_nothing_stay(options: bytes) -> None:
    sizes = SegmentSizes()
    packet = Packet(whole(to_stack(syn(options), False)), Csum.VALID)
    assert sizes.outward(packet) == packet
    assert sizes.statistics() == {"connections": 1}


@given(st.binary(max_size=80), st.booleans())
def test_whatever_a_guest_sends(body: bytes, six: bool) -> None:
    packet = Packet(to_stack(body, six))
    found = SegmentSizes().outward(packet)
    assert len(found.data) == len(packet.data)


def test_connections_are_forgotten() -> None:
    sizes = SegmentSizes()
    for port in range(5000):
        sizes.outward(Packet(to_stack(tcp(b"", flags=2, ports=(port, 80)), False)))
    assert sizes.statistics() == {"connections": 4096}
    sizes.outward(Packet(to_stack(tcp(b"", flags=0x10, ports=(6000, 80)), False)))
    assert sizes.statistics() == {"connections": 4096}


@given(st.integers(0, 20000), st.booleans(), st.sampled_from([1500, 1280, 576]))
def test_fragments_are_the_datagram(size: int, six: bool, mtu: int) -> None:
    payload = bytes(n % 251 for n in range(size))
    data = whole(to_guest(udp(payload), six, 17))
    pieces = fragments(data, mtu, 77)
    if len(data) - 14 <= mtu:
        assert pieces == [data]
        return
    carried = bytearray(len(data) - (54 if six else 34))
    ends = 0
    for piece in pieces:
        assert len(piece) - 14 <= mtu
        assert piece[:14] == data[:14]
        found = headers(piece)
        assert found is not None and found.end == len(piece)
        if six:
            following, _, place, identification = struct.unpack_from(">BBHI", piece, 54)
            assert (piece[20], following, identification) == (44, 17, 77)
            at, more, rest = place & 0xFFF8, place & 1, piece[62:]
        else:
            identification, place = struct.unpack_from(">HH", piece, 18)
            assert identification == 77
            assert internet_sum(piece[14:34]) == 0xFFFF
            at, more, rest = (place & 0x1FFF) * 8, place >> 13 & 1, piece[34:]
        assert not place & (6 if six else 0xC000)
        carried[at : at + len(rest)] = rest
        ends += not more
        assert more == (at + len(rest) < len(carried))
    assert ends == 1
    assert bytes(carried) == data[54 if six else 34 :]
