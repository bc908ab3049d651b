# SPDX-License-Identifier: GPL-2.0-only
"""The nodes: one dict from absolute path to node, changed in place, with snapshots kept by before-images.

A request costs one lookup however deep the path and however big the store. Transactions need the store
as it was when they began: while a `Snapshot` is open, the first change of a node after it saves what the
node was (copy on write), so a snapshot costs nothing until something changes. The snapshots form a chain,
oldest to newest; a change is saved in the newest only, and an older one looks through the newer ones.

Owned by the server; no I/O, no permission checks here. Source: docs/misc/xenstore.txt.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from xenstore import perms as perms_module
from xenstore.paths import parent
from xenstore.perms import PRIVATE, Perms
from xenstore.quota import Accounts
from xenstore.types import DOM0, DomId

VALUE: Final = 1
PERMS: Final = 2
CHILDREN: Final = 4
ALL: Final = VALUE | PERMS | CHILDREN
"""What of a node was read or has changed. Making or removing a node changes all of it."""

NODE_OVERHEAD: Final = 16
PERM_SIZE: Final = 8
"""What Xen's daemon adds to a node's size for its header and for each permission."""

INTRODUCE: Final = b"@introduceDomain"
RELEASE: Final = b"@releaseDomain"


class Node:
    """One node. Only the tree or the transaction that owns it changes it; `children` may be shared with a copy."""

    __slots__ = ("_listing", "children", "generation", "perms", "value")

    def __init__(self, value: bytes, perms: Perms, generation: int, children: dict[bytes, None] | None = None) -> None:
        self.value = value
        self.perms = perms
        self.generation = generation
        self.children = children
        self._listing: bytes | None = None

    def copy(self) -> Node:
        return Node(self.value, self.perms, self.generation, self.children)

    @property
    def listing(self) -> bytes:
        """The names of the children, each ended by NUL: the reply to DIRECTORY. Made once per change."""
        listing = self._listing
        if listing is None:
            children = self.children
            listing = self._listing = b"\0".join(children) + b"\0" if children else b""
        return listing

    def children_changed(self) -> None:
        self._listing = None

    @property
    def size(self) -> int:
        """Its size as the node-size quota counts it."""
        return NODE_OVERHEAD + PERM_SIZE * len(self.perms.entries) + len(self.value) + len(self.listing)


class Snapshot:
    """The store as it was at one moment, as far as it has changed since."""

    __slots__ = ("_tree", "changed", "images", "newer", "older", "writers")

    def __init__(self, tree: Tree, older: Snapshot | None) -> None:
        self._tree = tree
        self.older = older
        self.newer: Snapshot | None = None
        self.images: dict[bytes, Node | None] = {}
        """Nodes changed before the next newer snapshot, as they were; None: it did not exist."""
        self.changed: dict[bytes, int] = {}
        self.writers: dict[bytes, DomId] = {}

    def find(self, path: bytes) -> Node | None:
        snapshot: Snapshot | None = self
        while snapshot is not None:
            if path in snapshot.images:
                return snapshot.images[path]
            snapshot = snapshot.newer
        return self._tree.find(path)

    def changed_since(self, reads: dict[bytes, int]) -> tuple[bytes, DomId] | None:
        """The first of `reads` that has changed since, and who changed it."""
        snapshot: Snapshot | None = self
        while snapshot is not None:
            changed = snapshot.changed
            for path in changed if len(changed) < len(reads) else reads:
                if reads.get(path, 0) & changed.get(path, 0):
                    return path, snapshot.writers[path]
            snapshot = snapshot.newer
        return None


class Tree:
    """The store's nodes. `find(path)` gives the node or None."""

    def __init__(self, accounts: Accounts) -> None:
        self.nodes: dict[bytes, Node] = {}
        self.find = self.nodes.get
        self.generation = 0
        self.newest: Snapshot | None = None
        self.writer: DomId = DOM0
        """On whose behalf the next changes are made; kept for blaming conflicts."""
        self.trail: list[tuple[Any, ...]] | None = None
        """When there is a journal: the changes it has not been given yet."""
        self._accounts = accounts
        self.reset()

    def reset(self) -> None:
        """Back to what an empty store holds."""
        self.nodes.clear()
        for account in self._accounts.by_domain.values():
            account.nodes = account.memory = 0
        self.insert(b"/", b"", PRIVATE)
        self.create(b"/tool/xenstored", b"")
        self.insert(RELEASE, b"", perms_module.of("n0"))
        self.insert(INTRODUCE, b"", perms_module.of("n0"))

    # -- snapshots

    def snapshot(self) -> Snapshot:
        snapshot = Snapshot(self, self.newest)
        if self.newest is not None:
            self.newest.newer = snapshot
        self.newest = snapshot
        return snapshot

    def drop(self, snapshot: Snapshot) -> None:
        """Nobody looks at this snapshot any more; what an older one needs of it moves there."""
        older, newer = snapshot.older, snapshot.newer
        if older is not None:
            older.newer = newer
            for path, image in snapshot.images.items():
                older.images.setdefault(path, image)
            for path, what in snapshot.changed.items():
                older.changed[path] = older.changed.get(path, 0) | what
            older.writers.update(snapshot.writers)
        if newer is not None:
            newer.older = older
        else:
            self.newest = older

    def _save(self, snapshot: Snapshot, path: bytes, node: Node | None, what: int) -> None:
        """Before `node` changes: keep what it was for the snapshots."""
        images = snapshot.images
        if path not in images:
            images[path] = node.copy() if node is not None else None
        snapshot.changed[path] = snapshot.changed.get(path, 0) | what
        snapshot.writers[path] = self.writer

    def _children_for_change(self, path: bytes, node: Node) -> dict[bytes, None]:
        """The dict of children to change in place; saved first, and not shared with a saved image."""
        if self.newest is not None:
            self._save(self.newest, path, node, CHILDREN)
            image = self.newest.images[path]
            if image is not None and image.children is node.children and node.children is not None:
                node.children = node.children.copy()
        if node.children is None:
            node.children = {}
        node.children_changed()
        self.generation += 1
        node.generation = self.generation
        return node.children

    # -- changes

    def write(self, path: bytes, node: Node, value: bytes) -> None:
        """Give an existing node a new value."""
        if self.newest is not None:
            self._save(self.newest, path, node, VALUE)
        if node.perms.owner:
            self._accounts.of(node.perms.owner).memory += len(value) - len(node.value)
        node.value = value
        self.generation = node.generation = self.generation + 1
        if self.trail is not None:
            self.trail.append(("write", path, value))

    def insert(self, path: bytes, value: bytes, perms: Perms) -> Node:
        """Make one node whose parent exists (or that has none), with these permissions."""
        if self.newest is not None:
            self._save(self.newest, path, None, ALL)
        if path[:1] == b"/" and len(path) > 1:
            above = parent(path)
            self._children_for_change(above, self.nodes[above])[path[path.rfind(b"/") + 1 :]] = None
        self.generation += 1
        node = self.nodes[path] = Node(value, perms, self.generation)
        account = self._accounts.of(perms.owner)
        account.nodes += 1
        account.memory += len(path) + len(value)
        if self.trail is not None:
            self.trail.append(("insert", path, value, perms))
        return node

    def create(self, path: bytes, value: bytes, owner: DomId | None = None) -> Node:
        """Make a missing node and its missing parents; they inherit permissions, but belong to `owner` if given."""
        missing = [path]
        above = parent(path)
        while (nearest := self.nodes.get(above)) is None:
            missing.append(above)
            above = parent(above)
        perms = nearest.perms if owner is None else nearest.perms.owned_by(owner)
        while len(missing) > 1:
            self.insert(missing.pop(), b"", perms)
        return self.insert(path, value, perms)

    def remove(self, path: bytes) -> list[tuple[bytes, Node]]:
        """Remove a node and all below it; gives what was removed, children before parents."""
        above = parent(path)
        del self._children_for_change(above, self.nodes[above])[path[path.rfind(b"/") + 1 :]]
        gone = list(self.walk(path))
        snapshot = self.newest
        for name, node in gone:
            if snapshot is not None:
                self._save(snapshot, name, node, ALL)
                if snapshot.images[name] is None:
                    # Neither at the snapshot nor now: as if nothing had happened, so churn costs no memory.
                    del snapshot.images[name], snapshot.changed[name], snapshot.writers[name]
            del self.nodes[name]
            account = self._accounts.of(node.perms.owner)
            account.nodes -= 1
            account.memory -= len(name) + len(node.value)
        if self.trail is not None:
            self.trail.append(("remove", path))
        return gone

    def set_perms(self, path: bytes, node: Node, perms: Perms) -> None:
        if self.newest is not None:
            self._save(self.newest, path, node, PERMS)
        if node.perms.owner != perms.owner:
            size = len(path) + len(node.value)
            for owner, sign in ((node.perms.owner, -1), (perms.owner, 1)):
                account = self._accounts.of(owner)
                account.nodes += sign
                account.memory += sign * size
        node.perms = perms
        self.generation = node.generation = self.generation + 1
        if self.trail is not None:
            self.trail.append(("perms", path, perms))

    # -- questions

    def walk(self, path: bytes) -> Iterator[tuple[bytes, Node]]:
        """A node and all below it, children before parents, in the order in which children were made."""
        stack = [(path, self.nodes[path], False)]
        while stack:
            name, node, entered = stack.pop()
            if entered or not node.children:
                yield name, node
                continue
            stack.append((name, node, True))
            prefix = name if name == b"/" else name + b"/"
            stack.extend((prefix + child, self.nodes[prefix + child], False) for child in reversed(node.children))

    def nearest(self, path: bytes) -> Node:
        """The closest ancestor that exists."""
        above = parent(path)
        while (node := self.nodes.get(above)) is None:
            above = parent(above)
        return node

    def names(self, path: bytes, node: Node) -> bytes:
        """The reply to DIRECTORY for a node of this tree."""
        return node.listing
