#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""How fast guests' networks are, next to QEMU's in the same run: TCP between two guests, and to the host.

    python benchmarks/bench_net.py [--megabytes N] [--rounds N] [--no-qemu]

Both sides boot the same Debian kernel with one CPU and the same small program (net_stream.c). Ours are Debian's
xen-netfront on xenbr0; QEMU's (`-accel tcg,thread=single -cpu max`) have virtio-net, joined by a socket between the
two, and user networking (libslirp) to the host. Runs alternate; medians are told.
"""

from __future__ import annotations

import argparse
import re
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import native_build  # noqa: E402
from dom0.image import initramfs  # noqa: E402
from dom0.image.modules import in_order, unpack  # noqa: E402
from dom0.image.paths import images_dir  # noqa: E402
from tests import debian  # noqa: E402
from tests.system.harness import Host, Session, fetch_debian  # noqa: E402

MEMORY_MB = 192
VIRTIO = (
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
)
NAMES = (
    *("guest to guest, MiB/s", "guest to host, MiB/s", "host to guest, MiB/s"),
    *("guest to guest, round trips/s", "guest to host, round trips/s"),
)


class Guest:
    """A shell on a console, whoever emulates the machine behind it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        session.expect("/ # ", 300)

    def run(self, line: str) -> None:
        self.session.send(line + "; echo done=$?\n")
        self.session.expect("^done=0", 300)

    def up(self, address: str, device: str) -> None:
        self.run(
            f"until [ -e /sys/class/net/{device} ]; do sleep 0.1; done; "
            f"ip addr add {address}/24 dev {device}; ip link set {device} up"
        )

    def start(self, line: str) -> None:
        self.session.send(line + "\n")
        self.session.expect("^stream: listens", 300)

    def figures(self, line: str = "") -> list[int]:
        """The numbers in what the program says at its end."""
        if line:
            self.session.send(line + "\n")
        said = self.session.expect("^stream: (.*) us", 600)
        return [int(number) for number in re.findall(rb"[0-9]+", said[1])]


def main() -> int:
    parser = argparse.ArgumentParser(description="Guests' networks, next to QEMU's.")
    parser.add_argument("--megabytes", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-qemu", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="xen-py-bench-"))
    fetch_debian()
    stream = folder / "stream"
    flags = ("-target", "x86_64-linux-musl", "-static", "-O2", "-Wall", "-Wextra", "-Werror")
    native_build.zig_cc([*flags, HERE / "net_stream.c"], stream)
    sides: dict[str, Any] = {"xen-py": lambda: ours(folder, stream)}
    if not options.no_qemu:
        sides["QEMU"] = lambda: qemus(folder, stream)
    try:
        results: dict[str, list[list[float]]] = {name: [] for name in sides}
        with ExitStack() as stack:
            pairs = {name: stack.enter_context(pair()) for name, pair in sides.items()}
            for _ in range(options.rounds):
                for name, guests in pairs.items():
                    results[name].append(measure(*guests, options.megabytes))
                    print(f"{name:>7}: " + "   ".join(f"{value:7.1f}" for value in results[name][-1]), flush=True)
    finally:
        shutil.rmtree(folder)
    for number, what in enumerate(NAMES):
        medians = {name: statistics.median(run[number] for run in runs) for name, runs in results.items()}
        told = ", ".join(f"{name} {value:.1f}" for name, value in medians.items())
        ratio = f": ratio {medians['xen-py'] / medians['QEMU']:.2f}" if "QEMU" in medians else ""
        print(f"{what}: {told}{ratio}", flush=True)
    return 0


def measure(one: Guest, two: Guest, address: str, gateway: str, megabytes: int) -> list[float]:
    """One of each of NAMES."""
    two.start("stream sink 7000")
    one.figures(f"stream source {address} 7000 {megabytes}")
    size, microseconds = two.figures()
    found = [size / microseconds * 1e6 / (1 << 20)]
    with listening(drain) as (port, done):
        began = time.monotonic()
        one.figures(f"stream source {gateway} {port} {megabytes}")
        done.wait(60)
        found.append(megabytes / (time.monotonic() - began))
    with listening(lambda connection: pour(connection, megabytes)) as (port, _):
        one.session.send(f"nc {gateway} {port} > /dev/null; echo done=$?\n")
        began = time.monotonic()
        one.session.expect("^done=0", 600)
        found.append(megabytes / (time.monotonic() - began))
    two.start("stream echo 7001")
    count, microseconds = one.figures(f"stream pingpong {address} 7001 300")
    found.append(count / microseconds * 1e6)
    with listening(echo) as (port, _):
        count, microseconds = one.figures(f"stream pingpong {gateway} {port} 300")
    found.append(count / microseconds * 1e6)
    return found


def drain(connection: socket.socket) -> None:
    while connection.recv(1 << 20):
        pass


def echo(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := connection.recv(1 << 16):
        connection.sendall(data)


def pour(connection: socket.socket, megabytes: int) -> None:
    unit = bytes(1 << 20)
    for _ in range(megabytes):
        connection.sendall(unit)


@contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[tuple[int, threading.Event]]:
    """A server on the host for one connection; its port, and when it has served."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                serve(connection)
            done.set()

        thread = threading.Thread(target=run)
        thread.start()
        yield listener.getsockname()[1], done
        thread.join()


@contextmanager
def ours(folder: Path, stream: Path) -> Iterator[tuple[Guest, Guest, str, str]]:
    """Two guests of ours, their addresses set."""
    images = images_dir() / "debian"
    modules = unpack((images / "modules.tar").read_bytes())
    ramdisk = folder / "ours.gz"
    ramdisk.write_bytes(
        initramfs.build(str(images / "busybox"), files={"bin/stream": (stream.read_bytes(), 0o755)}, modules=modules)
    )
    with Host(folder) as host, ExitStack() as stack:
        guests = []
        for number in (1, 2):
            config = host.config(
                f"net{number}",
                kernel="image:debian/vmlinuz",
                ramdisk=str(ramdisk),
                cmdline="console=hvc0 quiet",
                memory=MEMORY_MB,
            )
            config.write_text(config.read_text() + "vif = ['']\n")
            host.xl("create", config)
            guests.append(Guest(stack.enter_context(host.session("console", f"net{number}"))))
            guests[-1].up(f"10.0.2.{14 + number}", "eth0")
        yield guests[0], guests[1], "10.0.2.16", "10.0.2.2"


@contextmanager
def qemus(folder: Path, stream: Path) -> Iterator[tuple[Guest, Guest, str, str]]:
    """Two guests of QEMU's: eth0 leads to the other, eth1 of the first to the host."""
    command = [shutil.which("qemu-system-x86_64") or ""]
    if not command[0]:
        command = debian.program("qemu-system-x86", "qemu-system-x86_64")
    root = debian.unpacked("linux-image-[0-9.]+-[0-9]+-amd64")
    kernel, release = debian.newest_kernel(root, "vmlinuz-*[0-9]-amd64")  # other packages' are there, too
    tree = root / "lib" / "modules" / release / "kernel"
    modules = {Path(name).name: (tree / f"{name}.ko").read_bytes() for name in VIRTIO}
    ramdisk = folder / "theirs.gz"
    ramdisk.write_bytes(
        initramfs.build(
            str(images_dir() / "debian" / "busybox"),
            files={"bin/stream": (stream.read_bytes(), 0o755)},
            modules=in_order(modules),
        )
    )
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with ExitStack() as stack:
        guests = []
        for number, end in ((1, "listen"), (2, "connect")):
            arguments = [
                *("-M", "q35", "-accel", "tcg,thread=single", "-cpu", "max", "-m", str(MEMORY_MB)),
                *("-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"),
                *("-kernel", str(kernel), "-initrd", str(ramdisk), "-append", "console=ttyS0 quiet"),
                *("-netdev", f"socket,id=n,{end}=127.0.0.1:{port}"),
                *("-device", f"virtio-net-pci,netdev=n,romfile=,mac=52:54:00:00:00:0{number}"),
            ]
            if number == 1:
                arguments += ["-netdev", "user,id=u", "-device", "virtio-net-pci,netdev=u,romfile="]
            guests.append(Guest(stack.enter_context(Session([*command, *arguments], {"PATH": "/usr/bin:/bin"}))))
            guests[-1].up(f"10.0.9.{number}", "eth0")
        guests[0].up("10.0.2.15", "eth1")
        yield guests[0], guests[1], "10.0.9.2", "10.0.2.2"


if __name__ == "__main__":
    sys.exit(main())
