#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""How fast guests boot, next to QEMU in the same run, and what they cost at rest.

    python benchmarks/bench_boot.py [--runs N]

Boot: from the start of `xl create` (of a host that runs already), or of QEMU, to the first line of the initramfs's
/init. Both get the same unpacked Debian kernel, the same initramfs and 256 MB; QEMU emulates a PC with one CPU by a
translator (`-accel tcg,thread=single -cpu max`), as we do by ours. Runs alternate and medians are compared, because
figures of different moments on a busy machine say nothing; CPU time is told too, which others' load changes less.

At rest: CPU time of a host with one and with two idle guests, and the memory (proportional set size) of all its
processes, next to what the guests themselves have touched.
"""

from __future__ import annotations

import argparse
import os
import selectors
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import attrs

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tests import debian  # noqa: E402
from tests.system.harness import (  # noqa: E402
    BIN,
    Host,
    cpu_seconds,
    memory_file_kb,
    pss_kb,
    until,
)

FIRST_LINE = b"/init: started"
HELLO_PROMPT = b"greetings from the harness"
MEMORY_MB = 256
IDLE_SECONDS = 20
QEMU = ("-M", "q35", "-accel", "tcg,thread=single", "-cpu", "max", "-m", str(MEMORY_MB))
QUIET = ("-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot")


@attrs.frozen
class Run:
    """Seconds."""

    elapsed: float
    cpu: float


def main() -> int:
    parser = argparse.ArgumentParser(description="Boot times next to QEMU's, and guests at rest.")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="xen-py-bench-"))
    try:
        vmlinux, initramfs = images(folder)
        with Host(folder) as host:
            config = debian_config(host, "debian", vmlinux, initramfs)
            boots(host, config, qemu_command(vmlinux, initramfs), options.runs)
            hello(host, options.runs)
            at_rest(host, vmlinux, initramfs)
    finally:
        shutil.rmtree(folder)
    return 0


def images(folder: Path) -> tuple[Path, Path]:
    """Debian's kernel, unpacked, and its initramfs."""
    fetch = [str(BIN / "xen-py"), "image", "fetch", "debian"]
    listing = subprocess.run(fetch, check=True, stdout=subprocess.PIPE, text=True).stdout
    files = {Path(line).name: Path(line) for line in listing.splitlines()}
    vmlinux = folder / "vmlinux"
    subprocess.run([BIN / "xen-py", "image", "vmlinux", files["vmlinuz"], vmlinux], check=True)
    return vmlinux, files["initramfs.gz"]


def debian_config(host: Host, name: str, vmlinux: Path, initramfs: Path) -> Path:
    return host.config(name, kernel=str(vmlinux), ramdisk=str(initramfs), cmdline="console=hvc0", memory=MEMORY_MB)


def qemu_command(vmlinux: Path, initramfs: Path) -> list[str]:
    """QEMU with our kernel; Debian's package is unpacked into the clone's cache where there is none."""
    program = shutil.which("qemu-system-x86_64")
    command = [program] if program else debian.program("qemu-system-x86", "qemu-system-x86_64")
    version = subprocess.run([*command, "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout
    print(version.splitlines()[0])
    kernel = ("-kernel", str(vmlinux), "-initrd", str(initramfs), "-append", "console=ttyS0")
    return [*command, *QEMU, *QUIET, *kernel]


def boots(host: Host, config: Path, qemu: list[str], runs: int) -> None:
    ours, theirs = [], []
    for number in range(1, runs + 1):
        ours.append(boot_guest(host, config, FIRST_LINE))
        theirs.append(boot_qemu(qemu))
        print(
            f"boot {number}: xl create {ours[-1].elapsed:6.2f} s (CPU {ours[-1].cpu:5.2f})"
            f"   QEMU {theirs[-1].elapsed:6.2f} s (CPU {theirs[-1].cpu:5.2f})",
            flush=True,
        )
    us, them = median(ours), median(theirs)
    print(
        f"Debian's kernel to /init, medians of {runs}: xl create {us.elapsed:.2f} s (CPU {us.cpu:.2f}),"
        f" QEMU {them.elapsed:.2f} s (CPU {them.cpu:.2f}):"
        f" ratio {us.elapsed / them.elapsed:.2f} (CPU {us.cpu / them.cpu:.2f})"
    )


def median(runs: list[Run]) -> Run:
    return Run(statistics.median(run.elapsed for run in runs), statistics.median(run.cpu for run in runs))


def boot_guest(host: Host, config: Path, line: bytes) -> Run:
    """From the start of `xl create` to `line` on the guest's console; CPU time of xl, the host and the VM process."""
    name = config.stem
    log = host.rundir / "log" / f"guest-{name}.log"
    log.unlink(missing_ok=True)
    before = sum(map(cpu_seconds, host.processes())) + children_seconds()
    began = time.monotonic()
    host.xl("create", config)
    while line not in log.read_bytes():
        time.sleep(0.005)
    elapsed = time.monotonic() - began
    cpu = sum(map(cpu_seconds, host.processes())) + children_seconds() - before
    host.xl("destroy", name)
    return Run(elapsed, cpu)


def children_seconds() -> float:
    """CPU time of the commands run so far."""
    times = os.times()
    return times.children_user + times.children_system


def boot_qemu(command: list[str]) -> Run:
    """From the start of QEMU to the first line of /init on its serial port."""
    before, began = children_seconds(), time.monotonic()
    with (
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0) as process,
        selectors.DefaultSelector() as selector,
    ):
        assert process.stdout is not None
        selector.register(process.stdout, selectors.EVENT_READ)
        output = b""
        while FIRST_LINE not in output:
            if not selector.select(300) or not (data := os.read(process.stdout.fileno(), 1 << 16)):
                process.kill()
                raise RuntimeError(f"QEMU's guest did not get to /init: {output[-500:]!r}")
            output += data
        elapsed = time.monotonic() - began
        process.kill()
    return Run(elapsed, children_seconds() - before)


def hello(host: Host, runs: int) -> None:
    config = host.hello("hello")
    results = median([boot_guest(host, config, HELLO_PROMPT) for _ in range(runs)])
    print(
        f"the hello guest, from xl create to its greeting, median of {runs}:"
        f" {results.elapsed:.2f} s (CPU {results.cpu:.2f})"
    )


def at_rest(host: Host, vmlinux: Path, initramfs: Path) -> None:
    """What one idle guest costs, and what a second one adds."""
    previous = 0
    for count, name in ((1, "one"), (2, "two")):
        config = debian_config(host, name, vmlinux, initramfs)
        host.xl("create", config)
        until(lambda name=name: b"/ # " in host.log(name), "the guest's prompt")  # type: ignore[misc]
        time.sleep(3)
        pids = host.processes()
        used = sum(map(cpu_seconds, pids))
        time.sleep(IDLE_SECONDS)
        percent = 100 * (sum(map(cpu_seconds, pids)) - used) / IDLE_SECONDS
        total = sum(map(pss_kb, pids))
        more, touched = total - previous, memory_file_kb(host.vm_process(name))
        print(
            f"{count} idle guest{'s' * (count > 1)}: {percent:.2f} % of a core for all processes together;"
            f" {more / 1024:.1f} MB {'more' if previous else 'in host, template and VM process'},"
            f" of which this guest has touched {touched / 1024:.1f} MB: {(more - touched) / 1024:.1f} MB beyond"
        )
        previous = total


if __name__ == "__main__":
    sys.exit(main())
