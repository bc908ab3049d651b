# SPDX-License-Identifier: GPL-2.0-only
"""Two Debian guests and the world, by IPv4 and IPv6: addresses, pings, names, streams out, forwarded ports in.

    unshare --net --mount python -m tests.net.scene_world FOLDER

Run by `tests.net.test_world` in namespaces of its own: the host's name server and its loopback are made here.
"""

from __future__ import annotations

import hashlib
import http.server
import random
import socket
import socketserver
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

from tests.net.apart import put_over
from tests.net.linux import Shell, guests
from tests.system.harness import Host, kill, until

S = TypeVar("S", bound=socketserver.BaseServer)
GATEWAYS = "10.0.2.2", "fd0a:0:2::2"
NAMES = {(b"\4four\3lab\0", b"\0\1"): GATEWAYS[0], (b"\3six\3lab\0", b"\0\x1c"): GATEWAYS[1]}
"""What the name server knows: name and type of address, as queries have them."""
LOOPBACKS = "127.0.0.1", "::1"
PORT, PORT6 = 8080, 8081


@contextmanager
def serving(data: bytes, address: str) -> Iterator[int]:
    """A small HTTP server on the host's loopback; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

    with _running(Server((address, 0), Handler)) as server:
        yield server.server_address[1]


@contextmanager
def naming(address: str) -> Iterator[None]:
    """A name server on that address, which knows `four.lab` and `six.lab`: the gateway."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            query, reply = self.request
            question = query[12:]
            name, kind = question[:-4], question[-4:-2]
            found = NAMES.get((name, kind))
            answer = b""
            if found is not None:
                packed = ip_address(found).packed
                answer = b"\xc0\x0c" + kind + b"\0\1\0\0\0\x3c" + len(packed).to_bytes(2, "big") + packed
            status = 0 if any(name == known for known, _ in NAMES) else 3
            head = query[:2] + bytes([0x81, 0x80 | status, 0, 1, 0, bool(answer), 0, 0, 0, 0])
            reply.sendto(head + question + answer, self.client_address)

    class Server(socketserver.ThreadingUDPServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

    with _running(Server((address, 53), Handler)):
        yield


@contextmanager
def _running(server: S) -> Iterator[S]:
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def main(folder: Path) -> None:
    put_over("/etc/resolv.conf", "".join(f"nameserver {address}\n" for address in LOOPBACKS), folder)
    forwards = f"['forward={PORT}:80 [::1]:{PORT6}:80']"
    with ExitStack() as stack:
        for address in LOOPBACKS:
            stack.enter_context(naming(address))
        host = stack.enter_context(Host(folder))
        one, two = stack.enter_context(guests(host, forwards, "['']"))
        get_addresses(one, two)
        for shell, other in ((one, two), (two, one)):
            for target in (*GATEWAYS, *addresses_of(other)):
                shell.run(f"ping -c 1 {target}")
            look_up_names(shell)
            fetch(shell)
        one.run("mkdir -p /www; echo the guest greets > /www/index.html; httpd -p 80 -h /www")
        visit()
        (process,) = [pid for pid in host.processes() if "network" in Path(f"/proc/{pid}/cmdline").read_text()]
        kill(process)
        until(lambda: "another is started" in host.xl("dmesg"), "the network process to have ended")
        one.run("until ping -c 1 -W 1 10.0.2.2; do sleep 0.2; done")
        visit()
        log = (host.rundir / "log" / "host.log").read_text()
        assert "ERROR" not in log and "Traceback" not in log


def get_addresses(*shells: Shell) -> None:
    for shell in shells:
        shell.run("ip link set eth0 up; udhcpc -i eth0 -n -q")
    for shell in shells:
        shell.run("until ip -6 addr show eth0 | grep 'fd0a:.*global' | grep -vq tentative; do sleep 0.2; done")
    # whose card connected first has the first: they boot at the same time
    assert sorted(addresses_of(shell)[0] for shell in shells) == ["10.0.2.15", "10.0.2.16"]


def addresses_of(shell: Shell) -> list[str]:
    """Of its card: the IPv4 address, and the IPv6 address of the network."""
    lines = [line.split() for line in shell.run("ip addr show eth0").splitlines() if "global" in line]
    found = [words[1].partition("/")[0] for words in lines]
    assert [ip_address(text).version for text in found] == [4, 6]
    return found


def look_up_names(shell: Shell) -> None:
    for server in ("10.0.2.3", "fd0a:0:2::3"):
        for name, address in zip(("four.lab", "six.lab"), GATEWAYS, strict=True):
            assert address in shell.run(f"nslookup {name} {server}").partition("Name:")[2]
        shell.run(f"! nslookup nobody.lab {server}")


def fetch(shell: Shell) -> None:
    """From servers on the host's loopback, by the gateway's addresses and by name."""
    data = random.Random(3).randbytes(1 << 20)
    for loopback, names in zip(LOOPBACKS, (("10.0.2.2", "four.lab"), ("[fd0a:0:2::2]", "six.lab")), strict=True):
        with serving(data, loopback) as port:
            for name in names:
                output = shell.run(f"wget -q -O - 'http://{name}:{port}/' | md5sum", 120)
                assert hashlib.md5(data).hexdigest() in output, output


def visit() -> None:
    """The guest's server, by both of its forwarded ports."""
    for place in (f"localhost:{PORT}", f"[::1]:{PORT6}"):
        with urllib.request.urlopen(f"http://{place}/index.html", timeout=30) as answer:
            assert answer.read() == b"the guest greets\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
