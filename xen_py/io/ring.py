# SPDX-License-Identifier: GPL-2.0-only
"""The shared ring of PV devices: requests one way, responses back in the same slots, as pure arithmetic.

A page starts with four indices (req_prod, req_event, rsp_prod, rsp_event) and padding up to 64 bytes; then come the
slots, as many as fit, rounded down to a power of two. Indices count up through 32 bits and are masked into the ring.
Nothing here waits or sends events: `push` says whether the other side wants to be told, and `final_check` asks to be
told. Their order is what keeps a wake-up from being lost:

    producer                            consumer
    slots, fence, prod, fence           event = cons + 1, fence
    read event: notify?                 read prod again: more work?

One of the two always sees the other. So a consumer sleeps only after `final_check` has returned False, and a producer
sends the event after `push` has returned, never before.

The other side writes these pages whenever it likes. An index of its own is read once per call and checked against what
can be true (not backwards, not more than the ring holds, not more responses than requests): `RingBroken` otherwise.
Our own indices are kept here and never read back. Slots are copied out before anyone looks at them.

One task or thread a half. Source: xen/include/public/io/ring.h.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from xen_py.doorbell import fence
from xen_py.io.layout import Layout
from xen_py.types import PAGE_SIZE

HEADER_SIZE = 64
REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT = range(4)
_MASK = 0xFFFFFFFF


class RingBroken(Exception):
    """The other side's indices cannot be true: nothing on this ring can be believed any more."""


@dataclass(frozen=True)
class RingKind:
    """What goes over a ring: the sizes of its structures, and how to show them."""

    name: str
    request_size: int
    response_size: int
    decode_request: Callable[[bytes], Any]
    decode_response: Callable[[bytes], Any]
    encode_request: Callable[[Any], bytes] = bytes
    encode_response: Callable[[Any], bytes] = bytes

    @classmethod
    def of(cls, name: str, request: Layout[Any], response: Layout[Any]) -> RingKind:
        """A ring with one structure each way."""
        return cls(name, request.size, response.size, request.unpack, response.unpack, request.pack, response.pack)

    @property
    def slot_size(self) -> int:
        return max(self.request_size, self.response_size)

    def slots(self, pages: int) -> int:
        """How many slots a ring of so many pages has."""
        room = (pages * PAGE_SIZE - HEADER_SIZE) // self.slot_size
        return 1 << room.bit_length() - 1


@dataclass(frozen=True)
class RingStatistics:
    """Positions count from the ring's start; `produced` and `consumed` are ours, `seen` is the other side's."""

    kind: str
    slots: int
    produced: int
    consumed: int
    seen: int
    notifications: int
    held_off: int


class _Half(ABC):
    """What both halves do: produce into one pair of indices, consume from the other."""

    def __init__(self, kind: RingKind, pages: Sequence[memoryview], ours: int, theirs: int, start: int) -> None:
        if not pages or any(len(page) != PAGE_SIZE for page in pages):
            raise ValueError(f"a ring is one or more pages of {PAGE_SIZE} bytes")
        self.kind = kind
        self.slots = kind.slots(len(pages))
        self._pages = tuple(pages)
        self._header = pages[0][:16].cast("I")
        self._prod_at, self._event_at = theirs, theirs + 1
        self._our_prod_at, self._their_event_at = ours, ours + 1
        self._produced = start
        self._pushed = start
        self._consumed = start
        self._seen = start
        self._notifications = 0
        self._held_off = 0

    def push(self) -> bool:
        """Show the other side all that was put; True: it sleeps, send it the event."""
        old, new = self._pushed, self._produced
        if old == new:
            return False
        fence()  # the slots before the index that announces them
        self._header[self._our_prod_at] = new
        self._pushed = new
        fence()  # the index before we look whether the other side sleeps
        notify = (new - self._header[self._their_event_at]) & _MASK < (new - old) & _MASK
        if notify:
            self._notifications += 1
        else:
            self._held_off += 1
        return notify

    def final_check(self) -> bool:
        """Ask to be told of what comes next; True: something has come already, so do not sleep."""
        if self._available():
            return True
        self._header[self._event_at] = (self._consumed + 1) & _MASK
        fence()  # our wish before we look a last time
        return self._available() > 0

    def statistics(self) -> RingStatistics:
        return RingStatistics(
            kind=self.kind.name,
            slots=self.slots,
            produced=self._produced,
            consumed=self._consumed,
            seen=self._seen,
            notifications=self._notifications,
            held_off=self._held_off,
        )

    def close(self) -> None:
        """Let go of the pages, so that their memory can be unmapped."""
        self._header.release()
        for page in self._pages:
            page.release()

    @abstractmethod
    def _most_available(self) -> int:
        """How far the other side's producer can be ahead of what we have consumed."""

    def _available(self) -> int:
        prod = self._header[self._prod_at]
        ahead = (prod - self._consumed) & _MASK
        known = (self._seen - self._consumed) & _MASK
        most = self._most_available()
        if not known <= ahead <= most:
            raise RingBroken(
                f"{self.kind.name} ring of {self.slots} slots: the other side's producer index is {prod:#x}; it was "
                f"{self._seen:#x}, {self._consumed:#x} are consumed and at most {most} more can be there"
            )
        self._seen = prod
        return ahead

    def _take(self, limit: int | None, size: int) -> list[bytes]:
        count = self._available()
        if limit is not None:
            count = min(count, limit)
        if not count:
            return []
        fence()  # the producer's index before the slots it announces
        start = self._consumed
        taken = [self._read(index, size) for index in range(start, start + count)]
        self._consumed = (start + count) & _MASK
        return taken

    def _put(self, data: bytes, size: int) -> None:
        if len(data) > size:
            raise ValueError(f"{self.kind.name}: {len(data)} bytes where {size} have room")
        at = HEADER_SIZE + self._produced % self.slots * self.kind.slot_size
        page, offset = divmod(at, PAGE_SIZE)
        head = min(len(data), PAGE_SIZE - offset)
        self._pages[page][offset : offset + head] = data[:head]
        if head < len(data):
            self._pages[page + 1][: len(data) - head] = data[head:]
        self._produced = (self._produced + 1) & _MASK

    def _read(self, index: int, size: int) -> bytes:
        at = HEADER_SIZE + index % self.slots * self.kind.slot_size
        page, offset = divmod(at, PAGE_SIZE)
        head = bytes(self._pages[page][offset : offset + size])
        if len(head) < size:
            head += bytes(self._pages[page + 1][: size - len(head)])
        return head


class FrontRing(_Half):
    """The frontend's half: it makes the ring, puts requests and takes responses."""

    def __init__(self, kind: RingKind, pages: Sequence[memoryview]) -> None:
        super().__init__(kind, pages, ours=REQ_PROD, theirs=RSP_PROD, start=0)
        pages[0][:HEADER_SIZE] = bytes(HEADER_SIZE)
        self._header[REQ_EVENT] = self._header[RSP_EVENT] = 1

    def free(self) -> int:
        """How many requests can be put now."""
        return self.slots - ((self._produced - self._consumed) & _MASK)

    def put_request(self, request: bytes) -> None:
        """Into the next free slot; the backend sees it after `push`. It may be shorter than the longest structure."""
        if not self.free():
            raise ValueError(f"{self.kind.name} ring of {self.slots} slots is full: wait until `free()` says otherwise")
        self._put(request, self.kind.request_size)

    def take_responses(self, limit: int | None = None) -> list[bytes]:
        return self._take(limit, self.kind.response_size)

    def _most_available(self) -> int:
        return (self._pushed - self._consumed) & _MASK


class BackRing(_Half):
    """The backend's half: it takes requests and puts as many responses.

    It starts at the last response on the ring, so that a backend that takes over from a dead one finds the requests
    that nobody has answered; on a new ring that is the start.
    """

    def __init__(self, kind: RingKind, pages: Sequence[memoryview]) -> None:
        start = int.from_bytes(bytes(pages[0][RSP_PROD * 4 : RSP_PROD * 4 + 4]), "little") if pages else 0
        super().__init__(kind, pages, ours=RSP_PROD, theirs=REQ_PROD, start=start)

    def unanswered(self) -> int:
        """How many requests were taken and have no response yet."""
        return (self._consumed - self._produced) & _MASK

    def take_requests(self, limit: int | None = None) -> list[bytes]:
        return self._take(limit, self.kind.request_size)

    def put_response(self, response: bytes) -> None:
        """Into the slot of the oldest request without one; the frontend sees it after `push`."""
        if not self.unanswered():
            raise ValueError(f"{self.kind.name}: a response to no request")
        self._put(response, self.kind.response_size)

    def _most_available(self) -> int:
        return self.slots - ((self._consumed - self._pushed) & _MASK)
