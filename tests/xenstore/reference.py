# SPDX-License-Identifier: GPL-2.0-only
"""Xen's own C daemon and tools, from Debian, to compare with: runs without a hypervisor.

`CDaemon` serves a socket and the pages of guests that a test plays itself.
"""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from tests import debian

HERE = Path(__file__).parent
TOOLS = ("xenstore-utils", "libxenstore4", "libxentoolcore1")
DAEMON = (
    *TOOLS, r"xen-utils-[0-9.]+", r"libxenmisc[0-9.]+", "libxenevtchn1", "libxengnttab1", "libxentoollog1",
    "libxencall1", "libxendevicemodel1", "libxenforeignmemory1", "libxenhypfs1",
)  # fmt: skip
DOOMED = bytes((2,))
"""Rung at the daemon's doorbell: a domain has died."""


def library_path(root: Path) -> str:
    return str(next(root.glob("usr/lib/*-linux-gnu")))


def tool(name: str) -> tuple[Path, dict[str, str]]:
    """One of Debian's xenstore-* programs and the environment it needs."""
    root = debian.unpacked(*(DAEMON if name == "xenstore-control" else TOOLS))
    path = root / "usr" / "bin" / name
    if name == "xenstore-control":
        path = next(root.glob("usr/lib/xen-*/bin/xenstore-control"))
    return path, {"LD_LIBRARY_PATH": library_path(root)}


class CDaemon:
    """Xen's C xenstored in a folder of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._root = debian.unpacked(*DAEMON)
        self.folder = folder
        self.socket = str(folder / "socket")
        self._options = options
        self._standin = debian.CACHE / "no_hypervisor.so"
        source = HERE / "no_hypervisor.c"
        if not self._standin.exists() or self._standin.stat().st_mtime < source.stat().st_mtime:
            fresh = self._standin.with_suffix(f".{os.getpid()}")
            compiler = (sys.executable, "-m", "ziglang", "cc", "-O2", "-shared", "-fPIC")
            subprocess.run([*compiler, "-o", str(fresh), str(source), "-ldl"], check=True)
            fresh.rename(self._standin)

    def __enter__(self) -> CDaemon:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "page.0").write_bytes(bytes(4096))
        (self.folder / "port").write_text("1")
        os.mkfifo(self.folder / "doorbell")
        self._doorbell = os.open(self.folder / "doorbell", os.O_RDWR | os.O_CLOEXEC)
        environment = os.environ | {
            "STANDIN_DIR": str(self.folder), "LD_PRELOAD": str(self._standin), "XENSTORED_PATH": self.socket,
            "XENSTORED_RUNDIR": str(self.folder), "LD_LIBRARY_PATH": library_path(self._root),
        }  # fmt: skip
        binary = next(self._root.glob("usr/lib/xen-*/bin/xenstored"))
        with open(self.folder / "log", "wb") as log:
            self._process = subprocess.Popen(
                [binary, "-N", *self._options], env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + 10
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"C xenstored does not start: {(self.folder / 'log').read_text()}")
            time.sleep(0.01)
        return self

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(self.socket) == 0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._doorbell)

    @property
    def pid(self) -> int:
        return self._process.pid

    def page(self, domid: int) -> mmap.mmap:
        """The store page of a guest, which exists from now on; introduce it over the socket."""
        path = self.folder / f"page.{domid}"
        path.write_bytes(bytes(4096))
        with open(path, "r+b") as file:
            return mmap.mmap(file.fileno(), 4096)

    def ring(self, port: int) -> None:
        os.write(self._doorbell, bytes((port,)))

    def destroy(self, domid: int) -> None:
        """The domain exists no more, and the daemon is told to look."""
        (self.folder / f"page.{domid}").unlink()
        os.write(self._doorbell, DOOMED)
