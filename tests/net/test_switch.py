# SPDX-License-Identifier: GPL-2.0-only
"""The switch: where frames go, what it learns and forgets, VLANs, and who may be who."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0.backend.net import switch as switches
from dom0.backend.net.datapath import Datapath
from dom0.backend.net.filters import AddressFilter, parse_addresses
from dom0.backend.net.switch import AGEING_SECONDS, MOST_ADDRESSES, PacketQueue, Port, Switch, Vlans, VlanSyntaxError
from tests.net.frames import EVERYONE, A, B, C, arp, frame, ip4, ip6, tcp, udp
from xen_py.io.netif import GsoType
from xen_py.io.packet import Csum, Packet


class Lab:
    """A switch with named ports; what went out at each."""

    def __init__(self) -> None:
        self.time = 0.0
        self.switch = Switch("xenbr0", lambda: self.time, Datapath())
        self.out: dict[str, list[Packet]] = {}

    def plug(self, name: str, mac: bytes | None = None, vlan: str | None = None, ip: str | None = None) -> Port:
        out = self.out[name] = []

        def deliver(packet: Packet) -> bool:
            out.append(packet)
            return True

        vlans = None if vlan is None else Vlans.parse(vlan)
        check = None if ip is None or mac is None else AddressFilter(mac, parse_addresses(ip))
        return self.switch.plug(name, deliver, mac, vlans, check)

    def went(self) -> dict[str, list[bytes]]:
        """And forget it."""
        found = {name: [packet.data for packet in out] for name, out in self.out.items() if out}
        for out in self.out.values():
            out.clear()
        return found


def test_floods_learns_and_ages() -> None:
    lab = Lab()
    one, two, three = (lab.plug(name) for name in ("1", "2", "3"))
    hello, answer = frame(B, A), frame(A, B)
    one.send(Packet(hello))
    assert lab.went() == {"2": [hello], "3": [hello]}
    two.send(Packet(answer))
    assert lab.went() == {"1": [answer]}
    one.send(Packet(hello))
    assert lab.went() == {"2": [hello]}
    three.send(Packet(frame(EVERYONE, C)))
    assert set(lab.went()) == {"1", "2"}
    lab.time += AGEING_SECONDS + 1
    one.send(Packet(hello))
    assert set(lab.went()) == {"2", "3"}
    three.send(Packet(frame(A, B)))  # it has moved
    one.send(Packet(hello))
    assert lab.went() == {"1": [frame(A, B)], "3": [hello]}
    one.send(Packet(frame(A, C)))  # to itself: nowhere
    assert lab.went() == {}
    three.unplug()
    three.unplug()
    one.send(Packet(hello))
    assert lab.went() == {"2": [hello]}


def test_offloads_are_carried_whole() -> None:
    lab = Lab()
    one = lab.plug("1")
    lab.plug("2")
    packet = Packet(ip4(B, A, "10.0.0.1", "10.0.0.2", 6, tcp(b"x" * 60000)), Csum.BLANK, GsoType.TCPV4, 1448)
    one.send(packet)
    assert lab.out["2"] == [packet]


def test_one_port_with_many_addresses_forgets_its_own_only() -> None:
    lab = Lab()
    one, two = lab.plug("1"), lab.plug("2")
    lab.plug("3")
    one.send(Packet(frame(EVERYONE, A)))
    for number in range(3 * MOST_ADDRESSES):
        lab.time += 0.001
        two.send(Packet(frame(EVERYONE, b"\2\0" + number.to_bytes(4, "big"))))
    assert len(two.learned) <= MOST_ADDRESSES
    assert lab.switch.statistics()["addresses"] <= MOST_ADDRESSES + 1
    lab.went()
    two.send(Packet(frame(A, B)))
    assert set(lab.went()) == {"1"}


def test_an_address_that_was_given_cannot_be_taken() -> None:
    lab = Lab()
    one = lab.plug("1", A)
    two = lab.plug("2", B)
    lab.plug("3")
    two.send(Packet(frame(EVERYONE, A)))
    assert lab.went() == {}
    assert two.counts["rx_spoofed"] == 1
    two.send(Packet(frame(A, B)))  # it is known without having been heard
    assert set(lab.went()) == {"1"}
    one.unplug()
    two.send(Packet(frame(EVERYONE, A)))
    assert set(lab.went()) == {"3"}


def test_a_sender_is_no_group_and_a_frame_has_a_header() -> None:
    lab = Lab()
    one = lab.plug("1")
    lab.plug("2")
    one.send(Packet(frame(B, EVERYONE)))
    one.send(Packet(b"short"))
    one.send(Packet(frame(B, A, body=bytes(70000))))
    assert lab.went() == {}
    assert (one.counts["rx_spoofed"], one.counts["rx_malformed"]) == (1, 2)


def test_groups_reach_who_wants_them() -> None:
    lab = Lab()
    one, two = lab.plug("1"), lab.plug("2")
    group = bytes.fromhex("333300000001")
    two.groups = set()
    one.send(Packet(frame(group, A)))
    assert lab.went() == {}
    one.send(Packet(frame(EVERYONE, A)))
    assert set(lab.went()) == {"2"}
    two.groups.add(group)
    one.send(Packet(frame(group, A)))
    assert set(lab.went()) == {"2"}


def test_vlans() -> None:
    lab = Lab()
    plain, other = lab.plug("plain"), lab.plug("other")
    ten = lab.plug("ten", vlan="10")
    lab.plug("ten too", vlan="10p/20")
    trunk = lab.plug("trunk", vlan="1p/10-12/20+10x2")
    ten.send(Packet(frame(EVERYONE, A, body=b"x")))
    tagged = EVERYONE + A + b"\x81\0\0\x0a" + frame(EVERYONE, A, body=b"x")[12:]
    assert lab.went() == {"ten too": [frame(EVERYONE, A, body=b"x")], "trunk": [tagged]}
    trunk.send(Packet(EVERYONE + B + b"\x81\0\x60\x0a" + frame(EVERYONE, B)[12:]))
    assert lab.went() == {"ten": [frame(EVERYONE, B)], "ten too": [frame(EVERYONE, B)]}
    ten.send(Packet(EVERYONE + A + b"\x81\0\0\x14" + frame(EVERYONE, A)[12:]))
    ten.send(Packet(EVERYONE + A + b"\x81\0"))
    assert lab.went() == {}
    assert ten.counts["rx_wrong_vlan"] == 2
    plain.send(Packet(tagged))  # to ports without VLANs a tag is payload
    assert lab.went() == {"other": [tagged]}
    assert other.vlans is None


@pytest.mark.parametrize(
    ("text", "pvid", "untagged", "tagged"),
    [
        ("10", 10, {10}, set()),
        ("10p/20", 10, {10}, {20}),
        ("10p/100+10x4", 10, {10}, {100, 110, 120, 130, 140}),
        ("1p/7-9u/8", 1, {1, 7, 8, 9}, set()),
        ("4094", 4094, {4094}, set()),
    ],
)
def test_vlan_grammar(text: str, pvid: int, untagged: set[int], tagged: set[int]) -> None:
    assert Vlans.parse(text) == Vlans(pvid, frozenset(untagged), frozenset(tagged))


@pytest.mark.parametrize("text", ["", "0", "4095", "10/20", "10p/20p", "5-3p", "7-9", "a", "1p/", "1-2p", "9+1x9999p"])
def test_vlans_that_cannot_be(text: str) -> None:
    with pytest.raises(VlanSyntaxError, match="vlan="):
        Vlans.parse(text)


LL_A, LL_B = "fe80::216:3eff:fe00:1", "fe80::216:3eff:fe00:2"
ICMP6 = 58


def advert(target: str, link: bytes, kind: int = 136) -> bytes:
    from ipaddress import ip_address

    return bytes([kind, 0, 0, 0, 0, 0, 0, 0]) + ip_address(target).packed + b"\2\1" + link


@pytest.mark.parametrize(
    ("data", "passes"),
    [
        (ip4(B, A, "10.0.0.1", "10.0.0.2", 17, udp(b"")), True),
        (ip4(B, A, "10.0.0.3", "10.0.0.2", 17, udp(b"")), False),
        (ip4(B, C, "10.0.0.1", "10.0.0.2", 17, udp(b"")), False),
        (ip4(EVERYONE, A, "0.0.0.0", "255.255.255.255", 17, udp(b"", (68, 67))), True),
        (ip4(EVERYONE, A, "0.0.0.0", "255.255.255.255", 17, udp(b"", (68, 53))), False),
        (ip4(B, A, "10.0.0.1", "10.0.0.2", 17, udp(b""))[:30], False),
        (arp(A, A, "10.0.0.1"), True),
        (arp(A, A, "0.0.0.0"), True),
        (arp(A, A, "10.0.0.2"), False),
        (arp(A, B, "10.0.0.1"), False),
        (arp(A, A, "10.0.0.1")[:30], False),
        (ip6(B, A, "fd00::1", "fd00::2", 17, udp(b"")), True),
        (ip6(B, A, LL_A, "fd00::2", 17, udp(b"")), True),
        (ip6(B, A, LL_B, "fd00::2", 17, udp(b"")), False),
        (ip6(B, A, "fd00::3", "fd00::2", 17, udp(b"")), False),
        (ip6(B, A, "::", "fd00::2", 17, udp(b"")), False),
        (ip6(B, A, "::", "ff02::1", ICMP6, b"\x87" + bytes(23)), True),
        (ip6(B, A, "fd00::1", "ff02::1", ICMP6, advert("fd00::1", A)), True),
        (ip6(B, A, "fd00::1", "ff02::1", ICMP6, advert("fd00::2", A)), False),
        (ip6(B, A, "fd00::1", "ff02::1", ICMP6, advert("fd00::1", B)), False),
        (ip6(B, A, LL_A, "ff02::1", ICMP6, advert("fd00::1", A, 134)), False),
        (ip6(B, A, LL_A, "ff02::1", ICMP6, advert("fd00::1", A, 137)), False),
        (ip6(B, A, LL_A, "ff02::1", ICMP6, b"\x80\0\0\0ping"), True),
        (ip6(B, A, LL_A, "ff02::1", ICMP6, b""), False),
        (frame(B, A, 0x88B5), False),
        (frame(B, A, 0x8100, b"\0\5\x08\0" + bytes(40)), False),
    ],
)
def test_a_vif_with_addresses_is_nobody_else(data: bytes, passes: bool) -> None:
    lab = Lab()
    one = lab.plug("1", A, ip="10.0.0.1 fd00::1")
    lab.plug("2")
    one.send(Packet(data))
    assert bool(lab.went()) is passes


def test_addresses_of_a_configuration() -> None:
    assert [str(address) for address in parse_addresses("10.0.0.1/24 fd00::1")] == ["10.0.0.1", "fd00::1"]
    with pytest.raises(ValueError, match="'nonsense' is not an IP address"):
        parse_addresses("10.0.0.1 nonsense")


@given(st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=80)), max_size=40))
def test_whatever_comes_in_stays_in_its_network(frames: list[tuple[int, bytes]]) -> None:
    lab = Lab()
    ports = [lab.plug("0", A, ip="10.0.0.1"), lab.plug("1"), lab.plug("2", vlan="10"), lab.plug("3", vlan="10p/20")]
    for number, data in frames:
        ports[number].send(Packet(data))
        went = lab.went()
        assert str(number) not in went
        assert {name in ("0", "1") for name in went} <= {number < 2}


def test_a_queue_is_bounded_and_wakes_once() -> None:
    woken: list[int] = []
    queue = PacketQueue(lambda: woken.append(1), packets=3, size=100)
    assert [queue.put(Packet(bytes(40))) for _ in range(3)] == [True, True, False]
    assert (len(woken), len(queue), queue.bytes, queue.dropped) == (1, 2, 80, 1)
    queue.take()
    assert queue.peek() == queue.take()
    assert [queue.put(Packet(b"x")) for _ in range(4)] == [True, True, True, False]
    assert len(woken) == 2
    queue.clear()
    assert queue.bytes == 0


def test_bridges_come_to_be_when_they_are_named() -> None:
    bridges = switches.Bridges(lambda: 0.0)
    assert bridges.find("xenbr0") is None
    assert bridges.get("xenbr0") is bridges.get("xenbr0") is bridges.find("xenbr0")
    assert list(bridges.statistics()) == ["xenbr0"]
