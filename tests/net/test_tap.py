# SPDX-License-Identifier: GPL-2.0-only
"""Cards on a Linux bridge: what is said to the kernel of a frame, and guests on a bridge of the test's own."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0.backend.net.datapath import Datapath
from dom0.backend.net.switch import Switch
from dom0.backend.net.tap import TapFailed, _described, _understood, open_tap
from tests.net.apart import run_apart
from tests.net.frames import A, B, arp, ip4, ip6, tcp, udp, whole
from xen_py.io.netif import GsoType
from xen_py.io.packet import Csum, Packet, checksum_is_right, complete, internet_sum


def finished(header: bytes, data: bytes) -> bytes:
    """What the kernel makes of a frame whose checksum is to be put in."""
    flags, _, _, _, start, offset = struct.unpack("=BBHHHH", header)
    assert flags == 1
    value = 0xFFFF - internet_sum(data[start:])
    return data[: start + offset] + (value or 0xFFFF).to_bytes(2, "big") + data[start + offset + 2 :]


@given(st.binary(max_size=200), st.booleans(), st.booleans(), st.booleans())
def test_a_blank_checksum_is_the_kernels_to_put_in(payload: bytes, six: bool, datagram: bool, tagged: bool) -> None:
    body, protocol = (udp(payload), 17) if datagram else (tcp(payload), 6)
    make, addresses = (ip6, ("fd00::1", "fd00::2")) if six else (ip4, ("10.0.0.1", "10.0.0.2"))
    data = make(B, A, *addresses, protocol, body)
    if tagged:
        data = data[:12] + b"\x81\x00\0\5" + data[12:]
    told = _described(Packet(data, Csum.BLANK))
    assert told is not None
    assert finished(*told) == whole(data)
    again = _understood(b"".join(told))
    assert again is not None and complete(again) == complete(Packet(data, Csum.BLANK))


@pytest.mark.parametrize("six", [False, True])
def test_segments_stay_whole(six: bool) -> None:
    make, addresses = (ip6, ("fd00::1", "fd00::2")) if six else (ip4, ("10.0.0.1", "10.0.0.2"))
    kind = GsoType.TCPV6 if six else GsoType.TCPV4
    packet = Packet(make(B, A, *addresses, 6, tcp(bytes(9000))), Csum.BLANK, kind, 1400)
    told = _described(packet)
    assert told is not None
    network = 54 if six else 34
    assert struct.unpack("=BBHHHH", told[0]) == (1, 4 if six else 1, network + 20, 1400, network, 16)
    again = _understood(b"".join(told))
    assert again is not None and complete(again._replace(gso=GsoType.NONE, gso_size=0)).data == whole(packet.data)
    assert (again.gso, again.gso_size) == (kind, 1400)
    congested = told[0][:1] + bytes([told[0][1] | 0x80]) + told[0][2:] + told[1]
    assert _understood(congested) == again


def test_what_has_no_words_here() -> None:
    data = arp(A, A, "10.0.0.1")
    plain = struct.Struct("=BBHHHH").pack
    assert _described(Packet(data)) == (bytes(10), data)
    assert _described(Packet(data, Csum.VALID)) == (plain(2, 0, 0, 0, 0, 0), data)
    assert _described(Packet(data, Csum.BLANK)) is None
    datagram = ip4(B, A, "10.0.0.1", "10.0.0.2", 17, udp(b""))
    assert _described(Packet(datagram, Csum.BLANK, GsoType.TCPV4, 1400)) is None
    assert _understood(plain(2, 0, 0, 0, 0, 0) + data) == Packet(data, Csum.VALID)
    assert _understood(plain(0, 0, 0, 0, 0, 0) + data[:13]) is None
    assert _understood(b"") is None
    assert _understood(plain(1, 3, 0, 1400, 34, 6) + data) is None  # UDP in fragments
    assert _understood(plain(1, 0, 0, 0, 34, 60000) + data) is None
    # a checksum within a tunnel: put in, as nobody behind us could be told of it
    inner = ip4(B, A, "10.1.0.1", "10.1.0.2", 17, udp(b"inner"))
    outer = ip4(B, A, "10.0.0.1", "10.0.0.2", 47, b"\0\0\x65\x58" + inner)
    told = _described(Packet(inner, Csum.BLANK))
    assert told is not None
    front = len(outer) - len(inner)
    found = _understood(plain(1, 0, 0, 0, front + 34, 6) + outer[:front] + told[1])
    assert found is not None and found.csum is Csum.VALID
    assert checksum_is_right(found.data[front:]) and found.data[front:] != inner


def test_a_bridge_that_is_not_there() -> None:
    with pytest.raises(TapFailed, match="no-such-bridge: there is no such device"):
        open_tap("vif1.0", "no-such-bridge", 1500, Switch("apart", lambda: 0.0, Datapath()))


def test_guests_on_a_linux_bridge(debian: None, tmp_path: Path) -> None:
    run_apart("tests.net.scene_tap", tmp_path)
