# SPDX-License-Identifier: GPL-2.0-only
"""One run of xl: its global flags, its two outputs, and how a command ends early.

Made by `dom0.xl.main`, handed to every command. Nothing survives the run.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import TypeAlias

import attrs

from dom0.rundir import RunDirError, run_directory
from dom0.xl.client import Client, HostUnavailable

EXIT_SUCCESS = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_LIBXL_FAIL = 3
"""What `xl create` returns where libxl says ERROR_FAIL (-3)."""
EXIT_LIBXL_INVAL = 6
EXIT_EINVAL = 22
"""What the console client returns for arguments it cannot take."""


class Stop(Exception):
    """The command is over: print `lines` on stderr, return `code`."""

    def __init__(self, code: int, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.code = code
        self.lines = lines


@attrs.define
class Session:
    """The global flags of `xl [-vNftT]`, and the outputs."""

    verbose: int = 0
    dry_run: bool = False
    progress_cr: bool = False
    timestamps: bool = False

    def out(self, text: str = "") -> None:
        sys.stdout.write(text + "\n")

    def say(self, line: str) -> None:
        """What xl itself has to say, on stderr."""
        sys.stderr.write(line + "\n")

    def log(self, lines: Iterable[str]) -> None:
        """What the toolstack below xl has to say; `-T` puts the time and the process before each line."""
        for line in lines:
            stamp = f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')} [{os.getpid()}] " if self.timestamps else ""
            self.say(stamp + line)

    def connect(self, *, start: bool) -> Client:
        """A connection to the host; `start` starts one when none runs. Raises `HostUnavailable`."""
        try:
            return Client.connect(run_directory(), start=start)
        except RunDirError as error:
            raise HostUnavailable(str(error)) from error


Command: TypeAlias = Callable[[Session, list[str]], int]
"""A command gets the words after its name and returns the exit status."""
