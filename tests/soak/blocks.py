# SPDX-License-Identifier: GPL-2.0-only
"""Disks for an hour: nothing that a guest reads is other than what it wrote, and a killed host loses no flushed write.

    python -m tests.soak.blocks [--seconds 3600] [--kills 100]

First a Debian guest checks four disks at once (raw and qcow2, with and without persistent grants) while programs are
read from a fifth and run, further disks are attached, resized and detached, and the guest is paused. Then a guest
writes numbered sectors, each flushed, and copies files on ext4, and the host is killed, again and again: each time
every number that the guest had told is on the disk, and the file system mounts; at the end it is whole.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import native_build
from dom0.image.paths import images_dir
from tests.block import qemu
from tests.block.linux import check_file_system, ext4_disk, run
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
            _integrity(report, ramdisk, options.seconds, random.Random(options.seed))
        if options.kills:
            _crashes(report, ramdisk, options.kills, random.Random(options.seed))
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


def _crashes(report: Report, ramdisk: Path, kills: int, dice: random.Random) -> None:
    folder = report.folder / "crashes"
    folder.mkdir()
    files = ext4_disk(folder / "files.img", "sh", megabytes=128)
    numbers = folder / "numbers.img"
    numbers.write_bytes(bytes(64 * 512))
    told = 0
    for kill in range(1, kills + 1):
        place = folder / f"{kill}"
        place.mkdir()
        host = Host(place)
        host.__enter__()
        try:
            _guest(host, "writer", ramdisk, f"{numbers},raw,xvda,rw", f"{files},raw,xvdb,rw")
            until(lambda host=host: b"/ # " in host.log("writer"), "the prompt", PATIENCE)
            with host.session("console", "writer") as console:
                console.send(
                    "mkdir /f; mount /dev/xvdb /f && echo mounted: ok; (while true; do n=$((n + 1)); "
                    "cp /bin/busybox /f/copy$((n % 20)); sync; done) & block_verify journal /dev/xvda\n"
                )
                console.expect("^mounted: ok", PATIENCE)
                console.expect(r"^journal found (\d+)", PATIENCE)
                console.expect(r"^journal \d+", PATIENCE)
                time.sleep(dice.uniform(0, 3))
        finally:
            os.kill(host.pid, signal.SIGKILL)
        found = [int(n) for n in re.findall(rb"^journal (\d+)\r?$", host.log("writer"), re.MULTILINE)]
        told = max([told, *found])
        until(lambda host=host: not _alive(host.pid), "the host's end")
        kept = _largest(numbers, told)
        assert kept >= told, f"the guest was told that {told} is on the disk, and {kept} is"
        if kill % 10 == 0 or kill == kills:
            report.say(f"kill {kill} of {kills}: {told} told, {kept} on the disk")
    run("e2fsck", "-p", str(files))
    check_file_system(files)
    report.say("the file system is whole")


def _largest(path: Path, told: int) -> int:
    """The largest number on the disk; all up to it that still have a place are there."""
    data = path.read_bytes()
    found = {int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 512)}
    missing = [n for n in range(max(1, told - 62), told + 1) if n not in found and n + 64 not in found]
    assert not missing, f"numbers {missing} had been flushed and are not on the disk"
    return max(found)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
