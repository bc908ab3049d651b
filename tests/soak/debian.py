# SPDX-License-Identifier: GPL-2.0-only
"""Debian with systemd on a disk: boots, package work and power-offs in a row, and a clean file system after each.

    python -m tests.soak.debian [--cycles 20] [--disk DISK]

The disk is built (`xen-py image build debian`, which needs mmdebstrap) unless one is named, which is then copied. Every
other boot is GRUB's, the rest are pygrub's. Each boot reaches its login prompt, has no failed unit, unpacks and
configures packages or takes them away again, and powers off; e2fsck then finds nothing to mend.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

import trio

from dom0.host.machine import Machine, open_machine
from dom0.image.debian import build_debian
from dom0.toolstack.config import DomainConfig, ShutdownAction
from dom0.toolstack.diskspec import DiskConfig
from tests import debian as packages
from tests.block.linux import check_file_system, run
from tests.soak.report import Report
from xen_py.abi.xen import ShutdownReason

PACKAGES = (
    *("nano", "libncursesw6", "file", "libmagic1", "libmagic-mgc"),
    *("bc", "libreadline8", "readline-common", "time", "tree", "ed"),
)
PATIENCE = 900
"""Seconds that a boot with its work may take before it counts as stuck."""
_PROMPT = "root@guest:"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.debian", description="Debian on a disk, in a row.")
    parser.add_argument("--cycles", type=int, default=20)
    parser.add_argument("--disk", type=Path, help="a disk that `xen-py image build debian` has made")
    options = parser.parse_args(arguments)
    with Report("debian") as report:
        disk = report.folder / "debian.img"
        if options.disk is None:
            build_debian(disk, lambda what, _done, _total: report.say(what), suite=packages.release())
        else:
            shutil.copy(options.disk, disk)
        _put_packages(disk)
        grub = packages.unpacked("grub-xen-host") / "usr" / "lib" / "grub-xen" / "grub-x86_64-xen.bin"
        trio.run(_cycles, report, disk, grub, options.cycles)
    return report.status


def _put_packages(disk: Path) -> None:
    """Package files into the guest's /root."""
    for name in PACKAGES:
        run("debugfs", "-w", "-R", f"write {packages.downloaded(name)} /root/{name}.deb", str(disk))
    check_file_system(disk)


async def _cycles(report: Report, disk: Path, grub: Path, count: int) -> None:
    async with open_machine(report.folder, processes=True) as machine:
        for number in range(1, count + 1):
            by_grub = number % 2 == 0
            began = time.monotonic()
            with trio.fail_after(PATIENCE):
                login = await _cycle(machine, disk, grub if by_grub else None, install=number % 2 == 1)
            took = time.monotonic() - began
            check_file_system(disk)
            how = "GRUB" if by_grub else "pygrub"
            report.say(f"cycle {number} of {count} ({how}): login after {login:.0f} s, {took:.0f} s in all, disk clean")


async def _cycle(machine: Machine, disk: Path, grub: Path | None, *, install: bool) -> float:
    config = DomainConfig(
        name="debian",
        kernel="" if grub is None else str(grub),
        bootloader="pygrub" if grub is None else None,
        memory_kb=512 * 1024,
        disks=(DiskConfig("xvda", str(disk)),),
        on_poweroff=ShutdownAction.PRESERVE,
        on_crash=ShutdownAction.PRESERVE,
    )
    began = time.monotonic()
    guest = await machine.create(config)
    console = guest.console
    await console.expect("guest login:")
    login = time.monotonic() - began
    await console.send("root\r")
    await console.expect(_PROMPT)
    names = " ".join(PACKAGES)
    if install:
        work = "dpkg --unpack /root/*.deb && dpkg --configure -a && echo 2+3 | bc | sed s/^/sum:/ && file /bin/bash"
    else:
        work = f"dpkg -P {names} && echo sum:5 'ELF 64-bit'"
    await console.send(f"stty -echo; PAGER= systemctl --failed; {work}; echo status:$?\r")
    await console.expect("0 loaded units listed")
    await console.expect("sum:5")
    await console.expect("ELF 64-bit")
    await console.expect("status:0")
    await console.send("poweroff\r")
    reason = await guest.wait_shutdown()
    assert reason == ShutdownReason.POWEROFF, guest.domain.reason_text
    await guest.destroy()
    return login


if __name__ == "__main__":
    sys.exit(main())
