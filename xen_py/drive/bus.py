# SPDX-License-Identifier: GPL-2.0-only
"""What a driver half needs of the store, as protocols: dom0 and a guest reach it by different ways.

Paths are absolute. `None` stands for a node that is not there. Values are bytes as they come, text as they go. All
operations may raise BusError.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

T = TypeVar("T")

MOST_NODES = 1024
"""Nodes that are read of the other end's directory: more are nonsense."""
MOST_LEVELS = 3

Nodes = dict[str, bytes]
"""A directory: values by path below it ("state", "queue-0/tx-ring-ref")."""


class TooManyNodes(Exception):
    """The other end's directory is larger than any device's can be."""


class BusError(Exception):
    """The store has refused: the directory is gone, a quota is full, the connection is lost."""


class BusNodes(Protocol):
    """Nodes, by a client or within a transaction."""

    async def read(self, path: str) -> bytes | None: ...

    async def write(self, path: str, value: str) -> None: ...

    async def remove(self, path: str) -> None:
        """With all below it; nothing where there is no such node."""

    async def names(self, path: str) -> list[str]:
        """Its children; none where there is no such node."""


class Bus(BusNodes, Protocol):
    """A client of the store."""

    async def run_transaction(self, body: Callable[[BusNodes], Awaitable[T]]) -> T:
        """`await body(transaction)`, repeated until it commits without a conflict."""

    def watch(self, path: str, changed: Callable[[], None]) -> AbstractAsyncContextManager[object]:
        """`changed` is called for the watch itself and whenever the node or one below it was written.

        It is called before any later answer of the store can be seen, so who counts the calls knows whether a node was
        written since it was read.
        """


async def read_tree(nodes: BusNodes, top: str) -> Nodes:
    """Everything below `top` that has a place in a device's directory. TooManyNodes rather than very much of it."""
    found: Nodes = {}

    async def visit(path: str, prefix: str, level: int) -> None:
        for name in await nodes.names(path):
            if len(found) >= MOST_NODES:
                raise TooManyNodes(f"more than {MOST_NODES} nodes in {top}")
            value = await nodes.read(f"{path}/{name}")
            if value is not None:
                found[prefix + name] = value
            if level < MOST_LEVELS:
                await visit(f"{path}/{name}", f"{prefix}{name}/", level + 1)

    await visit(top, "", 1)
    return found


class BadNode(Exception):
    """A node of the other end is missing or is not what it must be; becomes the reason in `error/`."""


def text(nodes: Nodes, name: str, default: str | None = None) -> str:
    """The node as text; `default`, if given, where it is missing."""
    value = nodes.get(name)
    if value is None:
        if default is None:
            raise BadNode(f"the other end has written no {name}")
        return default
    try:
        return value.decode("ascii")
    except UnicodeDecodeError:
        raise BadNode(f"the other end's {name} is {value[:16]!r}, which is no text") from None


def number(nodes: Nodes, name: str, low: int, high: int, default: int | None = None) -> int:
    """The node as a decimal number from `low` to `high`; `default`, if given, where it is missing."""
    if default is not None and name not in nodes:
        return default
    value = text(nodes, name)
    if not value.isdecimal() or len(value) > 20 or not low <= int(value) <= high:
        raise BadNode(f"the other end's {name} is {value[:24]!r}, not a number from {low} to {high}")
    return int(value)


def flag(nodes: Nodes, name: str, default: bool = False) -> bool:
    """A feature node: 0 or 1 (any other number counts as 1)."""
    return bool(number(nodes, name, 0, (1 << 32) - 1, int(default)))
