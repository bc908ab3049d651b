# SPDX-License-Identifier: GPL-2.0-only
"""`xl console`, and the attaching that `xl create -c` shares with it."""

from __future__ import annotations

import socket
import sys

from dom0.xl.client import Client, HostUnavailable
from dom0.xl.domains import on_domain
from dom0.xl.options import read_options
from dom0.xl.session import EXIT_EINVAL, EXIT_FAILURE, EXIT_SUCCESS, Session, Stop
from dom0.xl.terminal import ESCAPE, run_console
from xen_py.types import DomId


def console(session: Session, words: list[str]) -> int:
    """`xl console`."""
    options, (word, *_) = read_options(session, "console", words, "n:t:e:", {}, 1)
    escape = ESCAPE
    for letter, value in options:
        if letter == "t" and value != "pv":
            known = value in ("serial", "vuart")
            raise Stop(
                EXIT_FAILURE,
                f"{word} has no {value} console: it is a PV guest"
                if known
                else "console type supported are: pv, serial, vuart",
            )
        if letter == "n" and value != "0":
            raise Stop(EXIT_FAILURE, f"{word} has no console {value}: xen-py does not have further consoles yet")
        if letter == "e":
            escape = _escape(value)
    with on_domain(session, word) as (client, domain):
        if domain.domid == 0:
            raise Stop(EXIT_EINVAL, "Can't specify Domain-0")
        connection = attach(client, domain.domid)
    with connection:
        sys.stdout.flush()
        run_console(connection, 0, 1, escape)
    return EXIT_SUCCESS


def _escape(text: str) -> int:
    if len(text) == 2 and text[0] == "^" and text.isascii():
        return ord(text[1]) & 0x1F
    if len(text) == 1 and text.isascii():
        return ord(text)
    raise Stop(EXIT_EINVAL, "Invalid escape argument")


def attach(client: Client, domid: DomId) -> socket.socket:
    """A stream of the console's raw bytes. Raises `HostError` and `HostUnavailable`."""
    answer = client.call("domain.console", {"domid": domid})
    path = answer.get("path") if isinstance(answer, dict) else None
    if not isinstance(path, str):
        raise HostUnavailable("xl: the xen-py host named no console; is it of another version?")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError as error:
        connection.close()
        raise HostUnavailable(f"xl: cannot attach to the console at {path}: {error.strerror}") from error
    return connection
