# SPDX-License-Identifier: GPL-2.0-only
"""`bootloader = "pygrub"`: what a grub.cfg says, and kernels taken from disks of several layouts."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from dom0.builder.errors import BuildError
from dom0.host.machine import open_machine
from dom0.toolstack.bootloader import booted
from dom0.toolstack.config import DomainConfig
from dom0.toolstack.diskspec import DiskConfig
from dom0.toolstack.grubcfg import Entry, default_entry
from tests import debian
from tests.block.linux import run
from tests.host.guests import HELLO

DEBIAN = """\
set default="{default}"
function load_video {{ insmod vbe }}
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple' {{
\tsearch --no-floppy --fs-uuid --set=root 1234
\techo\t'Loading Linux 6.1.0-18-amd64 ...'
\tlinux\t/boot/vmlinuz-6.1 root=UUID=1234 ro  quiet
\tinitrd\t/boot/initrd.img-6.1
}}
submenu 'Advanced options' {{
\tmenuentry 'Debian, older' {{
\t\tlinux\t(hd0,1)/boot/vmlinuz-5.10 root=UUID=1234 ro single "a b"
\t}}
}}
"""


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        (DEBIAN.format(default=0), Entry("Debian GNU/Linux", "/boot/vmlinuz-6.1", "/boot/initrd.img-6.1",
                                         "root=UUID=1234 ro quiet")),
        (DEBIAN.format(default=1), Entry("Debian, older", "/boot/vmlinuz-5.10", None, "root=UUID=1234 ro single a b")),
        (DEBIAN.format(default=7), Entry("Debian GNU/Linux", "/boot/vmlinuz-6.1", "/boot/initrd.img-6.1",
                                         "root=UUID=1234 ro quiet")),
        ("linux /vmlinuz\ninitrd /initrd.img /microcode", Entry("", "/vmlinuz", "/initrd.img", "")),
        ("menuentry 'no kernel' { chainloader +1 }", None),
        ("menuentry 'no end\nlinux '", None),
        ("initrd /only", None),
        ("", None),
    ],
)  # fmt: skip
def test_what_boots_by_default(text: str, entry: Entry | None) -> None:
    assert default_entry(text) == entry


@pytest.fixture(autouse=True)
def sfdisk(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> str:
    """There is one: the machine's, or Debian's without being installed."""
    found = shutil.which("sfdisk", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is not None:
        return found
    folder = tmp_path_factory.mktemp("programs")
    wrapper = folder / "sfdisk"
    *environment, _ = debian.program("fdisk", "sfdisk")
    program = next(path for path in debian.CACHE.glob("root/**/sfdisk") if path.parent.name == "sbin")
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.join([*environment, str(program)])} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return str(wrapper)


def tree(folder: Path, files: dict[str, bytes | str]) -> Path:
    """A folder with these files; what is text is where a link leads."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)
    return folder


def ext4(path: Path, root: Path) -> bytes:
    path.write_bytes(b"")
    os.truncate(path, 16 << 20)
    run("mkfs.ext4", "-q", "-F", "-d", str(root), str(path))
    return path.read_bytes()


def config(disk: Path, **fields: object) -> DomainConfig:
    plain = {"name": "x", "kernel": "", "bootloader": "pygrub", "disks": (DiskConfig("xvda", str(disk)),)}
    return DomainConfig(**{**plain, **fields})  # type: ignore[arg-type]


KERNEL, RAMDISK = b"a kernel" * 5000, b"a ramdisk" * 9000
BOOTABLE: dict[str, bytes | str] = {
    "boot/grub/grub.cfg": DEBIAN.format(default=0).encode(),
    "boot/vmlinuz-6.1": KERNEL,
    "boot/initrd.img-6.1": RAMDISK,
    "boot/vmlinuz-5.10": b"another",
}


async def test_as_the_disks_grub_says(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    ext4(disk, tree(tmp_path / "root", BOOTABLE))
    async with booted(config(disk, cmdline="console=hvc0"), tmp_path) as found:
        assert Path(found.kernel).read_bytes() == KERNEL
        assert found.ramdisk is not None and Path(found.ramdisk).read_bytes() == RAMDISK
        assert found.cmdline == "root=UUID=1234 ro quiet console=hvc0"
        folder = Path(found.kernel).parent
    assert not folder.exists()


async def test_files_named_by_the_configuration(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    ext4(disk, tree(tmp_path / "root", BOOTABLE))
    async with booted(config(disk, kernel="/boot/vmlinuz-5.10", cmdline="x"), tmp_path) as found:
        assert Path(found.kernel).read_bytes() == b"another"
        assert (found.ramdisk, found.cmdline) == (None, "x")


async def test_in_the_second_partition_behind_links(tmp_path: Path, sfdisk: str) -> None:
    """No grub.cfg: Debian's links in the root, relative and absolute."""
    empty = ext4(tmp_path / "one", tree(tmp_path / "empty", {"nothing": b""}))
    full = ext4(
        tmp_path / "two",
        tree(tmp_path / "full", {"vmlinuz": "boot/current", "boot/current": "/boot/deep/k", "boot/deep/k": KERNEL}),
    )
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20) + empty + full + bytes(1 << 20))
    table = "label: gpt\nstart=2048, size=32768\nstart=34816, size=32768\n"
    subprocess.run([sfdisk, "-q", str(disk)], input=table, text=True, check=True, capture_output=True)
    async with booted(config(disk), tmp_path) as found:
        assert Path(found.kernel).read_bytes() == KERNEL
        assert (found.ramdisk, found.cmdline) == (None, "")


@pytest.mark.parametrize(
    ("files", "fields", "text"),
    [
        ({"nothing": b""}, {}, "a grub.cfg that names a kernel is on no ext2, 3 or 4 file system"),
        ({"boot/grub/grub.cfg": b"linux /missing"}, {}, "the disk has no file /missing"),
        ({"vmlinuz": "vmlinuz"}, {}, "a grub.cfg that names a kernel is on"),
        ({"boot/grub/grub.cfg": b'linux "/x\\" -f /etc/passwd"', "x": b"k"}, {}, "the disk has no file"),
        ({"boot/grub/grub.cfg": b"linux /" + b"a" * 8200 + b"/k", "k": b"k"}, {}, "the disk has no file /aaa"),
        (BOOTABLE, {"kernel": "/boot/none"}, "/boot/none is on no"),
        (BOOTABLE, {"disks": ()}, "needs a disk"),
        (BOOTABLE, {"disks": (DiskConfig("xvda", "/no/such/disk"),)}, "No such file"),
        (BOOTABLE, {"disks": (DiskConfig("xvda", "/dev/null", "qcow2"),)}, "reads raw disks"),
    ],
)
async def test_nothing_to_boot(
    tmp_path: Path, files: dict[str, bytes | str], fields: dict[str, object], text: str
) -> None:
    disk = tmp_path / "disk"
    ext4(disk, tree(tmp_path / "root", files))
    with pytest.raises(BuildError, match=text):
        async with booted(config(disk, **fields), tmp_path):
            raise AssertionError
    assert not list(tmp_path.glob("boot-*"))


async def test_a_disk_full_of_noise(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(os.urandom(1 << 20))
    with pytest.raises(BuildError, match="on no ext2"):
        async with booted(config(disk), tmp_path):
            raise AssertionError


async def test_a_guest_boots_so(tmp_path: Path) -> None:
    """A kernel that only the disk has."""
    disk = tmp_path / "disk"
    ext4(disk, tree(tmp_path / "root", {"boot/grub/grub.cfg": b"linux /k from the disk", "k": HELLO.read_bytes()}))
    async with open_machine() as machine:
        guest = await machine.create(config(disk, memory_kb=16 * 1024))
        await guest.console.expect("from the disk")
