# SPDX-License-Identifier: GPL-2.0-only
"""Python guests that serve and ask over TCP: each other, and Debian."""

from __future__ import annotations

import random

import pytest
import trio

from dom0.backend.net.switch import Port
from domU.frontend.net import NetFrontend
from domU.inet import Inet, Stream, StreamBroken, Unreachable, open_inet
from tests.net.frames import A, B, ip4, tcp, whole
from tests.net.guests import MAC, lab
from tests.net.linux import guests
from tests.system.harness import Host
from xen_py.io.packet import Packet

ONE, TWO = f"mac={MAC}1", f"mac={MAC}2"
PAGE = b"<p>a page of a Python guest</p>" * 400


async def everything(stream: Stream) -> bytes:
    data = b""
    while piece := await stream.receive_some():
        data += piece
    return data


async def serve(inet: Inet, port: int, body: bytes) -> None:
    """One HTTP request after the other."""
    listener = inet.listen(port)
    while True:
        stream = await listener.accept()
        request = b""
        while b"\r\n\r\n" not in request:
            request += await stream.receive_some()
        head = f"HTTP/1.0 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
        await stream.send_all(head.encode() + body)
        await stream.aclose()


async def test_two_python_guests() -> None:
    async with (
        lab(ONE, TWO) as (_, (one, two)),
        one.device(NetFrontend) as card,
        two.device(NetFrontend) as other,
        open_inet(card, "10.0.0.1/24") as inet,
        open_inet(other, "10.0.0.2/24") as net,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(serve, inet, 80, PAGE)
        for _ in range(3):
            stream = await net.connect("10.0.0.1", 80)
            await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
            assert (await everything(stream)).partition(b"\r\n\r\n")[2] == PAGE
            await stream.aclose()
            with pytest.raises(StreamBroken):
                await stream.send_all(b"more")
        with pytest.raises(Unreachable):
            await net.connect("10.0.0.1", 81)
        nursery.cancel_scope.cancel()


async def test_who_has_ended_acknowledges_with_its_end_counted() -> None:
    """Otherwise its segments are old ones to any other TCP, and what the other side sends goes unacknowledged."""
    async with (
        lab(ONE, TWO) as (machine, (one, two)),
        one.device(NetFrontend) as card,
        two.device(NetFrontend) as other,
        open_inet(card, "10.0.0.1/24") as inet,
        open_inet(other, "10.0.0.2/24") as net,
    ):
        sent: list[tuple[int, int]] = []
        """Flags and sequence number of each of the second guest's segments."""

        def observe(port: Port, inward: bool, packet: Packet) -> None:
            if inward and packet.data[6:12] == B and packet.data[12:14] == b"\x08\0":
                sent.append((packet.data[47], int.from_bytes(packet.data[38:42], "big")))

        machine.bridges.get("xenbr0").observe(observe)
        listener = inet.listen(80)
        stream = await net.connect("10.0.0.1", 80)
        served = await listener.accept()
        await stream.aclose()
        end = next(sequence for flags, sequence in sent if flags & 1)
        sent.clear()
        await served.send_all(PAGE)
        await served.aclose()
        assert await everything(stream) == PAGE
        assert sent and {sequence for _, sequence in sent} == {end + 1 & 0xFFFFFFFF}


@pytest.mark.parametrize("loss", [0.0, 0.05])
async def test_a_long_stream_both_ways_with_losses(loss: float) -> None:
    dice = random.Random(4)
    data, back = dice.randbytes(300_000), dice.randbytes(200_000)

    class Lossy(NetFrontend):
        async def send(self, frame: bytes | Packet) -> None:
            if dice.random() >= loss:
                await super().send(frame)

    async with (
        lab(ONE, TWO) as (_, (one, two)),
        one.device(Lossy) as card,
        two.device(Lossy) as other,
        open_inet(card, "10.0.0.1/24") as inet,
        open_inet(other, "10.0.0.2/24") as net,
    ):
        listener = inet.listen(9)
        stream = await net.connect("10.0.0.1", 9)
        answered = await listener.accept()
        found: dict[str, bytes] = {}

        async def take(name: str, end: Stream) -> None:
            found[name] = await everything(end)

        async def give(end: Stream, what: bytes) -> None:
            await end.send_all(what)
            await end.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take, "there", answered)
            nursery.start_soon(take, "here", stream)
            nursery.start_soon(give, stream, data)
            nursery.start_soon(give, answered, back)
        assert found == {"there": data, "here": back}


async def test_nonsense_from_a_neighbour() -> None:
    dice = random.Random(8)
    async with (
        lab(ONE, TWO) as (_, (one, two)),
        one.device(NetFrontend) as card,
        two.device(NetFrontend) as other,
        open_inet(other, "10.0.0.2/24") as net,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(serve, net, 80, PAGE)
        for _ in range(400):
            ports = (dice.randrange(4), 80)
            body = bytearray(tcp(dice.randbytes(dice.randrange(40)), flags=dice.getrandbits(8), ports=ports))
            for _ in range(dice.randrange(3)):
                body[4 + dice.randrange(16)] = dice.getrandbits(8)
            await card.send(whole(ip4(B, A, "10.0.0.1", "10.0.0.2", 6, bytes(body)))[: dice.choice((60, 2000))])
        async with open_inet(card, "10.0.0.1/24") as inet:
            stream = await inet.connect("10.0.0.2", 80)
            await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
            assert (await everything(stream)).endswith(PAGE)
        nursery.cancel_scope.cancel()


PROGRAM = '''
import trio
from dom0.backend.net.switch import Port
from domU.frontend.net import NetFrontend
from domU.inet import open_inet

BODY = b"<p>a page of a Python guest</p>" * 400


async def main(guest):
    async with guest.device(NetFrontend) as card, open_inet(card, "10.0.0.2/24") as inet:
        listener = inet.listen(80)
        await guest.console.print("serving")
        stream = await listener.accept()
        while b"\\r\\n\\r\\n" not in await stream.receive_some():
            pass
        await stream.send_all(b"HTTP/1.0 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(BODY) + BODY)
        await stream.aclose()
        stream = await inet.connect("10.0.0.1", 80)
        await stream.send_all(b"GET /index.html HTTP/1.0\\r\\n\\r\\n")
        data = b""
        while piece := await stream.receive_some():
            data += piece
        await guest.console.print("got:", data.partition(b"\\r\\n\\r\\n")[2].decode().strip())
        await trio.sleep_forever()
'''


def test_a_python_guest_and_debian(host: Host, debian: None) -> None:
    (host.folder / "webguest.py").write_text(PROGRAM)
    with guests(host, f"['{ONE}']") as (linux,):
        linux.run("ip addr add 10.0.0.1/24 dev eth0; ip link set eth0 up; mkdir -p /www")
        linux.run("echo a page of Debian > /www/index.html; httpd -p 80 -h /www")
        config = host.config("web", kernel="python:webguest:main", memory=16)
        config.write_text(config.read_text() + f"vif = ['{TWO}']\n")
        host.xl("create", config)
        with host.session("console", "web") as console:
            console.expect("serving")
            linux.run("ping -c 2 10.0.0.2")
            output = linux.run("wget -q -O - http://10.0.0.2/ | wc -c")
            assert str(len(PAGE)) in output
            console.expect("got: a page of Debian")
