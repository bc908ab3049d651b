# SPDX-License-Identifier: GPL-2.0-only
"""`xen-py image ...`: the command line of this package. The `xen-py` command mounts it.

xen-py image fetch debian [--suite SUITE] [--update]
xen-py image build debian DISK [--size SIZE] [--suite SUITE] [--package NAME ...]
xen-py image initramfs OUTPUT [--busybox FILE] [--file GUEST-PATH=FILE ...] [--run LINE ...]
xen-py image vmlinux KERNEL OUTPUT
xen-py image create DISK SIZE [--format FORMAT]
xen-py image convert DISK OUTPUT [--format FORMAT] [--to FORMAT]
xen-py image info DISK [--format FORMAT]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from dom0.builder.compression import Progress as ProgressCall
from dom0.builder.errors import BuildError
from dom0.image import debian, disks, fetch, initramfs, modules, vmlinux
from dom0.image.errors import ImageError
from dom0.image.paths import images_dir


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `image` to the subcommands of `xen-py`; `run` of its arguments is what carries it out."""
    image = subparsers.add_parser("image", help="get and make images to boot")
    image.set_defaults(run=run)
    commands = image.add_subparsers(dest="image_command", required=True)
    command = commands.add_parser("fetch", help="get a distribution's kernel, and a busybox initramfs for it")
    command.add_argument("distribution", choices=sorted(fetch.FETCHERS))
    command.add_argument("--suite", help="release to take it from, instead of this machine's (bookworm, trixie, ...)")
    command.add_argument("--update", action="store_true", help="look for a newer kernel even if there is one already")
    command = commands.add_parser("build", help="make a disk with a system on it that boots (with mmdebstrap)")
    command.add_argument("distribution", choices=["debian"])
    command.add_argument("disk", type=Path, help="raw file to make")
    command.add_argument("--size", default=debian.DEFAULT_SIZE, help="with k, m, g or t behind it (default: 2g)")
    command.add_argument("--suite", default=debian.DEFAULT_SUITE, help="release (default: stable)")
    command.add_argument("--package", dest="packages", action="append", default=[], metavar="NAME", help="add one")
    command = commands.add_parser("initramfs", help="make an initramfs out of a static busybox")
    command.add_argument("output", type=Path)
    command.add_argument("--busybox", help="static busybox to use (default: the one fetched with debian)")
    command.add_argument("--file", action="append", default=[], metavar="GUEST-PATH=FILE", help="add a file")
    command.add_argument("--run", dest="lines", action="append", default=[], metavar="LINE", help="a line for /init")
    _add_disk_parsers(commands)
    command = commands.add_parser("vmlinux", help="write the unpacked ELF file of a kernel")
    command.add_argument("kernel", type=Path)
    command.add_argument("output", type=Path)


def _add_disk_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    formats = sorted(disks.FORMATS)
    command = commands.add_parser("create", help="make an empty disk")
    command.add_argument("disk", type=Path)
    command.add_argument("size", help="in bytes, or with k, m, g or t behind it")
    command.add_argument("--format", choices=formats, default="raw")
    command = commands.add_parser("convert", help="copy a disk into another format (with qemu-img)")
    command.add_argument("disk", type=Path)
    command.add_argument("output", type=Path)
    command.add_argument("--format", choices=formats, default="raw", help="of the disk that is there")
    command.add_argument("--to", choices=formats, default="qcow2", help="of the one to make")
    command = commands.add_parser("info", help="describe a disk (with qemu-img)")
    command.add_argument("disk", type=Path)
    command.add_argument("--format", choices=formats, default="raw")


def run(args: argparse.Namespace) -> int:
    """Do what the arguments say; gives the exit code."""
    try:
        match args.image_command:
            case "fetch":
                with _progress() as progress:
                    get = fetch.FETCHERS[args.distribution]
                    directory = get(progress, _say, args.suite, update=args.update)
                for name in fetch.FILES:
                    print(directory / name)
            case "initramfs":
                busybox = args.busybox or str(images_dir() / "debian" / "busybox")
                files = dict(_file(argument) for argument in args.file)
                packed = images_dir() / "debian" / "modules.tar"
                drivers = modules.unpack(packed.read_bytes()) if args.busybox is None else {}
                data = initramfs.build(busybox, files=files, modules=drivers, init_lines=args.lines)
                args.output.write_bytes(data)
            case "build":
                with _progress() as progress:
                    packages = tuple(args.packages)
                    debian.build_debian(args.disk, progress, size=args.size, suite=args.suite, packages=packages)
            case "create":
                disks.create(args.disk, args.size, args.format)
            case "convert":
                disks.convert(args.disk, args.format, args.output, args.to)
            case "info":
                print(disks.info(args.disk, args.format), end="")
            case "vmlinux":
                with _progress() as progress:
                    vmlinux.extract(args.kernel, args.output, progress)
    except (ImageError, BuildError) as error:
        _say(str(error))
        return 1
    except OSError as error:
        _say(f"{error.filename or args.output}: {error.strerror}")
        return 1
    return 0


def _say(text: str) -> None:
    print(f"xen-py image: {text}", file=sys.stderr)


def _file(argument: str) -> tuple[str, tuple[bytes, int]]:
    """`GUEST-PATH=FILE`: contents and permissions of FILE for that path."""
    guest_path, separator, name = argument.partition("=")
    if not separator or not name:
        raise ImageError(f"--file {argument}: it takes GUEST-PATH=FILE")
    path = Path(name)
    return guest_path, (path.read_bytes(), path.stat().st_mode & 0o777)


@contextmanager
def _progress() -> Iterator[ProgressCall]:
    """A progress bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=None)
            bar.update(tasks[what], completed=done, total=total or None)

        yield show
