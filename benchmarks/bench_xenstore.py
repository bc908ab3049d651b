#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""How fast the store is, next to Xen's own C daemon in the same run.

    python benchmarks/bench_xenstore.py [--cpu N] [--rounds N] [--scale F] [--nodes N] [--json FILE] [--only TEXT]

Both daemons and the client share one CPU. Every row is measured for both in turn, several rounds, and the medians
are compared: figures of different runs say nothing, and a busy machine slows both alike. The C daemon is Debian's,
started without a hypervisor; xenstored is the one of this clone.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tests.xenstore.conftest import running  # noqa: E402
from tests.xenstore.reference import CDaemon  # noqa: E402
from xenstore.client import Client  # noqa: E402
from xenstore.wire import MsgType, pack  # noqa: E402

LIMITS = ("-E", "10000000", "-S", "1000000", "-W", "100000", "-t", "1000")
WINDOW, CONNECTIONS = 32, 8
VALUE = b"v" * 64


class Loops:
    """The C loops, compiled when they have changed."""

    def __init__(self) -> None:
        source, library = HERE / "xenstore_client.c", HERE.parent / ".cache" / "xenstore_client.so"
        if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
            library.parent.mkdir(exist_ok=True)
            compiler = (sys.executable, "-m", "ziglang", "cc", "-O2", "-shared", "-fPIC")
            subprocess.run([*compiler, "-o", str(library), str(source), "-lpthread"], check=True)
        self._library = ctypes.CDLL(str(library))
        for name in ("run_requests", "run_transactions", "run_watch", "run_together"):
            getattr(self._library, name).restype = ctypes.c_int64

    def call(self, name: str, *arguments: object) -> float:
        """Seconds."""
        elapsed = getattr(self._library, name)(*arguments)
        if elapsed < 0:
            raise RuntimeError(f"{name}: {'connection lost' if elapsed == -1 else 'a request was refused'}")
        return float(elapsed) / 1e9


class Requests:
    """Some requests in the form that the C loops take."""

    def __init__(self, messages: list[bytes]) -> None:
        self.data = ctypes.create_string_buffer(b"".join(messages))
        ends = [0]
        for message in messages:
            ends.append(ends[-1] + len(message))
        self.offsets = (ctypes.c_int64 * len(ends))(*ends)
        self.count = ctypes.c_int64(len(messages))


class Target:
    """A daemon under measurement."""

    def __init__(self, loops: Loops, name: str, path: str, pid: int) -> None:
        self.name = name
        self.path = path
        self.pid = pid
        self._loops = loops
        self._sockets = [self._connect() for _ in range(CONNECTIONS)]
        self.watcher = self._connect()

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self.path)
        return sock

    @property
    def fd(self) -> int:
        return self._sockets[0].fileno()

    def rate(self, messages: list[bytes], count: int, window: int = 1) -> float:
        requests = Requests(messages * (window // len(messages) + 1))
        wide = (ctypes.c_int64(count), ctypes.c_int64(window))
        return count / self._loops.call(
            "run_requests", self.fd, requests.data, requests.offsets, requests.count, *wide, None
        )

    def latency(self, messages: list[bytes], count: int) -> float:
        """Microseconds, median."""
        requests, found = Requests(messages), (ctypes.c_int64 * count)()
        wide = (ctypes.c_int64(count), ctypes.c_int64(1))
        self._loops.call("run_requests", self.fd, requests.data, requests.offsets, requests.count, *wide, found)
        return float(statistics.median(found)) / 1e3

    def transactions(self, messages: list[bytes], count: int, batched: bool) -> float:
        requests = Requests(messages)
        return count / self._loops.call(
            "run_transactions", self.fd, requests.data, requests.offsets, requests.count, ctypes.c_int64(count), batched
        )

    def watch(self, message: bytes, count: int) -> float:
        """Microseconds from a write to the watcher's event, median."""
        found = (ctypes.c_int64 * count)()
        size = ctypes.c_int64(len(message))
        self._loops.call("run_watch", self.fd, self.watcher.fileno(), message, size, ctypes.c_int64(count), found)
        return float(statistics.median(found)) / 1e3

    def together(self, messages: list[bytes], count: int, window: int) -> float:
        requests = Requests(messages * (window // len(messages) + 1))
        fds = (ctypes.c_int * CONNECTIONS)(*(sock.fileno() for sock in self._sockets))
        numbers = (requests.count, ctypes.c_int64(count), ctypes.c_int64(window))
        elapsed = self._loops.call(
            "run_together", fds, ctypes.c_int64(CONNECTIONS), requests.data, requests.offsets, *numbers
        )
        return CONNECTIONS * count / elapsed

    def resident(self) -> float:
        """Megabytes."""
        with open(f"/proc/{self.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def close(self) -> None:
        for sock in (*self._sockets, self.watcher):
            sock.close()


class Bench:
    """The rows, measured for all targets in turn."""

    def __init__(self, targets: list[Target], options: argparse.Namespace) -> None:
        self.targets = targets
        self.rows: dict[str, dict[str, float]] = {}
        self._options = options

    def number(self, count: int) -> int:
        return max(20, int(count * self._options.scale))

    def row(
        self, name: str, measure: Callable[[Target], float], lower_is_better: bool = False, rounds: int | None = None
    ) -> None:
        """One line of the table; the last column is how many times better ours is."""
        if self._options.only not in name:
            return
        found: dict[str, list[float]] = {target.name: [] for target in self.targets}
        for _ in range(rounds or self._options.rounds):
            for target in self.targets:
                found[target.name].append(measure(target))
        medians = {target: statistics.median(values) for target, values in found.items()}
        ours, theirs = medians["xen-py"], medians["C xenstored"]
        ratio = theirs / ours if lower_is_better else ours / theirs
        self.rows[name] = {**medians, "ratio": ratio}
        print(f"{name:44} {ours:12,.1f} {theirs:12,.1f} {ratio:8.2f}", flush=True)


def requests_of(kind: MsgType, paths: list[bytes], tail: bytes = b"") -> list[bytes]:
    return [pack(kind, 0, 0, path + b"\0" + tail) for path in paths]


def run(bench: Bench) -> None:
    number = bench.number
    read, write = requests_of(MsgType.READ, [b"/bench/a"]), requests_of(MsgType.WRITE, [b"/bench/a"], VALUE)
    directory = requests_of(MsgType.DIRECTORY, [b"/bench/dir"])
    for target in bench.targets:
        with Client(target.path) as client:
            client.write("/bench/a", VALUE)
            for i in range(100):
                client.write(f"/bench/dir/node{i:03}", "x")
    for name, messages in (("READ", read), ("WRITE", write), ("DIRECTORY of 100", directory)):
        one_kind(bench, name, messages, number(30000))
    steps = requests_of(MsgType.WRITE, [b"/bench/tx/k%d" % i for i in range(10)], VALUE)
    for target in bench.targets:
        target.rate(steps, 10)
    n = number(2000)
    bench.row("transactions of 10 writes/s", lambda target: target.transactions(steps, n, False))
    bench.row("transactions of 10 writes, one send/s", lambda target: target.transactions(steps, n * 2, True))
    for target in bench.targets:
        target.watcher.sendall(pack(MsgType.WATCH, 0, 0, b"/bench/a\0token\0"))
        expected = len(pack(MsgType.WATCH, 0, 0, b"OK\0")) + 16 + len(b"/bench/a\0token\0")
        while expected:
            expected -= len(target.watcher.recv(expected))
    bench.row("watch fires, median us", lambda target: target.watch(write[0], number(5000)), lower_is_better=True)
    for target in bench.targets:
        target.watcher.close()
        target.watcher = target._connect()
        for i in range(100):
            target.watcher.sendall(pack(MsgType.WATCH, 0, 0, b"/bench/dir/node%03d\0t\0" % i))
    bench.row("WRITE beside 100 watches/s", lambda target: target.rate(write, number(20000)))
    for target in bench.targets:
        target.watcher.close()
        target.watcher = target._connect()
    bench.row(f"READ on {CONNECTIONS} connections/s", lambda target: target.together(read, number(6000), 1))
    bench.row(f"WRITE on {CONNECTIONS} connections/s", lambda target: target.together(write, number(6000), 1))
    bench.row(
        f"READ on {CONNECTIONS} connections, {WINDOW} in flight/s",
        lambda target: target.together(read, number(20000), WINDOW),
    )
    big(bench)


def one_kind(bench: Bench, name: str, messages: list[bytes], count: int) -> None:
    bench.row(f"{name}, round trips/s", lambda target: target.rate(messages, count))
    bench.row(f"{name}, median us", lambda target: target.latency(messages, count // 4), lower_is_better=True)
    bench.row(f"{name}, {WINDOW} in flight/s", lambda target: target.rate(messages, count * 3, WINDOW))


def big(bench: Bench) -> None:
    """A store of many nodes."""
    number, nodes = bench.number, bench._options.nodes
    paths = [b"/bench/big/%d/%02d/node%02d" % (i // 10000, i // 100 % 100, i % 100) for i in range(nodes)]
    populate = requests_of(MsgType.WRITE, paths, VALUE)
    before = {target.name: target.resident() for target in bench.targets}
    bench.row(f"{nodes} nodes: populate/s", lambda target: target.rate(populate, nodes, WINDOW), rounds=1)
    bench.row(f"{nodes} nodes: resident MB", Target.resident, lower_is_better=True, rounds=1)
    print(f"  resident before: {', '.join(f'{name} {size:.1f} MB' for name, size in before.items())}")
    some = random.Random(1).sample(paths, min(10000, nodes))
    bench.row(
        f"{nodes} nodes: READ/s", lambda target: target.rate(requests_of(MsgType.READ, some), number(20000))
    )
    bench.row(
        f"{nodes} nodes: WRITE/s", lambda target: target.rate(requests_of(MsgType.WRITE, some, VALUE), number(20000))
    )
    directories = [b"/bench/big/%d/%02d" % (i // 100, i % 100) for i in range(nodes // 100)]
    bench.row(
        f"{nodes} nodes: DIRECTORY of 100/s",
        lambda target: target.rate(requests_of(MsgType.DIRECTORY, directories), number(20000)),
    )
    steps = requests_of(MsgType.WRITE, [b"/bench/tx/k%d" % i for i in range(10)], VALUE)
    bench.row(f"{nodes} nodes: transactions/s", lambda target: target.transactions(steps, number(2000), False))
    remove = requests_of(MsgType.RM, [b"/bench/big"])
    bench.row(f"{nodes} nodes: RM of all, s", lambda target: 1 / target.rate(remove, 1), lower_is_better=True, rounds=1)


def main() -> int:
    parser = argparse.ArgumentParser(description="The store next to Xen's own C daemon.")
    parser.add_argument("--cpu", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--nodes", type=int, default=100000)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--only", default="", metavar="TEXT")
    options = parser.parse_args()
    loops = Loops()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "ours").mkdir()
        reference = CDaemon(folder / "c", *LIMITS)
        os.sched_setaffinity(0, {options.cpu})
        ours = stack.enter_context(running(folder / "ours"))
        stack.enter_context(reference)
        targets = [
            Target(loops, "xen-py", ours.socket, ours.process.pid),
            Target(loops, "C xenstored", reference.socket, reference.pid),
        ]
        print(f"{'':44} {'xen-py':>12} {'C xenstored':>12} {'better':>8}")
        bench = Bench(targets, options)
        run(bench)
        for target in targets:
            target.close()
    if options.json:
        Path(options.json).write_text(json.dumps(bench.rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
