# SPDX-License-Identifier: GPL-2.0-only
"""What the xenstore-* tools share: options, messages, escaping of values, transactions repeated on conflict.

Output and exit codes are those of Xen's xenstore-utils, byte for byte; tests compare them.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, ClassVar, Final, NoReturn

from xenstore.client import Client, Transaction
from xenstore.commands import transaction_end, transaction_start
from xenstore.errors import Conflict, ConnectionLost, XenstoreError
from xenstore.operations import Operations
from xenstore.tools import options

SHORT: Final = "hfspturn:Rd:"
LONG: Final = {
    "help": "h", "flat": "f", "prefix": "p", "tidy": "t", "upto": "u", "recurse": "r", "number": "n", "raw": "R",
    "depth": "d",
}  # fmt: skip

_ESCAPES: Final = {9: b"\\t", 10: b"\\n", 13: b"\\r", 92: b"\\\\"}
_UNESCAPES: Final = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}
_ESCAPED: Final = re.compile(rb"\\(x[0-9A-Fa-f]{1,2}|[0-7]{1,3}|.|$)", re.DOTALL)


def quoted(value: bytes) -> str:
    """A value as it is printed."""
    return b"".join(_escape(byte) for byte in value).decode("ascii")


def _escape(byte: int) -> bytes:
    if byte in _ESCAPES:
        return _ESCAPES[byte]
    if 0x20 <= byte <= 0x7E:
        return bytes((byte,))
    return b"\\%03o" % byte if byte < 8 else b"\\x%02x" % byte


def unquoted(text: bytes) -> bytes:
    """A value as it is written on a command line."""

    def replace(match: re.Match[bytes]) -> bytes:
        code = match[1]
        if code[:1] == b"x" and len(code) > 1:
            return bytes((int(code[1:], 16),))
        if code[:1].isdigit() and code[:1] < b"8":
            return bytes((int(code, 8) & 0xFF,))
        return _UNESCAPES.get(code, code)

    return _ESCAPED.sub(replace, text)


class Tool:
    """One invocation of a tool: its name, options and arguments, and where its output waits."""

    usage = ""
    allowed = ""
    """The letters this tool accepts of those that all of them know."""
    extra: ClassVar[Mapping[str, bool]] = {}
    """Long options of ours, and whether each takes a value."""
    least = 1
    """Arguments it cannot do without."""

    def __init__(self, name: str) -> None:
        own = os.path.basename(sys.argv[0])
        self.argv0 = sys.argv[0] if own.startswith("xenstore-") else f"xenstore-{name}"
        self.program = os.path.basename(self.argv0)
        self.client: Client
        self._output: list[bytes] = []
        long = {**LONG, **{option: option for option in self.extra}}
        values = frozenset(option for option, value in self.extra.items() if value)
        parsed = options.parse(self.argv0, sys.argv[1:], SHORT, long, values)
        self.arguments = parsed.arguments
        self.options: dict[str, str] = {}
        for option, value in parsed.options:
            if option not in "?s" and option not in self.allowed and option not in self.extra:
                self.complain_usage()
            self.options[option] = value
        if len(self.arguments) < self.least:
            self.complain_usage()

    # -- messages

    def warn(self, text: str) -> None:
        sys.stderr.write(f"{self.program}: {text}\n")

    def die(self, text: str) -> NoReturn:
        self.warn(text)
        sys.exit(1)

    def complain_usage(self) -> NoReturn:
        self.die(f"Usage: {self.argv0} {self.usage}")

    # -- output

    def output(self, text: str | bytes) -> None:
        """Print this once the transaction has been committed."""
        self._output.append(text if isinstance(text, bytes) else os.fsencode(text))

    def flush(self) -> None:
        sys.stdout.flush()
        sys.stdout.buffer.write(b"".join(self._output))
        sys.stdout.buffer.flush()
        self._output.clear()

    # -- the store

    def run(self, perform: Callable[[Operations], int], transaction: bool) -> int:
        """`perform` on the store, within a transaction that is repeated on conflict if asked for."""
        with suppress(AttributeError, ValueError):
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        try:
            self.client = Client()
        except ConnectionLost as error:
            cause = error.__cause__
            self.die(f"xs_open: {os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else error}")
        try:
            status = self._perform(perform, transaction)
        except ConnectionLost as error:
            self.die(str(error))
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        finally:
            self.client.close()
        self.flush()
        return status

    def _perform(self, perform: Callable[[Operations], int], transaction: bool) -> int:
        if not transaction:
            return perform(self.client)
        while True:
            try:
                operations = Transaction(self.client, self.client.execute(transaction_start()))
            except XenstoreError:
                self.die("couldn't start transaction")
            status = perform(operations)
            try:
                operations.execute(transaction_end(status == 0))
                return status
            except Conflict:
                self._output.clear()
            except XenstoreError:
                self.die("couldn't end transaction")


def json_value(value: bytes) -> str:
    """A value as JSON text: UTF-8 if it is, otherwise escaped as it is printed."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return quoted(value)


def json_text(data: Any) -> str:
    import json

    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"


def reason(error: XenstoreError) -> str:
    return os.strerror(error.errno)
