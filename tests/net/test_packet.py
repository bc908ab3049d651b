# SPDX-License-Identifier: GPL-2.0-only
"""Checksums put in and frames cut into segments: the same bytes and headers as one sender without offloads makes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.net.frames import A, B, frame, ip4, ip6, tcp, udp, whole
from xen_py.io.netif import GsoType
from xen_py.io.packet import Csum, Packet, checksum_is_right, complete, flow, headers, internet_sum, segment


def test_the_sum_is_that_of_rfc_1071() -> None:
    assert internet_sum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2
    assert internet_sum(b"") == 0
    assert internet_sum(b"\xff\xff") == 0xFFFF
    assert internet_sum(b"\x12") == 0x1200


def test_known_checksums() -> None:
    """A UDP datagram whose checksum was worked out by hand: the sum of its words is 0x2ABF short of all ones."""
    data = whole(ip4(B, A, "10.0.0.1", "10.0.0.2", 17, udp(b"hi", (1, 2))))
    words = [0x0A00, 1, 0x0A00, 2, 17, 10, 1, 2, 10, 0x6869]
    assert int.from_bytes(data[40:42], "big") == 0xFFFF - sum(words)


@given(st.binary(max_size=300), st.booleans(), st.booleans())
def test_what_was_blank_is_right_afterwards(payload: bytes, six: bool, is_tcp: bool) -> None:
    body, protocol = (tcp(payload), 6) if is_tcp else (udp(payload), 17)
    data = ip6(B, A, "fd00::1", "fd00::2", protocol, body) if six else ip4(B, A, "10.0.0.1", "10.0.0.2", protocol, body)
    done = complete(Packet(data + b"padding", Csum.BLANK))
    assert done.csum is Csum.VALID
    assert checksum_is_right(done.data)
    assert len(done.data) == len(data) + 7
    spoilt = bytearray(done.data)
    spoilt[len(data) - len(payload) - 1] ^= 0x10
    assert is_tcp or not checksum_is_right(bytes(spoilt))


@given(st.binary(min_size=0, max_size=5000), st.integers(48, 1500), st.booleans(), st.booleans())
def test_segments_carry_the_same_bytes(payload: bytes, size: int, six: bool, tagged: bool) -> None:
    body = tcp(payload, sequence=0xFFFFFFF0, flags=0x99)
    data = ip6(B, A, "fd00::1", "fd00::2", 6, body) if six else ip4(B, A, "10.0.0.1", "10.0.0.2", 6, body)
    if tagged:
        data = data[:12] + b"\x81\0\0\x05" + data[12:]
    front = len(data) - len(payload)
    pieces = segment(Packet(data, Csum.BLANK, GsoType.TCPV6 if six else GsoType.TCPV4, size))
    assert b"".join(piece.data[front:] for piece in pieces) == payload
    assert len(pieces) == max(1, -(-len(payload) // size))
    for number, piece in enumerate(pieces):
        found = headers(piece.data)
        assert found is not None and found.end == len(piece.data)
        assert checksum_is_right(complete(piece).data)
        sequence = int.from_bytes(piece.data[found.transport + 4 : found.transport + 8], "big")
        assert sequence == (0xFFFFFFF0 + number * size) % (1 << 32)
        flags = piece.data[found.transport + 13]
        last = number == len(pieces) - 1
        assert (bool(flags & 1), bool(flags & 8), bool(flags & 0x80)) == (last, last, not number)
        if not six:
            assert internet_sum(piece.data[found.network : found.transport]) == 0xFFFF
            assert int.from_bytes(piece.data[found.network + 4 : found.network + 6], "big") == number


@given(st.binary(max_size=200), st.sampled_from(GsoType), st.integers(0, 65535))
def test_nothing_in_a_frame_is_believed(data: bytes, gso: GsoType, size: int) -> None:
    headers(data)
    flow(data)
    complete(Packet(data, Csum.BLANK))
    segment(Packet(data, Csum.BLANK, gso, size))
    for front in (frame(B, A, 0x0800)[:14], frame(B, A, 0x86DD)[:14], frame(B, A, 0x8100)[:14] + b"\0\5\x86\xdd"):
        for start in (b"\x45", b"\x4f", b"\x60", b""):
            packet = Packet(front + start + data, Csum.BLANK, gso, size)
            complete(packet)
            segment(packet)
            flow(packet.data)


def test_what_cannot_be_cut_as_it_says_is_nothing() -> None:
    four = ip4(B, A, "10.0.0.1", "10.0.0.2", 6, tcp(b"x" * 4000))
    for packet in (
        Packet(four, Csum.BLANK, GsoType.TCPV6, 1000),
        Packet(four, Csum.BLANK, GsoType.TCPV4, 0),
        Packet(four, Csum.BLANK, GsoType.TCPV4, 1),
        Packet(ip4(B, A, "10.0.0.1", "10.0.0.2", 17, udp(b"x" * 4000)), Csum.BLANK, GsoType.TCPV4, 1000),
        Packet(four[:46] + b"\xf0" + four[47:60], Csum.BLANK, GsoType.TCPV4, 1000),
    ):
        assert segment(packet) == []


def test_a_flow_has_one_number() -> None:
    one = ip4(B, A, "10.0.0.1", "10.0.0.2", 6, tcp(b"a"))
    assert flow(one) == flow(ip4(B, A, "10.0.0.1", "10.0.0.2", 6, tcp(b"bbb", sequence=99)))
    assert flow(one) != flow(ip4(B, A, "10.0.0.1", "10.0.0.2", 6, tcp(b"a", ports=(1001, 80))))
