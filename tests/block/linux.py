# SPDX-License-Identifier: GPL-2.0-only
"""A small Linux system on an ext4 disk: busybox and a script for init."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from dom0.image import initramfs
from dom0.image.paths import images_dir

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

INIT = """\
#!/bin/sh
export PATH=/sbin:/usr/sbin:/bin:/usr/bin
mount -o remount,rw /
exec {program}
"""


def ext4_disk(path: Path, program: str, megabytes: int = 64, files: dict[str, str | bytes] | None = None) -> Path:
    """A disk with a root file system that runs that program as its init."""
    root = path.with_suffix(".root")
    busybox = images_dir() / "debian" / "busybox"
    for folder in ("bin", "sbin", "usr/bin", "usr/sbin", "dev", "proc", "sys", "run", "tmp", "mnt", "root"):
        (root / folder).mkdir(parents=True)
    shutil.copy(busybox, root / "bin" / "busybox")
    for applet in initramfs.applets(str(busybox)):
        (root / applet).symlink_to("/bin/busybox")
    (root / "sbin" / "init").unlink(missing_ok=True)
    for name, content in {"sbin/init": INIT.format(program=program), **(files or {})}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        (root / name).chmod(0o755)
    with open(path, "wb") as file:
        file.truncate(megabytes << 20)
    run("mkfs.ext4", "-q", "-F", "-d", str(root), str(path))
    shutil.rmtree(root)
    return path


def run(*command: str) -> str:
    """A program of the host's, which may be where only root looks; its output. AssertionError unless it succeeds."""
    program = shutil.which(command[0], path=_PATH)
    assert program is not None, f"{command[0]} is not installed (Debian package e2fsprogs)"
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{command}: {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def check_file_system(path: Path) -> None:
    """fsck finds nothing to mend."""
    run("e2fsck", "-f", "-n", str(path))
