# SPDX-License-Identifier: GPL-2.0-only
"""What can be done with nodes, the same for the blocking client and for its transactions.

A subclass says in `execute` how a command reaches the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from xenstore import commands
from xenstore.commands import Command, Text
from xenstore.errors import NotFound, TooBig

T = TypeVar("T")
Names = list[str]


class Operations:
    """What can be done with nodes, by a client or within a transaction."""

    def execute(self, command: Command[T]) -> T:
        raise AssertionError("Operations is a base of Client and Transaction")

    def read(self, path: Text, default: bytes | None = None) -> bytes:
        """The value of a node; `default`, if given, when there is no such node."""
        try:
            return self.execute(commands.read(path))
        except NotFound:
            if default is None:
                raise
            return default

    def write(self, path: Text, value: Text) -> None:
        """Give a node a value; makes it and its parents when they are missing."""
        self.execute(commands.write(path, value))

    def mkdir(self, path: Text) -> None:
        """Make a node and its parents; nothing happens to those that exist."""
        self.execute(commands.mkdir(path))

    def delete(self, path: Text) -> None:
        """Remove a node and all below it."""
        self.execute(commands.delete(path))

    rm = delete

    def list(self, path: Text) -> Names:
        """The names of the children, however many."""
        try:
            return self.execute(commands.directory(path))
        except TooBig:
            return self._long_list(path)

    def _long_list(self, path: Text) -> Names:
        parts = commands.LongList(path)
        while (names := parts.add(*self.execute(parts.next_part()))) is None:
            pass
        return names

    def exists(self, path: Text) -> bool:
        try:
            self.execute(commands.read(path))
        except NotFound:
            return False
        return True

    def get_perms(self, path: Text) -> Names:
        """Permissions such as ["n0", "r5"]: the owner with everyone's rights, then single domains."""
        return self.execute(commands.get_perms(path))

    def set_perms(self, path: Text, perms: Iterable[Text]) -> None:
        self.execute(commands.set_perms(path, perms))

    def walk(self, top: Text, topdown: bool = True) -> Iterator[tuple[str, bytes, Names]]:
        """(path, value, names of children) of a node and all below it."""
        path = commands.shown(top)
        try:
            value, children = self.read(path), self.list(path)
        except NotFound:
            return
        if topdown:
            yield path, value, children
        for child in children:
            yield from self.walk(f"{'' if path == '/' else path}/{child}", topdown)
        if not topdown:
            yield path, value, children
