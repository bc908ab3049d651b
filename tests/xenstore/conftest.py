# SPDX-License-Identifier: GPL-2.0-only
"""A daemon of ours in a process of its own, for tests of programs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CLONE = Path(__file__).resolve().parents[2]


class Xenstored:
    """`xenstored` as a user starts it."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.socket = str(folder / "socket")
        self.log = folder / "log"
        command = [sys.executable, "-m", "xenstore.tools.xenstored", "-N", "--socket", self.socket, *options]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, cwd=CLONE, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while not self._listening():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"xenstored does not start: {self.log.read_text()}")
            time.sleep(0.01)

    def _listening(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(self.socket) == 0

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"XENSTORED_PATH": self.socket}

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def running(folder: Path, *options: str) -> Iterator[Xenstored]:
    daemon = Xenstored(folder, *options)
    try:
        yield daemon
    finally:
        daemon.kill()


@pytest.fixture
def xenstored(tmp_path: Path) -> Iterator[Xenstored]:
    with running(tmp_path) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def our_tool(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The path of one of our tools under the name it is installed with."""
    folder = tmp_path_factory.mktemp("bin")

    def path(name: str) -> str:
        script = folder / name
        if not script.exists():
            module = name.removeprefix("xenstore-")
            start = f"import sys; sys.path.insert(0, {str(CLONE)!r})"
            lines = (f"#!{sys.executable}", start, f"from xenstore.tools.{module} import main", "sys.exit(main())")
            script.write_text("\n".join(lines) + "\n")
            script.chmod(0o755)
        return str(script)

    return path
