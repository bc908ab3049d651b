# SPDX-License-Identifier: GPL-2.0-only
"""Structures of the PV protocols, each described once: a named tuple and its struct format.

What reads and writes rings uses the description to pack and unpack, traces use it to show fields by name, and a test
compares its offsets with Xen's public headers. The formats are those of x86-64, little endian, padding written out.

Pure data; anyone may use it from any thread.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

Values = TypeVar("Values", bound=tuple[Any, ...])


class Field(NamedTuple):
    name: str
    offset: int
    size: int


class Layout(Generic[Values]):
    """`kind` is a NamedTuple class whose fields are the items of the struct format, in order (`x` is padding)."""

    def __init__(self, kind: type[Values], form: str) -> None:
        self.kind = kind
        self._struct = struct.Struct("<" + form)
        self.size = self._struct.size
        self._make: Callable[[Iterable[Any]], Values] = kind._make  # type: ignore[attr-defined]
        self._spaced: dict[int, struct.Struct] = {}
        self.fields = tuple(_fields(kind, form))

    def pack(self, values: Values) -> bytes:
        return self._struct.pack(*values)

    def pack_into(self, memory: memoryview, offset: int, values: Values) -> None:
        self._struct.pack_into(memory, offset, *values)

    def unpack(self, data: bytes | memoryview, offset: int = 0) -> Values:
        """The structure at the start of `data`, which may be longer: a slot is as long as its longest structure."""
        return self.kind(*self._struct.unpack_from(data, offset))

    def unpack_all(self, data: bytes, stride: int) -> list[Values]:
        """The structures that begin every `stride` bytes; `data` is a whole number of them."""
        spaced = self._spaced.get(stride)
        if spaced is None:
            spaced = self._spaced[stride] = struct.Struct(f"{self._struct.format}{stride - self.size}x")
        return list(map(self._make, spaced.iter_unpack(data)))


def _fields(kind: type[tuple[Any, ...]], form: str) -> Iterator[Field]:
    names = iter(kind._fields)  # type: ignore[attr-defined]  # every Values is a NamedTuple
    offset = 0
    for item in re.findall(r"\d*[a-zA-Z]", form):
        size = struct.calcsize("<" + item)
        if not item.endswith("x"):
            if item[:-1] and not item.endswith("s"):
                raise ValueError(f"{kind.__name__}: {item!r} is several values; name each, or take them as bytes")
            yield Field(next(names), offset, size)
        offset += size
    left = list(names)
    if left:
        raise ValueError(f"{kind.__name__}: no format for {', '.join(left)}")


def packer(*layouts: Layout[Any]) -> Callable[[Any], bytes]:
    """A function that packs a tuple of any of these kinds by its own layout."""
    pack_of = {layout.kind: layout.pack for layout in layouts}

    def pack(values: Any) -> bytes:
        return pack_of[type(values)](values)

    return pack
