# SPDX-License-Identifier: GPL-2.0-only
"""The client's side of the protocol without I/O: how each request is written and its reply read.

Both clients use it. Paths are text or bytes, values bytes; a refusal becomes an exception that names the path.
Source: docs/misc/xenstore.txt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from xenstore.errors import InvalidRequest, ProtocolError, TooBig, from_wire
from xenstore.types import TxId
from xenstore.wire import PAYLOAD_MAX, Message, MsgType, Parser, pack

T = TypeVar("T")
Text = str | bytes

NO_TX = TxId(0)


class Event(NamedTuple):
    """Something has changed at or below a watched path."""

    path: str
    token: str


@dataclass(frozen=True)
class Command(Generic[T]):
    """One request: what to send, and how to read the reply's payload."""

    kind: MsgType
    payload: bytes
    decode: Callable[[bytes], T]
    path: str | None = None


def text(value: Text) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    if b"\0" in data:
        raise InvalidRequest("a NUL byte cannot be sent", repr(value))
    return data


def shown(value: Text) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")


def _nothing(payload: bytes) -> None:
    return None


def _bytes(payload: bytes) -> bytes:
    return payload


def _string(payload: bytes) -> str:
    return payload.rstrip(b"\0").decode("utf-8", "backslashreplace")


def _strings(payload: bytes) -> list[str]:
    return [part.decode("utf-8", "backslashreplace") for part in payload.split(b"\0")[:-1]]


def _true(payload: bytes) -> bool:
    return payload.startswith(b"T")


def _number(payload: bytes) -> int:
    return int(_string(payload))


def _of(kind: MsgType, decode: Callable[[bytes], T], *arguments: Text | int, path: Text | None = None) -> Command[T]:
    parts = [b"%d" % argument if isinstance(argument, int) else text(argument) for argument in arguments]
    return Command(kind, b"".join(part + b"\0" for part in parts), decode, None if path is None else shown(path))


def read(path: Text) -> Command[bytes]:
    return _of(MsgType.READ, _bytes, path, path=path)


def write(path: Text, value: Text) -> Command[None]:
    data = value.encode() if isinstance(value, str) else value
    return Command(MsgType.WRITE, text(path) + b"\0" + data, _nothing, shown(path))


def mkdir(path: Text) -> Command[None]:
    return _of(MsgType.MKDIR, _nothing, path, path=path)


def delete(path: Text) -> Command[None]:
    return _of(MsgType.RM, _nothing, path, path=path)


def directory(path: Text) -> Command[list[str]]:
    return _of(MsgType.DIRECTORY, _strings, path, path=path)


def directory_part(path: Text, offset: int) -> Command[tuple[int, bytes]]:
    """The generation of the node and part of the list; the last part ends with an empty name."""

    def decode(payload: bytes) -> tuple[int, bytes]:
        generation, _, names = payload.partition(b"\0")
        return int(generation), names

    return Command(MsgType.DIRECTORY_PART, text(path) + b"\0%d\0" % offset, decode, shown(path))


class LongList:
    """The names of a node's children, put together from parts; from the start again if the node changes in between."""

    def __init__(self, path: Text) -> None:
        self._path = path
        self._names = b""
        self._generation: int | None = None

    def next_part(self) -> Command[tuple[int, bytes]]:
        return directory_part(self._path, len(self._names))

    def add(self, generation: int, part: bytes) -> list[str] | None:
        """All the names, once the last part is there."""
        if self._generation not in (None, generation):
            self._names, self._generation = b"", None
            return None
        self._generation = generation
        if part.endswith(b"\0\0") or part == b"\0":
            return _strings(self._names + part[:-1])
        self._names += part
        return None


def get_perms(path: Text) -> Command[list[str]]:
    return _of(MsgType.GET_PERMS, _strings, path, path=path)


def set_perms(path: Text, perms: Iterable[Text]) -> Command[None]:
    return _of(MsgType.SET_PERMS, _nothing, path, *perms, path=path)


def watch(path: Text, token: Text, depth: int | None = None) -> Command[None]:
    depths = () if depth is None else (depth,)
    return _of(MsgType.WATCH, _nothing, path, token, *depths, path=path)


def unwatch(path: Text, token: Text) -> Command[None]:
    return _of(MsgType.UNWATCH, _nothing, path, token, path=path)


def reset_watches() -> Command[None]:
    return Command(MsgType.RESET_WATCHES, b"\0", _nothing)


def transaction_start() -> Command[TxId]:
    return Command(MsgType.TRANSACTION_START, b"\0", lambda payload: TxId(_number(payload)))


def transaction_end(commit: bool) -> Command[None]:
    return _of(MsgType.TRANSACTION_END, _nothing, "T" if commit else "F")


def get_domain_path(domid: int) -> Command[str]:
    return _of(MsgType.GET_DOMAIN_PATH, _string, domid)


def is_domain_introduced(domid: int) -> Command[bool]:
    return _of(MsgType.IS_DOMAIN_INTRODUCED, _true, domid)


def introduce_domain(domid: int, gfn: int, evtchn: int) -> Command[None]:
    return _of(MsgType.INTRODUCE, _nothing, domid, gfn, evtchn)


def release_domain(domid: int) -> Command[None]:
    return _of(MsgType.RELEASE, _nothing, domid)


def resume_domain(domid: int) -> Command[None]:
    return _of(MsgType.RESUME, _nothing, domid)


def set_target(domid: int, target: int) -> Command[None]:
    return _of(MsgType.SET_TARGET, _nothing, domid, target)


def get_feature(domid: int | None) -> Command[int]:
    return _of(MsgType.GET_FEATURE, _number, *(() if domid is None else (domid,)))


def set_feature(domid: int, features: int) -> Command[None]:
    return _of(MsgType.SET_FEATURE, _nothing, domid, features)


def quota_names() -> Command[list[str]]:
    return Command(MsgType.GET_QUOTA, b"", lambda payload: _string(payload).split())


def get_quota(quota: Text, domid: int | None) -> Command[int]:
    return _of(MsgType.GET_QUOTA, _number, *(() if domid is None else (domid,)), quota)


def set_quota(quota: Text, value: int, domid: int | None) -> Command[None]:
    return _of(MsgType.SET_QUOTA, _nothing, *(() if domid is None else (domid,)), quota, value)


def control(words: Iterable[Text]) -> Command[str]:
    return _of(MsgType.CONTROL, _string, *words)


class Protocol:
    """Requests to bytes, bytes to replies and events. Replies are matched by number, whatever comes between."""

    def __init__(self) -> None:
        self._parser = Parser()
        self._last = 0
        self.replies: dict[int, Message | None] = {}
        """For each request that has been sent: the reply, once it is there."""

    def request(self, command: Command[T], txid: TxId) -> tuple[int, bytes]:
        """A number to ask for the reply with, and what to send."""
        if len(command.payload) > PAYLOAD_MAX:
            raise TooBig(f"a request of {len(command.payload)} bytes; {PAYLOAD_MAX} are allowed", command.path)
        while True:
            self._last = self._last % 0x7FFFFFFF + 1
            if self._last not in self.replies:
                break
        self.replies[self._last] = None
        return self._last, pack(command.kind, self._last, txid, command.payload)

    def received(self, data: bytes) -> list[Event]:
        """Bytes from the store; gives the events among them. Raises ProtocolError."""
        events = []
        for message in self._parser.feed(data):
            if message.type == MsgType.WATCH_EVENT:
                parts = _strings(message.payload)
                if len(parts) < 2:
                    raise ProtocolError("a watch event without path and token")
                events.append(Event(parts[0], parts[1]))
            elif message.req_id in self.replies:
                self.replies[message.req_id] = message
        return events

    def reply(self, number: int, command: Command[T]) -> tuple[T] | None:
        """The decoded reply, None while it is not there; raises what the store said."""
        message = self.replies[number]
        if message is None:
            return None
        del self.replies[number]
        if message.type == MsgType.ERROR:
            raise from_wire(_string(message.payload), "", command.path)
        if message.type != command.kind:
            raise ProtocolError(f"a reply of type {message.type} to a request of type {command.kind.name}")
        return (command.decode(message.payload),)

    def forget(self, number: int) -> None:
        """Nobody waits for this reply any more; it is dropped when it comes."""
        self.replies.pop(number, None)
