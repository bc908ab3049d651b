# SPDX-License-Identifier: GPL-2.0-only
"""Rings: how fast requests go through the echo device, between a guest (in Python, and in C) and dom0.

    python benchmarks/bench_rings.py [--seconds 2]

One at a time (round trips) and 32 at once, with both halves in one trio loop on one core, and with the guest in a VM
process of its own. Medians of five spells each. Aims of the project: 20,000 round trips and 100,000 requests a second
in one loop.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import time
from pathlib import Path

import trio

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples" / "echo_device")]

from echo_device.backend import EchoBackend  # noqa: E402
from echo_device.frontend import EchoFrontend  # noqa: E402
from echo_device.protocol import Request  # noqa: E402

import native_build  # noqa: E402
from dom0.host.machine import open_machine  # noqa: E402
from dom0.toolstack.config import DomainConfig  # noqa: E402
from dom0.toolstack.deviceconfig import DeviceConfig  # noqa: E402
from domU.guest import Guest  # noqa: E402

SPELLS = 5
AT_ONCE = 32
PYTHON = "python:bench_rings:main"
NATIVE = str(native_build.GUEST_OUTPUT / "echo.elf")


async def main(guest: Guest) -> None:
    """The guest's program: measures, and says on its console what it found."""
    seconds = float(guest.cmdline)
    request = Request(0, 8, b"12345678")
    async with guest.device(EchoFrontend) as echo:
        for at_once in (1, AT_ONCE):
            rates = []
            for _ in range(SPELLS):
                began, count = time.perf_counter(), 0
                while (took := time.perf_counter() - began) < seconds / SPELLS:
                    for _ in range(16):
                        await echo.queue.calls([request] * at_once)
                    count += 16 * at_once
                rates.append(count / took)
            await guest.console.print(f"rate {at_once} {statistics.median(rates):.0f}")


async def measure(kernel: str, processes: bool, seconds: float) -> None:
    in_python = kernel.startswith("python:")
    config = DomainConfig(
        name="bench",
        kernel=kernel,
        program_path=(str(Path(__file__).parent), str(ROOT / "examples" / "echo_device")),
        cmdline=str(seconds) if in_python else str(round(seconds * 1000)),
        memory_kb=16 * 1024,
        devices=(DeviceConfig.parse("type=echo", []),),
    )
    where = f"{'Python' if in_python else 'C'} guest in {'a VM process' if processes else 'one loop'}"
    async with open_machine(processes=processes) as machine:
        machine.backends.register(EchoBackend)
        guest = await machine.create(config)
        for what in ("round trips", f"requests, {AT_ONCE} at once"):
            match = await guest.console.expect(re.compile(r"rate \d+ (\d+)"))
            print(f"{where}: {int(match[1]):7,} {what} a second", flush=True)
        await guest.wait_gone()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Requests through the echo device.")
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for kernel, processes in ((PYTHON, False), (PYTHON, True), (NATIVE, True)):
        trio.run(measure, kernel, processes, options.seconds)
