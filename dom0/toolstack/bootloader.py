# SPDX-License-Identifier: GPL-2.0-only
"""`bootloader = "pygrub"`: kernel and ramdisk are taken from the guest's own disk, without starting anything in it.

sfdisk reads the partition table and debugfs the file systems (ext2, 3 and 4). What is on the disk is the guest's, so it
is read by programs of their own, with limits on time and size, through a descriptor opened here. The first file system
with a grub.cfg in it says which kernel; one without a grub.cfg may have a kernel where Debian and others link to it.

With `kernel=` or `ramdisk=` beside it, these name files on the disk; `root=`, `extra=` and `cmdline=` come behind what
the disk's configuration says. Owner: the trio thread.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL

import attrs
import trio

from dom0.builder.errors import BuildError
from dom0.toolstack.config import DomainConfig
from dom0.toolstack.grubcfg import Entry, default_entry

_CONFIGURATIONS = ("/boot/grub/grub.cfg", "/grub/grub.cfg", "/boot/grub2/grub.cfg", "/grub2/grub.cfg")
_LINKS = (("/vmlinuz", "/initrd.img"), ("/boot/vmlinuz", "/boot/initrd.img"), ("/boot/vmlinuz", "/boot/initramfs"))
_LARGEST_FILE = 1 << 30
_LARGEST_TEXT = 1 << 20
_SECONDS = 60
_MOST_LINKS = 8


@asynccontextmanager
async def booted(config: DomainConfig, rundir: Path) -> AsyncIterator[DomainConfig]:
    """The configuration with what it boots in plain sight; the files are there as long as the block lasts.

    A configuration without a bootloader stays as it is. BuildError.
    """
    if config.bootloader is None:
        yield config
        return
    if not config.disks:
        raise BuildError('bootloader="pygrub" needs a disk to boot from')
    disk = config.disks[0]
    if disk.target is None:
        raise BuildError(f'bootloader="pygrub": the first disk, {disk.vdev}, is empty')
    if disk.format != "raw":
        raise BuildError(
            f'bootloader="pygrub" reads raw disks, {disk.target} is {disk.format}:'
            " name GRUB for Xen as the kernel (grub-x86_64-xen.bin of Debian's grub-xen-host), or convert the disk"
        )
    try:
        fd = os.open(disk.target, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise BuildError(f"{disk.target}: {error.strerror}") from None
    try:
        with tempfile.TemporaryDirectory(prefix="boot-", dir=rundir) as folder:
            reader = _Disk(fd, disk.target)
            volume, entry = await reader.find(config.kernel, config.ramdisk)
            kernel = await volume.copy(entry.kernel, Path(folder) / "kernel")
            ramdisk = None
            if entry.ramdisk is not None:
                ramdisk = str(await volume.copy(entry.ramdisk, Path(folder) / "ramdisk"))
            arguments = " ".join(filter(None, (entry.arguments, config.cmdline)))
            yield attrs.evolve(config, kernel=str(kernel), ramdisk=ramdisk, cmdline=arguments)
    finally:
        os.close(fd)


class _Disk:
    """A disk with partitions, or with one file system."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._name = name

    async def find(self, kernel: str, ramdisk: str | None) -> tuple[_Volume, Entry]:
        """The first file system with something to boot: the disk itself, or one of its partitions."""
        for whole in (True, False):
            volumes = [_Volume(self._fd, offset) for offset in ([0] if whole else await self._partitions())]
            for look in (_named_there,) if kernel else (_configured, _linked):
                for volume in volumes:
                    entry = await look(volume, kernel, ramdisk)
                    if entry is not None:
                        return volume, entry
        wanted = kernel or "a grub.cfg that names a kernel"
        raise BuildError(f"{self._name}: {wanted} is on no ext2, 3 or 4 file system of it")

    async def _partitions(self) -> list[int]:
        """Where partitions begin, in bytes."""
        output = await _run(["sfdisk", "--json", f"/proc/self/fd/{self._fd}"], "fdisk", self._fd)
        try:
            table = json.loads(output)["partitiontable"]
            sector = int(table.get("sectorsize", 512))
            return [int(part["start"]) * sector for part in table["partitions"]]
        except (ValueError, KeyError, TypeError):
            return []


async def _named_there(volume: _Volume, kernel: str, ramdisk: str | None) -> Entry | None:
    return Entry("", kernel, ramdisk, "") if await volume.is_file(kernel) else None


async def _configured(volume: _Volume, _kernel: str, _ramdisk: str | None) -> Entry | None:
    for name in _CONFIGURATIONS:
        entry = default_entry(await volume.text(name))
        if entry is not None:
            return entry
    return None


async def _linked(volume: _Volume, _kernel: str, _ramdisk: str | None) -> Entry | None:
    for link, beside in _LINKS:
        if await volume.is_file(link):
            return Entry("", link, beside if await volume.is_file(beside) else None, "")
    return None


class _Volume:
    """One file system on a disk."""

    def __init__(self, fd: int, offset: int) -> None:
        self._fd = fd
        self._where = f"/proc/self/fd/{fd}?offset={offset}"

    async def is_file(self, path: str) -> bool:
        return await self._resolve(path) is not None

    async def text(self, path: str) -> str:
        """A file's beginning; nothing when there is none."""
        real = await self._resolve(path)
        if real is None:
            return ""
        output = await self._debugfs(f'cat "{real}"')
        return output[:_LARGEST_TEXT].decode("utf-8", "replace")

    async def copy(self, path: str, to: Path) -> Path:
        real = await self._resolve(path)
        if real is None:
            raise BuildError(f"the disk has no file {path}, which its boot configuration names")
        await self._debugfs(f'dump "{real}" "{to}"')
        if not to.is_file() or not to.stat().st_size:
            raise BuildError(f"{path} cannot be read from the disk (or is larger than {_LARGEST_FILE >> 20} MiB)")
        return to

    async def _resolve(self, path: str) -> str | None:
        """The path of the file itself, through links; None if there is none."""
        for _ in range(_MOST_LINKS):
            if not path.startswith("/") or re.search(r'["\x00-\x1f\x7f]', path):
                return None
            shown = (await self._debugfs(f'stat "{path}"')).decode("utf-8", "replace")
            kind = re.search(r"^Inode: \d+ +Type: (\w+)", shown, re.MULTILINE)
            if kind is None:
                return None
            if kind[1] == "regular":
                return path
            link = re.search(r'^Fast link dest: "(.*)"$', shown, re.MULTILINE)
            if kind[1] != "symlink" or link is None:
                return None
            path = os.path.normpath(os.path.join(os.path.dirname(path), link[1]))
        return None

    async def _debugfs(self, request: str) -> bytes:
        return await _run(["debugfs", "-R", request, self._where], "e2fsprogs", self._fd)


def _limit() -> None:
    """In the program to be: what it reads may want it to run for ever, or to write without end."""
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_FILE, _LARGEST_FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


async def _run(command: list[str], package: str, fd: int) -> bytes:
    """What a program says on its standard output, however it ends."""
    program = shutil.which(command[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise BuildError(f'bootloader="pygrub" needs {command[0]}: install it (Debian package {package})')
    with trio.move_on_after(_SECONDS):
        done = await trio.run_process(
            [program, *command[1:]],
            stdin=b"",
            capture_stdout=True,
            stderr=DEVNULL,
            check=False,
            pass_fds=[fd],
            preexec_fn=_limit,
        )
        return bytes(done.stdout)
    raise BuildError(f"{command[0]} has not ended for {_SECONDS} seconds")
