# SPDX-License-Identifier: GPL-2.0-only
"""Commands about the host: info, dmesg, debug-keys. They start one where none runs."""

from __future__ import annotations

from dom0.toolstack.text import printable
from dom0.xl import formats
from dom0.xl.client import HostError, HostUnavailable
from dom0.xl.options import no_options, read_options
from dom0.xl.session import EXIT_FAILURE, EXIT_SUCCESS, Session, Stop


def info(session: Session, words: list[str]) -> int:
    """`xl info [-n] [FIELD]`."""
    options, arguments = read_options(session, "info", words, "nx", {"numa": "n", "xenstore": "x"}, 0)
    letters = {letter for letter, _ in options}
    if "x" in letters:
        raise Stop(EXIT_FAILURE, "xl info -x: xen-py does not have this yet")
    numa = "n" in letters
    with session.connect(start=True) as client:
        fields = client.call("host.info")
    if not isinstance(fields, dict):
        raise HostUnavailable("xl: the xen-py host described itself wrongly; is it of another version?")
    for line in formats.info(fields, only=arguments[0] if arguments and not numa else None, numa=numa):
        session.out(line)
    return EXIT_SUCCESS


def dmesg(session: Session, words: list[str]) -> int:
    """`xl dmesg [-c]`."""
    options, _ = read_options(session, "dmesg", words, "c", {"clear": "c"}, 0)
    with session.connect(start=True) as client:
        text = str(client.call("host.dmesg", {"clear": bool(options)}))
    for line in text.splitlines():
        session.out(printable(line.expandtabs()))
    return EXIT_SUCCESS


def debug_keys(session: Session, words: list[str]) -> int:
    """`xl debug-keys KEYS`; what they print is for `xl dmesg`."""
    (keys, *_) = no_options(session, "debug-keys", words, 1)
    with session.connect(start=True) as client:
        try:
            client.call("host.debug_keys", {"keys": keys})
        except HostError as error:
            session.log([error.message])
            raise Stop(EXIT_FAILURE, f"cannot send debug keys: {keys}") from error
    return EXIT_SUCCESS
