# SPDX-License-Identifier: GPL-2.0-only
"""`xl trace`: what running guests do, as it happens. Not a command of Xen's xl.

Records come from the host until Ctrl-C, or for as long as `--seconds` says; a file for Perfetto is written at the end,
also at a Ctrl-C's.
"""

from __future__ import annotations

import argparse
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dom0.xl.client import Client
from dom0.xl.domains import find_domain
from dom0.xl.session import EXIT_SUCCESS, Session, Stop
from dom0.xl.traceform import Perfetto, line
from xen_py.trace import KINDS, Record


def trace(session: Session, words: list[str]) -> int:
    """`xl trace`."""
    options = _options(words)
    if unknown := set(options.kinds or ()) - set(KINDS):
        raise Stop(2, f"xl: no kind {sorted(unknown)[0]!r} of records; there are {', '.join(KINDS)}")
    perfetto = Perfetto() if options.perfetto else None
    show = _shower(session, options.json, perfetto)
    with session.connect(start=False) as client:
        domid = find_domain(client, options.domain).domid if options.domain else None
        try:
            _follow(session, client, {"domid": domid, "kinds": options.kinds}, options.seconds, show)
        except KeyboardInterrupt:
            pass
        finally:
            if perfetto is not None:
                Path(options.perfetto).write_text(perfetto.text())
    return EXIT_SUCCESS


def _options(words: list[str]) -> Any:
    parser = argparse.ArgumentParser(prog="xl trace", description="Show what running guests do, as it happens.")
    parser.add_argument("--domain", metavar="D", help="only this domain (name or id)")
    parser.add_argument("--kinds", type=lambda text: text.split(","), help=f"only these of {','.join(KINDS)}")
    parser.add_argument("--seconds", type=float, help="end after so long instead of at Ctrl-C")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a JSON list a line: ns, domain, kind, name, fields")
    form.add_argument("--perfetto", metavar="FILE", help="write a file that ui.perfetto.dev opens")
    return parser.parse_args(words)


def _shower(session: Session, as_json: bool, perfetto: Perfetto | None) -> Callable[[Record], None]:
    began: list[int] = []

    def show(record: Record) -> None:
        if perfetto is not None:
            perfetto.add(record)
        elif as_json:
            session.out(record.to_json())
        else:
            began.append(record.time_ns)
            del began[1:]
            session.out(line(record, began[0]))

    return show


def _follow(
    session: Session, client: Client, params: dict[str, Any], seconds: float | None, show: Callable[[Record], None]
) -> None:
    deadline = None if seconds is None else time.monotonic() + seconds
    client.send("trace.records", params)
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([client], [], [], left)[0]:
            return
        payload = client.next_part("records")
        if lost := payload.get("lost"):
            session.say(f"xl: {lost} records were lost: this terminal does not keep up")
        for plain in payload.get("records", ()):
            show(Record.from_plain(plain))
        sys.stdout.flush()
        if deadline is not None and time.monotonic() >= deadline:
            return
