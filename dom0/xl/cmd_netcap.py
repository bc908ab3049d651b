# SPDX-License-Identifier: GPL-2.0-only
"""`xl netcap`: the frames of a bridge or of a guest's network card, as a pcapng file. Not a command of Xen's xl.

    xl netcap bridge=xenbr0 -w all.pcapng
    xl netcap guest 0 | tcpdump -r -
"""

from __future__ import annotations

import argparse
import select
import sys
import time
from contextlib import ExitStack, suppress
from typing import Any, BinaryIO

from dom0.xl.client import Client
from dom0.xl.domains import find_domain
from dom0.xl.session import EXIT_SUCCESS, Session, Stop


def netcap(session: Session, words: list[str]) -> int:
    """`xl netcap`."""
    options = _options(words)
    if options.file is None and sys.stdout.isatty():
        raise Stop(2, "xl: a capture is no text: name a file (-w FILE), or give it to a program (| tcpdump -r -)")
    with session.connect(start=False) as client, ExitStack() as stack:
        params: dict[str, Any] = {"snap": options.snap}
        if options.what.startswith("bridge="):
            params["bridge"] = options.what.removeprefix("bridge=")
        else:
            params |= {"domid": find_domain(client, options.what).domid, "devid": options.devid}
        output = sys.stdout.buffer if options.file is None else stack.enter_context(open(options.file, "wb"))
        with suppress(KeyboardInterrupt, BrokenPipeError):
            _follow(session, client, params, options.seconds, output)
    return EXIT_SUCCESS


def _options(words: list[str]) -> Any:
    parser = argparse.ArgumentParser(prog="xl netcap", description="Capture frames, for Wireshark or tcpdump.")
    parser.add_argument("what", help="bridge=NAME, or a domain (name or id)")
    parser.add_argument("devid", nargs="?", type=int, default=0, help="the domain's network card (default: 0)")
    parser.add_argument("-w", dest="file", metavar="FILE", help="write to this file instead of the output")
    parser.add_argument("--snap", type=int, default=0, metavar="N", help="keep N bytes of each frame")
    parser.add_argument("--seconds", type=float, help="end after so long instead of at Ctrl-C")
    return parser.parse_args(words)


def _follow(
    session: Session, client: Client, params: dict[str, Any], seconds: float | None, output: BinaryIO
) -> None:
    deadline = None if seconds is None else time.monotonic() + seconds
    client.send("network.capture", params)
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([client], [], [], left)[0]:
            return
        payload = client.next_part("frames")
        if lost := payload.get("lost"):
            session.say(f"xl: {lost} frames were lost: what takes them does not keep up")
        output.write(payload.get("data", b""))
        output.flush()
        if deadline is not None and time.monotonic() >= deadline:
            return
