# SPDX-License-Identifier: GPL-2.0-only
"""`bootloader = "pygrub"`: kernel and ramdisk are taken from the guest's own disk, without starting anything in it.

sfdisk reads the partition table and debugfs the file systems (ext2, 3 and 4). What is on the disk is the guest's, so it
is read by programs of their own, with limits on time and size, through a descriptor opened here. The first file system
with a grub.cfg in it says which kernel; one without a grub.cfg may have a kernel where Debian and others link to it.

debugfs reads requests from a pipe, a line each, and says each line that begins with # as it is. One with a number that
nobody can guess, sent behind a request, tells where the answer ends, whatever the guest's files hold.

With `kernel=` or `ramdisk=` beside it, these name files on the disk; `root=`, `extra=` and `cmdline=` come behind what
the disk's configuration says. Owner: the trio thread.
"""

from __future__ import annotations

import json
import os
import re
import resource
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE

import attrs
import trio
from trio.abc import ReceiveStream, SendStream

from dom0.builder.errors import BuildError
from dom0.toolstack.config import DomainConfig
from dom0.toolstack.grubcfg import Entry, default_entry

_CONFIGURATIONS = ("/boot/grub/grub.cfg", "/grub/grub.cfg", "/boot/grub2/grub.cfg", "/grub2/grub.cfg")
_LINKS = (("/vmlinuz", "/initrd.img"), ("/boot/vmlinuz", "/boot/initrd.img"), ("/boot/vmlinuz", "/boot/initramfs"))
_LARGEST_FILE = 1 << 30
_LARGEST_TEXT = 1 << 20
_SECONDS = 60
_MOST_LINKS = 8
_LONGEST_REQUEST = 250
"""Bytes; debugfs has room for 255 or more."""


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
            disk_reader = _Disk(fd, disk.target, Path(folder))
            offset, entry = await disk_reader.find(config.kernel, config.ramdisk)
            async with disk_reader.volume(offset) as volume:
                kernel = await volume.copy(entry.kernel, "kernel")
                ramdisk = None if entry.ramdisk is None else str(await volume.copy(entry.ramdisk, "ramdisk"))
            arguments = " ".join(filter(None, (entry.arguments, config.cmdline)))
            yield attrs.evolve(config, kernel=str(kernel), ramdisk=ramdisk, cmdline=arguments)
    finally:
        os.close(fd)


class _Disk:
    """A disk with partitions, or with one file system."""

    def __init__(self, fd: int, name: str, folder: Path) -> None:
        self._fd = fd
        self._name = name
        self._folder = folder

    async def find(self, kernel: str, ramdisk: str | None) -> tuple[int, Entry]:
        """The first file system with something to boot, by its offset: the disk itself, or one of its partitions."""
        for whole in (True, False):
            offsets = [0] if whole else await self._partitions()
            for look in (_named_there,) if kernel else (_configured, _linked):
                for offset in offsets:
                    async with self.volume(offset) as volume:
                        entry = await look(volume, kernel, ramdisk)
                    if entry is not None:
                        return offset, entry
        wanted = kernel or "a grub.cfg that names a kernel"
        raise BuildError(f"{self._name}: {wanted} is on no ext2, 3 or 4 file system of it")

    @asynccontextmanager
    async def volume(self, offset: int) -> AsyncIterator[_Volume]:
        """The file system that begins there, if there is one, as long as the block lasts."""
        process = await trio.lowlevel.open_process(
            [_program("debugfs", "e2fsprogs"), "-f", "-", f"/proc/self/fd/{self._fd}?offset={offset}"],
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            cwd=self._folder,
            pass_fds=[self._fd],
            preexec_fn=_limit,
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            yield _Volume(process.stdin, process.stdout, self._folder)
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                await process.stdin.aclose()
                await process.stdout.aclose()

    async def _partitions(self) -> list[int]:
        """Where partitions begin, in bytes."""
        output = b""
        with trio.move_on_after(_SECONDS) as patience:
            done = await trio.run_process(
                [_program("sfdisk", "fdisk"), "--json", f"/proc/self/fd/{self._fd}"],
                stdin=b"",
                capture_stdout=True,
                stderr=DEVNULL,
                check=False,
                pass_fds=[self._fd],
                preexec_fn=_limit,
            )
            output = done.stdout
        if patience.cancelled_caught:
            raise BuildError(f"sfdisk has not ended for {_SECONDS} seconds")
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


@attrs.frozen
class _File:
    """A regular file of a volume."""

    path: str
    size: int
    """In bytes."""


class _Volume:
    """One file system on a disk, as debugfs sees it; what is copied from it goes to `folder`, debugfs's own."""

    def __init__(self, requests: SendStream, answers: ReceiveStream, folder: Path) -> None:
        self._requests = requests
        self._answers = answers
        self._folder = folder

    async def is_file(self, path: str) -> bool:
        return await self._resolve(path) is not None

    async def text(self, path: str) -> str:
        """A file's beginning; nothing when there is none."""
        file = await self._resolve(path)
        return "" if file is None else (await self._ask(f'cat "{file.path}"')).decode("utf-8", "replace")

    async def copy(self, path: str, name: str) -> Path:
        """The file, copied to one of that name. BuildError."""
        file = await self._resolve(path)
        if file is None:
            raise BuildError(f"the disk has no file {path}, which its boot configuration names")
        to = self._folder / name
        if file.size <= _LARGEST_FILE:
            await self._ask(f'dump "{file.path}" "{name}"')
        if not to.is_file() or not to.stat().st_size or to.stat().st_size != file.size:
            raise BuildError(f"{path} cannot be read from the disk (or is larger than {_LARGEST_FILE >> 20} MiB)")
        return to

    async def _resolve(self, path: str) -> _File | None:
        """The file itself, through links; None if there is none."""
        for _ in range(_MOST_LINKS):
            if not path.startswith("/") or re.search(r'["\x00-\x1f\x7f]', path):
                return None
            shown = (await self._ask(f'stat "{path}"')).decode("utf-8", "replace")
            kind = re.search(r"^Inode: \d+ +Type: (\w+)", shown, re.MULTILINE)
            size = re.search(r"^User: .* Size: (\d+)$", shown, re.MULTILINE)
            if kind is None or size is None:
                return None
            if kind[1] == "regular":
                return _File(path, int(size[1]))
            link = re.search(r'^Fast link dest: "(.*)"$', shown, re.MULTILINE)
            if kind[1] != "symlink" or link is None:
                return None
            path = os.path.normpath(os.path.join(os.path.dirname(path), link[1]))
        return None

    async def _ask(self, request: str) -> bytes:
        """The beginning of what debugfs says to a request; nothing when it has ended. BuildError if it takes too long.

        debugfs would take the rest of a line that is too long for it for another request, which the guest has written.
        """
        line, end = request.encode(), f"# {secrets.token_hex(16)}\n".encode()
        if len(line) > _LONGEST_REQUEST:
            return b""
        said = bytearray()
        with trio.move_on_after(_SECONDS) as patience:
            try:
                await self._requests.send_all(line + b"\n" + end)
                while not said.endswith(end):
                    more = await self._answers.receive_some()
                    if not more:
                        return b""
                    said += more
                    del said[_LARGEST_TEXT : -len(end)]
            except trio.BrokenResourceError:
                return b""
        if patience.cancelled_caught:
            raise BuildError(f"debugfs has not answered for {_SECONDS} seconds")
        _request, _newline, answer = said.removesuffix(end).partition(b"\n")
        return bytes(answer)


def _limit() -> None:
    """In the program to be: what it reads may want it to run for ever, or to write without end."""
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_FILE, _LARGEST_FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _program(name: str, package: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise BuildError(f'bootloader="pygrub" needs {name}: install it (Debian package {package})')
    return found
