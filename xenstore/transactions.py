# SPDX-License-Identifier: GPL-2.0-only
"""A transaction: the store as it was at its start, what it read, and what it wants to change.

It answers the same questions as the tree (`find`, `names`) and takes the same changes; at its end the server
asks `conflict()` and, when nothing it read has changed, replays `log` on the tree. Reads are kept per node
and per kind (value, permissions, children), so two transactions that add different children to one directory
do not disturb each other. Owned by one connection. Source: docs/misc/xenstore.txt.
"""

from __future__ import annotations

from typing import Any

from xenstore.paths import parent
from xenstore.perms import Perms
from xenstore.quota import TRANSACTION_NODES, Account, Accounts
from xenstore.tree import ALL, CHILDREN, PERMS, Node, Tree
from xenstore.types import DOM0, DomId, TxId


class Transaction:
    """One open transaction of a connection."""

    __slots__ = (
        "_account", "_accounts", "_tree", "children", "doomed", "id", "log", "nodes_delta", "overlay", "reads",
        "snapshot",
    )  # fmt: skip

    def __init__(self, txid: TxId, tree: Tree, accounts: Accounts, account: Account) -> None:
        self.id = txid
        self.snapshot = tree.snapshot()
        self.overlay: dict[bytes, Node | None] = {}
        """Nodes as this transaction has changed them; None: removed."""
        self.children: dict[bytes, dict[bytes, bool]] = {}
        """Per directory: names added (True, in this order after the old ones) and removed (False)."""
        self.reads: dict[bytes, int] = {}
        self.log: list[tuple[Any, ...]] = []
        self.nodes_delta: dict[DomId, int] = {}
        """How many nodes each domain will own more."""
        self.doomed = False
        """It was open when the store was moved, and will end with EAGAIN."""
        self._tree = tree
        self._accounts = accounts
        self._account = account

    def find(self, path: bytes) -> Node | None:
        if path in self.overlay:
            return self.overlay[path]
        return self.snapshot.find(path)

    def note(self, path: bytes, what: int) -> None:
        """This was read. Raises QuotaExceeded when the transaction touches too many nodes."""
        reads = self.reads
        seen = reads.get(path)
        if seen is None:
            self._accounts.check(self._account, TRANSACTION_NODES, len(reads) + 1, f"a transaction reaching {path!r}")
            reads[path] = what
        else:
            reads[path] = seen | what

    def names(self, path: bytes, node: Node) -> bytes:
        self.note(path, CHILDREN)
        changes = self.children.get(path)
        if changes is None:
            return node.listing
        names = [name for name in node.children or () if name not in changes]
        names += [name for name, present in changes.items() if present]
        return b"".join(name + b"\0" for name in names)

    def nearest(self, path: bytes) -> Node:
        above = parent(path)
        while True:
            node = self.find(above)
            if node is not None:
                self.note(above, PERMS)
                return node
            self.note(above, ALL)
            above = parent(above)

    # -- changes

    def _own(self, path: bytes, node: Node) -> Node:
        """This transaction's copy of a node."""
        if path in self.overlay:
            return node
        own = self.overlay[path] = node.copy()
        return own

    def _count(self, owner: DomId, number: int) -> None:
        self.nodes_delta[owner] = self.nodes_delta.get(owner, 0) + number

    def write(self, path: bytes, node: Node, value: bytes) -> None:
        self._own(path, node).value = value
        self.log.append(("put", path, value, None))

    def create(self, path: bytes, value: bytes, owner: DomId | None = None) -> Node:
        self.log.append(("put", path, value, owner))
        perms = self.nearest(path).perms
        if owner is not None:
            perms = perms.owned_by(owner)
        node = Node(value, perms, 0)
        name = path
        while self.find(name) is None:
            self.overlay[name] = node if name == path else Node(b"", perms, 0)
            self._count(perms.owner, 1)
            above = parent(name)
            self._child(above, name, True)
            name = above
        return node

    def _child(self, directory: bytes, path: bytes, present: bool) -> None:
        changes = self.children.setdefault(directory, {})
        name = path[path.rfind(b"/") + 1 :]
        changes.pop(name, None)
        changes[name] = present

    def remove(self, path: bytes) -> None:
        self.log.append(("rm", path))
        self._child(parent(path), path, False)
        stack = [path]
        while stack:
            name = stack.pop()
            node = self.find(name)
            if node is None:
                continue
            self._count(node.perms.owner, -1)
            changes = self.children.pop(name, {})
            stack.extend(name + b"/" + child for child in node.children or () if changes.get(child, True))
            stack.extend(name + b"/" + child for child, present in changes.items() if present)
            self.overlay[name] = None

    def set_perms(self, path: bytes, node: Node, perms: Perms) -> None:
        self.log.append(("perms", path, perms))
        self._count(node.perms.owner, -1)
        self._count(perms.owner, 1)
        self._own(path, node).perms = perms

    # -- the end

    def conflict(self) -> tuple[bytes, DomId] | None:
        """What it read that someone has changed since, and who."""
        return (b"/", DOM0) if self.doomed else self.snapshot.changed_since(self.reads)

    def close(self) -> None:
        self._tree.drop(self.snapshot)


