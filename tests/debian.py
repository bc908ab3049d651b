# SPDX-License-Identifier: GPL-2.0-only
"""Debian packages for tests, without installing them: downloaded with apt and unpacked into a cache of the clone.

Works without root: apt gets state and cache folders of its own.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from pathlib import Path

CLONE = Path(__file__).resolve().parent.parent
CACHE = CLONE / ".cache" / "debian"


def unpacked(*packages: str) -> Path:
    """A folder with these packages unpacked. A name may be a regular expression; the newest match is taken."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = [package for package in packages if not _stamp(package).exists()]
        if missing:
            _unpack(missing)
    return CACHE / "root"


def newest_kernel(root: Path, pattern: str = "vmlinuz-*") -> tuple[Path, str]:
    """Of the kernels below that folder whose file's name matches: the file, and its release. By number, not by name."""
    kernel = max(
        (root / "boot").glob(pattern), key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)]
    )
    return kernel, kernel.name.removeprefix("vmlinuz-")


def downloaded(package: str) -> Path:
    """The package's file."""
    unpacked(package)
    return max((CACHE / "packages").glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)


def release() -> str:
    """Name of the machine's release of Debian, which is where packages come from."""
    match = re.search(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(), re.MULTILINE)
    return match[1] if match else "stable"


def _stamp(package: str) -> Path:
    return CACHE / f"{re.sub('[^A-Za-z0-9.+-]', '_', package)}.unpacked"


def _unpack(packages: list[str]) -> None:
    folder = CACHE / "packages"
    folder.mkdir(exist_ok=True)
    names = [_newest(package) for package in packages]
    _apt("apt-get", "download", *names, cwd=folder)
    for package, name in zip(packages, names, strict=True):
        archive = max(folder.glob(f"{name}_*.deb"), key=lambda path: path.stat().st_mtime)
        subprocess.run(["dpkg-deb", "-x", archive, CACHE / "root"], check=True)
        _stamp(package).write_text(name)


def _newest(package: str) -> str:
    if re.fullmatch(r"[a-z0-9.+-]+", package):
        return package
    found = _apt("apt-cache", "pkgnames").split()
    names = [name for name in found if re.fullmatch(package, name)]
    if not names:
        raise RuntimeError(f"no Debian package matches {package!r}")
    return max(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])


def _apt(*command: str, cwd: Path = CACHE) -> str:
    """Run apt: with the machine's package lists if they will do, otherwise with lists fetched into the cache."""
    if not (CACHE / "apt" / "updated").exists():
        done = subprocess.run([command[0], "-qq", *command[1:]], cwd=cwd, capture_output=True)
        if done.returncode == 0 and (done.stdout or command[0] == "apt-get"):
            return done.stdout.decode()
        _update()
    done = subprocess.run([command[0], *_private(), "-qq", *command[1:]], check=True, cwd=cwd, stdout=subprocess.PIPE)
    return done.stdout.decode()


def _private() -> list[str]:
    state, cache = CACHE / "apt" / "state", CACHE / "apt" / "cache"
    (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (cache / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    options = [f"Dir::State={state}", f"Dir::Cache={cache}", "Dir::State::status=/var/lib/dpkg/status"]
    if os.geteuid() == 0:
        options.append("APT::Sandbox::User=root")
    return [flag for option in options for flag in ("-o", option)]


def _update() -> None:
    subprocess.run(["apt-get", *_private(), "-qq", "update"], check=True, stdout=subprocess.DEVNULL)
    (CACHE / "apt" / "updated").touch()


def program(package: str, name: str) -> list[str]:
    """The command that runs program `name` of `package`, unpacked here with all it needs and the machine lacks."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _stamp(f"{package}.all").exists():
            plan = _apt("apt-get", "install", "--simulate", "--no-install-recommends", package)
            _unpack(sorted({line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")}))
            _stamp(f"{package}.all").touch()
    root = CACHE / "root"
    libraries = ":".join(str(root / folder / "x86_64-linux-gnu") for folder in ("usr/lib", "lib"))
    return ["env", f"LD_LIBRARY_PATH={libraries}", str(root / "usr/bin" / name)]
