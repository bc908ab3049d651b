# SPDX-License-Identifier: GPL-2.0-only
"""Hashes of packets by a frontend's own key, and the queue that each leads to: what the control ring of a vif is for.

A frontend whose queues belong to its processors (Windows: receive-side scaling) chooses the algorithm, the headers that
count, the key and a table from hash to queue. From then on its packets go to the queue that the table says, and carry
their hash with them as extra information. Until then the queue is ours to choose.

What a request names is checked, and read out of the guest's page once. Owner: the trio thread. Source:
xen/include/public/io/netif.h; the limits, and what each mistake is answered with, are those of Linux's netback.
"""

from __future__ import annotations

import struct
from collections import Counter
from typing import Any

from dom0.backend.grants import GuestGrants
from xen_py.io.netif import CtrlRequest, CtrlResponse, CtrlStatus, CtrlType, HashAlgorithm, HashExtra, HashType
from xen_py.io.packet import TCP, headers, is_fragment
from xen_py.types import GrantRef

LONGEST_KEY = 40
LARGEST_MAPPING = 128
"""Entries of the table."""
_ALL_TYPES = HashType.IPV4 | HashType.IPV4_TCP | HashType.IPV6 | HashType.IPV6_TCP
_MOST_KNOWN = 1024


def toeplitz(key: bytes, data: bytes) -> int:
    """The Toeplitz hash, 32 bits. Bytes that the key lacks are zero."""
    window = int.from_bytes(key[: len(data) + 4].ljust(len(data) + 4, b"\0"), "big")
    bits = int.from_bytes(data, "big")
    value = 0
    while bits:  # from the right: bit 0 meets the key from its bit 1 on
        lowest = (bits & -bits).bit_length()
        value ^= window >> lowest
        bits &= bits - 1
    return value & 0xFFFFFFFF


class Hashing:
    """Of one connected vif with so many queues."""

    def __init__(self, grants: GuestGrants, queues: int) -> None:
        self._grants = grants
        self._queues = queues
        self._algorithm = HashAlgorithm.NONE
        self._types = HashType(0)
        self._key = b""
        self._mapping: list[int] = []
        self._known: dict[bytes, int] = {}
        """Hashes of what has been seen since the key was set."""
        self._counts: Counter[str] = Counter()

    @property
    def wanted(self) -> bool:
        """The frontend has said how packets find their queue."""
        return self._algorithm is not HashAlgorithm.NONE and bool(self._types)

    # ---- packets ----

    def of(self, data: bytes) -> HashExtra | None:
        """The hash of a frame; None where it carries nothing that is to be hashed."""
        found = headers(data)
        if found is None:
            return None
        first, last, plain, with_ports = 12, 20, HashType.IPV4, HashType.IPV4_TCP
        if found.version == 6:
            first, last, plain, with_ports = 8, 40, HashType.IPV6, HashType.IPV6_TCP
        words = data[found.network + first : found.network + last]
        ports = data[found.transport : min(found.transport + 4, found.end)]
        kind = plain
        if with_ports in self._types and found.protocol == TCP and len(ports) == 4 and not is_fragment(data, found):
            kind = with_ports
            words += ports
        if kind not in self._types:
            return None
        value = self._known.get(words)
        if value is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            value = self._known[words] = toeplitz(self._key, words)
        self._counts["hashed"] += 1
        return HashExtra(kind.bit_length() - 1, self._algorithm, value.to_bytes(4, "little"))

    def queue(self, found: HashExtra | None) -> int:
        """Where a packet with that hash goes; what has none counts as zero."""
        value = 0 if found is None else int.from_bytes(found.value, "little")
        return self._mapping[value % len(self._mapping)] if self._mapping else value % self._queues

    # ---- requests ----

    def answer(self, request: CtrlRequest) -> CtrlResponse:
        """Carry out a request of the frontend's."""
        status, data = self._carry_out(request)
        self._counts["requests"] += 1
        self._counts["refused"] += status is not CtrlStatus.SUCCESS
        return CtrlResponse(request.id, request.type, status, data)

    def _carry_out(self, request: CtrlRequest) -> tuple[CtrlStatus, int]:
        match request.type:
            case CtrlType.SET_HASH_ALGORITHM:
                return self._set_algorithm(request.data0), 0
            case CtrlType.GET_HASH_FLAGS:
                if self._algorithm is HashAlgorithm.NONE:
                    return CtrlStatus.NOT_SUPPORTED, 0
                return CtrlStatus.SUCCESS, _ALL_TYPES
            case CtrlType.SET_HASH_FLAGS:
                return self._set_types(request.data0), 0
            case CtrlType.SET_HASH_KEY:
                return self._set_key(request.data0, request.data1), 0
            case CtrlType.GET_HASH_MAPPING_SIZE:
                return CtrlStatus.SUCCESS, LARGEST_MAPPING
            case CtrlType.SET_HASH_MAPPING_SIZE:
                return self._set_mapping_size(request.data0), 0
            case CtrlType.SET_HASH_MAPPING:
                return self._set_mapping(request.data0, request.data1, request.data2), 0
        return CtrlStatus.NOT_SUPPORTED, 0

    def _set_algorithm(self, algorithm: int) -> CtrlStatus:
        if algorithm not in (HashAlgorithm.NONE, HashAlgorithm.TOEPLITZ):
            return CtrlStatus.INVALID_PARAMETER
        self._algorithm = HashAlgorithm(algorithm)
        return CtrlStatus.SUCCESS

    def _set_types(self, types: int) -> CtrlStatus:
        if types & ~int(_ALL_TYPES) or self._algorithm is HashAlgorithm.NONE:
            return CtrlStatus.INVALID_PARAMETER
        self._types = HashType(types)
        return CtrlStatus.SUCCESS

    def _set_key(self, ref: int, size: int) -> CtrlStatus:
        key = self._read(ref, size) if size <= LONGEST_KEY else None
        if key is None:
            return CtrlStatus.INVALID_PARAMETER
        self._key = key
        self._known.clear()
        return CtrlStatus.SUCCESS

    def _set_mapping_size(self, size: int) -> CtrlStatus:
        if size > LARGEST_MAPPING:
            return CtrlStatus.INVALID_PARAMETER
        self._mapping = [0] * size
        return CtrlStatus.SUCCESS

    def _set_mapping(self, ref: int, size: int, start: int) -> CtrlStatus:
        data = self._read(ref, size * 4) if start + size <= len(self._mapping) else None
        if data is None:
            return CtrlStatus.INVALID_PARAMETER
        entries = struct.unpack(f"<{size}I", data)
        if any(entry >= self._queues for entry in entries):
            return CtrlStatus.INVALID_PARAMETER
        self._mapping[start : start + size] = entries
        return CtrlStatus.SUCCESS

    def _read(self, ref: int, size: int) -> bytes | None:
        """The first bytes of a page of the guest's; nothing of none needs no page."""
        if not size:
            return b""
        (found,) = self._grants.copy_out([(GrantRef(ref), 0, size)])
        return found if isinstance(found, bytes) else None

    def statistics(self) -> dict[str, Any]:
        return {
            "algorithm": self._algorithm.name.lower(),
            "types": int(self._types),
            "mapping": list(self._mapping),
            **self._counts,
        }
