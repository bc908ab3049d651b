# SPDX-License-Identifier: GPL-2.0-only
"""The PV console ring: two byte rings in one shared page, as pure arithmetic over a memoryview.

Both halves use it: the backend takes what the guest wrote and gives it what the user types, a frontend does the
reverse. No waiting, no events: whoever moved bytes tells the other side by the console's event channel.

The other side writes this page whenever it likes. So every index is read once per call, masked into its ring and
refused if it claims more bytes than the ring holds (`RingBroken`); nothing read here can lead outside the page. Each
index has one writer: out_cons and in_prod are the backend's, in_cons and out_prod the frontend's. One task or thread
a half may use it.

Source: xen/include/public/io/console.h (`struct xencons_interface`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from xen_py.doorbell import fence
from xen_py.types import PAGE_SIZE

IN_SIZE = 1024
OUT_SIZE = 2048
_OUT_START = IN_SIZE
_INDICES = IN_SIZE + OUT_SIZE
_IN_CONS, _IN_PROD, _OUT_CONS, _OUT_PROD = range(4)
_CONNECTION = _INDICES + 16
_INDEX_MASK = 0xFFFFFFFF


class Connection(IntEnum):
    """Whether a backend serves the ring (the page starts zeroed, that is connected, for old backends)."""

    CONNECTED = 0
    DISCONNECTED = 1


class RingBroken(Exception):
    """The other side's indices make no sense; the ring is left alone until they do."""


@dataclass(frozen=True)
class ConsoleRingStatistics:
    in_cons: int
    in_prod: int
    out_cons: int
    out_prod: int


class ConsoleRing:
    """One console page. Holds no state of its own: everything is in the page."""

    def __init__(self, page: memoryview) -> None:
        if len(page) != PAGE_SIZE:
            raise ValueError(f"a console page has {PAGE_SIZE} bytes, not {len(page)}")
        self._page = page
        self._index = page[_INDICES : _INDICES + 16].cast("I")

    # the backend's half

    def take_output(self) -> bytes:
        """All bytes the guest has written and nobody has taken yet; frees their room."""
        return self._take(_OUT_CONS, _OUT_PROD, _OUT_START, OUT_SIZE)

    def put_input(self, data: bytes) -> int:
        """Give the guest as much of `data` as there is room for: the number of bytes."""
        return self._put(data, _IN_CONS, _IN_PROD, 0, IN_SIZE)

    def input_room(self) -> int:
        """Bytes the guest's input ring can take now; 0 too while its indices are nonsense."""
        used = (self._index[_IN_PROD] - self._index[_IN_CONS]) & _INDEX_MASK
        return IN_SIZE - used if used <= IN_SIZE else 0

    def set_connection(self, connection: Connection) -> None:
        """Tell a guest that looks whether its output is being taken."""
        self._page[_CONNECTION] = connection

    # the frontend's half

    def put_output(self, data: bytes) -> int:
        """Write as much of `data` as there is room for: the number of bytes."""
        return self._put(data, _OUT_CONS, _OUT_PROD, _OUT_START, OUT_SIZE)

    def take_input(self) -> bytes:
        """All bytes the backend has given and nobody has taken yet."""
        return self._take(_IN_CONS, _IN_PROD, 0, IN_SIZE)

    def connection(self) -> Connection:
        return Connection.DISCONNECTED if self._page[_CONNECTION] else Connection.CONNECTED

    # both

    def statistics(self) -> ConsoleRingStatistics:
        return ConsoleRingStatistics(*self._index)

    def close(self) -> None:
        """Let go of the page, so that its memory can be unmapped."""
        self._index.release()
        self._page.release()

    def _take(self, cons_at: int, prod_at: int, start: int, size: int) -> bytes:
        cons = self._index[cons_at]
        prod = self._index[prod_at]
        used = (prod - cons) & _INDEX_MASK
        if used == 0:
            return b""
        if used > size:
            raise RingBroken(f"console ring of {size} bytes with consumer at {cons:#x} and producer at {prod:#x}")
        fence()  # the producer's index before the data it announces
        first = cons % size
        head = min(used, size - first)
        data = bytes(self._page[start + first : start + first + head]) + bytes(self._page[start : start + used - head])
        fence()  # the data before its room is given back
        self._index[cons_at] = prod
        return data

    def _put(self, data: bytes, cons_at: int, prod_at: int, start: int, size: int) -> int:
        cons = self._index[cons_at]
        prod = self._index[prod_at]
        used = (prod - cons) & _INDEX_MASK
        if used > size:
            raise RingBroken(f"console ring of {size} bytes with consumer at {cons:#x} and producer at {prod:#x}")
        count = min(len(data), size - used)
        if count == 0:
            return 0
        fence()  # the consumer's index before its room is used again
        first = prod % size
        head = min(count, size - first)
        self._page[start + first : start + first + head] = data[:head]
        self._page[start : start + count - head] = data[head:count]
        fence()  # the data before the index that announces it
        self._index[prod_at] = (prod + count) & _INDEX_MASK
        return count
