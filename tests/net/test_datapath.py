# SPDX-License-Identifier: GPL-2.0-only
"""The datapath: what it forwards by itself is what the switch would have, in the order sent, and nothing else."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
import pytest
import trio

from dom0.backend.net.capture import Capture
from dom0.backend.net.datapath import Datapath, LinkPlace
from dom0.host.machine import Machine
from domU.frontend.net import NetFrontend
from tests.net.doorbells import give_doorbells
from tests.net.forgeries import forged, honest, mutated
from tests.net.frames import A, B, C, frame, ip4, ip6, tcp, udp, whole
from tests.net.guests import MAC, backend_of, lab
from tests.net.test_card import Able, Wide
from xen_py.io.netif import GsoType
from xen_py.io.packet import EXTENSIONS, TCP, UDP, Csum, Packet, headers

ONE, TWO, THREE = f"mac={MAC}1", f"mac={MAC}2", f"mac={MAC}3"
SYN, ACK = 2, 16


@pytest.fixture(autouse=True)
def doorbells(monkeypatch: pytest.MonkeyPatch) -> None:
    give_doorbells(monkeypatch)


def stream(number: int, *, six: bool = False, target: bytes = B, source: bytes = A, size: int = 100) -> bytes:
    body = tcp(number.to_bytes(4, "big") * (size // 4), flags=ACK)
    if six:
        return ip6(target, source, "fd00::1", "fd00::2", TCP, body)
    return ip4(target, source, "10.0.0.1", "10.0.0.2", TCP, body)


def forwarded(machine: Machine) -> int:
    return int(machine.statistics()["datapath"]["forwarded"])


async def introduce(one: NetFrontend, two: NetFrontend) -> None:
    """The switch learns where both are."""
    for sender, receiver in ((one, two), (two, one)):
        addresses = [f"10.0.0.{card.mac[-1]}" for card in (sender, receiver)]
        await sender.send(ip4(receiver.mac, sender.mac, *addresses, 1, bytes(8)))
        await receiver.receive()


@pytest.mark.parametrize("front", [NetFrontend, Able, Wide])
@pytest.mark.parametrize("back", [NetFrontend, Able, Wide])
async def test_the_first_packet_of_a_flow_shows_the_way(front: type[NetFrontend], back: type[NetFrontend]) -> None:
    async with lab(ONE, TWO) as (machine, (one, two)), one.device(front) as sender, two.device(back) as receiver:
        await introduce(sender, receiver)
        assert forwarded(machine) == 0
        for number in range(300):
            data = stream(number, six=number % 2 == 0)
            await sender.send(data)
            assert await receiver.receive() == Packet(data, Csum.UNKNOWN)
        assert forwarded(machine) == 298  # all but the first of each
        counts = backend_of(machine, one).statistics()["port"], backend_of(machine, two).statistics()["port"]
        assert (counts[0]["rx_packets"], counts[1]["tx_packets"]) == (301, 301)
        assert counts[0]["rx_bytes"] == counts[1]["tx_bytes"] == 42 + 150 * (154 + 174)


async def test_checksums_and_segments_are_what_the_receiver_takes() -> None:
    small, large = stream(1), ip4(B, A, "10.0.0.1", "10.0.0.2", TCP, tcp(bytes(30_000), ports=(5, 6)))
    small6 = ip6(B, A, "fd00::1", "fd00::2", UDP, udp(b"odd"))
    for receivers, blank in ((Able, True), (NetFrontend, False)):
        async with lab(ONE, TWO) as (machine, (one, two)), one.device(Able) as sender, two.device(receivers) as other:
            await introduce(sender, other)
            for _ in range(20):
                for data in (small, small6):
                    await sender.send(Packet(data, Csum.BLANK))
                    wanted = Packet(data, Csum.BLANK) if blank else Packet(whole(data), Csum.VALID)
                    assert await other.receive() == wanted
            assert forwarded(machine) == 38
            for _ in range(5):
                await sender.send(Packet(large, Csum.BLANK, GsoType.TCPV4, 1400))
                pieces = [await other.receive() for _ in range(1 if blank else 22)]
                assert sum(len(piece.data) for piece in pieces) == len(large) + 54 * (len(pieces) - 1)
            assert forwarded(machine) == (42 if blank else 38)


async def test_packets_keep_their_order() -> None:
    """Whatever of them goes by the switch, and however full the receiver is."""
    dice = random.Random(4)
    async with lab(ONE, TWO) as (machine, (one, two)), one.device(Able) as sender, two.device(Able) as receiver:
        await introduce(sender, receiver)
        sent: list[bytes] = []
        received = 0

        async def send() -> None:
            for number in range(3000):
                while len(sent) - received > 600:  # more than the ring has slots, fewer than would be dropped
                    await trio.sleep(0.001)
                kind = dice.random()
                data = stream(number) if kind < 0.8 else frame(B, A, body=number.to_bytes(4, "big"))
                sent.append(data)
                await sender.send(data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            for number in range(3000):
                if dice.random() < 0.01:
                    await trio.sleep(0.005)
                assert (await receiver.receive()).data == sent[number]
                received += 1
        assert forwarded(machine) > 20  # how many depends on who comes first


async def test_what_begins_a_connection_or_is_unusual_is_the_switchs() -> None:
    fragment = bytearray(stream(1))
    fragment[20] |= 0x20
    options = bytearray(stream(1))
    options[14] = 0x46
    for data in (
        ip4(B, A, "10.0.0.1", "10.0.0.2", TCP, tcp(b"", flags=SYN)),
        ip4(B, A, "10.0.0.1", "10.0.0.2", UDP, udp(b"", (68, 67))),
        ip4(B, A, "10.0.0.1", "10.0.0.2", 1, bytes(8)),
        ip4(B, A, "10.0.0.1", "10.0.0.2", TCP, tcp(b"")[:-1]),
        ip6(B, A, "fd00::1", "fd00::2", 0, bytes(40)),
        bytes(fragment),
        bytes(options),
        stream(1)[:60],
        stream(1)[:12] + b"\x81\0\0\1" + stream(1)[12:],
    ):
        async with lab(ONE, TWO) as (machine, (one, two)), one.device(Able) as sender, two.device(Able) as receiver:
            await introduce(sender, receiver)
            for _ in range(3):
                await sender.send(data)
                assert (await receiver.receive()).data == data
            assert forwarded(machine) == 0, data.hex()


async def test_who_moves_is_found_where_it_is() -> None:
    async with (
        lab(ONE, f"{TWO},mtu=1400", THREE) as (machine, (one, two, three)),
        one.device(NetFrontend) as sender,
        two.device(NetFrontend) as first,
        three.device(NetFrontend) as second,
    ):
        stranger = bytes.fromhex("00163e0000f0")
        for place, other in ((first, second), (second, first), (first, second)):
            await place.send(frame(A, stranger))
            await sender.receive()
            before = forwarded(machine)
            for number in range(10):
                await sender.send(stream(number, target=stranger))
                assert (await place.receive()).data == stream(number, target=stranger)
            assert other.receive_nowait() is None
            assert forwarded(machine) == before + 9


async def test_a_capture_sees_all() -> None:
    async with lab(ONE, TWO) as (machine, (one, two)), one.device(Able) as sender, two.device(Able) as receiver:
        await introduce(sender, receiver)

        async def send_ten() -> int:
            before = forwarded(machine)
            for number in range(10):
                await sender.send(stream(number))
                await receiver.receive()
            return forwarded(machine) - before

        assert await send_ten() == 9
        switch = machine.bridges.find("xenbr0")
        assert switch is not None
        with Capture(switch, None, 0, lambda: 0):
            assert await send_ten() == 0
        assert await send_ten() == 9


async def test_anothers_flow_is_nobodys() -> None:
    """Each source's packets have flows of their own: a filter is not passed by what somebody else has sent."""
    async with (
        lab(f"{ONE},ip=10.0.0.1", TWO, f"{THREE},ip=10.0.0.3") as (machine, (one, two, three)),
        one.device(NetFrontend) as sender,
        two.device(NetFrontend) as receiver,
        three.device(NetFrontend) as liar,
    ):
        await introduce(sender, receiver)
        for number in range(5):
            await sender.send(stream(number))
            await receiver.receive()
        await introduce(liar, receiver)
        for lie in (stream(6), stream(7, source=C)):
            await liar.send(lie)
        await liar.send(ip4(B, C, "10.0.0.3", "10.0.0.2", UDP, udp(b"true")))
        assert (await receiver.receive()).data.endswith(b"true")
        assert backend_of(machine, three).statistics()["port"]["rx_spoofed"] == 1


async def test_a_card_that_goes_takes_its_flows_along() -> None:
    async with lab(ONE, TWO) as (machine, (one, two)), one.device(NetFrontend) as sender:
        for _ in range(3):
            async with two.device(NetFrontend) as receiver:
                await introduce(sender, receiver)
                for number in range(5):
                    await sender.send(stream(number))
                    assert (await receiver.receive()).data == stream(number)
            await sender.send(stream(9))
        assert machine.statistics()["datapath"]["places"] == 1


async def test_a_ring_that_is_looked_at_is_not_the_datapaths() -> None:
    seen: list[str] = []
    async with lab(ONE, TWO) as (machine, (one, two)), one.device(Able) as sender, two.device(Able) as receiver:
        await introduce(sender, receiver)
        for observer, least in ((lambda *what: seen.append(what[0]), 20), (None, 0)):
            backend_of(machine, one).observe_rings(observer)
            await trio.testing.wait_all_tasks_blocked(0.01)
            seen.clear()
            for number in range(10):
                await sender.send(stream(number))
                assert (await receiver.receive()).data == stream(number)
            assert len(seen) == least
            assert (forwarded(machine) > 0) is (observer is None)  # how many depends on when the ring is lent again


# ---- links ----


@attrs.define
class Links:
    """Two links of one datapath, and the far ends of their sockets. The first's frames to B go to the second."""

    datapath: Datapath
    places: list[LinkPlace]
    near: list[socket.socket]
    far: list[socket.socket]

    def learn(self, data: bytes, longest: int = 1514) -> None:
        self.datapath.learn(1, data, self.places[1].number, longest)


@contextmanager
def links() -> Iterator[Links]:
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    datapath = Datapath()
    try:
        places = [LinkPlace(datapath, number + 1, near.fileno()) for number, (near, _) in enumerate(pairs)]
        for _, far in pairs:
            far.settimeout(5)
        yield Links(datapath, places, [near for near, _ in pairs], [far for _, far in pairs])
        for place in places:
            place.close()
        assert datapath.statistics() == {"places": 0}
    finally:
        for pair in pairs:
            for end in pair:
                end.close()


async def test_a_link_passes_what_it_knows_and_calls_for_the_rest() -> None:
    with links() as found, trio.fail_after(10):
        found.learn(stream(0))
        for number in range(100):
            found.far[0].send(b"F" + stream(number))
            assert found.far[1].recv(2000) == b"F" + stream(number)
        for unknown in (b"=order", b"F" + stream(0, six=True), b"F" + stream(0, size=1800), b"F", b"F" + bytes(40_000)):
            found.far[0].send(unknown)
            found.far[0].send(b"F" + stream(7))
            await found.places[0].called()
            assert found.near[0].recv(1 << 17) == unknown  # and nothing overtakes it
            found.places[0].resume()
            assert found.far[1].recv(2000) == b"F" + stream(7)
        found.datapath.forget()
        found.far[0].send(b"F" + stream(1))
        await found.places[0].called()
        assert found.near[0].recv(2000) == b"F" + stream(1)
        found.places[0].resume()
        found.far[0].close()
        await found.places[0].called()
        assert found.near[0].recv(2000) == b""
        assert found.places[1].counts() == {
            "rx_packets": 0,
            "rx_bytes": 0,
            "tx_packets": 105,
            "tx_bytes": 105 * len(stream(0)),
        }


async def test_nothing_overtakes_what_waits_for_a_link() -> None:
    with links() as found, trio.fail_after(10):
        found.learn(stream(0))
        found.places[1].hold(True)
        found.far[0].send(b"F" + stream(1))
        await found.places[0].called()
        assert found.near[0].recv(2000) == b"F" + stream(1)
        found.places[1].hold(False)
        found.places[0].resume()
        found.far[0].send(b"F" + stream(2))
        assert found.far[1].recv(2000) == b"F" + stream(2)


async def test_a_link_that_takes_no_more_is_the_switchs_to_see_to() -> None:
    with links() as found, trio.fail_after(10):
        found.learn(stream(0))
        count = 0
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def until_called() -> None:
                    await found.places[0].called()
                    scope.cancel()

                nursery.start_soon(until_called)
                found.far[0].setblocking(False)
                while True:
                    try:
                        found.far[0].send(b"F" + stream(count))
                        count += 1
                    except BlockingIOError:
                        await trio.sleep(0.001)
                    await trio.lowlevel.checkpoint()
        passed = 0
        found.far[1].setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                assert found.far[1].recv(2000) == b"F" + stream(passed)
                passed += 1
        assert 0 < passed < count
        assert found.near[0].recv(2000) == b"F" + stream(passed)


def _may_be_a_flow(data: bytes) -> bool:
    """By the reference: a TCP or UDP packet without anything unusual."""
    where = headers(data)
    if where is None or data[0] & 1 or where.network != 14 or where.protocol not in (TCP, UDP):
        return False
    plain = where.transport == (34 if where.version == 4 else 54)
    if not plain or where.protocol in EXTENSIONS or (where.version == 4 and data[20] & 0x20):
        return False
    if where.protocol == UDP:
        ports = {int.from_bytes(data[at : at + 2], "big") for at in (where.transport, where.transport + 2)}
        return where.transport + 8 <= where.end and not ports & {67, 68, 546, 547}
    if where.transport + 20 > where.end or data[where.transport + 13] & SYN:
        return False
    behind = where.transport + (data[where.transport + 12] >> 4) * 4
    return where.transport + 20 <= behind <= where.end


@pytest.mark.parametrize("make", [honest, forged, mutated])
async def test_headers_are_understood_as_by_the_reference(make: Callable[[random.Random], bytes]) -> None:
    dice = random.Random(9)
    with links() as found, trio.fail_after(60):
        found.far[1].setblocking(False)
        passed = 0
        for _ in range(2000):
            data = make(dice)
            found.learn(data)
            found.far[0].send(b"F" + data)
            where = headers(data)
            if _may_be_a_flow(data) and len(data) <= 1514 and where is not None and where.end == len(data):
                await trio.lowlevel.wait_readable(found.far[1])
                assert found.far[1].recv(2000) == b"F" + data
                passed += 1
            else:
                await found.places[0].called()
                assert found.near[0].recv(70_000) == b"F" + data
                found.places[0].resume()
        with pytest.raises(BlockingIOError):
            found.far[1].recv(2000)
        assert passed > 100
