# SPDX-License-Identifier: GPL-2.0-only
"""`xen-py image build debian`: a disk with Debian on it that boots to a login prompt.

mmdebstrap makes the system, as root or in a user namespace, and mke2fs the file system from it: nothing is mounted on
this machine. The disk has no partition table, its file system is labelled "root", and GRUB's configuration names the
kernel through the links that Debian keeps (`/vmlinuz`), so it stays true when the guest upgrades its kernel. The
network is set up by DHCP where there is a card. root has no password: it is a guest to play with.

Blocking.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from dom0.image.apt import Progress
from dom0.image.disks import parse_size
from dom0.image.errors import ImageError

PACKAGES = (
    *("dbus", "e2fsprogs", "ifupdown", "iproute2", "isc-dhcp-client", "kmod"),
    *("less", "linux-image-amd64", "systemd-sysv", "udev"),
)
DEFAULT_SIZE = "2g"
DEFAULT_SUITE = "stable"
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]*")
_LAST_LINES = 5

_FILES = {
    "etc/hostname": "guest\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 guest\n::1 localhost\n",
    "etc/fstab": "LABEL=root / ext4 errors=remount-ro 0 1\n",
    "etc/network/interfaces": "auto lo\niface lo inet loopback\n\nallow-hotplug eth0\niface eth0 inet dhcp\n",
    # an emulated CPU that it shares with others may take its time to find the console
    "etc/systemd/system.conf.d/patience.conf": "[Manager]\nDefaultDeviceTimeoutSec=15min\n",
    "boot/grub/grub.cfg": """\
set default=0
set timeout=0
menuentry "Debian" {
    linux /vmlinuz root=LABEL=root ro console=hvc0 net.ifnames=0
    initrd /initrd.img
}
""",
}

# $1 is the new system. A bind mount shows it without what is mounted in it; where there can be none, nothing is.
_MAKE_DISK = """\
set -e
cp -R "{files}/." "$1/"
passwd -q -R "$1" -d root
plain=$(mktemp -d)
trap 'umount "$plain" 2>/dev/null; rmdir "$plain"' EXIT
mount --bind "$1" "$plain" 2>/dev/null || {{ rmdir "$plain"; ln -s "$1" "$plain"; trap 'rm "$plain"' EXIT; }}
"{mke2fs}" -q -F -t ext4 -L root -d "$plain/" "{disk}"
"""


def build_debian(
    disk: Path,
    progress: Progress,
    *,
    size: str = DEFAULT_SIZE,
    suite: str = DEFAULT_SUITE,
    packages: tuple[str, ...] = (),
) -> None:
    """Make the disk, a new raw file, or nothing. ImageError."""
    length = parse_size(size)
    for word in (suite, *packages):
        if not _NAME.fullmatch(word):
            raise ImageError(f"{word!r} is no name of a suite or package")
    if disk.exists():
        raise ImageError(f"{disk}: there is such a file already")
    mmdebstrap = _program("mmdebstrap", "mmdebstrap")
    mke2fs = _program("mke2fs", "e2fsprogs")
    progress("Installing Debian (some minutes)", 0, 0)
    try:
        with tempfile.TemporaryDirectory(prefix=".build-", dir=disk.absolute().parent) as work:
            made = Path(work) / "disk"
            with open(made, "wb") as file:
                file.truncate(length)
            script = _write_script(Path(work), mke2fs, made)
            for path in (Path(work), made):
                path.chmod(0o777)  # root of a user namespace is nobody's friend here, and has to read and write these
            command = [mmdebstrap, "--variant=minbase", f"--include={','.join((*PACKAGES, *packages))}"]
            hook = f'--customize-hook=sh "{script}" "$1"'
            _run([*command, hook, "--format=null", suite])
            made.chmod(0o644)
            made.rename(disk)
    except OSError as error:
        raise ImageError(f"{error.filename or disk}: {error.strerror}") from None


def _write_script(work: Path, mke2fs: str, made: Path) -> Path:
    if re.search(r'["$`\\\n]', str(work)):
        raise ImageError(f"{work.parent}: a disk cannot be built in a folder with such a name")
    for name, text in _FILES.items():
        (work / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (work / "files" / name).write_text(text)
    script = work / "make-disk"
    script.write_text(_MAKE_DISK.format(files=work / "files", mke2fs=mke2fs, disk=made))
    return script


def _program(name: str, package: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise ImageError(f"{name} not found: install it (Debian package {package})")
    return found


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if not line.startswith("I:")][-_LAST_LINES:]
        raise ImageError("mmdebstrap failed: " + ("\n".join(lines) or f"exit status {done.returncode}"))
