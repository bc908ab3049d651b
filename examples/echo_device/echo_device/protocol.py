# SPDX-License-Identifier: GPL-2.0-only
"""What goes over the ring: a request carries some bytes, its response carries them back."""

from __future__ import annotations

from typing import NamedTuple

from xen_py.io.layout import Layout
from xen_py.io.ring import RingKind

ROOM = 48
"""Bytes in one message."""
OKAY, TOO_LONG = 0, -1


class Request(NamedTuple):
    id: int
    length: int
    data: bytes


class Response(NamedTuple):
    id: int
    status: int
    length: int
    data: bytes


ECHO = RingKind.of("echo", Layout(Request, f"QI4x{ROOM}s"), Layout(Response, f"QiI{ROOM}s"))
