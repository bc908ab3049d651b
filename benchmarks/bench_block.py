#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""How fast a guest's disk is, next to QEMU's in the same run.

    python benchmarks/bench_block.py [--runs N] [--seconds S]

The same Debian kernel, initramfs, image file (raw, in the host's page cache) and jobs (block_jobs.c: sequential 1 MiB,
random 4 KiB at depth 1 and 32, with O_DIRECT) run on xen-py's xvda and on virtio-blk of a PC that QEMU emulates
(`-accel tcg,thread=single -cpu max`, cache=writeback). Runs alternate and medians are compared.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import native_build  # noqa: E402
from benchmarks.bench_boot import MEMORY_MB, QEMU, QUIET  # noqa: E402
from dom0.image import initramfs, modules  # noqa: E402
from tests import debian  # noqa: E402
from tests.system.harness import BIN, Host, until  # noqa: E402

KERNEL = r"linux-image-6\.[0-9]+\.[0-9+deb]+-[0-9]+-amd64|linux-image-[0-9.+deb]+-amd64"
DRIVERS = {
    "block": ("xen-blkfront", "virtio_blk"),
    "virtio": ("virtio", "virtio_ring", "virtio_pci", "virtio_pci_legacy_dev", "virtio_pci_modern_dev"),
}
DISK_MB = 512
DONE = "jobs done"
FIGURE = re.compile(r"^job (\S+) ([0-9.]+) (\S+)", re.MULTILINE)


def main() -> int:
    parser = argparse.ArgumentParser(description="A guest's disk next to virtio-blk of QEMU.")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3, help="length of each job")
    parser.add_argument("--only", choices=("xen-py", "qemu"), help="one of the two, to look at")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="xen-py-bench-"))
    try:
        vmlinux, ramdisk = system(folder, options.seconds)
        disk = folder / "disk.img"
        disk.write_bytes(bytes(range(256)) * (DISK_MB << 12))
        patience = 60 + 20 * options.seconds
        figures: dict[str, tuple[list[float], list[float]]] = {}
        units = {}
        with Host(folder) as host:
            for number in range(1, options.runs + 1):
                outputs = [
                    guest(host, vmlinux, ramdisk, disk, patience) if options.only != "qemu" else "",
                    qemu(vmlinux, ramdisk, disk, patience) if options.only != "xen-py" else "",
                ]
                for side, output in enumerate(outputs):
                    for job, figure, unit in FIGURE.findall(output):
                        figures.setdefault(job, ([], []))[side].append(float(figure))
                        units[job] = unit
                print(f"run {number} of {options.runs} done", flush=True)
        for job, (us, them) in figures.items():
            ours, theirs = (statistics.median(side) if side else float("nan") for side in (us, them))
            print(f"{job:26} xen-py {ours:9.1f}  QEMU {theirs:9.1f} {units[job]:5} ratio {ours / theirs:.2f}")
    finally:
        shutil.rmtree(folder)
    return 0


def system(folder: Path, seconds: float) -> tuple[Path, Path]:
    """Debian's kernel, unpacked, and an initramfs that does the jobs on whichever disk it finds, and ends."""
    root = debian.unpacked(KERNEL)
    boot, release = debian.newest_kernel(root)
    vmlinux = folder / "vmlinux"
    subprocess.run([BIN / "xen-py", "image", "vmlinux", boot, vmlinux], check=True)
    folder_of_modules = root / "lib" / "modules" / release
    built_in = (folder_of_modules / "modules.builtin").read_text()
    drivers = {}
    for place, names in DRIVERS.items():
        for name in names:
            if f"/{name}.ko\n" not in built_in:
                (file,) = (folder_of_modules / "kernel" / "drivers" / place).glob(f"{name}.ko*")
                drivers[name] = file.read_bytes()
    jobs = folder / "block_jobs"
    flags = ("-target", "x86_64-linux-musl", "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-fno-sanitize=undefined")
    native_build.zig_cc([*flags, HERE / "block_jobs.c"], jobs)
    fetch = [str(BIN / "xen-py"), "image", "fetch", "debian"]
    listing = subprocess.run(fetch, check=True, stdout=subprocess.PIPE, text=True).stdout
    (busybox,) = (line for line in listing.splitlines() if line.endswith("/busybox"))
    lines = [
        "for disk in /dev/xvda /dev/vda; do",
        f"[ -b $disk ] && block_jobs $disk {seconds}",
        "done",
        "poweroff -f",
    ]
    ramdisk = folder / "initramfs.gz"
    ramdisk.write_bytes(
        initramfs.build(
            busybox,
            files={"bin/block_jobs": (jobs.read_bytes(), 0o755)},
            modules=modules.in_order(drivers),
            init_lines=lines,
        )
    )
    return vmlinux, ramdisk


def guest(host: Host, vmlinux: Path, ramdisk: Path, disk: Path, patience: float) -> str:
    config = host.config("disk", kernel=str(vmlinux), ramdisk=str(ramdisk), cmdline="console=hvc0", memory=MEMORY_MB)
    config.write_text(config.read_text() + f"disk = ['{disk},raw,xvda,rw']\n")
    log = host.rundir / "log" / "guest-disk.log"
    log.unlink(missing_ok=True)
    host.xl("create", config)
    until(lambda: DONE.encode() in log.read_bytes(), "the jobs to end", patience)
    until(lambda: "disk" not in host.names(), "the guest to end")
    return checked(host.log("disk").decode(errors="replace").replace("\r", ""))


def qemu(vmlinux: Path, ramdisk: Path, disk: Path, patience: float) -> str:
    program = shutil.which("qemu-system-x86_64")
    command = [program] if program else debian.program("qemu-system-x86", "qemu-system-x86_64")
    drive = f"file={disk},if=none,id=disk,format=raw,cache=writeback"
    arguments = (
        *(*QEMU, *QUIET, "-drive", drive, "-device", "virtio-blk-pci,drive=disk"),
        *("-kernel", str(vmlinux), "-initrd", str(ramdisk), "-append", "console=ttyS0"),
    )
    done = subprocess.run(
        [*command, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=patience, check=True
    )
    return checked(done.stdout.decode(errors="replace").replace("\r", ""))


def checked(output: str) -> str:
    if DONE not in output:
        raise RuntimeError(f"the jobs did not end: {output[-1000:]}")
    return output


if __name__ == "__main__":
    sys.exit(main())
