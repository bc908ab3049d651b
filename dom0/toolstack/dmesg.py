# SPDX-License-Identifier: GPL-2.0-only
"""The hypervisor's message buffer: what `xl dmesg` prints, bounded as Xen's console ring is.

Owner: the trio thread. What the hypervisor says also goes to the host's log, which is not bounded; what guests
say does not, for a guest may never stop.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass

from xen_py.types import DomId

BUFFER_BYTES = 64 * 1024
_LONGEST_PARTIAL = 1024

_log = logging.getLogger("xen-py.hypervisor")


@dataclass(frozen=True)
class MessageStatistics:
    lines: int
    bytes: int
    dropped: int


class MessageBuffer:
    """The last `BUFFER_BYTES` of messages; older ones are dropped."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque()
        self._bytes = 0
        self._dropped = 0
        self._partial: dict[DomId, bytes] = {}

    def hypervisor(self, text: str) -> None:
        for line in text.splitlines():
            _log.info("%s", line)
            self._append(f"(XEN) {line}")

    def guest(self, domid: DomId, data: bytes) -> None:
        """What a guest wrote by console_io: whole lines, each with its domain before it."""
        *lines, rest = (self._partial.pop(domid, b"") + data).split(b"\n")
        if len(rest) > _LONGEST_PARTIAL:
            lines.append(rest)
        elif rest:
            self._partial[domid] = rest
        for line in lines:
            text = line.decode(errors="replace").rstrip("\r")
            self._append(f"(d{domid}) {''.join(c if c.isprintable() else '.' for c in text)}")

    def guest_gone(self, domid: DomId) -> None:
        if domid in self._partial:
            self.guest(domid, b"\n")

    def text(self, *, clear: bool = False) -> str:
        text = "".join(f"{line}\n" for line in self._lines)
        if clear:
            self._lines.clear()
            self._bytes = 0
        return text

    def statistics(self) -> MessageStatistics:
        return MessageStatistics(len(self._lines), self._bytes, self._dropped)

    def _append(self, line: str) -> None:
        self._lines.append(line)
        self._bytes += len(line) + 1
        while self._bytes > BUFFER_BYTES:
            self._bytes -= len(self._lines.popleft()) + 1
            self._dropped += 1
