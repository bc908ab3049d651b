# SPDX-License-Identifier: GPL-2.0-only
"""A host of one's own, driven as a user drives it: by the commands `xl` and `xen-py`, in a private run directory.

Used by the system tests and the soak runs. Nothing here reaches into the program but through its commands, its files in
the run directory and what /proc says about its processes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import attrs

import native_build

BIN = Path(sys.executable).parent
GUEST = Path(__file__).resolve().parent / "guest"
PATIENCE = 120.0
"""Seconds after which something that should happen will not."""

TROUBLE = re.compile(
    rb"BUG|WARNING|soft lockup|general protection|segfault|Call Trace|Oops|detected stall|blocked for more than"
)
"""What no console of a healthy Linux guest shows."""
HOST_TROUBLE = re.compile(r"ERROR|CRITICAL|Traceback|xen-py failed")


class SessionEnded(Exception):
    """The program ended before it had said what was waited for."""


class Session:
    """A running program with its input and output at our end: pipes, or a terminal of the given (rows, columns)."""

    def __init__(self, argv: list[str], env: dict[str, str], terminal: tuple[int, int] | None = None) -> None:
        self.output = b""
        """All it has said so far."""
        self._seen = 0
        if terminal is None:
            self._process = subprocess.Popen(
                argv,
                env=env,
                cwd=native_build.ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
            )
            assert self._process.stdin is not None and self._process.stdout is not None
            self._read_fd = os.dup(self._process.stdout.fileno())
            self._write_fd = os.dup(self._process.stdin.fileno())
            self._process.stdin.close()
            self._process.stdout.close()
        else:
            master, slave = pty.openpty()
            self.resize(terminal, slave)
            self._process = subprocess.Popen(
                argv,
                env=env,
                cwd=native_build.ROOT,
                stdin=slave,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
            )
            os.close(slave)
            self._read_fd = master
            self._write_fd = os.dup(master)

    def resize(self, terminal: tuple[int, int], fd: int | None = None) -> None:
        target = self._read_fd if fd is None else fd
        fcntl.ioctl(target, termios.TIOCSWINSZ, struct.pack("HHHH", *terminal, 0, 0))

    def send(self, text: str) -> None:
        data = text.encode()
        while data:
            data = data[os.write(self._write_fd, data) :]

    def expect(self, pattern: str, patience: float = PATIENCE) -> re.Match[bytes]:
        """Wait until the output after the last match holds `pattern` (a regular expression)."""
        compiled = re.compile(pattern.encode(), re.MULTILINE)
        deadline = time.monotonic() + patience
        while True:
            if match := compiled.search(self.output, self._seen):
                self._seen = match.end()
                return match
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._read_fd], [], [], left)[0]:
                raise TimeoutError(f"no {pattern!r} for {patience:.0f} seconds, but: {self._tail()}")
            try:
                data = os.read(self._read_fd, 1 << 16)
            except OSError as error:  # a terminal without a program at its other end
                if error.errno != errno.EIO:
                    raise
                data = b""
            if not data:
                raise SessionEnded(f"it ended without {pattern!r}, and said: {self._tail()}")
            self.output += data

    def finish(self, patience: float = PATIENCE) -> int:
        """Read on until it ends; its exit status."""
        while True:
            try:
                self.expect(r"[^\d\D]", patience)
            except SessionEnded:
                return self._process.wait(patience)

    def _tail(self) -> str:
        return self.output[max(self._seen, len(self.output) - 2000) :].decode(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self._read_fd)
        os.close(self._write_fd)
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait(PATIENCE)


@attrs.frozen
class Footprint:
    """What the host's processes hold. Two of them can be compared."""

    pss_kb: int
    processes: int
    threads: int
    descriptors: int
    memory_files: int
    unix_sockets: int

    def more_than(self, other: Footprint) -> list[str]:
        """What there is more of than in `other`; but not memory, which may differ a little."""
        mine, others = attrs.asdict(self), attrs.asdict(other)
        return [f"{mine[key]} {key}, not {others[key]}" for key in mine if key != "pss_kb" and mine[key] > others[key]]


class Host:
    """A host of its own in `folder`. Starts it; ends it, and whatever runs on it, when the context does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rundir = folder / "run"
        self.rundir.mkdir(mode=0o700)
        self.environment = {**os.environ, "TERM": "xterm", "XENPY_RUNDIR": str(self.rundir)}
        self.pid = 0

    def __enter__(self) -> Self:
        self.command("xen-py", "start")
        self.pid = int((self.rundir / "host.lock").read_text())
        return self

    def __exit__(self, *_error: object) -> None:
        self.command("xen-py", "stop")

    # commands

    def command(self, name: str, *arguments: str | Path, patience: float = PATIENCE) -> str:
        """Run one of the project's commands to its end; what it printed. AssertionError unless it succeeds."""
        done = self.try_command(name, *arguments, patience=patience)
        assert done.returncode == 0, f"{name} {' '.join(map(str, arguments))}: {done.returncode}: {done.stderr}"
        return done.stdout

    def try_command(
        self, name: str, *arguments: str | Path, patience: float = PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / name), *map(str, arguments)],
            env=self.environment,
            cwd=native_build.ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patience,
        )

    def xl(self, *arguments: str | Path, patience: float = PATIENCE) -> str:
        return self.command("xl", *arguments, patience=patience)

    def session(self, *arguments: str, terminal: tuple[int, int] | None = None) -> Session:
        """`xl ARGUMENTS`, to talk to."""
        return Session([str(BIN / "xl"), *arguments], self.environment, terminal)

    # guests

    def config(self, name: str, **settings: str | int) -> Path:
        """A configuration file for `xl create`."""
        path = self.folder / f"{name}.cfg"
        lines = [f"{key} = {value if isinstance(value, int) else _quoted(value)}" for key, value in settings.items()]
        path.write_text("\n".join([f"name = {_quoted(name)}", *lines]) + "\n")
        return path

    def debian(self, name: str, ramdisk: Path | str = "image:debian/initramfs.gz") -> Path:
        """A configuration file for Debian's kernel. The image is to be fetched first."""
        return self.config(
            name, kernel="image:debian/vmlinuz", ramdisk=str(ramdisk), cmdline="console=hvc0 panic=5", memory=256
        )

    def hello(self, name: str) -> Path:
        kernel = native_build.GUEST_OUTPUT / "hello.elf"
        return self.config(name, kernel=str(kernel), extra="greetings from the harness", memory=16)

    def names(self) -> list[str]:
        """The guests there are."""
        return [line.split()[0] for line in self.xl("list").splitlines()[2:]]

    def log(self, name: str) -> bytes:
        return (self.rundir / "log" / f"guest-{name}.log").read_bytes()

    def host_log(self) -> str:
        return (self.rundir / "log" / "host.log").read_text()

    # processes

    def vm_process(self, name: str) -> int:
        """The process id of a guest's VM process."""
        (pid,) = (pid for pid in self.processes() if title(pid).startswith(f"xen-py: {name} ["))
        return pid

    def processes(self) -> list[int]:
        """The host process and all that descend from it."""
        children: dict[int, list[int]] = {}
        for pid, parent in _parents():
            children.setdefault(parent, []).append(pid)
        found = [self.pid]
        for pid in found:
            found += children.get(pid, [])
        return found

    def footprint(self) -> Footprint:
        pids = self.processes()
        return Footprint(
            pss_kb=sum(pss_kb(pid) for pid in pids),
            processes=len(pids),
            threads=sum(len(os.listdir(f"/proc/{pid}/task")) for pid in pids),
            descriptors=sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids),
            memory_files=sum(_is_memory_file(link) for pid in pids for link in _links(pid)),
            unix_sockets=Path("/proc/net/unix").read_text().count(str(self.rundir)),
        )


def _quoted(text: str) -> str:
    return "'" + text + "'"


def title(pid: int) -> str:
    """The command line of a process; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _parents() -> Iterator[tuple[int, int]]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended
            if fields[0] != "Z":
                yield int(entry), int(fields[1])


def _links(pid: int) -> Iterator[str]:
    for entry in os.scandir(f"/proc/{pid}/fd"):
        yield os.readlink(entry.path)


def _is_memory_file(link: str) -> bool:
    return link.startswith("/memfd:")


def pss_kb(pid: int) -> int:
    """Proportional set size of a process."""
    match = re.search(r"^Pss: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return int(match[1]) if match else 0


def cpu_seconds(pid: int) -> float:
    """CPU time a process has used, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def waited_seconds(pid: int) -> float:
    """Time the main thread of a process could have run but was not given a processor."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def memory_file_kb(pid: int) -> int:
    """What a VM process's guest has touched: the blocks of its largest memory file."""
    blocks = [
        os.stat(entry.path).st_blocks
        for entry in os.scandir(f"/proc/{pid}/fd")
        if _is_memory_file(os.readlink(entry.path))
    ]
    return max(blocks) // 2


def until(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Look again and again until `condition()` holds."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not for {patience:.0f} seconds")
        time.sleep(0.05)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def fetch_debian() -> None:
    """Debian's kernel, for which nothing but the first time a network is needed."""
    subprocess.run([str(BIN / "xen-py"), "image", "fetch", "debian"], check=True, stdout=subprocess.DEVNULL)


def stress_initramfs(folder: Path) -> Path:
    """An initramfs with /bin/stress in it; see guest/stress.sh."""
    torture = native_build.WORK / "tests" / "torture"
    source = GUEST / "torture.c"
    if native_build.is_stale(torture, [source]):
        flags = ("-target", "x86_64-linux-musl", "-static", "-O2", "-Wall", "-Wextra", "-Werror")
        native_build.zig_cc([*flags, "-fno-sanitize=undefined", source], torture)
    script = folder / "stress"
    script.write_bytes((GUEST / "stress.sh").read_bytes())
    script.chmod(0o755)
    output = folder / "stress-initramfs.gz"
    files = ("--file", f"bin/torture={torture}", "--file", f"bin/stress={script}")
    subprocess.run([str(BIN / "xen-py"), "image", "initramfs", str(output), *files], check=True)
    return output
