# SPDX-License-Identifier: GPL-2.0-only
"""FreeBSD's and Windows' frontends against our backend: their handshakes, their rings, and traffic over them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from dom0.backend.net.backend import NetBackend
from domU.frontend.net import NetFrontend
from tests.net.frames import A, B, frame, ip4, ip6, tcp, udp, whole
from tests.net.freebsd import FreeBsd
from tests.net.guests import MAC, backend_of, lab
from tests.net.test_hashing import KEY, KNOWN, between
from tests.net.windows import Windows
from xen_py.io.netif import ExtraType, GsoType, HashExtra
from xen_py.io.packet import Csum, Packet, checksum_is_right
from xen_py.io.xenbus import State

ONE, TWO = f"mac={MAC}1", f"mac={MAC}2"
ALL_TYPES = 15
GROUP = bytes.fromhex("01005e000001")
pytestmark = pytest.mark.usefixtures("way")


class Able(NetFrontend):
    offloads = True


def large(source: bytes, target: bytes, payload: bytes, *, six: bool = False) -> Packet:
    make, addresses = (ip6, ("fd00::1", "fd00::2")) if six else (ip4, ("10.0.0.1", "10.0.0.2"))
    data = make(target, source, *addresses, 6, tcp(payload))
    return Packet(data, Csum.BLANK, GsoType.TCPV6 if six else GsoType.TCPV4, 1400)


async def connected(backend: NetBackend, is_so: bool = True) -> None:
    with trio.fail_after(10):
        while backend.connected is not is_so:
            await trio.sleep(0.001)


@asynccontextmanager
async def freebsd() -> AsyncIterator[tuple[FreeBsd, NetFrontend, NetBackend]]:
    """A FreeBSD with a neighbour, connected; at its end it has been taken away as by `xl network-detach`."""
    async with lab(ONE, TWO) as (machine, (one, two)), two.device(Able) as other, trio.open_nursery() as nursery:
        player = FreeBsd(one)
        backend = backend_of(machine, one)
        nursery.start_soon(player.run)
        await connected(backend)
        yield player, other, backend
        with trio.fail_after(10):
            while State.CONNECTED not in player.states:
                await trio.sleep(0.001)
        await machine.toolstack.detach_nic(one.domid, "0")
        player.disconnect()
        nursery.cancel_scope.cancel()


async def test_freebsd_connects_and_is_taken_away() -> None:
    async with freebsd() as (player, other, backend):
        keys = ("tx-ring-ref", "rx-ring-ref", "event-channel")
        queues = [f"queue-{number}/{key}" for number in range(4) for key in keys]
        assert player.written == [
            "multi-queue-num-queues", *queues,
            "request-rx-copy", "feature-rx-notify", "feature-sg", "feature-gso-tcpv4",
        ]  # fmt: skip
        assert backend.statistics()["state"] == "connected"
        player.send(Packet(frame(B, A, body=b"from FreeBSD")))
        assert (await other.receive()).data == frame(B, A, body=b"from FreeBSD")
        await other.send(frame(A, B, body=b"to FreeBSD"))
        assert (await player.receive())[1].data == frame(A, B, body=b"to FreeBSD")
    assert player.states[:3] == [State.INIT_WAIT, State.CONNECTED, State.CLOSING]


async def test_freebsds_rings_go_round() -> None:
    dice = random.Random(1)
    async with freebsd() as (player, other, backend):
        for number in range(600):  # more than twice around one ring
            body = udp(dice.randbytes(dice.randrange(1400)), (number, 9))
            data = ip4(B, A, "10.0.0.1", "10.0.0.2", 17, body)
            player.send(Packet(data, Csum.BLANK), flowid=0)
            assert await other.receive() == Packet(data, Csum.BLANK)
            back = ip4(A, B, "10.0.0.2", "10.0.0.1", 17, body)
            await other.send(Packet(back, Csum.BLANK))
            assert (await player.receive())[1] == Packet(back, Csum.BLANK)
        for _ in range(40):
            packet = large(A, B, dice.randbytes(dice.randint(1400, 60000)))
            player.send(packet, flowid=1)
            assert await other.receive() == packet
            await other.send(back := large(B, A, dice.randbytes(dice.randint(1400, 60000))))
            _, found, extras = await player.receive()
            assert found == back
            assert [extra.type for extra in extras] == [ExtraType.GSO]
        payload = dice.randbytes(20000)
        await other.send(large(B, A, payload, six=True))  # which it has not said it takes
        found = b""
        while len(found) < len(payload):
            packet = (await player.receive())[1]
            assert packet.csum is Csum.UNKNOWN and checksum_is_right(packet.data)
            found += packet.data[74:]
        assert found == payload
        assert not player.received and "vif_bad_grants" not in backend.statistics()


async def test_freebsd_changes_what_it_receives() -> None:
    async with freebsd() as (player, other, backend):
        player.written.clear()
        await player.set_capabilities(lro=False, rxcsum=False)
        with trio.fail_after(10):
            while player.connections < 2:
                await trio.sleep(0.001)
        await connected(backend)
        way = [State.INIT_WAIT, State.CONNECTED, State.CLOSING, State.CLOSED, State.INIT_WAIT, State.CONNECTED]
        assert player.states == way[: len(player.states)]
        assert player.written[-1] == "feature-no-csum-offload" and "feature-gso-tcpv4" not in player.written
        payload = bytes(range(256)) * 100
        await other.send(large(B, A, payload))
        found = b""
        while len(found) < len(payload):
            packet = (await player.receive())[1]
            assert packet.csum is Csum.UNKNOWN and checksum_is_right(packet.data) and len(packet.data) <= 1454
            found += packet.data[54:]
        assert found == payload
        player.send(large(A, B, payload))
        assert await other.receive() == large(A, B, payload)


@asynccontextmanager
async def windows(processors: int) -> AsyncIterator[tuple[Windows, NetFrontend, NetBackend]]:
    """A Windows with a neighbour, prepared and connected; it closes at its end."""
    async with lab(ONE, TWO) as (machine, (one, two)), two.device(Able) as other:
        player = Windows(one, processors)
        async with player.watching():
            await player.prepare()
            await player.connect()
            yield player, other, backend_of(machine, one)
            await player.close()


async def test_windows_connects_with_one_queue_and_closes() -> None:
    async with windows(1) as (player, other, _):
        assert player.written == [
            "request-rx-copy", "feature-sg", "feature-rx-notify", "feature-gso-tcpv4", "feature-gso-tcpv6",
            "feature-no-csum-offload", "feature-ipv6-csum-offload", "rx-ring-ref", "event-channel-rx",
            "request-multicast-control", "tx-ring-ref", "event-channel-tx", "ctrl-ring-ref", "event-channel-ctrl",
            "multi-queue-num-queues",
        ]  # fmt: skip
        player.queues[0].send(Packet(frame(B, A, body=b"from Windows")))
        assert (await other.receive()).data == frame(B, A, body=b"from Windows")
        await other.send(frame(A, B, body=b"to Windows"))
        assert await player.receive() == (0, Packet(frame(A, B, body=b"to Windows")), [])
    assert player.states == [State.INIT_WAIT, State.CONNECTED, State.CLOSING, State.CLOSED]


async def test_windows_rings_go_round() -> None:
    dice = random.Random(2)
    async with windows(1) as (player, other, backend):
        for number in range(600):
            data = ip6(B, A, "fd00::1", "fd00::2", 17, udp(dice.randbytes(dice.randrange(1400)), (number, 9)))
            player.queues[0].send(Packet(data, Csum.BLANK))
            assert await other.receive() == Packet(data, Csum.BLANK)
            back = whole(ip4(A, B, "10.0.0.2", "10.0.0.1", 17, udp(dice.randbytes(dice.randrange(1400)))))
            await other.send(back)
            assert (await player.receive())[1] == Packet(back)
        for number in range(40):
            packet = large(A, B, dice.randbytes(dice.randint(1400, 60000)), six=bool(number % 2))
            player.queues[0].send(packet)
            assert await other.receive() == packet
            await other.send(back := large(B, A, dice.randbytes(dice.randint(1400, 60000)), six=bool(number % 2)))
            assert (await player.receive())[1] == back
        assert "vif_bad_grants" not in backend.statistics()


async def test_windows_has_its_packets_hashed() -> None:
    mapping = [1, 0, 0, 1, 1, 0, 1, 0] * 16
    async with windows(2) as (player, other, _):
        await player.update_hash(KEY, mapping, ALL_TYPES)
        for known in KNOWN:
            await other.send(A + B + between(known)[12:])
            found = HashExtra(3 if ":" in known[0] else 1, 1, known[5].to_bytes(4, "little"))
            queue, packet, extras = await player.receive()
            assert packet.hash == found
            assert queue == mapping[known[5] % len(mapping)]
            assert [extra.type for extra in extras] == [ExtraType.HASH]
            player.queues[queue].send(Packet(between(known)), found._replace(algorithm=0))  # as it has it
            assert await other.receive() == Packet(between(known))
        data = large(B, A, bytes(50000))
        await other.send(data)
        _, packet, extras = await player.receive()
        assert packet._replace(hash=None) == data
        assert [extra.type for extra in extras] == [ExtraType.GSO, ExtraType.HASH]
        player.queues[1].send(large(A, B, bytes(50000)), packet.hash)
        assert await other.receive() == large(A, B, bytes(50000))


async def test_windows_chooses_its_multicast_at_any_time() -> None:
    async with windows(1) as (player, other, backend):
        port = backend.port
        assert port is not None

        async def hears(*groups: bytes) -> None:
            """Those of the two, in their order; what comes behind them is for itself."""
            for group in (GROUP, b"\x33\x33\0\0\0\1"):
                await other.send(frame(group, B))
            await other.send(frame(A, B, body=b"end"))
            for group in groups:
                assert (await player.receive())[1].data == frame(group, B)
            assert (await player.receive())[1].data == frame(A, B, body=b"end")

        await hears()
        player.queues[0].order(ExtraType.MCAST_ADD, GROUP)
        with trio.fail_after(5):
            while port.groups != {GROUP}:
                await trio.sleep(0.001)
        await hears(GROUP)
        await player.set_all_multicast(True)
        with trio.fail_after(5):
            while port.groups is not None:
                await trio.sleep(0.001)
        await hears(GROUP, b"\x33\x33\0\0\0\1")
        await player.set_all_multicast(False)
        with trio.fail_after(5):
            while port.groups is None:
                await trio.sleep(0.001)
        await hears(GROUP)
        player.queues[0].order(ExtraType.MCAST_DEL, GROUP)
        with trio.fail_after(5):
            while port.groups:
                await trio.sleep(0.001)
        await hears()


async def test_windows_is_disabled_and_enabled_and_finds_another_drivers_connection() -> None:
    async with windows(2) as (player, other, backend):
        for _ in range(3):
            player.queues[1].send(Packet(frame(B, A, body=b"on")))
            assert (await other.receive()).data.endswith(b"on")
            await player.close()
            assert not backend.connected
            await player.prepare()
            await player.connect()
        # a driver that begins while the backend is still connected to one before it
        player.states.clear()
        before = player.queues, player.controller
        await player.prepare()
        player.queues, player.controller = before
        player.disconnect()
        assert player.states == [State.CONNECTED, State.CLOSING, State.CLOSED, State.INIT_WAIT]
        await player.connect()
        await other.send(frame(A, B, body=b"again"))
        assert (await player.receive())[1].data.endswith(b"again")


async def test_a_multicast_choice_that_is_none_ends_the_device() -> None:
    async with lab(ONE, TWO) as (machine, (one, two)), two.device(NetFrontend):
        async with one.device(NetFrontend) as card:
            await one.bus.write(f"{card.own}/request-multicast-control", "perhaps")
            while card.connected:
                await trio.sleep(0.01)
        reason = machine.store.read(f"/local/domain/0/error/backend/vif/{one.domid}/0/error")
        assert b"request-multicast-control is 'perhaps'" in reason
