# SPDX-License-Identifier: GPL-2.0-only
"""The console client on a real terminal (a pty): every byte, and the terminal's mode given back whatever happens."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dom0.xl.terminal import _raw_mode
from tests.xl.fake_host import FakeHost

PATIENCE = 60.0
GREETING = b"\x1b[2J\x1b[1;1Hready\r\n"


class Console:
    """xl on a terminal; the test holds the terminal's other end."""

    def __init__(self, *words: str, stdin: int | None = None, stdout: int | None = None) -> None:
        self.master, self.slave = os.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dom0.xl.main", *words],
            stdin=self.slave if stdin is None else stdin,
            stdout=self.slave if stdout is None else stdout,
            stderr=subprocess.PIPE,
            process_group=0,
        )

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            assert select.select([self.master], [], [], PATIENCE)[0], "xl shows nothing"
            data += os.read(self.master, min(count - len(data), 1 << 16))
        return data

    def write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.master, data) :]

    def writing(self, data: bytes) -> threading.Thread:
        thread = threading.Thread(target=self.write, args=(data,))
        thread.start()
        return thread

    @property
    def raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & (termios.ICANON | termios.ISIG | termios.ECHO)

    def finish(self) -> tuple[int, bytes]:
        assert self.process.stderr is not None
        err = self.process.stderr.read()
        status = self.process.wait(PATIENCE)
        assert termios.tcgetattr(self.slave) == self.before, "the terminal was not given back as it was"
        return status, err

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()
        os.close(self.master)
        os.close(self.slave)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Guest:
    """The other end of the console's stream: what the client sent, and what to say to it."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.settimeout(PATIENCE)
        self.over = threading.Event()

    def read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count and (piece := self.connection.recv(count - len(data))):
            data += piece
        return bytes(data)


@pytest.fixture
def attached(host: FakeHost) -> Iterator[Callable[..., tuple[Console, Guest]]]:
    """Start `xl console gpv` and wait until it shows the guest's greeting."""
    consoles: list[Console] = []
    guests: list[Guest] = []
    arrived = threading.Semaphore(0)

    def on_console(connection: socket.socket) -> None:
        guests.append(Guest(connection))
        connection.sendall(GREETING)
        arrived.release()
        guests[-1].over.wait(PATIENCE)

    def attach(*words: str, stdin: int | None = None, stdout: int | None = None) -> tuple[Console, Guest]:
        consoles.append(Console(*(words or ("console", "gpv")), stdin=stdin, stdout=stdout))
        assert arrived.acquire(timeout=PATIENCE)
        if stdout is None:
            assert consoles[-1].read(len(GREETING)) == GREETING
        return consoles[-1], guests[-1]

    host.on_console = on_console
    yield attach
    for guest in guests:
        guest.over.set()
    for console in consoles:
        console.close()


Attach = Callable[..., tuple[Console, Guest]]


def test_the_escape_character_comes_back_to_the_shell(attached: Attach) -> None:
    console, guest = attached()
    assert console.raw
    console.write(b"last words\x1dnot sent")
    assert console.finish() == (0, b"")
    assert guest.read(100) == b"last words"


def test_another_escape_character(attached: Attach) -> None:
    console, guest = attached("console", "-e", "^a", "gpv")
    console.write(b"\x1d")
    assert guest.read(1) == b"\x1d"
    console.write(b"\x01")
    assert console.finish() == (0, b"")


def test_every_byte_passes_untouched(attached: Attach) -> None:
    console, guest = attached()
    everything = bytes(range(256)) * 3
    guest.connection.sendall(everything)
    assert console.read(len(everything)) == everything
    typed = bytes(byte for byte in range(256) if byte != 0x1D)
    console.write(typed)
    assert guest.read(len(typed)) == typed  # Ctrl-C, Ctrl-Z, Ctrl-S, Ctrl-D, CR and NUL among them


def test_a_full_screen_program_s_sequences(attached: Attach) -> None:
    console, guest = attached()
    screen = b"\x1b[?1049h\x1b[?25l\x1b[H\x1b[7mtop\x1b[0m\x1b[K\r\n\t\x08\x0e\x0f"
    screen += b"\x1b]0;title\x07\x1b[6n\x1b[?25h\x1b[?1049l"
    guest.connection.sendall(screen)
    assert console.read(len(screen)) == screen
    for keys in (b"\x1b[A", b"\x1bOP", b"\x1b[24;80R", b"\x7f", b"\xc3\xa9"):
        console.write(keys)
        assert guest.read(len(keys)) == keys


def test_nothing_is_lost_when_both_talk_as_fast_as_they_can(attached: Attach) -> None:
    console, guest = attached()
    spoken = random.Random(1).randbytes(10 << 20)
    typed = random.Random(2).randbytes(1 << 20).replace(b"\x1d", b"\x1e")
    speaking = threading.Thread(target=guest.connection.sendall, args=(spoken,))
    typing = console.writing(typed)
    speaking.start()
    heard: list[bytes] = []
    listening = threading.Thread(target=lambda: heard.append(guest.read(len(typed))))
    listening.start()
    shown = console.read(len(spoken))
    for thread in (speaking, typing, listening):
        thread.join(PATIENCE)
    assert hashlib.sha256(shown).digest() == hashlib.sha256(spoken).digest()
    assert heard == [typed]


def test_the_guest_s_end_ends_the_client_after_its_last_byte(attached: Attach) -> None:
    console, guest = attached()
    last = b"x" * 3_000_000 + b"[ 1.0] reboot: Power down\r\n"
    ended: list[bytes] = []
    reading = threading.Thread(target=lambda: ended.append(console.read(len(last))))
    reading.start()
    guest.connection.sendall(last)
    guest.over.set()
    reading.join(PATIENCE)
    assert ended == [last]
    assert console.finish() == (0, b"")


def test_the_escape_works_when_the_guest_does_not_listen(attached: Attach) -> None:
    console, _guest = attached()
    typing = console.writing(b"y" * 3_000_000 + b"\x1d")
    assert console.finish() == (0, b"")
    typing.join(PATIENCE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signals_that_end_it(attached: Attach, number: signal.Signals) -> None:
    console, _guest = attached()
    console.process.send_signal(number)
    assert console.finish() == (-number, b"")


def test_an_interrupt_from_outside(attached: Attach) -> None:
    console, _guest = attached()
    console.process.send_signal(signal.SIGINT)
    assert console.finish() == (130, b"")


def test_stopping_and_going_on(attached: Attach) -> None:
    console, guest = attached()
    for _ in range(2):
        console.process.send_signal(signal.SIGTSTP)
        os.waitpid(console.process.pid, os.WUNTRACED)
        assert termios.tcgetattr(console.slave) == console.before
        console.process.send_signal(signal.SIGCONT)
        eventually(lambda: console.raw)
        console.write(b"on")
        assert guest.read(2) == b"on"
    console.write(b"\x1d")
    assert console.finish() == (0, b"")


def test_an_exception_gives_the_terminal_back() -> None:
    master, slave = os.openpty()
    before, handler = termios.tcgetattr(slave), signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), _raw_mode(slave):
        assert termios.tcgetattr(slave) != before
        raise ZeroDivisionError
    assert termios.tcgetattr(slave) == before
    assert signal.getsignal(signal.SIGTERM) is handler
    os.close(master)
    os.close(slave)


def test_input_from_a_pipe_may_end_long_before_the_output(attached: Attach) -> None:
    reader, writer = os.pipe()
    out, out_writer = os.pipe()
    console, guest = attached(stdin=reader, stdout=out_writer)
    os.close(reader)
    os.close(out_writer)
    assert os.read(out, 100) == GREETING
    os.write(writer, b"ls\n\x1d\x03")
    os.close(writer)
    assert guest.read(5) == b"ls\n\x1d\x03"
    guest.connection.sendall(b"after the end of input")
    assert os.read(out, 100) == b"after the end of input"
    guest.over.set()
    assert console.finish() == (0, b"")
    assert os.read(out, 1) == b""
    os.close(out)


def test_a_slow_reader_loses_nothing(attached: Attach) -> None:
    out, out_writer = os.pipe()
    spoken = random.Random(3).randbytes(2 << 20)
    with open(os.devnull, "rb") as nothing:
        console, guest = attached(stdin=nothing.fileno(), stdout=out_writer)
    os.close(out_writer)
    speaking = threading.Thread(target=guest.connection.sendall, args=(spoken,))
    speaking.start()
    data = bytearray()
    while len(data) < len(GREETING) + len(spoken):
        data += os.read(out, 777)
    speaking.join(PATIENCE)
    assert bytes(data) == GREETING + spoken
    guest.over.set()
    assert console.finish() == (0, b"")
    os.close(out)


def test_output_to_a_file(attached: Attach, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"kept\n")
    with path.open("ab") as file, open(os.devnull, "rb") as nothing:
        console, guest = attached(stdin=nothing.fileno(), stdout=file.fileno())
    guest.connection.sendall(b"more")
    guest.over.set()
    assert console.finish() == (0, b"")
    assert path.read_bytes() == b"kept\n" + GREETING + b"more"


def test_without_a_terminal_to_show_none_is_read(attached: Attach) -> None:
    out, out_writer = os.pipe()
    console, guest = attached(stdout=out_writer)
    os.close(out_writer)
    assert os.read(out, 100) == GREETING
    assert not console.raw
    guest.over.set()
    assert console.finish() == (0, b"")
    os.close(out)


def test_a_reader_that_leaves_ends_it(attached: Attach) -> None:
    out, out_writer = os.pipe()
    with open(os.devnull, "rb") as nothing:
        console, guest = attached(stdin=nothing.fileno(), stdout=out_writer)
    os.close(out_writer)
    os.close(out)
    try:
        for _ in range(1000):
            guest.connection.sendall(b"anyone?\n" * 1000)
    except OSError as error:
        assert error.errno in (errno.EPIPE, errno.ECONNRESET)
    assert console.finish() == (0, b"")


def test_create_attaches_before_the_first_instruction(host: FakeHost, attached: Attach, tmp_path: Path) -> None:
    cfg = tmp_path / "guest.cfg"
    cfg.write_text('name="new"\nkernel="/k"\n')
    console, guest = attached("create", "-c", "-q", str(cfg))
    with host.changed:
        assert host.changed.wait_for(lambda: host.asked[-1][0] == "domain.unpause", PATIENCE)
    assert [method for method, _ in host.asked] == ["domain.create", "domain.console", "domain.unpause"]
    assert host.asked[0][1]["paused"] is True
    guest.connection.sendall(b"first words")
    assert console.read(11) == b"first words"
    console.write(b"\x1d")
    assert console.finish() == (0, b"")


def test_create_attached_and_paused(host: FakeHost, attached: Attach, tmp_path: Path) -> None:
    cfg = tmp_path / "guest.cfg"
    cfg.write_text('name="new"\nkernel="/k"\n')
    console, _guest = attached("create", "-cpq", str(cfg))
    console.write(b"\x1d")
    assert console.finish() == (0, b"")
    assert [method for method, _ in host.asked] == ["domain.create", "domain.console"]


def test_progress_is_a_bar_on_a_terminal_and_gone_afterwards(host: FakeHost, tmp_path: Path) -> None:
    cfg = tmp_path / "guest.cfg"
    cfg.write_text('name="new"\nkernel="/k"\n')
    host.progress = [("unpack [xz]", done, 4) for done in range(5)]
    master, slave = os.openpty()
    command = [sys.executable, "-m", "dom0.xl.main", "create", str(cfg)]
    with subprocess.Popen(command, stderr=slave, env=os.environ | {"TERM": "xterm"}) as process:
        os.close(slave)
        shown = b""
        try:
            while piece := os.read(master, 4096):
                shown += piece
        except OSError as error:
            assert error.errno == errno.EIO  # the last holder of the terminal has gone
    os.close(master)
    assert process.returncode == 0
    assert b"unpack [xz]" in shown
    assert b"100%" in shown
    assert shown.endswith(b"\x1b[2K")  # the line wiped
