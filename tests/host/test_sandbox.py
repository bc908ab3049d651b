# SPDX-License-Identifier: GPL-2.0-only
"""What a confined process can still do, tried in children of the test."""

import errno
import faulthandler
import mmap
import os
import re
import resource
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dom0.host import sandbox


def in_child(body: Callable[[], object], confined: bool = True) -> int:
    """Run `body` in a (confined) child: its exit status, 0 if it returned; 77 stands for EPERM."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            faulthandler.disable()
            if confined:
                sandbox.confine()
            body()
            status = 0
        except OSError as error:
            status = 77 if error.errno == errno.EPERM else 98
        except ValueError:
            status = 77  # how Python's resource module says EPERM
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def a_thread() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.set)
    thread.start()
    assert done.wait(10)
    thread.join()


def talk() -> None:
    one, other = PAIR
    one.send(b"x")
    assert other.recv(1) == b"x"
    os.eventfd_write(EVENT, 3)
    assert select.select([EVENT], [], [], 1)[0]
    assert os.eventfd_read(EVENT) == 3
    time.sleep(0.001)
    with mmap.mmap(-1, 4096) as memory:
        memory[0] = 1
    os.urandom(4)


PAIR = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
EVENT = os.eventfd(0, os.EFD_NONBLOCK)


@pytest.mark.parametrize("body", [a_thread, talk])
def test_what_the_loop_needs_works(body: Callable[[], object]) -> None:
    assert in_child(body) == 0


@pytest.mark.parametrize(
    ("what", "body"),
    [
        ("read a file", lambda: os.open("/etc/passwd", os.O_RDONLY)),
        ("write a file", lambda: os.open("/tmp/xen-py-sandbox-test", os.O_WRONLY | os.O_CREAT)),
        ("list a directory", lambda: os.listdir("/")),
        ("stat a path", lambda: os.stat("/etc/passwd")),
        ("remove a path", lambda: os.unlink("/nonexistent")),
        ("network socket", lambda: socket.socket(socket.AF_INET)),
        ("unix socket", lambda: socket.socket(socket.AF_UNIX)),
        ("socket pair", socket.socketpair),
        ("fork", os.fork),
        ("exec", lambda: os.execv("/bin/true", ["true"])),
        ("signal its parent", lambda: os.kill(os.getppid(), 0)),
        ("signal itself by kill", lambda: os.kill(os.getpid(), 0)),
        ("change its user", lambda: os.setuid(65534)),
        ("a new session", os.setsid),
        ("a memory file", lambda: os.memfd_create("x")),
        ("raise its limits", lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))),
        ("look at another process", lambda: os.pidfd_open(1)),
        ("nice others", lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 1)),
        ("pipe", os.pipe),
    ],
)
def test_what_a_guest_that_broke_out_would_like(what: str, body: Callable[[], object]) -> None:
    assert in_child(body) == 77, what


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (0, lambda: socket.socket(socket.AF_INET).bind(("127.0.0.1", 0))),
        (0, lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()),
        (0, lambda: os.close(os.open("/etc/passwd", os.O_RDONLY))),
        (77, lambda: socket.socket(socket.AF_UNIX)),
        (77, lambda: socket.socket(socket.AF_NETLINK)),
        (77, lambda: os.open("/tmp/xen-py-sandbox-test", os.O_WRONLY | os.O_CREAT)),
        (77, os.fork),
        (77, lambda: os.execv("/bin/true", ["true"])),
        (77, lambda: os.kill(os.getppid(), 0)),
    ],
)
def test_what_the_network_process_may_do(status: int, body: Callable[[], object]) -> None:
    def confined() -> None:
        sandbox.confine_network()
        body()

    assert in_child(confined, confined=False) == status


def test_the_log_cannot_be_filled(tmp_path: Path) -> None:
    log = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.write(log, bytes(100))

    def flood() -> None:
        os.dup2(log, 2)
        sandbox.confine()
        for _ in range(64):
            os.write(2, bytes(65536))

    assert in_child(flood, confined=False) == 98
    assert 1 << 20 <= (tmp_path / "log").stat().st_size <= (1 << 20) + 100
    os.close(log)


def test_no_core_and_no_new_privileges() -> None:
    def status() -> None:
        file = os.open("/proc/self/status", os.O_RDONLY)
        core = os.open("/proc/self/limits", os.O_RDONLY)
        sandbox.confine()
        text = os.read(file, 65536).decode()
        assert "NoNewPrivs:\t1" in text
        assert "Seccomp:\t2" in text
        limits = os.read(core, 65536).decode()
        assert re.search(r"Max core file size +0 +0 ", limits)

    assert in_child(status, confined=False) == 0


def test_abort_still_kills() -> None:
    assert in_child(os.abort) == -signal.SIGABRT


def test_a_child_dies_with_its_parent() -> None:
    read, write = os.pipe()
    middle = os.fork()
    if middle == 0:
        try:
            parent = os.getpid()
            child = os.fork()
            if child == 0:
                sandbox.die_with_parent(parent)
                os.write(write, b"%d" % os.getpid())
                time.sleep(60)
            os.close(read)
            signal.pause()
        finally:
            os._exit(1)
    os.close(write)
    pidfd = os.pidfd_open(int(os.read(read, 16)))
    os.kill(middle, signal.SIGKILL)
    os.waitpid(middle, 0)
    assert select.select([pidfd], [], [], 30)[0]
    os.close(pidfd)
    os.close(read)


def test_a_parent_that_is_gone_already_is_noticed() -> None:
    assert in_child(lambda: sandbox.die_with_parent(1), confined=False) == 99


def test_title(tmp_path: Path) -> None:
    def rename() -> None:
        sandbox.set_title("xen-py: a domain [7]")
        assert Path("/proc/self/cmdline").read_bytes().rstrip(b"\0") == b"xen-py: a domain [7]"
        assert Path("/proc/self/comm").read_text() == "xen-py:a\n"

    assert in_child(rename, confined=False) == 0
