# SPDX-License-Identifier: GPL-2.0-only
"""Both halves in one loop: packets of every size and with every offload, features apart, rates, groups, ends."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import trio

from dom0.backend.net.transmit import Credit
from dom0.toolstack.vifspec import NicConfig
from domU.frontend.net import NetFrontend
from tests.net.frames import EVERYONE, A, B, frame, ip4, ip6, tcp, udp, whole
from tests.net.guests import MAC, backend_of, guest_with, lab
from xen_py.drive.bus import Nodes
from xen_py.drive.half import DeviceFailed
from xen_py.drive.queue import QueueClosed
from xen_py.io.netif import GsoType
from xen_py.io.packet import Csum, Packet, checksum_is_right, headers

ONE, TWO = f"mac={MAC}1", f"mac={MAC}2"


class Plain(NetFrontend):
    split = False


class Able(NetFrontend):
    offloads = True


class Wide(NetFrontend):
    queues = 4
    offloads = True


pytestmark = pytest.mark.usefixtures("way")


@pytest.mark.parametrize("front", [Plain, NetFrontend, Able, Wide])
@pytest.mark.parametrize("back", [Plain, Wide])
async def test_frames_of_every_size(front: type[NetFrontend], back: type[NetFrontend], way: str) -> None:
    async with (
        lab(ONE, TWO) as (machine, (one, two)),
        one.device(front) as sender,
        two.device(back) as receiver,
    ):
        assert (sender.mac, receiver.mac, sender.mtu) == (A, B, 1500)
        for size in (0, 1, 46, 100, 1500):
            data = frame(B, A, body=bytes(n & 255 for n in range(size)))
            await sender.send(data)
            assert (await receiver.receive()).data == data
        for number in range(500):
            await sender.send(ip4(B, A, "10.0.0.1", "10.0.0.2", 17, udp(bytes(number), (number, 9))))
            packet = await receiver.receive()
            assert len(packet.data) == 42 + number
        await receiver.send(frame(A, B))
        assert (await sender.receive()).data == frame(A, B)
        port = backend_of(machine, one).port
        assert port is not None
        assert port.counts["rx_packets"] == 505
        assert backend_of(machine, two).statistics()["port"]["tx_packets"] == 505
        used = backend_of(machine, one).statistics().get("lane_sent", 0)
        assert used == (0 if way == "servers" else 505)


@pytest.mark.parametrize("six", [False, True])
async def test_a_large_segment_stays_whole_for_who_takes_it(six: bool) -> None:
    payload = bytes(range(256)) * 250
    body = tcp(payload)
    data = ip6(B, A, "fd00::1", "fd00::2", 6, body) if six else ip4(B, A, "10.0.0.1", "10.0.0.2", 6, body)
    packet = Packet(data, Csum.BLANK, GsoType.TCPV6 if six else GsoType.TCPV4, 1400)
    async with lab(ONE, TWO) as (machine, (one, two)), one.device(Able) as sender:
        async with two.device(Able) as receiver:
            await sender.send(packet)
            assert await receiver.receive() == packet
        async with two.device(NetFrontend) as receiver:
            await sender.send(packet)
            found = []
            while len(b"".join(found)) < len(payload):
                piece = await receiver.receive()
                assert piece.csum is Csum.VALID
                assert checksum_is_right(piece.data)
                where = headers(piece.data)
                assert where is not None
                found.append(piece.data[where.transport + 20 :])
            assert b"".join(found) == payload
            assert max(map(len, found)) == 1400
        assert backend_of(machine, two).statistics()["state"] is not None


async def test_checksums_are_put_in_for_who_needs_them() -> None:
    async with lab(ONE, TWO) as (_, (one, two)), one.device(Able) as sender:
        four, six = (
            ip4(B, A, "10.0.0.1", "10.0.0.2", 17, udp(b"four")),
            ip6(B, A, "fd00::1", "fd00::2", 17, udp(b"six")),
        )
        for device, blank in ((Able, True), (NetFrontend, False)):
            async with two.device(device) as receiver:
                for data in (four, six):
                    await sender.send(Packet(data, Csum.BLANK))
                    packet = await receiver.receive()
                    assert packet == (Packet(data, Csum.BLANK) if blank else Packet(whole(data), Csum.VALID))
                await sender.send(whole(four))
                assert await receiver.receive() == Packet(whole(four), Csum.UNKNOWN)


async def test_what_is_too_large_is_dropped() -> None:
    async with (
        lab(ONE, f"{TWO},mtu=1000") as (machine, (one, two)),
        one.device(Able) as sender,
        two.device(Able) as receiver,
    ):
        assert receiver.mtu == 1000
        await sender.send(frame(B, A, body=bytes(1100)))
        cut = Packet(ip4(B, A, "10.0.0.1", "10.0.0.2", 6, tcp(bytes(5000))), Csum.BLANK, GsoType.TCPV4, 1400)
        await sender.send(cut)
        await sender.send(cut._replace(gso_size=900))
        assert await receiver.receive() == cut._replace(gso_size=900)
        assert backend_of(machine, two).statistics()["vif_too_large"] == 2


async def test_groups() -> None:
    class Choosy(NetFrontend):
        multicast_control = True

    group = bytes.fromhex("01005e000001")
    async with (
        lab(ONE, TWO) as (_, (one, two)),
        one.device(NetFrontend) as sender,
        two.device(Choosy) as receiver,
    ):
        await sender.send(frame(group, A, body=b"unheard"))
        await receiver.join(group)
        await receiver.send(frame(A, B))
        await sender.receive()  # so the order before it has been carried out
        await sender.send(frame(group, A, body=b"heard"))
        assert (await receiver.receive()).data.endswith(b"heard")
        await receiver.leave_group(group)
        await receiver.join(b"\0\1\2\3\4\5")
        await receiver.send(frame(A, B))
        await sender.receive()
        assert receiver.counts["tx_refused"] == 1
        await sender.send(frame(group, A, body=b"unheard"))
        await sender.send(frame(EVERYONE, A, body=b"for all"))
        assert (await receiver.receive()).data.endswith(b"for all")


async def test_bridges_vlans_and_filters_are_the_configurations() -> None:
    async with (
        lab(f"{ONE},ip=10.0.0.1", TWO, "bridge=other", f"mac={MAC}4,vlan=5") as (machine, guests),
        guests[0].device(NetFrontend) as one,
        guests[1].device(NetFrontend) as two,
        guests[2].device(NetFrontend) as three,
        guests[3].device(NetFrontend) as four,
    ):
        await three.send(frame(EVERYONE, three.mac))
        await four.send(frame(EVERYONE, four.mac))
        await one.send(frame(EVERYONE, A))
        await one.send(ip4(B, A, "10.0.0.7", "10.0.0.2", 17, udp(b"")))
        await one.send(ip4(B, A, "10.0.0.1", "10.0.0.2", 17, udp(b"true")))
        assert (await two.receive()).data.endswith(b"true")
        assert not any(card.receive_nowait() for card in (one, two, three, four))
        assert sorted(machine.statistics()["bridges"]) == ["other", "xenbr0"]
        ports = machine.statistics()["bridges"]["xenbr0"]["ports"]
        assert ports[f"vif{guests[0].domid}.0"]["rx_filtered"] == 2


async def test_a_rate_holds_back_what_is_sent(autojump_clock: trio.testing.MockClock) -> None:
    credit = Credit(100_000, 0.1)  # a megabyte a second
    start = trio.current_time()
    waited = [await credit.spend(1000) for _ in range(3000)].count(False)
    assert 2.8 <= trio.current_time() - start <= 3.0
    assert 25 <= waited <= 30
    await trio.sleep(100)
    start = trio.current_time()
    for _ in range(131):  # saved up: 128 KiB and no more
        await credit.spend(1000)
    assert trio.current_time() == start
    assert not await credit.spend(1000)
    slow = Credit(1, 0.001)
    assert not await slow.spend(65535)  # the largest packet gets through all the same


async def test_a_card_with_a_rate() -> None:
    async with (
        lab(f"{ONE},rate=4Mb/s@10ms", TWO) as (machine, (one, two)),
        one.device(NetFrontend) as sender,
        two.device(NetFrontend) as receiver,
    ):
        for _ in range(100):
            await sender.send(frame(B, A, body=bytes(1486)))
        for _ in range(100):
            await receiver.receive()
        assert backend_of(machine, one).statistics()["vif_throttled"] >= 1


async def test_a_card_that_goes() -> None:
    async with lab(ONE, TWO) as (machine, (one, two)):
        async with one.device(NetFrontend) as card:
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    with pytest.raises(QueueClosed):
                        await card.receive()

                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked(0.01)
                await machine.toolstack.detach_nic(one.domid, "0")
            with pytest.raises(QueueClosed):
                await card.send(frame(B, A))
        switch = machine.bridges.find("xenbr0")
        assert switch is not None and switch.ports == []
        await machine.toolstack.attach_nic(one.domid, NicConfig())
        async with one.device(NetFrontend) as card, two.device(NetFrontend) as other:
            await card.send(frame(B, card.mac, body=b"again"))
            assert (await other.receive()).data.endswith(b"again")


async def test_a_backend_that_starts_again() -> None:
    async with lab(ONE, TWO) as (machine, (one, two)):
        for _ in range(3):
            async with one.device(NetFrontend) as card, two.device(NetFrontend) as other:
                await card.send(frame(B, A))
                await other.receive()
        async with guest_with(machine, ONE, name="third") as third, third.device(NetFrontend) as card:
            assert card.mac == A


async def test_who_does_not_want_copies_is_refused() -> None:
    class Old(NetFrontend):
        async def publish(self, nodes: Nodes) -> Mapping[str, str]:
            return {**await super().publish(nodes), "request-rx-copy": "0"}

    async with lab(ONE) as (machine, (one,)):
        with pytest.raises(DeviceFailed):
            async with one.device(Old):
                pass
        reason = machine.store.read(f"/local/domain/0/error/backend/vif/{one.domid}/0/error")
        assert b"rx-copy" in reason
