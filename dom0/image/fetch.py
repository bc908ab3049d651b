# SPDX-License-Identifier: GPL-2.0-only
"""`xen-py image fetch debian`: the distribution's stock kernel and a busybox, ready to boot, without root.

The result is a directory `debian-<kernel version>` among the images, with `vmlinuz`, `config`, `busybox`, the modules
that guests need early (`modules.tar`) and `initramfs.gz` in it, and a link `debian` (`debian-<suite>` for a suite other
than the machine's) that names the newest.
A directory appears complete or not at all. What is there is used without asking the network, unless another version
of this program made it otherwise than this one would: `recipe` tells what each file was made by (`_recipes`), and what
is stale is made anew. An initramfs takes nothing but what is there; modules are fetched, with their kernel.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from dom0.image import initramfs, modules
from dom0.image.apt import Apt, Package, Progress, locked
from dom0.image.errors import ImageError
from dom0.image.paths import cache_dir, images_dir

_KERNELS = ("linux-image-amd64", "linux-image-generic")
"""Packages that depend on the current kernel: Debian's, and Ubuntu's."""
_LARGEST_FILE = 1 << 30
_MODULES, _INITRAMFS, _RECIPE = "modules.tar", "initramfs.gz", "recipe"
FILES = ("vmlinuz", "config", "busybox", _MODULES, _INITRAMFS)


def fetch_debian(
    progress: Progress, say: Callable[[str], None], suite: str | None = None, *, update: bool = False
) -> Path:
    """The directory with the images; fetched if it is not there or `update` asks for the newest. ImageError.

    `say` is told in one line what is made anew, and why.
    """
    link = images_dir() / ("debian" if suite is None else f"debian-{suite.replace('/', '_')}")
    try:
        if is_complete(link) and not update:
            stale = _stale(link)
            if stale:
                say(f"{link}: {' and '.join(stale)} of another version of xen-py, made anew")
            if _MODULES not in stale:
                if stale:
                    _make_initramfs(link.resolve(), progress)
                return link.resolve()
        images_dir().mkdir(parents=True, exist_ok=True)
        directory = cache_dir() / "apt"
        with locked(directory):
            apt = Apt.prepare(directory)
            try:
                target = _fetch(apt, suite, progress)
            finally:
                apt.clean()
            _point(link, target)
    except OSError as error:
        raise ImageError(f"{error.filename or cache_dir()}: {error.strerror}") from None
    return target


def _fetch(apt: Apt, suite: str | None, progress: Progress) -> Path:
    trouble = apt.update(progress)
    if suite is not None:
        apt.use_suite(suite)
        trouble = apt.update(progress)
    kernel = _real_kernel(apt, trouble)
    target = images_dir() / f"debian-{re.sub(r'[^A-Za-z0-9.+~-]', '_', kernel.version)}"
    if not is_complete(target) or _MODULES in _stale(target):
        _fetch_into(target, apt, kernel, progress)
    elif _stale(target):
        _make_initramfs(target, progress)
    return target


def _make_initramfs(directory: Path, progress: Progress) -> None:
    """Out of what is in the directory, whose modules are those of the recipe."""
    progress("Making the initramfs", 0, 0)
    drivers = modules.unpack((directory / _MODULES).read_bytes())
    _replace(directory / _INITRAMFS, initramfs.build(str(directory / "busybox"), modules=drivers))
    _replace(directory / _RECIPE, json.dumps(_recipes()).encode())


def _replace(path: Path, data: bytes) -> None:
    fresh = path.with_name(f".{path.name}-{os.getpid()}")
    fresh.write_bytes(data)
    fresh.replace(path)


def is_complete(directory: Path) -> bool:
    return all((directory / name).is_file() for name in FILES)


def _recipes() -> dict[str, str]:
    """How this version makes what it makes itself: other recipes, other text."""
    return {_MODULES: modules.recipe(), _INITRAMFS: initramfs.recipe()}


def _stale(directory: Path) -> list[str]:
    """The files that were made by another recipe."""
    try:
        made = json.loads((directory / _RECIPE).read_bytes())
    except (FileNotFoundError, ValueError):
        made = None
    known = made if isinstance(made, dict) else {}
    return [name for name, recipe in _recipes().items() if known.get(name) != recipe]


def _real_kernel(apt: Apt, trouble: str) -> Package:
    """The package that has the kernel in it, followed from the one that always depends on the newest."""
    for name in _KERNELS:
        try:
            package = apt.show(name)
        except ImageError:
            continue
        for dependency in package.depends:
            if dependency.startswith("linux-image-"):
                return apt.show(dependency)
    reason = f" ({trouble})" if trouble else ""
    raise ImageError(
        f"neither {' nor '.join(_KERNELS)} found through this machine's apt sources{reason};"
        " check that it is online, or name another suite"
    )


def _fetch_into(target: Path, apt: Apt, kernel: Package, progress: Progress) -> None:
    work = Path(tempfile.mkdtemp(prefix=".fetch-", dir=target.parent))
    old = work.with_name(f"{work.name}-old")
    try:
        release = kernel.name.removeprefix("linux-image-").removeprefix("unsigned-")
        deb = apt.download(kernel, progress)
        progress("Unpacking the kernel", 0, 0)
        boot = {f"./boot/vmlinuz-{release}": work / "vmlinuz", f"./boot/config-{release}": work / "config"}
        (work / "modules").mkdir()
        drivers = {path: work / "modules" / name for path, name in modules.places(release).items()}
        _extract(deb, boot | drivers)
        found = {file.name: file.read_bytes() for file in (work / "modules").iterdir()}
        shutil.rmtree(work / "modules")
        (work / _MODULES).write_bytes(modules.pack(modules.in_order(found)))
        deb.unlink()
        if not (work / "vmlinuz").exists():
            raise ImageError(f"package {kernel.name} {kernel.version} holds no kernel boot/vmlinuz-{release}")
        (work / "config").touch()
        deb = apt.download(apt.show("busybox-static"), progress)
        _extract(deb, dict.fromkeys(("./bin/busybox", "./usr/bin/busybox"), work / "busybox"), enough=1)
        deb.unlink()
        if not (work / "busybox").exists():
            raise ImageError("package busybox-static holds no busybox")
        (work / "busybox").chmod(0o755)
        _make_initramfs(work, progress)
        work.chmod(0o755)
        if target.exists():
            target.rename(old)
        work.rename(target)
    finally:
        for path in (work, old):
            shutil.rmtree(path, ignore_errors=True)


def _extract(deb: Path, wanted: dict[str, Path], enough: int | None = None) -> None:
    """Write the wanted regular files of a package, and stop reading once `enough` (all) of them are there."""
    enough = len(wanted) if enough is None else enough
    process = subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(deb)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    if member.name not in wanted or not member.isreg() or member.size > _LARGEST_FILE:
                        continue
                    source = archive.extractfile(member)
                    assert source is not None
                    with open(wanted[member.name], "wb") as file:
                        shutil.copyfileobj(source, file)
                    enough -= 1
                    if enough == 0:
                        break
        except tarfile.TarError as error:
            raise ImageError(f"{deb.name}: cannot be unpacked: {error}") from None
        finally:
            process.terminate()


def _point(link: Path, target: Path) -> None:
    """Make `link` name `target`, in one step."""
    fresh = link.with_name(f".{link.name}-{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target.name)
    fresh.replace(link)


FETCHERS: dict[str, Callable[..., Path]] = {"debian": fetch_debian}
