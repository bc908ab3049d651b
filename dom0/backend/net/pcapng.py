# SPDX-License-Identifier: GPL-2.0-only
"""A capture as Wireshark and tcpdump read it: the blocks of a pcapng file, one interface for each port of a switch.

Pure; the blocks are put one behind the other. Times are nanoseconds since 1970. Source: draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import struct

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_MAGIC = 0x1A2B3C4D
_ETHERNET = 1
_END, _NAME, _RESOLUTION, _APPLICATION, _FLAGS = 0, 2, 9, 4, 2
_NANOSECONDS = 9
INWARD, OUTWARD = 1, 2
"""As the port's guest sees it: what it receives, what it sends."""


def section() -> bytes:
    """The head of a file."""
    body = struct.pack("<IHHq", _MAGIC, 1, 0, -1) + _option(_APPLICATION, b"xen-py") + _option(_END)
    return _block(_SECTION, body)


def interface(name: str, snap: int) -> bytes:
    """The next interface; they are numbered from 0. `snap`: the most bytes of a frame that are kept, 0 for all."""
    body = struct.pack("<HHI", _ETHERNET, 0, snap)
    return _block(
        _INTERFACE, body + _option(_NAME, name.encode()) + _option(_RESOLUTION, bytes([_NANOSECONDS])) + _option(_END)
    )


def packet(number: int, time_ns: int, data: bytes, length: int, direction: int) -> bytes:
    """A frame at interface `number`: what is kept of it, and how long it was."""
    head = struct.pack("<IIIII", number, time_ns >> 32, time_ns & 0xFFFFFFFF, len(data), length)
    return _block(_PACKET, head + _padded(data) + _option(_FLAGS, struct.pack("<I", direction)) + _option(_END))


def _block(kind: int, body: bytes) -> bytes:
    size = 12 + len(body)
    return struct.pack("<II", kind, size) + body + struct.pack("<I", size)


def _option(code: int, value: bytes = b"") -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
