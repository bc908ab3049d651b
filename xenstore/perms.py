# SPDX-License-Identifier: GPL-2.0-only
"""Permissions of a node: who owns it, what everyone else may do, and exceptions for single domains.

A `Perms` is a value: immutable, shared by all nodes that look alike. Source: docs/misc/xenstore.txt.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from xenstore.errors import InvalidRequest
from xenstore.types import DOM0, DOMID_ANY, DOMID_MAX, OWNER, READ, WRITE, DomId

_BITS: Final = {ord("n"): 0, ord("r"): READ, ord("w"): WRITE, ord("b"): READ | WRITE}
_LETTER: Final = {0: "n", READ: "r", WRITE: "w", READ | WRITE: "b"}
FULL: Final = READ | WRITE | OWNER


class Perms:
    """Owner and default rights (the first entry of the list), then rights of single domains."""

    __slots__ = ("entries", "owner", "rest", "wire")

    def __init__(self, entries: tuple[tuple[DomId, int], ...]) -> None:
        self.entries: Final = entries
        self.owner: Final = entries[0][0]
        self.rest: Final = entries[1:]
        self.wire: Final = b"".join(b"%s%d\0" % (_LETTER[bits].encode(), domid) for domid, bits in entries)
        """The list as GET_PERMS sends it."""

    def rights(self, domid: DomId, target: DomId | None = None) -> int:
        """What an unprivileged domain may do; `target` is the domain it acts for (SET_TARGET), if any."""
        owner = self.owner
        if owner in (domid, DOMID_ANY) or (target is not None and owner == target):
            return FULL
        for named, bits in self.rest:
            if named in (domid, DOMID_ANY) or (target is not None and named == target):
                return bits
        return self.entries[0][1]

    def owned_by(self, owner: DomId) -> Perms:
        """The same rights with another owner: what a new child of the node gets."""
        if owner == self.owner:
            return self
        return intern(((owner, self.entries[0][1]), *self.rest))

    def without(self, domid: DomId) -> Perms:
        """The same without the entries of a domain that is gone."""
        if all(named != domid for named, _ in self.rest):
            return self
        return intern((self.entries[0], *(entry for entry in self.rest if entry[0] != domid)))

    def texts(self) -> list[str]:
        return [f"{_LETTER[bits]}{domid}" for domid, bits in self.entries]

    def __repr__(self) -> str:
        return f"Perms({','.join(self.texts())})"


@lru_cache(maxsize=4096)
def intern(entries: tuple[tuple[DomId, int], ...]) -> Perms:
    """One object for equal permissions. The cache is bounded, so equality is by `entries`, not identity."""
    return Perms(entries)


@lru_cache(maxsize=1024)
def parse(wire: bytes) -> Perms:
    """From the strings of SET_PERMS, each ended by NUL. Raises InvalidRequest."""
    entries = []
    if not wire.endswith(b"\0"):
        raise InvalidRequest("permissions must be strings ended by NUL")
    for text in wire[:-1].split(b"\0"):
        bits = _BITS.get(text[0]) if text else None
        digits = text[1:]
        if bits is None or not digits.isdigit() or len(digits) > 5 or int(digits) > DOMID_MAX:
            shown = text.decode("ascii", "backslashreplace")
            raise InvalidRequest(f"bad permission {shown!r} (w, r, b or n, and a domid)")
        entries.append((DomId(int(digits)), bits))
    return intern(tuple(entries))


def of(*texts: str) -> Perms:
    """`of("n0", "r5")`, for code and tests."""
    return parse(b"".join(text.encode() + b"\0" for text in texts))


PRIVATE: Final = of(f"n{DOM0}")
"""Dom0's alone: the root and all that dom0 creates below it."""
