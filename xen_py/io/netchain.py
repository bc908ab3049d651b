# SPDX-License-Identifier: GPL-2.0-only
"""Packets on the rings of a vif: slots put together into packets, and packets laid out in slots.

A packet is a chain of slots: the first one, extra information behind it, then further fragments.

    tx, made by the frontend           rx, made by the backend
    TxRequest  size of the whole       RxResponse  size of its own
    Extra ...                          Extra ...
    TxRequest  size of its own         RxResponse  size of its own

The other half may write anything. What makes no sense within one packet is a reason to drop it (`refused`), and its
slots are answered; what leaves nobody knowing where a packet ends is `RingBroken`. A packet may lie in two looks at the
ring, so the assemblers keep what is unfinished. Pure; each belongs to the task of its ring.

Source: xen/include/public/io/netif.h; the limits are those of Linux's netback.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from xen_py.io.netif import (
    EXTRA,
    GSO_EXTRA,
    HASH_EXTRA,
    MIN_SLOTS_PER_PACKET,
    RX_RESPONSE,
    TX_REQUEST,
    Extra,
    ExtraFlag,
    ExtraType,
    GsoExtra,
    GsoType,
    HashExtra,
    RxFlag,
    RxResponse,
    Status,
    TxFlag,
    TxRequest,
    TxResponse,
)
from xen_py.io.packet import ETHERNET
from xen_py.io.ring import RingBroken
from xen_py.types import PAGE_SIZE

ENDURED_SLOTS = 20
"""Fragments after which a packet that has still not ended is no packet."""
_MOST_EXTRAS = 8


class _Next(Enum):
    """What the next slot is."""

    START = "a packet"
    EXTRA = "extra information"
    FRAGMENT = "a fragment"


@dataclass(eq=False, slots=True)
class TxChain:
    """A packet that a frontend sends."""

    requests: list[TxRequest]
    extras: list[Extra] = field(default_factory=list)
    refused: str | None = None
    """Why it cannot be sent."""

    @property
    def size(self) -> int:
        """Bytes of the whole packet."""
        return self.requests[0].size

    def extra(self, kind: ExtraType) -> bytes | None:
        """The data of the last extra of that type."""
        return next((extra.data for extra in reversed(self.extras) if extra.type == kind), None)

    def pieces(self) -> list[tuple[int, int, int]]:
        """Grant, offset and length of each part, in order; only of a chain that is not refused."""
        first, *others = self.requests
        rest = sum(request.size for request in others)
        return [
            (first.gref, first.offset, first.size - rest),
            *((request.gref, request.offset, request.size) for request in others),
        ]

    def responses(self, status: Status) -> list[TxResponse]:
        """One for each slot, in the order of the slots."""
        answers = [TxResponse(request.id, status) for request in self.requests]
        return [answers[0], *(TxResponse(0, Status.NULL) for _ in self.extras), *answers[1:]]


class TxAssembler:
    """Of one tx ring, the backend's side. Slots come as `TxRequest`s, which an extra is not: it is read again here."""

    def __init__(self) -> None:
        self._next = _Next.START
        self._chain: TxChain | None = None
        self._count = 0

    def feed(self, slots: Iterable[TxRequest]) -> list[TxChain]:
        """The packets that these slots complete. RingBroken."""
        done: list[TxChain] = []
        for slot in slots:
            if self._next is _Next.START:
                self._chain = TxChain([slot])
                self._count = 1
                self._next = _Next.EXTRA if slot.flags & TxFlag.EXTRA_INFO else self._behind(slot)
            else:
                assert self._chain is not None
                if self._next is _Next.EXTRA:
                    self._extra(self._chain, EXTRA.unpack(TX_REQUEST.pack(slot)))
                else:
                    self._fragment(self._chain, slot)
            if self._next is _Next.START:
                assert self._chain is not None
                self._chain.refused = _fault(self._chain)
                done.append(self._chain)
                self._chain = None
        return done

    def unfinished(self) -> TxChain | None:
        """The packet whose slots have not all come."""
        return self._chain

    @staticmethod
    def _behind(request: TxRequest) -> _Next:
        return _Next.FRAGMENT if request.flags & TxFlag.MORE_DATA else _Next.START

    def _extra(self, chain: TxChain, extra: Extra) -> None:
        if not ExtraType.NONE < extra.type <= ExtraType.HASH:
            raise RingBroken(f"netif_tx: extra information of type {extra.type}, which does not exist")
        chain.extras.append(extra)
        if len(chain.extras) > _MOST_EXTRAS:
            raise RingBroken(f"netif_tx: more than {_MOST_EXTRAS} slots of extra information in one packet")
        if not extra.flags & ExtraFlag.MORE:
            self._next = self._behind(chain.requests[0])

    def _fragment(self, chain: TxChain, slot: TxRequest) -> None:
        chain.requests.append(slot)
        if len(chain.requests) > ENDURED_SLOTS:
            raise RingBroken(f"netif_tx: a packet of more than {ENDURED_SLOTS} slots")
        self._next = self._behind(slot)


def _fault(chain: TxChain) -> str | None:
    """Why a chain is no packet."""
    requests = chain.requests
    if len(requests) > MIN_SLOTS_PER_PACKET:
        return f"{len(requests)} slots"
    if chain.extra(ExtraType.MCAST_ADD) is not None or chain.extra(ExtraType.MCAST_DEL) is not None:
        return None  # it is an order and carries nothing
    if chain.size < ETHERNET:
        return f"{chain.size} bytes"
    if sum(request.size for request in requests[1:]) > chain.size:
        return "fragments larger than the packet"
    for _, offset, length in chain.pieces():
        if offset + length > PAGE_SIZE:
            return f"{length} bytes at {offset} leave the page"
    gso = chain.extra(ExtraType.GSO)
    if gso is not None:
        wanted = GSO_EXTRA.unpack(gso)
        if wanted.type not in (GsoType.TCPV4, GsoType.TCPV6) or not wanted.size:
            return f"segments of type {wanted.type} and {wanted.size} bytes"
    return None


def as_request(extra: Extra) -> TxRequest:
    """An extra in the shape of the slots beside it."""
    return TX_REQUEST.unpack(EXTRA.pack(extra).ljust(TX_REQUEST.size, b"\0"))


def as_response(extra: Extra) -> RxResponse:
    """The same on the other ring."""
    return RX_RESPONSE.unpack(EXTRA.pack(extra))


def gso_extra(kind: GsoType, size: int) -> Extra:
    return Extra(ExtraType.GSO, 0, GSO_EXTRA.pack(GsoExtra(size, kind, 0)).ljust(6, b"\0"))


def hash_extra(found: HashExtra) -> Extra:
    return Extra(ExtraType.HASH, 0, HASH_EXTRA.pack(found))


def in_a_row(extras: Sequence[Extra]) -> list[Extra]:
    """Each but the last says that another follows."""
    last = len(extras) - 1
    return [extra._replace(flags=ExtraFlag.MORE if n < last else 0) for n, extra in enumerate(extras)]


def tx_chain(pieces: Sequence[tuple[int, int, int]], flags: int, extras: Sequence[Extra] = ()) -> list[TxRequest]:
    """The slots of a packet in those parts (grant, offset, length); the ids are for the caller to fill in."""
    total = sum(length for _, _, length in pieces)
    if extras:
        flags |= TxFlag.EXTRA_INFO
    slots = []
    for number, (ref, offset, length) in enumerate(pieces):
        more = TxFlag.MORE_DATA if number < len(pieces) - 1 else 0
        slots.append(TxRequest(ref, offset, (0 if number else flags) | more, 0, length if number else total))
    return [slots[0], *map(as_request, in_a_row(extras)), *slots[1:]]


def rx_slots(length: int, extras: int = 0) -> int:
    """Slots that a packet takes on an rx ring."""
    return -(-length // PAGE_SIZE) + extras


def rx_chain(ids: Sequence[int], length: int, flags: int, extras: Sequence[Extra] = ()) -> list[RxResponse | Extra]:
    """The responses of a packet whose data fills a page after the other; `ids` are those of the data's slots."""
    if extras:
        flags |= RxFlag.EXTRA_INFO
    answers: list[RxResponse | Extra] = []
    last = len(ids) - 1
    for number, identifier in enumerate(ids):
        more = RxFlag.MORE_DATA if number < last else 0
        size = length - last * PAGE_SIZE if number == last else PAGE_SIZE
        answers.append(RxResponse(identifier, 0, (0 if number else flags) | more, size))
        if not number:
            answers += in_a_row(extras)
    return answers


@dataclass(eq=False, slots=True)
class RxChain:
    """A packet that a frontend has received."""

    flags: int
    parts: list[tuple[int, int, int]] = field(default_factory=list)
    """Position of the slot on the ring, offset and length in its page."""
    extras: list[Extra] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    """The positions of all its slots, those of extras too."""
    refused: str | None = None

    def gso(self) -> GsoExtra | None:
        data = self._extra(ExtraType.GSO)
        return None if data is None else GSO_EXTRA.unpack(data)

    def hash(self) -> HashExtra | None:
        data = self._extra(ExtraType.HASH)
        return None if data is None else HASH_EXTRA.unpack(data)

    def _extra(self, kind: ExtraType) -> bytes | None:
        return next((extra.data for extra in reversed(self.extras) if extra.type == kind), None)


class RxAssembler:
    """Of one rx ring, the frontend's side. Responses stand in the slots of their requests: positions count them."""

    def __init__(self) -> None:
        self._next = _Next.START
        self._chain = RxChain(0)
        self._position = 0

    def feed(self, slots: Iterable[RxResponse]) -> list[RxChain]:
        """The packets that these responses complete. RingBroken."""
        done: list[RxChain] = []
        for slot in slots:
            if self._next is _Next.START:
                self._chain = RxChain(slot.flags)
            chain = self._chain
            chain.slots.append(self._position)
            if self._next is _Next.EXTRA:
                self._extra(chain, EXTRA.unpack(RX_RESPONSE.pack(slot)))
            else:
                self._part(chain, slot)
            self._position += 1
            if self._next is _Next.START:
                done.append(chain)
        return done

    def _part(self, chain: RxChain, slot: RxResponse) -> None:
        if slot.status <= 0:
            chain.refused = f"status {slot.status}"
        elif slot.offset + slot.status > PAGE_SIZE:
            chain.refused = f"{slot.status} bytes at {slot.offset} leave the page"
        else:
            chain.parts.append((self._position, slot.offset, slot.status))
        if len(chain.slots) > ENDURED_SLOTS:
            raise RingBroken(f"netif_rx: a packet of more than {ENDURED_SLOTS} slots")
        if self._next is _Next.START and slot.flags & RxFlag.EXTRA_INFO:
            self._next = _Next.EXTRA
        else:
            self._next = _Next.FRAGMENT if slot.flags & RxFlag.MORE_DATA else _Next.START

    def _extra(self, chain: RxChain, extra: Extra) -> None:
        chain.extras.append(extra)
        if not ExtraType.NONE < extra.type <= ExtraType.HASH or len(chain.extras) > _MOST_EXTRAS:
            raise RingBroken(f"netif_rx: extra information of type {extra.type}")
        if not extra.flags & ExtraFlag.MORE:
            self._next = _Next.FRAGMENT if chain.flags & RxFlag.MORE_DATA else _Next.START
