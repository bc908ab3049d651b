# SPDX-License-Identifier: GPL-2.0-only
"""A reader of pcapng files that takes nothing for granted."""

from __future__ import annotations

import struct
from typing import NamedTuple


class Frame(NamedTuple):
    interface: int
    time_ns: int
    data: bytes
    length: int
    direction: int


def read_capture(file: bytes) -> tuple[list[str], list[Frame]]:
    """The interfaces' names, and the frames; what the program had not finished writing is left out."""
    names: list[str] = []
    frames: list[Frame] = []
    at = 0
    while at + 12 <= len(file):
        kind, size = struct.unpack_from("<II", file, at)
        if at + size > len(file):
            break
        assert size % 4 == 0
        assert struct.unpack_from("<I", file, at + size - 4) == (size,)
        body = file[at + 8 : at + size - 4]
        at += size
        if kind == 0x0A0D0D0A:
            assert struct.unpack_from("<IHHq", body) == (0x1A2B3C4D, 1, 0, -1)
        elif kind == 1:
            assert body[:2] == b"\1\0"
            options = read_options(body[8:])
            assert options[9] == b"\t"
            names.append(options[2].decode())
        else:
            assert kind == 6
            number, high, low, kept, length = struct.unpack_from("<IIIII", body)
            options = read_options(body[20 + kept + -kept % 4 :])
            (direction,) = struct.unpack("<I", options[2])
            frames.append(Frame(number, high << 32 | low, body[20 : 20 + kept], length, direction))
    return names, frames


def read_options(data: bytes) -> dict[int, bytes]:
    options = {}
    at = 0
    while True:
        code, length = struct.unpack_from("<HH", data, at)
        if code == 0:
            assert at + 4 == len(data)
            return options
        options[code] = data[at + 4 : at + 4 + length]
        at += 4 + length + -length % 4
