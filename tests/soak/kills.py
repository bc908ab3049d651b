# SPDX-License-Identifier: GPL-2.0-only
"""A host that is killed while a guest writes: nothing that was flushed is lost. Part of `tests.soak.blocks`.

A Debian guest writes numbered sectors to one disk, each flushed, and files to an ext4 on another, each synced and then
renamed, and at a random moment all is over. In turn: only the host dies, and its kernel still has what it wrote; or
the power fails, everything dies and what was not synced is gone (`tests.block.dropping`); on raw disks and on qcow2.
Each time every number that the guest had told is on the disk, the next guest mounts the ext4, and every file that has
its name there is whole; where the power fails, the syncs are counted too: one for a flush.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

from tests.block import qemu
from tests.block.dropping import DroppingLayer
from tests.block.linux import check_file_system, ext4_disk, run
from tests.soak.report import Report
from tests.system.harness import Host, title, until

PATIENCE = 600.0
_PLACES = 64
"""Sectors that numbers go round in; as in block_verify.c."""
_MOUNT = """\
mkdir /f; mount /dev/xvdb /f && echo mounted: ok; \
for file in /f/copy*; do [ ! -e "$file" ] || cmp /bin/busybox "$file" || echo "torn: $file"; done; echo looked: ok
"""
_WRITE = """\
(while true; do n=$((n + 1)); cp /bin/busybox /f/new && sync && mv /f/new /f/copy$((n % 4)); done) & \
block_verify journal /dev/xvda
"""


class Victim:
    """Two disks of one format, killed in one way, again and again."""

    def __init__(self, folder: Path, form: str, power_fails: bool) -> None:
        self.name = f"{form}, {'power fails' if power_fails else 'host killed'}"
        self._form = form
        self._power_fails = power_fails
        self._folder = folder
        folder.mkdir()
        empty = folder / "numbers.raw"
        empty.write_bytes(bytes(_PLACES * 512))
        self._numbers = self._formatted(empty)
        self._files = self._formatted(ext4_disk(folder / "files.raw", "sh"))
        self.kills = self.flushes = self.syncs = self._largest = 0

    def kill(self, ramdisk: Path, dice: random.Random) -> None:
        """Start, write, be killed, and look. AssertionError."""
        self.kills += 1
        place = self._folder / f"{self.kills}"
        place.mkdir()
        layer = DroppingLayer(self._numbers, self._files)
        host = Host(place)
        if self._power_fails:
            host.environment.update(layer.environment)
        with _Killed(host, everything=self._power_fails):
            self._work(host, ramdisk)
            time.sleep(dice.uniform(0, 3))
        if self._power_fails:
            layer.lose()
        told = [int(n) for n in re.findall(rb"^journal (\d+)\r?$", host.log("writer"), re.MULTILINE)]
        kept = self._look(max([self._largest, *told]))
        if self._power_fails:
            flushed, syncs = kept - self._largest, layer.syncs(self._numbers)
            # The last may not have been counted yet. QEMU syncs its tables too, in front of what refers to them.
            assert syncs >= flushed - 1, f"{flushed} flushes had {syncs} syncs"
            assert syncs <= flushed or self._form != "raw", f"{flushed} flushes had {syncs} syncs"
            self.flushes += flushed
            self.syncs += syncs
        self._largest = kept

    def _work(self, host: Host, ramdisk: Path) -> None:
        """Until both kinds of writing are under way."""
        config = host.debian("writer", ramdisk)
        disks = [f"{self._numbers},{self._form},xvda,rw", f"{self._files},{self._form},xvdb,rw"]
        config.write_text(config.read_text() + f"disk = {disks!r}\n")
        host.xl("create", config)
        until(lambda: b"/ # " in host.log("writer"), "the prompt", PATIENCE)
        with host.session("console", "writer") as console:
            console.send(_MOUNT)
            console.expect("^mounted: ok", PATIENCE)
            console.expect("^looked: ok", PATIENCE)
            assert b"\ntorn: " not in host.log("writer"), "a file that was synced is not what was written"
            console.send(_WRITE)
            console.expect(r"^journal found (\d+)", PATIENCE)
            console.expect(r"^journal \d+", PATIENCE)

    def _look(self, told: int) -> int:
        """The largest number on the disk. All up to `told` that still have a place are there."""
        data = self._plain(self._numbers).read_bytes()
        found = {int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 512)}
        missing = [n for n in range(max(1, told - _PLACES + 2), told + 1) if not found & {n, n + _PLACES}]
        assert not missing, f"numbers {missing} of {told} had been flushed and are not on the disk"
        return max(found)

    def end(self) -> str:
        """The file system is whole; what there was."""
        files = self._plain(self._files)
        run("e2fsck", "-p", str(files))
        check_file_system(files)
        text = f"{self.name}: {self.kills} kills, {self._largest} numbers"
        return f"{text}, {self.syncs} syncs for {self.flushes} flushes" if self._power_fails else text

    def _formatted(self, raw: Path) -> Path:
        if self._form == "raw":
            return raw
        path = raw.with_suffix(f".{self._form}")
        qemu.img("convert", "-f", "raw", "-O", self._form, raw, path)
        raw.unlink()
        return path

    def _plain(self, disk: Path) -> Path:
        """The disk as a raw file. Its format is in order; what a loss of power leaves unused there does no harm."""
        if self._form == "raw":
            return disk
        done = subprocess.run(["qemu-img", "check", "-f", self._form, str(disk)], capture_output=True, text=True)
        assert done.returncode in (0, 3), done.stdout + done.stderr
        plain = disk.with_suffix(".plain")
        qemu.img("convert", "-f", self._form, "-O", "raw", disk, plain)
        return plain


class _Killed:
    """Context: a host that does not outlive it, nor does anything of it."""

    def __init__(self, host: Host, *, everything: bool) -> None:
        self._host = host
        self._everything = everything

    def __enter__(self) -> None:
        self._host.__enter__()

    def __exit__(self, *_error: object) -> None:
        processes = self._host.processes()
        # Engines first: one that sees the host gone would write out all that it has.
        engines = [pid for pid in processes if self._everything and "qemu-nbd" in title(pid)]
        for pid in (*engines, self._host.pid):
            os.kill(pid, signal.SIGKILL)
        until(lambda: not any(map(_alive, processes)), "the end of all of the host")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def run_kills(report: Report, ramdisk: Path, kills: int, dice: random.Random) -> None:
    """So many kills, of each sort in turn. AssertionError."""
    folder = report.folder / "kills"
    folder.mkdir()
    sorts = [(form, power_fails) for power_fails in (True, False) for form in ("raw", "qcow2")]
    victims = [Victim(folder / str(n), form, power_fails) for n, (form, power_fails) in enumerate(sorts)]
    for number in range(kills):
        victim = victims[number % len(victims)]
        began = time.monotonic()
        victim.kill(ramdisk, dice)
        report.say(f"kill {number + 1} of {kills} ({victim.name}): {time.monotonic() - began:.1f} s")
    for victim in victims:
        report.say(victim.end())
