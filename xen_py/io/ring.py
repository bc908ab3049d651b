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

from xen_py.doorbell import fence, fence_all
from xen_py.io.layout import Layout
from xen_py.types import PAGE_SIZE

HEADER_SIZE = 64
REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT = range(4)
_MASK = 0xFFFFFFFF


class RingBroken(Exception):
    """The other side's indices cannot be true: nothing on this ring can be believed any more."""


@dataclass(frozen=True)
class RingKind:
    """What goes over a ring: the sizes of its structures, and how they become values and bytes.

    The layouts are for rings with one structure in that direction, which can be read many slots at a time.
    """

    name: str
    request_size: int
    response_size: int
    decode_request: Callable[[bytes], Any]
    decode_response: Callable[[bytes], Any]
    encode_request: Callable[[Any], bytes] = bytes
    encode_response: Callable[[Any], bytes] = bytes
    request_layout: Layout[Any] | None = None
    response_layout: Layout[Any] | None = None

    @classmethod
    def of(cls, name: str, request: Layout[Any], response: Layout[Any]) -> RingKind:
        """A ring with one structure each way."""
        codecs = (request.unpack, response.unpack, request.pack, response.pack)
        return cls(name, request.size, response.size, *codecs, request, response)

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
        self._slot_size = kind.slot_size
        self.pages = tuple(pages)
        self._header = pages[0][:16].cast("I")
        self._prod_at, self._event_at = theirs, theirs + 1
        self._our_prod_at, self._their_event_at = ours, ours + 1
        self._produced = start
        self._pushed = start
        self._consumed = start
        self._seen = start
        self._fence: Callable[[], None] = fence
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
        self._fence()  # the index before we look whether the other side sleeps
        notify = (new - self._header[self._their_event_at]) & _MASK < (new - old) & _MASK
        if notify:
            self._notifications += 1
        else:
            self._held_off += 1
        return notify

    def final_check(self) -> bool:
        """Ask to be told of what comes next; True: something has come already, so do not sleep."""
        self._header[self._event_at] = (self._consumed + 1) & _MASK
        self._fence()  # our wish before we look a last time
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
        for page in self.pages:
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

    def _take(self, limit: int | None) -> bytes:
        """The slots that the other side has produced since the last look, one behind the other."""
        count = self._available()
        if limit is not None and limit < count:
            count = limit
        if not count:
            return b""
        fence()  # the producer's index before the slots it announces
        size, first = self._slot_size, self._consumed % self.slots
        self._consumed = (self._consumed + count) & _MASK
        ahead = self.slots - first
        at = HEADER_SIZE + first * size
        if count <= ahead:
            return self._read(at, count * size)
        return self._read(at, ahead * size) + self._read(HEADER_SIZE, (count - ahead) * size)

    def _put(self, data: bytes, size: int) -> None:
        if len(data) > size:
            raise ValueError(f"{self.kind.name}: {len(data)} bytes where {size} have room")
        page, offset = self._next_slot()
        head = PAGE_SIZE - offset
        if head >= len(data):
            self.pages[page][offset : offset + len(data)] = data
        else:
            self.pages[page][offset:] = data[:head]
            self.pages[page + 1][: len(data) - head] = data[head:]

    def _put_values(self, values: Any, layout: Layout[Any] | None, encode: Callable[[Any], bytes], size: int) -> None:
        if layout is None or len(self.pages) > 1:  # in several pages a slot may lie across a border
            self._put(encode(values), size)
        else:
            layout.pack_into(self.pages[0], self._next_slot()[1], values)

    def _next_slot(self) -> tuple[int, int]:
        """Page and offset of the slot that is filled now."""
        at = HEADER_SIZE + self._produced % self.slots * self._slot_size
        self._produced = (self._produced + 1) & _MASK
        return divmod(at, PAGE_SIZE)

    def _read(self, at: int, size: int) -> bytes:
        """A copy of that part of the ring."""
        if len(self.pages) == 1:
            return bytes(self.pages[0][at : at + size])
        parts = []
        while size:
            page, offset = divmod(at, PAGE_SIZE)
            piece = min(size, PAGE_SIZE - offset)
            parts.append(bytes(self.pages[page][offset : offset + piece]))
            at += piece
            size -= piece
        return b"".join(parts)

    def _split(self, block: bytes, size: int) -> list[bytes]:
        return [block[at : at + size] for at in range(0, len(block), self._slot_size)]


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

    def put(self, request: Any) -> None:
        """`put_request` of a value of the ring's kind."""
        if not self.free():
            raise ValueError(f"{self.kind.name} ring of {self.slots} slots is full: wait until `free()` says otherwise")
        self._put_values(request, self.kind.request_layout, self.kind.encode_request, self.kind.request_size)

    def take_responses(self, limit: int | None = None) -> list[bytes]:
        return self._split(self._take(limit), self.kind.response_size)

    def take(self) -> list[Any]:
        """All responses there are, as values of the ring's kind."""
        block = self._take(None)
        layout = self.kind.response_layout
        if layout is not None:
            return layout.unpack_all(block, self._slot_size) if block else []
        return [self.kind.decode_response(slot) for slot in self._split(block, self.kind.response_size)]

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
        self._fence = fence_all  # the frontend may be an emulated guest

    def positions(self) -> tuple[int, int]:
        """Consumed and produced, for another that goes on with the ring. Everything produced has been pushed."""
        if self._pushed != self._produced:
            raise ValueError(f"{self.kind.name}: responses have been put and not pushed")
        return self._consumed, self._produced

    def go_on_from(self, consumed: int, produced: int) -> None:
        """Another has gone on with the ring, up to there."""
        self._consumed = self._seen = consumed
        self._produced = self._pushed = produced

    def untake(self) -> None:
        """Requests that were taken and have no response are to be taken again: they stand in their slots still."""
        self._consumed = self._produced

    def unanswered(self) -> int:
        """How many requests were taken and have no response yet."""
        return (self._consumed - self._produced) & _MASK

    def take_requests(self, limit: int | None = None) -> list[bytes]:
        return self._split(self._take(limit), self.kind.request_size)

    def take(self) -> list[Any]:
        """All requests there are, as values of the ring's kind."""
        block = self._take(None)
        layout = self.kind.request_layout
        if layout is not None:
            return layout.unpack_all(block, self._slot_size) if block else []
        return [self.kind.decode_request(slot) for slot in self._split(block, self.kind.request_size)]

    def put_response(self, response: bytes) -> None:
        """Into the slot of the oldest request without one; the frontend sees it after `push`."""
        if not self.unanswered():
            raise ValueError(f"{self.kind.name}: a response to no request")
        self._put(response, self.kind.response_size)

    def put(self, response: Any) -> None:
        """`put_response` of a value of the ring's kind."""
        if not self.unanswered():
            raise ValueError(f"{self.kind.name}: a response to no request")
        self._put_values(response, self.kind.response_layout, self.kind.encode_response, self.kind.response_size)

    def _most_available(self) -> int:
        return self.slots - ((self._consumed - self._pushed) & _MASK)
