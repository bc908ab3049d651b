# SPDX-License-Identifier: GPL-2.0-only
"""Where a domain's loop comes from: a VM process (fork of the template) or a thread of the host.

A spawner hands five descriptors and a specification over and answers with a `LoopEnd`: the means to see it end and to
end it. Everything else the host does with a domain (`dom0.host.vm`) is the same for both. Owner: the trio thread.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import msgpack  # type: ignore[import-untyped]
import trio

from dom0.host.messages import LONGEST, parse
from dom0.host.sandbox import TITLE_ROOM
from dom0.host.vmprocess import MakeDomain, run_domain
from xen_py.spec import DomainSpec


class SpawnError(Exception):
    """No loop could be started; the text is one line for the user."""


class LoopEnd(Protocol):
    """A running loop, seen from outside."""

    pid: int

    async def wait(self) -> str | None:
        """Wait until it is gone and its descriptors with it; how it ended, None for an orderly end."""

    def kill(self) -> None:
        """End it now; it may already be gone."""

    def cpu_time_ns(self) -> int | None:
        """CPU time it has used, None if only the domain itself can say."""


class Spawner(Protocol):
    in_process: bool
    """Domains run inside this process; then the programs of guests that have no kernel run in the host's own loop."""

    async def spawn(self, spec: DomainSpec, fds: list[int]) -> LoopEnd:
        """Start a loop on duplicates of `fds` (in the order of `dom0.host.vmprocess`)."""

    async def aclose(self) -> None: ...


class ThreadSpawner:
    """Domains on threads of this process: for tests and for whoever wants to look into one with a debugger."""

    in_process = True

    def __init__(self, make: MakeDomain) -> None:
        self._make = make

    async def spawn(self, spec: DomainSpec, fds: list[int]) -> LoopEnd:
        loop = _LoopThread()
        own = [os.dup(fd) for fd in fds]
        token = trio.lowlevel.current_trio_token()

        def body() -> None:
            try:
                run_domain(spec, own, self._make)
            finally:
                with suppress(trio.RunFinishedError):
                    token.run_sync_soon(loop.gone.set)

        loop.thread = threading.Thread(target=body, name=f"domain {spec.domid}", daemon=True)
        loop.thread.start()
        return loop

    async def aclose(self) -> None:
        return None


class _LoopThread:
    """A thread cannot be killed: it ends when the host closes its end of the link."""

    thread: threading.Thread

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.gone = trio.Event()

    async def wait(self) -> str | None:
        await self.gone.wait()
        self.thread.join()
        return None

    def kill(self) -> None:
        return None

    def cpu_time_ns(self) -> int | None:
        return None


class TemplateProcess:
    """The template process as it is started: no trio yet, so that it warms up while the host still imports."""

    def __init__(self, log_fd: int) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            arguments = [str(theirs.fileno()), str(os.getpid()), " " * TITLE_ROOM]
            root = str(Path(__file__).resolve().parents[2])
            path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "dom0.host.template", *arguments],
                env=os.environ | {"PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def close(self) -> None:
        """End it, and with it every VM process that is left. Idempotent."""
        self.socket.close()
        self.process.kill()
        self.process.wait()


class ProcessSpawner:
    """VM processes, forked by a template process; a new template is started when the old one has gone."""

    in_process = False

    def __init__(self, nursery: trio.Nursery, log_fd: int, template: TemplateProcess | None = None) -> None:
        self._nursery = nursery
        self._log_fd = log_fd
        self._client = _TemplateClient(template or TemplateProcess(log_fd))
        self._lock = trio.Lock()
        nursery.start_soon(self._client.run)

    @property
    def template_pid(self) -> int:
        return self._client.template.process.pid

    async def spawn(self, spec: DomainSpec, fds: list[int]) -> LoopEnd:
        # an answer that nobody waits for would be taken for that of the next request
        with trio.CancelScope(shield=True):
            async with self._lock:
                loop = await self._spawn(spec, fds)
        return loop

    async def _spawn(self, spec: DomainSpec, fds: list[int]) -> LoopEnd:
        if self._client.gone:
            self._client.template.close()
            self._client = _TemplateClient(TemplateProcess(self._log_fd))
            self._nursery.start_soon(self._client.run)
        return await self._client.spawn(msgpack.packb({"spec": spec.to_plain()}), fds)

    async def aclose(self) -> None:
        """The template's end, not ours, closes the connection: a socket that is being waited for is not closed."""
        self._client.template.process.kill()
        await self._client.ended.wait()
        self._client.template.close()


class _TemplateClient:
    """The host's end of one template process; `run` is the task that reads what it says."""

    def __init__(self, template: TemplateProcess) -> None:
        self.template = template
        self.gone = False
        self.ended = trio.Event()
        self._socket = template.socket
        self._answers, self._take_answer = trio.open_memory_channel[tuple[list[Any], list[int]]](1)
        self._statuses: dict[int, int] = {}
        self._news = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        try:
            while True:
                await trio.lowlevel.wait_readable(self._socket)
                data, fds, _, _ = socket.recv_fds(self._socket, LONGEST, 1)
                if not data:
                    break
                match parse(data):
                    case ["started", int()] | ["failed", str()] as answer:
                        self._answers.send_nowait((answer, fds))
                    case ["ended", int(pid), int(status)]:
                        self._statuses[pid] = status
                        self._news.unpark_all()
        except (OSError, trio.ClosedResourceError):
            pass  # killed, or closed by us
        finally:
            self.gone = True
            self._answers.close()
            self._news.unpark_all()
            self.ended.set()

    async def spawn(self, request: bytes, fds: list[int]) -> LoopEnd:
        try:
            socket.send_fds(self._socket, [request], fds)
            answer, pidfds = await self._take_answer.receive()
        except (OSError, trio.EndOfChannel) as error:
            raise SpawnError("the template of VM processes has ended; see the host's log") from error
        if answer[0] == "failed":
            raise SpawnError(answer[1])
        return _VmProcess(self, answer[1], pidfds[0])

    async def status(self, pid: int) -> int | None:
        """How a child whose pidfd has fired ended; None if the template went before it could say."""
        while pid not in self._statuses and not self.gone:
            await self._news.park()
        return self._statuses.pop(pid, None)


class _VmProcess:
    def __init__(self, template: _TemplateClient, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._template = template

    async def wait(self) -> str | None:
        await trio.lowlevel.wait_readable(self._pidfd)
        status = await self._template.status(self.pid)
        os.close(self._pidfd)
        self._pidfd = -1
        if status == 0:
            return None
        if status is None:
            return f"VM process {self.pid} ended with the template process"
        if status < 0:
            return f"VM process {self.pid} was killed by {signal.Signals(-status).name}"
        return f"VM process {self.pid} exited with status {status}; see the host's log"

    def kill(self) -> None:
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def cpu_time_ns(self) -> int | None:
        """The process's CPU clock (its number is made from the pid: clock_getcpuclockid(3))."""
        try:
            return time.clock_gettime_ns((~self.pid << 3) | 2)
        except OSError:
            return None
