# SPDX-License-Identifier: GPL-2.0-only
"""Records of a trace in the forms that people and programs read: a line, JSON, and what ui.perfetto.dev opens.

Pure: records in, text out.
"""

from __future__ import annotations

import json
from typing import Any

from xen_py.trace import Record


def line(record: Record, began_ns: int) -> str:
    """One readable line; the time is in seconds since the trace began."""
    seconds = (record.time_ns - began_ns) / 1e9
    return f"{seconds:12.6f}  d{record.domid:<3} {record.kind:<9} {_printable(_said(record))}"


def _printable(text: str) -> str:
    """What guests wrote must not work the terminal that it is shown on."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _said(record: Record) -> str:
    fields = dict(record.fields)
    if record.kind == "hypercall":
        command = f".{fields['command']}" if fields.get("command") else ""
        values = fields.get("arguments", [])
        # behind a command comes the address of what it is about; what else is in the registers means nothing
        arguments = " ".join(f"{value:#x}" for value in (values[1:2] if command else _until_zero(values)))
        took = f"  ({fields['ns'] / 1000:.0f} us)" if fields.get("ns") else ""
        return f"{record.name}{command}({arguments}) = {fields.get('result')}{took}"
    if record.kind == "event" and record.name == "send":
        return f"port {fields.get('port')} -> d{fields.get('to')} port {fields.get('to_port')}"
    if record.kind == "store":
        answer = fields.get("reply", "")
        if "error" in fields:
            answer = fields["error"] or "ERROR"
        return f"{record.name} {fields.get('request', '')}" + (f" -> {answer}" if answer else "")
    if record.kind == "xenbus":
        to = f" -> {fields['to']}" if fields.get("to") else ""
        states = f"{fields.get('ours')}/{fields.get('theirs')}"
        return f"{record.name}: {states} {fields.get('event')}: {fields.get('do')}{to}"
    return " ".join([record.name, *(f"{name}={_short(value)}" for name, value in fields.items())])


def _until_zero(arguments: list[Any]) -> list[int]:
    """Without the zeros at the end, which are registers that the call does not use."""
    found = [value for value in arguments if isinstance(value, int)]
    while found and not found[-1]:
        found.pop()
    return found


def _short(value: object) -> str:
    if isinstance(value, bytes):
        text = value.rstrip(b"\0").decode("ascii", "backslashreplace")
        return repr(text if len(text) <= 48 else text[:45] + "...")
    return str(value)


class Perfetto:
    """The JSON trace format of Chrome and Perfetto: a process for each domain, a thread for each kind of record."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._threads: dict[tuple[int, str], int] = {}
        self._arrows = 0

    def add(self, record: Record) -> None:
        thread = self._thread(record.domid, record.kind)
        fields = {name: value if isinstance(value, (int, str)) else str(value) for name, value in record.fields.items()}
        name = f"{record.name}.{fields['command']}" if fields.get("command") else record.name
        event = {"name": name, "pid": record.domid, "tid": thread, "ts": record.time_ns / 1000, "args": fields}
        if record.kind == "hypercall":
            took = record.fields.get("ns", 0) / 1000
            event |= {"ph": "X", "ts": record.time_ns / 1000 - took, "dur": took}
        elif record.kind == "event":
            # an arrow needs something to begin and to end at
            event |= {"ph": "X", "dur": 1}
            self._events.append(event)
            self._arrow(event, record)
            return
        else:
            event |= {"ph": "i", "s": "t"}
        self._events.append(event)

    def _arrow(self, start: dict[str, Any], record: Record) -> None:
        self._arrows += 1
        to = record.fields.get("to", 0)
        end = {"name": "delivered", "pid": to, "tid": self._thread(to, "event"), "ts": start["ts"] + 1}
        flow = {"name": "event", "cat": "event", "id": self._arrows}
        self._events.append(end | {"ph": "X", "dur": 1, "args": {"port": record.fields.get("to_port")}})
        self._events.append(flow | {"ph": "s", "pid": start["pid"], "tid": start["tid"], "ts": start["ts"]})
        self._events.append(flow | {"ph": "f", "bp": "e", "pid": end["pid"], "tid": end["tid"], "ts": end["ts"]})

    def _thread(self, domid: int, kind: str) -> int:
        key = domid, kind
        if key not in self._threads:
            number = self._threads[key] = len(self._threads) + 1
            names = [("process_name", f"domain {domid}"), ("thread_name", kind)]
            self._events += [
                {"name": what, "ph": "M", "pid": domid, "tid": number, "args": {"name": name}} for what, name in names
            ]
        return self._threads[key]

    def text(self) -> str:
        """The whole file."""
        return json.dumps({"traceEvents": self._events, "displayTimeUnit": "ns"})
