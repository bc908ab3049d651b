# SPDX-License-Identifier: GPL-2.0-only
"""The command `xen-py`: the host process itself, in the background or in the foreground, and guest images.

    xen-py start     start a host in the background; returns when it answers
    xen-py stop      end the host of this run directory, and its guests with it
    xen-py status    is one running, and what runs on it?
    xen-py run       be the host, in the foreground, with the log on the terminal
    xen-py image     get and make guest images

One host serves one run directory: it holds a lock on `host.lock` for as long as it lives, so a lock that can be had
means that whatever else lies there (sockets, names) was left by a host that died, and is swept away. Its guests died
with it.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dom0.rundir import RunDirError, run_directory
from dom0.xl.client import Client, HostError, HostUnavailable, NoHost

LOCK_NAME = "host.lock"
LOG_NAME = "host.log"
LARGEST_LOG = 8 << 20
"""A host's log beyond this is set aside when the next host starts."""
START_SECONDS = 60
STOP_SECONDS = 60


class AlreadyRunning(Exception):
    """Another host serves this run directory."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="xen-py", description="Xen in Python: the host process.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("start", help="start a host in the background").set_defaults(run=_start)
    commands.add_parser("stop", help="end the host and its guests").set_defaults(run=_stop)
    commands.add_parser("status", help="say whether a host runs").set_defaults(run=_status)
    commands.add_parser("run", help="be the host, in the foreground").set_defaults(run=_run)
    if _first(arguments) in (None, "image", "-h", "--help"):
        from dom0.image import main as image

        image.add_parser(commands)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except (RunDirError, HostUnavailable, HostError, AlreadyRunning) as error:
        print(f"xen-py: {str(error).removeprefix('xl: ')}", file=sys.stderr)
        return 1


def _first(arguments: list[str] | None) -> str | None:
    words = sys.argv[1:] if arguments is None else arguments
    return words[0] if words else None


# start


def _start(_options: argparse.Namespace) -> int:
    """Fork the host away and wait until it answers. A host that runs already is good enough."""
    rundir = run_directory()
    if _answers(rundir):
        return 0
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ready)
        _daemonise(rundir, tell)
    os.close(tell)
    os.waitpid(pid, 0)
    with os.fdopen(ready) as news:
        said = news.read().strip()
    if said == "ready":
        return 0
    if _answers(rundir, patience=START_SECONDS):
        return 0  # another start was quicker
    raise HostUnavailable(said or f"the host ended before it answered; see {rundir / 'log' / LOG_NAME}")


def _daemonise(rundir: Path, tell: int) -> None:
    """In the child: a session of our own, no terminal, the log for output; then be the host. Never returns."""
    status = 1
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.chdir("/")
        log = _open_log(rundir)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(null)

        def answer(text: str) -> None:
            nonlocal tell
            if tell >= 0:
                os.write(tell, text.encode())
                os.close(tell)
                tell = -1

        try:
            status = _be_host(rundir, log, lambda: answer("ready"), terminal=False)
        except AlreadyRunning as error:
            answer(str(error))
    finally:
        os._exit(status)


def _open_log(rundir: Path) -> int:
    folder = rundir / "log"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / LOG_NAME
    if path.exists() and path.stat().st_size > LARGEST_LOG:
        path.replace(path.with_name(f"{LOG_NAME}.1"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _run(_options: argparse.Namespace) -> int:
    rundir = run_directory()
    return _be_host(rundir, _open_log(rundir), lambda: None, terminal=True)


def _be_host(rundir: Path, log: int, on_ready: Callable[[], None], *, terminal: bool) -> int:
    lock = _lock(rundir)
    try:
        _sweep(rundir)
        # The template imports what a VM needs while this process imports what the host needs.
        from dom0.host.spawn import TemplateProcess

        template = TemplateProcess(log)
        from dom0.host.service import serve_host

        return serve_host(rundir, log, template, on_ready, terminal=terminal)
    finally:
        os.close(lock)


def _lock(rundir: Path) -> int:
    fd = os.open(rundir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(fd, 32, 0).decode(errors="replace").strip()
        os.close(fd)
        raise AlreadyRunning(f"a host (process {owner or 'unknown'}) serves {rundir} already") from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _sweep(rundir: Path) -> None:
    """What a host that died left behind. We hold the lock, so none of it is in use; logs stay."""
    shutil.rmtree(rundir / "console", ignore_errors=True)
    for name in ("control.sock", "xenstored.sock"):
        (rundir / name).unlink(missing_ok=True)


# stop and status


def _stop(_options: argparse.Namespace) -> int:
    rundir = run_directory()
    try:
        with Client.connect(rundir, start=False) as client:
            client.call("host.stop")
    except NoHost:
        print("xen-py: no host runs", file=sys.stderr)
        return 0
    deadline = time.monotonic() + STOP_SECONDS
    while True:
        try:
            os.close(_lock(rundir))
            return 0
        except AlreadyRunning:
            if time.monotonic() > deadline:
                raise HostUnavailable(f"the host has not ended for {STOP_SECONDS} seconds") from None
            time.sleep(0.02)


def _status(_options: argparse.Namespace) -> int:
    rundir = run_directory()
    try:
        with Client.connect(rundir, start=False) as client:
            hello = client.call("host.hello")
            domains = client.call("domain.list")
    except NoHost:
        print(f"no host runs in {rundir}")
        return 3
    guests = len(domains) - 1
    print(f"host process {hello['pid']} (Xen {hello['version']}) serves {rundir}; {guests} guest{'s' * (guests != 1)}")
    return 0


def _answers(rundir: Path, patience: float = 0) -> bool:
    deadline = time.monotonic() + patience
    while True:
        try:
            with Client.connect(rundir, start=False) as client:
                client.call("host.hello")
            return True
        except HostUnavailable:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
