# SPDX-License-Identifier: GPL-2.0-only
"""Cards on a Linux bridge: Python guests and Debian with the machine's own network stack and with each other.

    unshare --net --mount python -m tests.net.scene_tap FOLDER

Run by `tests.net.test_tap` in namespaces of its own, where the bridge is made.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import urllib.request
from pathlib import Path

import trio

from domU.frontend.net import NetFrontend
from domU.inet import Inet, open_inet
from tests.net.captures import read_capture
from tests.net.frames import A, B, ip4, ip6, tcp
from tests.net.guests import MAC, backend_of, guest_with, lab
from tests.net.linux import guests
from tests.net.scene_world import serving
from tests.system.harness import Host, until
from xen_py.io.netif import GsoType
from xen_py.io.packet import Csum, Packet, complete, segment

BRIDGE = "bridge=br0,script=vif-bridge"
ADDRESSES = "10.9.0.1", "fd09::1"


class Able(NetFrontend):
    offloads = True


def ip(line: str) -> str:
    return subprocess.run(["ip", *line.split()], check=True, stdout=subprocess.PIPE, text=True).stdout


async def python_guests() -> None:
    async with lab(f"mac={MAC}1,{BRIDGE}", f"mac={MAC}2,{BRIDGE},vifname=second,mtu=1400") as (machine, (one, two)):
        for name in (f"vif{one.domid}.0", "second"):
            state = ip(f"-d link show {name}")
            assert "master br0" in state and "fe:ff:ff:ff:ff:ff" in state and "NO-CARRIER" in state
        assert "mtu 1400" in ip("link show second")
        status = machine.store.read(f"/local/domain/0/backend/vif/{one.domid}/0/hotplug-status")
        assert status == b"connected"
        async with one.device(Able) as first, two.device(Able) as second:
            await carrier("second")
            for make, kind, addresses in (
                (ip4, GsoType.TCPV4, ("10.9.0.2", "10.9.0.3")),
                (ip6, GsoType.TCPV6, ("fd09::2", "fd09::3")),
            ):
                whole = Packet(make(B, A, *addresses, 6, tcp(bytes(range(256)) * 200)), Csum.BLANK, kind, 1200)
                await first.send(whole)
                found = await receive(second)
                assert found._replace(data=b"") == whole._replace(data=b"")
                assert pieces_of(found) == pieces_of(whole)
        async with one.device(NetFrontend) as first, open_inet(first, "10.9.0.2/24") as inet:
            await streams_with_the_machine(inet)
        taps = backend_of(machine, one).statistics()["tap"]
        assert taps["name"] == f"vif{one.domid}.0" and taps["rx_packets"] > 0
        async with one.device(NetFrontend) as first:
            ip(f"link delete vif{one.domid}.0")
            while first.connected:
                await trio.sleep(0.01)
    for name in ("second", "vif1.0"):
        assert subprocess.run(["ip", "link", "show", name], capture_output=True).returncode
    async with lab("") as (machine, _):
        for card, reason in (
            ("bridge=none,script=vif-bridge", "Linux bridge none: none: there is no such device"),
            ("bridge=lo,script=vif-bridge", "lo: it is not a Linux bridge"),
            (f"{BRIDGE},vifname=br0", "br0: the name is taken"),
            (f"{BRIDGE},vifname=longer-than-names", "at most 15 letters"),
        ):
            try:
                async with guest_with(machine, card, name="refused"):
                    raise AssertionError(f"{card} was had")
            except Exception as error:
                assert reason in str(error), (card, error)


def pieces_of(packet: Packet) -> list[bytes]:
    return [complete(piece).data for piece in segment(packet)]


async def receive(card: NetFrontend) -> Packet:
    """The next packet that is from the other guest: the machine says things of its own."""
    with trio.fail_after(10):
        while (packet := await card.receive()).data[6:12] != A:
            pass
    return packet


async def carrier(name: str) -> None:
    with trio.fail_after(10):
        while "state UP" not in ip(f"link show {name}"):
            await trio.sleep(0.02)


async def streams_with_the_machine(inet: Inet) -> None:
    """To a server of the machine's and back; the kernel leaves its segments and checksums to the device."""
    data = random.Random(5).randbytes(1 << 20)
    got: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        got.append(b"".join([block async for block in stream]))
        await stream.send_all(data)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(lambda task_status: trio.serve_tcp(
            serve, 0, host=ADDRESSES[0], task_status=task_status
        ))  # fmt: skip
        with trio.fail_after(30):
            stream = await inet.connect(ADDRESSES[0], listener.socket.getsockname()[1])
            await stream.send_all(data)
            await stream.aclose()
            found = b""
            while block := await stream.receive_some():
                found += block
        assert found == data and got == [data]
        nursery.cancel_scope.cancel()


def debian(folder: Path) -> None:
    data = random.Random(6).randbytes(3 << 20)
    with Host(folder) as host, guests(host, f"['{BRIDGE}']") as (shell,):
        until(lambda: "state UP" in ip("link show vif1.0"), "the carrier")
        shell.run("ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0; ip addr add fd09::2/64 dev eth0")
        shell.run("until ip addr show eth0 | grep fd09:: | grep -vq tentative; do sleep 0.2; done")
        capture = folder / "capture.pcapng"
        with host.session("netcap", "net0", "-w", str(capture)):
            until(lambda: capture.exists() and capture.stat().st_size > 0, "the capture to begin")
            shell.run(f"ping -c 2 {ADDRESSES[0]}")
        names, frames = read_capture(capture.read_bytes())
        assert names == ["vif1.0"]
        assert len([frame for frame in frames if frame.data[12:14] == b"\x08\0" and frame.data[23] == 1]) == 4
        for address in ADDRESSES:
            shell.run(f"ping -c 1 {address}")
            with serving(data, address) as port:
                name = f"[{address}]" if ":" in address else address
                assert hashlib.md5(data).hexdigest() in shell.run(f"wget -q -O - 'http://{name}:{port}/' | md5sum", 120)
        shell.run("mkdir -p /www; cp /bin/busybox /www/; httpd -p 80 -h /www")
        expected = shell.run("md5sum < /bin/busybox").split()[-2]  # before the dash
        for name in ("10.9.0.2", "[fd09::2]"):
            with urllib.request.urlopen(f"http://{name}/busybox", timeout=60) as answer:
                assert hashlib.md5(answer.read()).hexdigest() == expected


def main(folder: Path) -> None:
    ip("link add br0 type bridge")
    ip("link set br0 up")
    ip(f"addr add {ADDRESSES[0]}/24 dev br0")
    ip(f"addr add {ADDRESSES[1]}/64 dev br0 nodad")
    trio.run(python_guests)
    debian(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
