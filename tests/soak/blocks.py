# SPDX-License-Identifier: GPL-2.0-only
"""Disks for an hour: nothing that a guest reads is other than what it wrote, and a killed host loses no flushed write.

    python -m tests.soak.blocks [--seconds 3600] [--kills 100]

First a Debian guest checks four disks at once (raw and qcow2, with and without persistent grants) while programs are
read from a fifth and run, further disks are attached, resized and detached, and the guest is paused. Then hosts are
killed at random moments of a guest's writing (`tests.soak.kills`). `--seconds 0` or `--kills 0` leaves one out.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import native_build
from dom0.backend.block.backend import PERSISTENT
from dom0.image.paths import images_dir
from tests.block import qemu
from tests.block.linux import ext4_disk, run
from tests.soak.kills import run_kills
from tests.soak.report import Report
from tests.system.harness import BIN, Host, Session, fetch_debian, until

SOURCE = Path(__file__).resolve().parent / "guest" / "block_verify.c"
DISK_MB = 32
PATIENCE = 600.0
PROGRAMS = """\
#!/bin/sh
# programs SUM: run programs from a disk until /stop is there
mkdir -p /programs
mount -o ro /dev/xvde /programs
n=0
while [ ! -e /stop ]; do
    echo 3 > /proc/sys/vm/drop_caches
    for copy in 1 2 3 4; do
        got=$(/programs/busybox$copy md5sum /programs/busybox$copy | /programs/busybox$copy cut -d' ' -f1)
        [ "$got" = "$1" ] || echo "programs: FAILED: $got"
    done
    n=$((n + 1))
done
echo "programs: ended after $n rounds"
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.blocks", description="Disks: integrity, and crashes.")
    parser.add_argument("--seconds", type=int, default=3600, help="length of the check of integrity")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args(arguments)
    with Report("blocks") as report:
        report.say(f"seed {options.seed}")
        fetch_debian()
        os.environ["PATH"] = f"{qemu.tools(report.folder)}:{os.environ['PATH']}"
        ramdisk = _initramfs(report.folder)
        if options.seconds:
            os.environ[PERSISTENT] = "1"
            _integrity(report, ramdisk, options.seconds, random.Random(options.seed))
            del os.environ[PERSISTENT]
        if options.kills:
            run_kills(report, ramdisk, options.kills, random.Random(options.seed))
    return report.status


def _initramfs(folder: Path) -> Path:
    program = folder / "block_verify"
    flags = ("-target", "x86_64-linux-musl", "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-fno-sanitize=undefined")
    native_build.zig_cc([*flags, SOURCE], program)
    output = folder / "initramfs.gz"
    script = folder / "programs"
    script.write_text(PROGRAMS)
    script.chmod(0o755)
    files = ("--file", f"bin/block_verify={program}", "--file", f"bin/programs={script}")
    subprocess.run([str(BIN / "xen-py"), "image", "initramfs", str(output), *files], check=True)
    return output


def _disk(folder: Path, name: str, form: str) -> Path:
    path = folder / f"{name}.{form}"
    if form == "raw":
        path.write_bytes(bytes(DISK_MB << 20))
    else:
        qemu.img("create", "-q", "-f", form, path, f"{DISK_MB}M")
    return path


def _guest(host: Host, name: str, ramdisk: Path, *disks: str) -> None:
    config = host.debian(name, ramdisk)
    config.write_text(config.read_text() + f"disk = {list(disks)!r}\n")
    host.xl("create", config)


def _command(console: Session, line: str) -> None:
    console.send(f"{line}; echo done: $?\n")
    console.expect(r"^done: 0", PATIENCE)


def _integrity(report: Report, ramdisk: Path, seconds: int, dice: random.Random) -> None:
    folder = report.folder / "integrity"
    folder.mkdir()
    forms = {"xvda": "raw", "xvdb": "qcow2", "xvdc": "raw", "xvdd": "qcow2"}
    disks = {vdev: (form, _disk(folder, vdev, form)) for vdev, form in forms.items()}
    busybox = images_dir() / "debian" / "busybox"
    copies: dict[str, str | bytes] = {f"busybox{n}": busybox.read_bytes() for n in (1, 2, 3, 4)}
    programs = ext4_disk(folder / "programs.img", "sh", files=copies)
    extra, grown = _disk(folder, "extra", "raw"), _disk(folder, "grown", "raw")
    with Host(folder) as host:
        _guest(host, "checker", ramdisk, f"{programs},raw,xvde,r", f"{grown},raw,xvdf,rw")
        with host.session("console", "checker") as console:
            console.expect("/ # ", PATIENCE)
            for vdev, (form, path) in disks.items():
                if vdev == "xvdc":
                    _command(console, "echo 0 > /sys/module/xen_blkfront/parameters/feature_persistent")
                host.xl("block-attach", "checker", f"{path},{form},{vdev},rw")
                _command(console, f"until [ -b /dev/{vdev} ]; do sleep 0.1; done")
            total = run("md5sum", str(busybox)).split()[0]
            console.send(f"programs {total} &\n")
            for vdev in disks:
                console.send(f"block_verify check /dev/{vdev} {seconds} {dice.randrange(1 << 30)} &\n")
            end, events, megabytes = time.monotonic() + seconds, {"pauses": 0, "attachments": 0, "resizes": 0}, DISK_MB
            while time.monotonic() < end:
                time.sleep(dice.uniform(1, 5))
                match dice.choice(list(events)):
                    case "pauses":
                        host.xl("pause", "checker")
                        time.sleep(dice.uniform(0, 1))
                        host.xl("unpause", "checker")
                        events["pauses"] += 1
                    case "attachments":
                        host.xl("block-attach", "checker", f"{extra},raw,xvdg,rw")
                        _command(console, "until [ -b /dev/xvdg ]; do sleep 0.1; done; md5sum /dev/xvdg")
                        host.xl("block-detach", "checker", "xvdg")
                        events["attachments"] += 1
                    case "resizes":
                        megabytes += dice.randint(1, 8)
                        os.truncate(grown, megabytes << 20)
                        size = f"$(cat /sys/block/xvdf/size) = {megabytes << 11}"
                        _command(console, f"until [ {size} ]; do sleep 0.1; done")
                        events["resizes"] += 1
            until(lambda: host.log("checker").count(b"verify /dev/") >= len(disks), "all verdicts", PATIENCE)
            console.send("touch /stop\n")
            until(lambda: b"programs: ended" in host.log("checker"), "the programs' verdict", PATIENCE)
            console.send("poweroff\n")
            until(lambda: "checker" not in host.names(), "the guest to be gone", PATIENCE)
        log = host.log("checker").decode(errors="replace")
        for line in re.findall(r"(?:verify /dev/|programs: ).*", log):
            report.say(line.strip())
        assert b"FAILED" not in host.log("checker"), "something was read that was not written"
        report.say(f"meanwhile {events}")
    for form, path in disks.values():
        if form == "qcow2":
            qemu.img("check", "-q", path)


if __name__ == "__main__":
    sys.exit(main())
