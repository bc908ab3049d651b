# SPDX-License-Identifier: GPL-2.0-only
"""The message format: header, types, features and limits; an incremental parser for the client's side.

Source: xen/include/public/io/xs_wire.h. The server's own loop over requests is in `xenstore.server`.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from xenstore.errors import ProtocolError

HEADER: Final = struct.Struct("=4I")
"""type, req_id, tx_id, length of the payload; in the byte order of the machine."""
HEADER_SIZE: Final = HEADER.size
PAYLOAD_MAX: Final = 4096


class MsgType(IntEnum):
    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    # 20 was RESTRICT
    RESET_WATCHES = 21
    DIRECTORY_PART = 22
    GET_FEATURE = 23
    SET_FEATURE = 24
    GET_QUOTA = 25
    SET_QUOTA = 26


TYPE_COUNT: Final = 27

FEATURE_RECONNECTION: Final = 1
FEATURE_ERROR: Final = 2
FEATURE_WATCHDEPTH: Final = 4
FEATURE_DOMID_ANY: Final = 8
FEATURES: Final = FEATURE_RECONNECTION | FEATURE_ERROR | FEATURE_WATCHDEPTH | FEATURE_DOMID_ANY


class Message(NamedTuple):
    type: int
    req_id: int
    tx_id: int
    payload: bytes


def pack(kind: int, req_id: int, tx_id: int, payload: bytes) -> bytes:
    return HEADER.pack(kind, req_id, tx_id, len(payload)) + payload


def event(path: bytes, token: bytes) -> bytes:
    """A WATCH_EVENT message."""
    size = len(path) + len(token) + 2
    return HEADER.pack(MsgType.WATCH_EVENT, 0, 0, size) + path + b"\0" + token + b"\0"


class Parser:
    """Bytes in, messages out; keeps what is incomplete. Raises ProtocolError when a length is impossible."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        if self._rest:
            data = self._rest + data
        messages = []
        at, end = 0, len(data)
        while end - at >= HEADER_SIZE:
            kind, req_id, tx_id, length = HEADER.unpack_from(data, at)
            if length > PAYLOAD_MAX:
                raise ProtocolError(f"message of {length} bytes; the protocol allows {PAYLOAD_MAX}")
            stop = at + HEADER_SIZE + length
            if stop > end:
                break
            messages.append(Message(kind, req_id, tx_id, data[at + HEADER_SIZE : stop]))
            at = stop
        self._rest = data[at:]
        return messages
