# SPDX-License-Identifier: GPL-2.0-only
"""Watches: who wants to hear about which part of the tree, and whether it may.

An index from watched path to watches, and a cache of the answer "who watches this path", so that a write
nobody watches costs one lookup. Owned by the server. Source: docs/misc/xenstore.txt, section Watches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenstore.paths import parent
from xenstore.perms import Perms
from xenstore.tree import Node, Tree
from xenstore.types import READ, DomId

if TYPE_CHECKING:
    from xenstore.connection import Connection

CACHE_MAX: Final = 65536
"""Paths whose watchers are remembered; the cache starts again when it is full."""


class Watch:
    """One watch of one connection."""

    __slots__ = ("connection", "depth", "path", "prefix", "sequence", "token")

    def __init__(self, connection: Connection, path: bytes, token: bytes, relative: bool, depth: int | None) -> None:
        self.connection = connection
        self.path = path
        self.token = token
        self.depth = depth
        """How many levels below `path` it reaches; None: all of them."""
        self.prefix = len(connection.base) + 1 if relative else 0
        """How much of an event's path is cut off because the watch was set with a relative path."""
        self.sequence = 0

    @property
    def wire_path(self) -> bytes:
        """The path as the client wrote it."""
        return self.path[self.prefix :]

    def reaches(self, path: bytes) -> bool:
        """Whether a change at `path`, which is `self.path` or below it, is within the depth."""
        if self.depth is None or path == self.path:
            return True
        start = 1 if self.path == b"/" else len(self.path) + 1
        return path.count(b"/", start) + 1 <= self.depth


class Watches:
    """All watches of all connections."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._by_path: dict[bytes, list[Watch]] = {}
        self._cache: dict[bytes, tuple[Watch, ...]] = {}
        self._sequence = 0
        self.once: set[tuple[Watch, bytes]] | None = None
        """While a transaction is committed: what has been sent, as its many writes of one node are one change."""

    def add(self, watch: Watch) -> None:
        self._sequence += 1
        watch.sequence = self._sequence
        self._by_path.setdefault(watch.path, []).append(watch)
        self._cache.clear()

    def discard(self, watch: Watch) -> None:
        watches = self._by_path[watch.path]
        watches.remove(watch)
        if not watches:
            del self._by_path[watch.path]
        self._cache.clear()

    def __len__(self) -> int:
        return sum(map(len, self._by_path.values()))

    def _matching(self, path: bytes) -> tuple[Watch, ...]:
        """The watches that a change at `path` concerns, by connection and then in the order they were set."""
        found = []
        name = path
        while True:
            found += [watch for watch in self._by_path.get(name, ()) if watch.reaches(path)]
            if name == b"/" or path[:1] != b"/":
                break
            name = parent(name)
        found.sort(key=lambda watch: (watch.connection.id, watch.sequence))
        if len(self._cache) >= CACHE_MAX:
            self._cache.clear()
        result = self._cache[path] = tuple(found)
        return result

    def fire(self, path: bytes, node: Node, old: Perms | None = None) -> None:
        """Something about `path` has changed: value, permissions (which were `old`), or it was made or removed."""
        if not self._by_path:
            return
        watches = self._cache.get(path)
        if watches is None:
            watches = self._matching(path)
        for watch in watches:
            self._send(watch, path, node, old)

    def _send(self, watch: Watch, path: bytes, node: Node, old: Perms | None, above: Node | None = None) -> None:
        """Tell one watcher, if it may know. `above`: the node's parent, when the tree does not have it any more."""
        connection = watch.connection
        if connection.privileged or self._may_know(connection, path, node, old, above):
            if self.once is not None:
                if (watch, path) in self.once:
                    return
                self.once.add((watch, path))
            connection.send_event(path[watch.prefix :], watch.token)

    def fire_removed(self, gone: list[tuple[bytes, Node]]) -> None:
        """A subtree was removed, children first: watches on a node inside hear of that node, the top's as usual."""
        if not self._by_path:
            return
        by_path = self._by_path
        parents: dict[bytes, Node] | None = None
        for path, node in gone[:-1]:
            if path in by_path:
                if parents is None:
                    parents = dict(gone)
                for watch in sorted(by_path[path], key=lambda watch: (watch.connection.id, watch.sequence)):
                    self._send(watch, path, node, None, parents[parent(path)])
        self.fire(*gone[-1])

    def fire_special(self, name: bytes, domid: DomId) -> None:
        """@introduceDomain or @releaseDomain happened to a domain."""
        node = self._tree.find(name)
        if node is None:
            return
        detailed = b"%s/%d" % (name, domid)
        plain = [watch for watch in self._by_path.get(name, ()) if watch.depth is None]
        deep = [watch for watch in self._by_path.get(name, ()) if watch.depth is not None and watch.depth > 0]
        exact = list(self._by_path.get(detailed, ()))
        for watches, path in ((plain, name), (deep + exact, detailed)):
            for watch in sorted(watches, key=lambda watch: (watch.connection.id, watch.sequence)):
                connection = watch.connection
                if connection.privileged or self._may_know(connection, name, node, None):
                    connection.send_event(path, watch.token)

    def _may_know(
        self, connection: Connection, path: bytes, node: Node, old: Perms | None, above: Node | None = None
    ) -> bool:
        """A watcher hears of a node that it can read, could read before, or whose parent it can read."""
        if (old is not None and connection.rights(old) & READ) or connection.rights(node.perms) & READ:
            return True
        if above is None:
            above = self._tree.find(parent(path))
        return above is not None and bool(connection.rights(above.perms) & READ)
