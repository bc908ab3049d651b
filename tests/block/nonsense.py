# SPDX-License-Identifier: GPL-2.0-only
"""Requests that no frontend should send, for the tests and the soak run of hostile guests."""

from __future__ import annotations

import random

from domU.frontend.block import BlockFrontend
from domU.guest import Guest
from xen_py.io.blkif import (
    SEGMENT,
    DiscardRequest,
    IndirectRequest,
    Operation,
    Request,
    Segment,
    Status,
    pack_segments,
)

OKAY, ERROR, UNKNOWN = Status.OKAY, Status.ERROR, Status.EOPNOTSUPP


def plain(operation: int, sector: int, *segments: Segment, count: int | None = None) -> Request:
    return Request(operation, len(segments) if count is None else count, 0, 0, sector, pack_segments(list(segments)))


async def send_nonsense(disk: BlockFrontend, guest: Guest, dice: random.Random, count: int) -> None:
    """Random requests, their fields now and then such as a frontend would fill in; all are answered."""
    pages = [guest.kernel.allocate() for _ in range(8)]
    refs = [disk.grant(page) for page in pages]

    def ref() -> int:
        return dice.choice(refs) if dice.random() < 0.8 else dice.getrandbits(32)

    def segment() -> Segment:
        if dice.random() < 0.7:
            first = dice.randrange(8)
            return Segment(ref(), first, dice.randint(first, 7))
        return Segment(ref(), dice.getrandbits(8), dice.getrandbits(8))

    def sector() -> int:
        return dice.randrange(disk.sectors + 16) if dice.random() < 0.9 else dice.getrandbits(64)

    def request() -> Request | DiscardRequest | IndirectRequest:
        kind = dice.random()
        if kind < 0.1:
            return DiscardRequest(Operation.DISCARD, dice.getrandbits(8), 0, 0, sector(), sector())
        if kind < 0.4:
            dice.choice(pages).data[:] = b"".join(SEGMENT.pack(segment()) for _ in range(512))
            grefs = b"".join(ref().to_bytes(4, "little") for _ in range(8))
            many = dice.getrandbits(16) if dice.random() < 0.2 else dice.randrange(40)
            inner = dice.choice((0, 1, 1, dice.getrandbits(8)))
            return IndirectRequest(Operation.INDIRECT, inner, many, 0, sector(), 0, grefs)
        segments = [segment() for _ in range(dice.randint(0, 11))]
        operation = dice.choice((0, 1, 2, 3, 0, 1, dice.choice([n for n in range(256) if n not in (5, 6)])))
        many = dice.getrandbits(8) if dice.random() < 0.1 else len(segments)
        return plain(operation, sector(), *segments, count=many)

    while count:
        size = min(count, dice.randint(1, 32))
        count -= size
        for response in await disk.queue.calls([request() for _ in range(size)]):
            assert response.status in (OKAY, ERROR, UNKNOWN)
