# SPDX-License-Identifier: GPL-2.0-only
"""An initramfs that is a small Linux system: busybox, all its applets, and an /init that ends at a shell.

Pure but for running `busybox --list-full` once, to learn which applets there are. The result is the same for the
same input, byte for byte.

/init is a shell script; it mounts what a Linux system has and loads drivers. Where the command line names a root
(root=/dev/...) it goes on there; otherwise it becomes busybox's init, which keeps a shell on the
console (with job control: `cttyhack` makes the console its controlling terminal), reaps orphans and obeys poweroff,
reboot and halt from anywhere. The kernel runs /sbin/poweroff when control/shutdown says so; that and its sisters are
scripts that do it at once, without init's seconds of waiting for other processes.
"""

from __future__ import annotations

import hashlib
import subprocess
import zlib
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from dom0.image import cpio
from dom0.image.cpio import Entry
from dom0.image.errors import ImageError

_DIRECTORIES = ("bin", "dev", "etc", "mnt", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin", "usr/sbin", "var")

_INIT = """\
#!/bin/sh
echo "/init: started"
export PATH=/sbin:/usr/sbin:/bin:/usr/bin HOME=/root TERM=xterm
mount -t devtmpfs -o nosuid devtmpfs /dev
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620 devpts /dev/pts
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs /dev/shm
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs /tmp
mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs /run
read -r cmdline < /proc/cmdline
load() {{ # with the parameters that the kernel's command line has for it, as modprobe does
    module=${{1##*/}}
    module=${{module%.ko}}
    parameters=
    for word in $cmdline; do
        owner=${{word%%.*}}
        [ "$owner" = "$word" ] || [ "${{owner//-/_}}" != "${{module//-/_}}" ] || parameters="$parameters ${{word#*.}}"
    done
    insmod "$1" $parameters
}}
{modules}\
root=$(sed -n 's/.*\\broot=\\([^ ]*\\).*/\\1/p' /proc/cmdline)
program=$(sed -n 's/.*\\binit=\\([^ ]*\\).*/\\1/p' /proc/cmdline)
case $root in
/dev/?*)
    flags=ro
    grep -qw rw /proc/cmdline && flags=rw
    tries=0
    until [ -b "$root" ] || [ $tries = 100 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    if mount -o $flags "$root" /mnt; then
        for path in dev proc sys run; do
            mount --move /$path /mnt/$path
        done
        exec switch_root /mnt "${{program:-/sbin/init}}"
    fi
    echo "/init: $root cannot be mounted; this is a shell in the initramfs"
    ;;
esac
{lines}\
exec init
"""

_INITTAB = """\
::respawn:cttyhack sh -l
::ctrlaltdel:/sbin/reboot
::shutdown:umount -a -r 2>/dev/null
"""

_SHUTDOWN = """\
#!/bin/sh
trap '' HUP INT TERM
sync
umount -a -r 2>/dev/null
exec busybox "$1" -f
"""

_DHCP = """\
#!/bin/sh
# what busybox's udhcpc runs: $1 says what has happened
case $1 in
deconfig) ip addr flush dev "$interface" scope global; ip link set "$interface" up ;;
bound | renew)
    ip addr replace "$ip/${mask:-24}" dev "$interface"
    [ -z "$router" ] || ip route replace default via "${router%% *}" dev "$interface"
    for server in $dns; do echo "nameserver $server"; done > /etc/resolv.conf
    ;;
esac
"""

_FILES = {
    "etc/inittab": _INITTAB,
    "etc/nsswitch.conf": "passwd: files\ngroup: files\n",
    "etc/group": "root:x:0:\ntty:x:5:\n",
    "etc/passwd": "root::0:0:root:/root:/bin/sh\n",
}


def applets(busybox: str) -> list[str]:
    """The paths (no leading slash) of all applets of the program `busybox`."""
    try:
        listing = subprocess.run(
            [busybox, "--list-full"], stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=30
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ImageError(f"{busybox}: cannot ask busybox for its applets: {error}") from None
    paths = [line for line in listing.decode("utf-8", "replace").split() if line != "bin/busybox"]
    if "bin/sh" not in paths:
        raise ImageError(f"{busybox}: not a busybox with a shell")
    return paths


def build(
    busybox: str,
    *,
    files: Mapping[str, tuple[bytes, int]] | None = None,
    modules: Mapping[str, bytes] | None = None,
    init_lines: Iterable[str] = (),
) -> bytes:
    """The initramfs, gzip'd. `files` maps paths to contents and permissions; `init_lines` run before the shell.

    `modules` are loaded by /init, in their order.
    """
    try:
        with open(busybox, "rb") as file:
            program = file.read()
    except OSError as error:
        raise ImageError(f"{busybox}: {error.strerror}") from None
    return _gzip(_archive(program, applets(busybox), files or {}, modules or {}, init_lines))


def recipe() -> str:
    """A digest of all that `build` puts around busybox and modules: another version's initramfs may have another."""
    return hashlib.sha256(_archive(b"", (), {}, {"module": b""}, ())).hexdigest()


def _archive(
    program: bytes,
    links: Iterable[str],
    files: Mapping[str, tuple[bytes, int]],
    modules: Mapping[str, bytes],
    init_lines: Iterable[str],
) -> bytes:
    lines = "".join(line + "\n" for line in init_lines)
    drivers = {f"lib/modules/{name}.ko": data for name, data in modules.items()}
    loads = "".join(f"load /{path}\n" for path in drivers)
    entries = {
        "init": cpio.file("init", _INIT.format(modules=loads, lines=lines).encode(), 0o755),
        "dev/console": cpio.char_device("dev/console", 5, 1),
        "dev/null": cpio.char_device("dev/null", 1, 3, 0o666),
        "bin/busybox": cpio.file("bin/busybox", program, 0o755),
        "etc/rc.shutdown": cpio.file("etc/rc.shutdown", _SHUTDOWN.encode(), 0o755),
    }
    for path in links:
        entries[path] = cpio.symlink(path, "/bin/busybox")
    for action in ("poweroff", "reboot", "halt"):
        script = f"#!/bin/sh\nexec /etc/rc.shutdown {action}\n"
        entries[f"sbin/{action}"] = cpio.file(f"sbin/{action}", script.encode(), 0o755)
    entries["etc/udhcpc/default.script"] = cpio.file("etc/udhcpc/default.script", _DHCP.encode(), 0o755)
    for path, text in _FILES.items():
        entries[path] = cpio.file(path, text.encode())
    for path, data in drivers.items():
        entries[path] = cpio.file(path, data)
    for path, (data, mode) in files.items():
        entries[_relative(path)] = cpio.file(_relative(path), data, mode)
    return cpio.archive(_with_directories(entries))


def _relative(path: str) -> str:
    parts = PurePosixPath(path).parts
    plain = "/".join(part for part in parts if part != "/")
    if not plain or ".." in parts:
        raise ImageError(f"{path!r}: not a usable path inside an initramfs")
    return plain


def _with_directories(entries: Mapping[str, Entry]) -> list[Entry]:
    """All entries with the directories they are in, sorted: a directory comes before its contents."""
    inside = (*entries, *(f"{directory}/x" for directory in _DIRECTORIES))
    paths = {str(parent) for path in inside for parent in PurePosixPath(path).parents} - {"."}
    clash = paths & entries.keys()
    if clash:
        raise ImageError(f"{min(clash)!r} cannot be both a file and a directory")
    directories = {path: cpio.directory(path, 0o1777 if path == "tmp" else 0o755) for path in paths}
    everything = {**directories, **entries}
    return [everything[path] for path in sorted(everything)]


def _gzip(data: bytes) -> bytes:
    """Without time or name in its header."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()
