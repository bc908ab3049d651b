# SPDX-License-Identifier: GPL-2.0-only
"""The console's frontend: what a Python guest writes and reads on console 0.

The builder made its ring and port; there is no handshake. Owned by the guest's thread. Protocol: public/io/console.h.
"""

from __future__ import annotations

from domU.events import Events
from domU.kernel import Kernel
from xen_py.drive.bell import Bell
from xen_py.io.console import ConsoleRing
from xen_py.types import DomId, Mfn, Port


class ConsoleFrontend:
    """Text out and lines in. One task writes and one reads at a time."""

    def __init__(self, kernel: Kernel, events: Events, domid: DomId = DomId(0)) -> None:  # noqa: B008
        self._ring = ConsoleRing(kernel.domain.memory.frame(Mfn(kernel.start_info.console_mfn)))
        self._room = Bell()
        self._input = Bell()
        self._typed = bytearray()
        self._port = events.adopt(Port(kernel.start_info.console_evtchn), self._on_event)

    def _on_event(self) -> None:
        self._room.ring()
        self._input.ring()

    async def write(self, text: str | bytes) -> None:
        """All of it, as fast as dom0 takes it."""
        data = text.encode() if isinstance(text, str) else text
        while data:
            count = self._ring.put_output(data)
            data = data[count:]
            if count:
                self._port.notify()
            else:
                await self._room.wait()

    async def print(self, *values: object, end: str = "\n") -> None:
        """As `print`, on the console."""
        await self.write(" ".join(map(str, values)) + end)

    async def read(self) -> bytes:
        """What has been typed, at least a byte of it."""
        while not self._typed:
            data = self._ring.take_input()
            if data:
                self._port.notify()
                self._typed += data
            else:
                await self._input.wait()
        data, self._typed = bytes(self._typed), bytearray()
        return data

    async def readline(self) -> str:
        """A line as it was typed, without its end (a carriage return or a newline)."""
        line = bytearray()
        while True:
            data = await self.read()
            for at, byte in enumerate(data):
                if byte in b"\r\n":
                    line += data[:at]
                    self._typed = bytearray(data[at + 1 :]) + self._typed
                    return line.decode(errors="replace")
            line += data

    def release(self) -> None:
        """The guest is over: let go of its memory."""
        self._ring.close()
