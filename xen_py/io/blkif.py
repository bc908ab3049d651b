# SPDX-License-Identifier: GPL-2.0-only
"""The block protocol: structures on the ring of a `vbd`, and their constants.

Sector numbers on the ring count 512 bytes whatever the disk's sector size is. A request's slot is one of three
structures; its first byte says which. Pure data; anyone may use it.

Source: xen/include/public/io/blkif.h (the x86-64 layouts, protocol "x86_64-abi").
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import NamedTuple

from xen_py.io.layout import Layout, packer
from xen_py.io.ring import RingKind

SECTOR_SIZE = 512
MAX_SEGMENTS = 11
"""Segments in a plain request."""
MAX_INDIRECT_PAGES = 8
SEGMENTS_PER_INDIRECT_PAGE = 512
DISCARD_SECURE = 1


class Operation(IntEnum):
    READ = 0
    WRITE = 1
    WRITE_BARRIER = 2
    FLUSH_DISKCACHE = 3
    RESERVED_1 = 4
    DISCARD = 5
    INDIRECT = 6


class Status(IntEnum):
    OKAY = 0
    ERROR = -1
    EOPNOTSUPP = -2


class DiskInfo(IntFlag):
    """The backend's `info` node."""

    CDROM = 1
    REMOVABLE = 2
    READONLY = 4


class Segment(NamedTuple):
    """Sectors `first_sect` to `last_sect`, both included, of a granted frame."""

    gref: int
    first_sect: int
    last_sect: int


class Request(NamedTuple):
    """Read, write, barrier or flush; `segments` holds MAX_SEGMENTS of them, `nr_segments` of which count."""

    operation: int
    nr_segments: int
    handle: int
    id: int
    sector_number: int
    segments: bytes


class DiscardRequest(NamedTuple):
    operation: int
    flag: int
    handle: int
    id: int
    sector_number: int
    nr_sectors: int


class IndirectRequest(NamedTuple):
    """A read or write (`indirect_op`) whose segments are in granted frames: MAX_INDIRECT_PAGES references."""

    operation: int
    indirect_op: int
    nr_segments: int
    id: int
    sector_number: int
    handle: int
    indirect_grefs: bytes


class Response(NamedTuple):
    id: int
    operation: int
    status: int


SEGMENT = Layout(Segment, "IBB2x")
REQUEST = Layout(Request, "BBH4xQQ88s")
DISCARD_REQUEST = Layout(DiscardRequest, "BBH4xQQQ")
INDIRECT_REQUEST = Layout(IndirectRequest, "BBH4xQQH2x32s4x")
RESPONSE = Layout(Response, "QBxh4x")


def decode_request(slot: bytes) -> Request | DiscardRequest | IndirectRequest:
    """A slot as what its operation makes it."""
    if slot[0] == Operation.DISCARD:
        return DISCARD_REQUEST.unpack(slot)
    if slot[0] == Operation.INDIRECT:
        return INDIRECT_REQUEST.unpack(slot)
    return REQUEST.unpack(slot)


def pack_segments(segments: list[Segment]) -> bytes:
    """`Request.segments` for these."""
    if len(segments) > MAX_SEGMENTS:
        raise ValueError(f"{len(segments)} segments where a plain request holds {MAX_SEGMENTS}")
    return b"".join(map(SEGMENT.pack, segments)).ljust(MAX_SEGMENTS * SEGMENT.size, b"\0")


def segments_of(packed: bytes, count: int) -> list[Segment]:
    """The first `count` segments of a plain request or of an indirect page; the caller has checked `count`."""
    return [SEGMENT.unpack(packed, index * SEGMENT.size) for index in range(count)]


RING = RingKind(
    "blkif",
    REQUEST.size,
    RESPONSE.size,
    decode_request,
    RESPONSE.unpack,
    packer(REQUEST, DISCARD_REQUEST, INDIRECT_REQUEST),
    RESPONSE.pack,
)
