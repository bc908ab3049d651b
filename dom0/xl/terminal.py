# SPDX-License-Identifier: GPL-2.0-only
"""The console client: a terminal on one side, a guest's console on the other, every byte in between.

Runs in xl's main thread (it takes over signals while it runs). As xenconsole (tools/console/client/main.c): the
terminal is in raw mode, so that Ctrl-C and all else reach the guest as bytes, and the escape character alone, Ctrl-],
comes back to the shell. The terminal's mode is given back whatever happens: the guest's end, the escape, an exception,
a signal that ends or stops us.

No byte is lost at any speed: reading stops while what was read cannot be passed on, and nothing blocks in one direction
while the other could move.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import stat
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import attrs

ESCAPE = 0x1D
"""Ctrl-]."""
_ENOUGH = 1 << 18
"""Reading from one side stops while this many bytes wait for the other..."""
_ENOUGH_TYPED = 1 << 26
"""...but a terminal is read on, or the escape character would be stuck behind a guest that does not listen."""
_LAST_WORDS_MS = 1000
"""How long what was typed before the escape character may wait for such a guest."""
_CHUNK = 1 << 16
_PIPE_BUF = 4096
"""A pipe that polls writable takes this much without blocking."""
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class _Ended(BaseException):
    """A signal that ends the process, on its way out past the code that gives the terminal back."""

    def __init__(self, number: int) -> None:
        self.number = number


def run_console(connection: socket.socket, stdin: int, stdout: int, escape: int = ESCAPE) -> None:
    """Pass bytes between the terminal and `connection` until the guest's end or the escape character.

    On a terminal for both input and output, raw mode. With input from a pipe or file, its end only stops the input.
    With a terminal for input but not for output nothing is read from it, as xenconsole does: the user could not see.
    """
    interactive = os.isatty(stdin) and os.isatty(stdout)
    reads_input = interactive or not os.isatty(stdin)
    connection.setblocking(False)
    own = _own_description(stdout)
    try:
        pump = _Pump(
            connection,
            stdin if reads_input else None,
            stdout if own is None else own,
            _PIPE_BUF if own is None else _CHUNK,
            escape if interactive else None,
        )
        if interactive:
            with _raw_mode(stdin):
                pump.run()
        else:
            pump.run()
    except _Ended as ended:
        signal.signal(ended.number, signal.SIG_DFL)
        os.kill(os.getpid(), ended.number)
        raise SystemExit(128 + ended.number) from None
    finally:
        if own is not None:
            os.close(own)


def _own_description(fd: int) -> int | None:
    """The same terminal or pipe opened once more, so that it can be non-blocking for us without being so for others
    who share it (the shell, the rest of a pipeline)."""
    if not os.isatty(fd) and not stat.S_ISFIFO(os.fstat(fd).st_mode):
        return None
    with suppress(OSError):
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return None


@attrs.define
class _Pump:
    """The two directions and what waits in each."""

    connection: socket.socket
    stdin: int | None
    stdout: int
    portion: int
    """How much may be written to `stdout` at a time."""
    escape: int | None
    to_guest: bytearray = attrs.field(factory=bytearray)
    to_user: bytearray = attrs.field(factory=bytearray)
    guest_there: bool = True
    escaped: bool = False

    def run(self) -> None:
        """Until the guest has gone and all it said is out, or the escape character and all before it is sent."""
        while self.guest_there or self.to_user:
            if self.escaped and not self.to_guest:
                return
            if not self._step() and self.escaped:
                return

    def _step(self) -> bool:
        """Wait for something to move and move it; False when nothing did for the time last words are given."""
        poll = select.poll()
        guest_events = 0
        if self.guest_there:
            guest_events |= select.POLLIN if len(self.to_user) < _ENOUGH and not self.escaped else 0
            guest_events |= select.POLLOUT if self.to_guest else 0
        if guest_events:
            poll.register(self.connection, guest_events)
        enough = _ENOUGH if self.escape is None else _ENOUGH_TYPED
        reading = self.guest_there and not self.escaped and len(self.to_guest) < enough
        if self.stdin is not None and reading:
            poll.register(self.stdin, select.POLLIN)
        if self.to_user and not self.escaped:
            poll.register(self.stdout, select.POLLOUT)
        ready = dict(poll.poll(_LAST_WORDS_MS if self.escaped else None))
        if self.to_user and self.stdout in ready:
            self._write_out()
        guest_ready = ready.get(self.connection.fileno(), 0)
        if self.to_guest and guest_ready & ~select.POLLIN:
            self._send()
        if guest_ready & ~select.POLLOUT and not self.escaped and len(self.to_user) < _ENOUGH:
            self._receive()
        if self.stdin is not None and reading and self.stdin in ready:
            self._read_in(self.stdin)
        return bool(ready)

    def _read_in(self, stdin: int) -> None:
        try:
            data = os.read(stdin, _CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""  # the terminal is gone
        if not data:
            self.stdin = None
            # A terminal that has ended takes its user along; a pipe that has ended has said all it had to say.
            self.escaped = self.escape is not None
            return
        if self.escape is not None and self.escape in data:
            data = data[: data.index(self.escape)]
            self.escaped = True
        self.to_guest += data

    def _send(self) -> None:
        try:
            del self.to_guest[: self.connection.send(self.to_guest)]
        except BlockingIOError:
            return
        except OSError:
            self.to_guest.clear()  # the guest has gone; what it said last may still be on its way to us
            self.stdin = None

    def _receive(self) -> None:
        try:
            data = self.connection.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.to_user += data
        else:
            self.guest_there = False

    def _write_out(self) -> None:
        try:
            del self.to_user[: os.write(self.stdout, self.to_user[: self.portion])]
        except BlockingIOError:
            return
        except OSError:
            # Nobody is left to read: the end, as for any program in a broken pipe.
            self.to_user.clear()
            self.guest_there = False


@contextmanager
def _raw_mode(fd: int) -> Iterator[None]:
    """Raw mode on the terminal `fd` for as long as the body runs, and no longer, whatever ends or stops it."""
    before = termios.tcgetattr(fd)

    def enter() -> None:
        termios.tcsetattr(fd, termios.TCSANOW, _raw(before))

    def leave() -> None:
        with suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSANOW, before)

    def end(number: int, _frame: FrameType | None) -> None:
        raise _Ended(number)

    def stop(_number: int, _frame: FrameType | None) -> None:
        leave()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, stop)

    def go_on(_number: int, _frame: FrameType | None) -> None:
        with suppress(termios.error):
            enter()

    handlers: dict[signal.Signals, Any] = dict.fromkeys(_ENDING, end)
    handlers |= {signal.SIGTSTP: stop, signal.SIGCONT: go_on}
    earlier = {
        number: signal.signal(number, handler)
        for number, handler in handlers.items()
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        enter()
        yield
    finally:
        leave()
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _raw(attributes: list[Any]) -> list[Any]:
    """What cfmakeraw makes of a terminal's attributes."""
    iflag, oflag, cflag, lflag, ispeed, ospeed, cc = attributes
    iflag &= ~(
        termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
        | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
    )  # fmt: skip
    oflag &= ~termios.OPOST
    lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    cflag = (cflag & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
    cc = list(cc)
    cc[termios.VMIN], cc[termios.VTIME] = 1, 0
    return [iflag, oflag, cflag, lflag, ispeed, ospeed, cc]
