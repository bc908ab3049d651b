# SPDX-License-Identifier: GPL-2.0-only
"""What happens in a machine, as records: hypercalls, events, grants, store traffic, handshakes, ring slots.

Whoever makes something happen calls `Tracer.record`, after asking `on`, which is all that tracing costs while nobody
looks. A record holds nothing of the host it ran on (no real time but the domain's clock, no address of an object), so
two runs that did the same have the same trace, byte for byte; `to_json` is the form they are compared in.

Plain data. A tracer belongs to one thread.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from xen_py.abi.commands import command_name
from xen_py.abi.xen import Hypercall

KINDS = ("domain", "event", "grant", "hypercall", "ring", "store", "xenbus")


class Record(NamedTuple):
    """One thing that happened."""

    time_ns: int
    """System time."""
    domid: int
    """Whose doing it is."""
    kind: str
    """One of KINDS."""
    name: str
    fields: dict[str, Any]

    def concerns(self, domid: int) -> bool:
        """Whether it is about that domain: its own doing, an event for it, or what others do with what is its own."""
        if domid in (self.domid, self.fields.get("to"), self.fields.get("domain")):
            return True
        return self.kind == "store" and bool(_path_of(domid).search(str(self.fields.get("request", ""))))

    def to_json(self) -> str:
        """One line, the same for the same record everywhere."""
        return json.dumps([*self], separators=(",", ":"), sort_keys=True, default=_text)

    def to_plain(self) -> list[Any]:
        return [*self]

    @classmethod
    def from_plain(cls, plain: object) -> Record:
        """ValueError when it cannot be one."""
        match plain:
            case [int(time_ns), int(domid), str(kind), str(name), dict(fields)] if kind in KINDS:
                return cls(time_ns, domid, kind, name, fields)
        raise ValueError("not a record of a trace")


Sink = Callable[[Record], None]


class Tracer:
    """Hands records to whoever wants them. `now` is the clock of what is traced."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._sinks: list[Sink] = []
        self._counts: Counter[str] = Counter()
        self.on = False

    def add(self, sink: Sink) -> None:
        self._sinks.append(sink)
        self.on = True

    def remove(self, sink: Sink) -> None:
        self._sinks.remove(sink)
        self.on = bool(self._sinks)

    def record(self, domid: int, kind: str, name: str, **fields: Any) -> None:
        if self.on:
            self.pass_on(Record(self._now(), domid, kind, name, fields))

    def pass_on(self, record: Record) -> None:
        """A record made elsewhere."""
        self._counts[record.kind] += 1
        for sink in self._sinks:
            sink(record)

    def now(self) -> int:
        return self._now()

    def statistics(self) -> dict[str, int]:
        return {"sinks": len(self._sinks), **self._counts}


def traced_hypercalls(tracer: Tracer, dispatch: Callable[..., int]) -> Callable[..., int]:
    """`dispatch`, with a record of each call and its result."""

    def hypercall(d: Any, v: Any, number: int, *arguments: int) -> int:
        began = tracer.now()
        result = dispatch(d, v, number, *arguments)
        name = Hypercall(number).name.lower() if number in Hypercall._value2member_map_ else f"hypercall {number}"
        tracer.record(
            d.domid,
            "hypercall",
            name,
            command=command_name(number, arguments[0]),
            arguments=list(arguments),
            result=result,
            ns=tracer.now() - began,
            vcpu=v.id,
        )
        return result

    return hypercall


@lru_cache(maxsize=16)
def _path_of(domid: int) -> re.Pattern[str]:
    """What the paths of a domain's nodes have in them: its own, and those of its devices' backends."""
    return re.compile(rf"/local/domain/{domid}(/|$| )|/backend/[^/ ]+/{domid}(/|$| )")


def _text(value: object) -> str:
    """Bytes in a record, and whatever else JSON has no form for."""
    return bytes(value).decode("ascii", "backslashreplace") if isinstance(value, (bytes, memoryview)) else repr(value)
