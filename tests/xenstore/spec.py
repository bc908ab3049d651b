# SPDX-License-Identifier: GPL-2.0-only
"""What a store has to do, written as plainly as possible: the whole tree is copied where the server is clever.

`Spec` is one store with its clients; the model test runs it beside the server. Quotas are not part of it.
Written from docs/misc/xenstore.txt, not from the server.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

VALUE, PERMS, CHILDREN = "value", "perms", "children"
EVERYTHING = (VALUE, PERMS, CHILDREN)


class Refused(Exception):
    """The request fails with this error name."""


@dataclass
class SpecNode:
    value: bytes
    perms: list[tuple[int, str]]
    """(domid, one of n r w b); the first is the owner with everyone's rights."""
    children: list[str] = field(default_factory=list)


Nodes = dict[str, SpecNode]


def above(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def last(path: str) -> str:
    return path.rpartition("/")[2]


def may(domid: int, node: SpecNode, letter: str) -> bool:
    """`letter`: r or w."""
    owner, everyone = node.perms[0]
    if domid in (0, owner):
        return True
    for named, rights in node.perms[1:]:
        if named == domid:
            return rights in (letter, "b")
    return everyone in (letter, "b")


@dataclass
class SpecTransaction:
    domid: int
    view: Nodes
    start: Nodes
    """The store when it began."""
    age: int
    """How many changes the store had seen then."""
    log: list[tuple[str, ...]] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)
    reads: set[tuple[str, str]] = field(default_factory=set)
    """What its answers, or what it will do, depend on."""
    looked: set[tuple[str, str]] = field(default_factory=set)
    """What it has looked at besides: dom0's requests look at permissions, but do not depend on them."""


class Spec:
    """One store."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.changes: list[tuple[str, str]] = []
        """Every change there ever was: (path, what of it)."""
        self.watches: dict[int, dict[tuple[str, str], str]] = {}
        """For each client: (absolute path, token) -> path as the client wrote it."""
        self.domids: dict[int, int] = {}
        self.events: dict[int, set[tuple[str, str]]] = {}
        self.transactions: dict[tuple[int, int], SpecTransaction] = {}

    def add_client(self, client: int, domid: int) -> None:
        self.domids[client] = domid
        self.watches[client] = {}
        self.events[client] = set()

    def drop_client(self, client: int) -> None:
        del self.domids[client], self.watches[client], self.events[client]
        self.transactions = {key: value for key, value in self.transactions.items() if key[0] != client}

    def absolute(self, client: int, path: str) -> str:
        return path if path.startswith("/") else f"/local/domain/{self.domids[client]}/{path}"

    # -- looking

    def _view(self, client: int, txid: int) -> tuple[Nodes, SpecTransaction | None]:
        if not txid:
            return self.nodes, None
        if (client, txid) not in self.transactions:
            raise Refused("ENOENT")
        transaction = self.transactions[client, txid]
        return transaction.view, transaction

    def _look(self, client: int, path: str, txid: int, need: str, *what: str) -> tuple[Nodes, SpecNode | None]:
        """The node if it is there; raises if the client may not do what it `need`s."""
        view, transaction = self._view(client, txid)
        domid = self.domids[client]
        node = view.get(path)
        if transaction is not None:
            transaction.reads |= {(path, part) for part in (what if node is not None else EVERYTHING)}
            chain = self._chain(view, path)
            transaction.looked |= chain
            if domid:
                transaction.reads |= chain
        nearest = path
        while nearest not in view:
            nearest = above(nearest)
        if not may(domid, view[nearest], need):
            raise Refused("EACCES")
        return view, node

    @staticmethod
    def _chain(view: Nodes, path: str) -> set[tuple[str, str]]:
        """What making `path`, or what one may know of it, depends on: what is missing, and whose rights count."""
        found = set()
        while path not in view:
            found |= {(path, part) for part in EVERYTHING}
            path = above(path)
        return found | {(path, PERMS)}

    def _there(self, client: int, path: str, txid: int, need: str, *what: str) -> SpecNode:
        _, node = self._look(client, path, txid, need, *what)
        if node is None:
            raise Refused("ENOENT")
        return node

    def read(self, client: int, path: str, txid: int) -> bytes:
        return self._there(client, path, txid, "r", VALUE).value

    def directory(self, client: int, path: str, txid: int) -> list[str]:
        return list(self._there(client, path, txid, "r", CHILDREN).children)

    def get_perms(self, client: int, path: str, txid: int) -> list[tuple[int, str]]:
        return list(self._there(client, path, txid, "r", PERMS).perms)

    # -- changing

    def write(self, client: int, path: str, value: bytes | None, txid: int) -> None:
        """`value` None: MKDIR."""
        view, node = self._look(client, path, txid, "w", PERMS)
        if node is None or value is not None:
            if node is None and txid:
                self.transactions[client, txid].reads |= self._chain(view, path)
            self._do(client, txid, ("put", path), value or b"")

    def rm(self, client: int, path: str, txid: int) -> None:
        view, node = self._look(client, path, txid, "w", PERMS)
        if node is None and txid:
            self.transactions[client, txid].looked |= {(above(path), part) for part in EVERYTHING}
        if node is not None:
            if path == "/":
                raise Refused("EINVAL")
            self._do(client, txid, ("rm", path), b"")
        elif above(path) not in view:
            raise Refused("ENOENT")

    def set_perms(self, client: int, path: str, perms: list[tuple[int, str]], txid: int) -> None:
        domid = self.domids[client]
        view, transaction = self._view(client, txid)
        node = view.get(path)
        if node is not None and domid not in (0, node.perms[0][0]):
            if transaction is not None:
                transaction.reads.add((path, PERMS))
            raise Refused("EACCES")
        node = self._there(client, path, txid, "w", PERMS)
        if domid != 0 and perms[0][0] != node.perms[0][0]:
            raise Refused("EPERM")
        self._do(client, txid, ("perms", path, *(f"{rights}{named}" for named, rights in perms)), b"")

    def _do(self, client: int, txid: int, action: tuple[str, ...], data: bytes) -> None:
        """Now, or in a transaction later."""
        domid = self.domids[client]
        if txid:
            transaction = self.transactions[client, txid]
            transaction.log.append(action)
            transaction.data.append(data)
            self._apply(transaction.view, domid, action, data, live=False)
        else:
            self._apply(self.nodes, domid, action, data, live=True)

    def _apply(self, nodes: Nodes, domid: int, action: tuple[str, ...], data: bytes, live: bool) -> None:
        kind, path = action[0], action[1]
        if kind == "put":
            if path in nodes:
                nodes[path].value = data
                self._changed(live, path, VALUE)
            else:
                self._make(nodes, domid, path, live)
                nodes[path].value = data
            self._fire(live, nodes, path, nodes[path], None)
        elif kind == "perms":
            old = nodes[path].perms
            nodes[path].perms = [(int(text[1:]), text[0]) for text in action[2:]]
            self._changed(live, path, PERMS)
            self._fire(live, nodes, path, nodes[path], old)
        else:
            self._remove(nodes, path, live)

    def _make(self, nodes: Nodes, domid: int, path: str, live: bool) -> None:
        up = above(path)
        if up not in nodes:
            self._make(nodes, domid, up, live)
        perms = list(nodes[up].perms)
        if domid:
            perms[0] = (domid, perms[0][1])
        nodes[path] = SpecNode(b"", perms)
        nodes[up].children.append(last(path))
        self._changed(live, up, CHILDREN)
        self._changed(live, path, VALUE, PERMS, CHILDREN)

    def _remove(self, nodes: Nodes, path: str, live: bool) -> None:
        gone = [name for name in nodes if name == path or name.startswith(path + "/")]
        before = dict(nodes)
        nodes[above(path)].children.remove(last(path))
        self._changed(live, above(path), CHILDREN)
        for name in gone:
            self._changed(live, name, VALUE, PERMS, CHILDREN)
            if name != path:
                self._fire_exactly(live, before, name)
        for name in gone:
            del nodes[name]
        self._fire(live, before, path, before[path], None)

    def _changed(self, live: bool, path: str, *what: str) -> None:
        if live:
            self.changes += [(path, part) for part in what]

    # -- watches

    def watch(self, client: int, path: str, token: str) -> None:
        key = (self.absolute(client, path), token)
        if key in self.watches[client]:
            raise Refused("EEXIST")
        self.watches[client][key] = path
        self.events[client].add((path, token))

    def unwatch(self, client: int, path: str, token: str) -> None:
        if self.watches[client].pop((self.absolute(client, path), token), None) is None:
            raise Refused("ENOENT")

    def _fire(self, live: bool, nodes: Nodes, path: str, node: SpecNode, old: list[tuple[int, str]] | None) -> None:
        if live:
            for client in self.watches:
                for watched, token in self.watches[client]:
                    if path == watched or path.startswith(watched.rstrip("/") + "/"):
                        self._tell(client, nodes, path, node, old, watched, token)

    def _fire_exactly(self, live: bool, nodes: Nodes, path: str) -> None:
        if live:
            for client in self.watches:
                for watched, token in self.watches[client]:
                    if path == watched:
                        self._tell(client, nodes, path, nodes[path], None, watched, token)

    def _tell(
        self, client: int, nodes: Nodes, path: str, node: SpecNode, old: list[tuple[int, str]] | None, watched: str,
        token: str,
    ) -> None:  # fmt: skip
        domid = self.domids[client]
        knew = old is not None and may(domid, SpecNode(b"", old), "r")
        if knew or may(domid, node, "r") or may(domid, nodes[above(path)], "r"):
            home = self.absolute(client, "")
            relative = not self.watches[client][watched, token].startswith("/")
            self.events[client].add((path.removeprefix(home) if relative else path, token))

    # -- transactions

    def start(self, client: int, txid: int) -> None:
        now = copy.deepcopy(self.nodes)
        self.transactions[client, txid] = SpecTransaction(
            self.domids[client], copy.deepcopy(now), now, len(self.changes)
        )

    def end(self, client: int, txid: int, commit: bool) -> tuple[bool, bool]:
        """(must it conflict, may it conflict); `finish` does the rest."""
        if (client, txid) not in self.transactions:
            raise Refused("ENOENT")
        transaction = self.transactions[client, txid]
        if not commit:
            return False, False
        touched = set(self.changes[transaction.age :])
        return self._differs(transaction), bool(touched & (transaction.reads | transaction.looked))

    def _differs(self, transaction: SpecTransaction) -> bool:
        for path, part in transaction.reads:
            then, now = transaction.start.get(path), self.nodes.get(path)
            if (then is None) != (now is None):
                return True
            if then is not None and now is not None and getattr(then, part) != getattr(now, part):
                return True
        return False

    def finish(self, client: int, txid: int, commit: bool) -> None:
        transaction = self.transactions.pop((client, txid))
        if commit:
            for action, data in zip(transaction.log, transaction.data, strict=True):
                self._apply(self.nodes, transaction.domid, action, data, live=True)

    # -- the end of a domain

    def die(self, domid: int) -> None:
        for client in [client for client, owner in self.domids.items() if owner == domid]:
            self.drop_client(client)
        for path in list(self.nodes):
            if path in self.nodes and path != "/" and self.nodes[path].perms[0][0] == domid:
                self._remove(self.nodes, path, live=True)
        for path, node in self.nodes.items():
            kept = [entry for number, entry in enumerate(node.perms) if number == 0 or entry[0] != domid]
            if kept != node.perms:
                node.perms = kept
                self._changed(True, path, PERMS)
