# SPDX-License-Identifier: GPL-2.0-only
"""The requests about nodes, watches and transactions: decode, check permissions and quotas, do it, say so.

Each method serves one message type: it gets the connection, the view (the tree, or the transaction named in
the header) and the payload, and gives the payload of the reply or raises. Source: docs/misc/xenstore.txt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xenstore import perms as perms_module
from xenstore.connection import Connection
from xenstore.errors import AlreadyExists, Busy, Conflict, InvalidRequest, NotFound, NotPermitted, PermissionDenied
from xenstore.paths import absolute, parent, shown
from xenstore.quota import MEMORY, NODE_PERMISSIONS, NODE_SIZE, NODES, SOFT_MEMORY, TRANSACTIONS, WATCHES
from xenstore.transactions import Transaction
from xenstore.tree import ALL, PERMS, VALUE, Node, Tree
from xenstore.types import OWNER, READ, WRITE
from xenstore.watches import Watch
from xenstore.wire import FEATURE_WATCHDEPTH, PAYLOAD_MAX, MsgType

if TYPE_CHECKING:
    from xenstore.server import Server

View = Tree | Transaction
Handler = Callable[[Connection, View, bytes], bytes]

OK: Final = b"OK\0"
SLASH: Final = 0x2F


def one_string(payload: bytes) -> bytes:
    """The payload as exactly one string."""
    text, nul, rest = payload.partition(b"\0")
    if rest or not nul:
        raise InvalidRequest("expected one string ended by NUL")
    return text


def strings(payload: bytes) -> list[bytes]:
    """The payload as strings; what follows the last NUL is ignored."""
    return payload.split(b"\0")[:-1]


class NodeRequests:
    """Handlers of the requests that clients make about the tree."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._tree = server.tree
        self._watches = server.watches
        self._accounts = server.accounts

    def handlers(self) -> dict[MsgType, Handler]:
        return {
            MsgType.DIRECTORY: self.directory,
            MsgType.DIRECTORY_PART: self.directory_part,
            MsgType.READ: self.read,
            MsgType.GET_PERMS: self.get_perms,
            MsgType.WRITE: self.write,
            MsgType.MKDIR: self.mkdir,
            MsgType.RM: self.rm,
            MsgType.SET_PERMS: self.set_perms,
            MsgType.WATCH: self.watch,
            MsgType.UNWATCH: self.unwatch,
            MsgType.RESET_WATCHES: self.reset_watches,
            MsgType.TRANSACTION_START: self.transaction_start,
            MsgType.TRANSACTION_END: self.transaction_end,
        }

    # -- finding a node

    def _path(self, connection: Connection, raw: bytes, special: bool = False) -> bytes:
        limit = 0 if connection.privileged else connection.account.limits["path-max"]
        return absolute(raw, connection.base, limit, special)

    def _find(
        self, connection: Connection, view: View, raw: bytes, need: int, what: int, special: bool = False
    ) -> tuple[bytes, Node | None]:
        """The absolute path and its node, None when it is missing; raises when `need` is not allowed.

        What a domain may not know is hidden: a missing node is reported as such only to those who have
        rights on the nearest node above. `what` is the part of the node that will be read.
        """
        path = self._path(connection, raw, special)
        node = view.find(path)
        if isinstance(view, Transaction):
            view.note(path, what | PERMS if node is not None else ALL)
        if not connection.privileged:
            if node is not None:
                if connection.rights(node.perms) & need != need:
                    raise PermissionDenied("no permission", shown(path))
            elif not connection.rights(view.nearest(path).perms) & need:
                raise PermissionDenied("no permission", shown(path))
        return path, node

    def _existing(
        self, connection: Connection, view: View, raw: bytes, need: int, what: int, special: bool = False
    ) -> tuple[bytes, Node]:
        path, node = self._find(connection, view, raw, need, what, special)
        if node is None:
            raise NotFound("no such node", shown(path))
        return path, node

    # -- reading

    def read(self, connection: Connection, view: View, payload: bytes) -> bytes:
        raw, nul, rest = payload.partition(b"\0")
        if rest or not nul:
            raise InvalidRequest("expected one path ended by NUL")
        if view is self._tree and connection.privileged and (node := view.find(raw)) is not None and raw[0] == SLASH:
            return node.value
        return self._existing(connection, view, raw, READ, VALUE)[1].value

    def directory(self, connection: Connection, view: View, payload: bytes) -> bytes:
        path, node = self._existing(connection, view, one_string(payload), READ, PERMS)
        return view.names(path, node)

    def directory_part(self, connection: Connection, view: View, payload: bytes) -> bytes:
        """Part of a long list: generation of the node, then names from a byte offset on, ended by an empty one."""
        arguments = strings(payload)
        if len(arguments) != 2 or not arguments[1].isdigit() or len(arguments[1]) > 9:
            raise InvalidRequest("expected a path and an offset")
        path, node = self._existing(connection, view, arguments[0], READ, PERMS)
        names = view.names(path, node)
        head = b"%d\0" % node.generation
        start = int(arguments[1])
        if start >= len(names):
            return head + b"\0"
        room = PAYLOAD_MAX - len(head) - 1
        if len(names) - start <= room:
            return head + names[start:] + b"\0"
        return head + names[start : names.rindex(b"\0", start, start + room) + 1]

    def get_perms(self, connection: Connection, view: View, payload: bytes) -> bytes:
        return self._existing(connection, view, one_string(payload), READ, PERMS, special=True)[1].perms.wire

    # -- changing

    def write(self, connection: Connection, view: View, payload: bytes) -> bytes:
        raw, nul, value = payload.partition(b"\0")
        if not nul:
            raise InvalidRequest("expected a path ended by NUL")
        tree = self._tree
        if view is tree and connection.privileged and (node := view.find(raw)) is not None and raw[0] == SLASH:
            tree.writer = connection.domid
            tree.write(raw, node, value)
            self._watches.fire(raw, node)
            return OK
        path, node = self._find(connection, view, raw, WRITE, PERMS)
        if node is None:
            self._create(connection, view, path, value)
        else:
            if not connection.privileged:
                self._check_size(connection, path, node.size - len(node.value) + len(value))
                self._check_memory(connection, path, len(value) - len(node.value))
            tree.writer = connection.domid
            view.write(path, node, value)
            if view is tree:
                self._watches.fire(path, node)
        return OK

    def mkdir(self, connection: Connection, view: View, payload: bytes) -> bytes:
        path, node = self._find(connection, view, one_string(payload), WRITE, PERMS)
        if node is None:
            self._create(connection, view, path, b"")
        return OK

    def _create(self, connection: Connection, view: View, path: bytes, value: bytes) -> None:
        """Make a node and its missing parents, for which the caller may do so."""
        self._tree.writer = connection.domid
        owner = None
        if not connection.privileged:
            owner = connection.domid
            self._check_create(connection, view, path, value)
        node = view.create(path, value, owner)
        if view is self._tree:
            self._watches.fire(path, node)

    def _check_create(self, connection: Connection, view: View, path: bytes, value: bytes) -> None:
        missing, name, above = 1, path, parent(path)
        size = len(path)
        while view.find(above) is None:
            missing, size, name, above = missing + 1, size + len(above), above, parent(above)
        account = connection.account
        pending = view.nodes_delta.get(connection.domid, 0) if isinstance(view, Transaction) else 0
        self._accounts.check(account, NODES, account.nodes + pending + missing, f"making {shown(path)}")
        nearest = view.nearest(path)
        self._check_size(connection, path, 16 + 8 * len(nearest.perms.entries) + len(value))
        self._check_size(connection, above, nearest.size + len(name) - len(above))
        self._check_memory(connection, path, size + len(value))

    def _check_size(self, connection: Connection, path: bytes, size: int) -> None:
        self._accounts.check(connection.account, NODE_SIZE, size, f"the node {shown(path)}")

    def _check_memory(self, connection: Connection, path: bytes, more: int) -> None:
        if more > 0:
            account, what = connection.account, f"writing {shown(path)}"
            self._accounts.check(account, MEMORY, account.memory + more, what)
            self._accounts.warn(account, SOFT_MEMORY, account.memory + more, what)

    def rm(self, connection: Connection, view: View, payload: bytes) -> bytes:
        path, node = self._find(connection, view, one_string(payload), WRITE, PERMS)
        if node is None:
            above = parent(path)
            if isinstance(view, Transaction):
                view.note(above, PERMS if view.find(above) is not None else ALL)
            if view.find(above) is None:
                raise NotFound("neither the node nor its parent exists", shown(path))
            return OK
        if path == b"/":
            raise InvalidRequest("the root cannot be removed", "/")
        self._tree.writer = connection.domid
        if isinstance(view, Transaction):
            view.remove(path)
        else:
            self._watches.fire_removed(view.remove(path))
        return OK

    def set_perms(self, connection: Connection, view: View, payload: bytes) -> bytes:
        raw, nul, rest = payload.partition(b"\0")
        if not nul or not rest:
            raise InvalidRequest("expected a path and permissions")
        perms = perms_module.parse(rest)
        if not connection.privileged:
            self._accounts.check(
                connection.account, NODE_PERMISSIONS, len(perms.entries), f"the permissions of {shown(raw)}"
            )
        path, node = self._existing(connection, view, raw, WRITE | OWNER, PERMS, special=True)
        if not connection.privileged and perms.owner != node.perms.owner:
            raise NotPermitted("only dom0 may change the owner", shown(path))
        self._tree.writer = connection.domid
        old = node.perms
        view.set_perms(path, node, perms)
        if view is self._tree:
            self._watches.fire(path, node, old)
        return OK

    # -- watches

    def watch(self, connection: Connection, view: View, payload: bytes) -> bytes:
        arguments = strings(payload)
        depth = None
        if len(arguments) == 3 and connection.features & FEATURE_WATCHDEPTH:
            if not arguments[2].isdigit() or len(arguments[2]) > 5:
                raise InvalidRequest("a watch's depth is a decimal number")
            depth = int(arguments[2])
        elif len(arguments) != 2:
            raise InvalidRequest("expected a path and a token")
        raw, token = arguments[:2]
        path = self._path(connection, raw, special=True)
        if (path, token) in connection.watches:
            raise AlreadyExists("this watch is already set", shown(path))
        account = connection.account
        if not connection.privileged:
            self._accounts.check(account, WATCHES, account.watches + 1, f"watching {shown(path)}")
            self._check_memory(connection, path, len(path) + len(token))
        watch = Watch(connection, path, token, raw[:1] not in (b"/", b"@"), depth)
        self._server.add_watch(connection, watch)
        self._server.after.append((connection, watch.wire_path, token))
        return OK

    def unwatch(self, connection: Connection, view: View, payload: bytes) -> bytes:
        arguments = strings(payload)
        if len(arguments) != 2:
            raise InvalidRequest("expected a path and a token")
        path = self._path(connection, arguments[0], special=True)
        watch = connection.watches.pop((path, arguments[1]), None)
        if watch is None:
            raise NotFound("no such watch", shown(path))
        self._watches.discard(watch)
        connection.account.watches -= 1
        connection.account.memory -= len(watch.path) + len(watch.token)
        return OK

    def reset_watches(self, connection: Connection, view: View, payload: bytes) -> bytes:
        self._server.reset(connection)
        return OK

    # -- transactions

    def transaction_start(self, connection: Connection, view: View, payload: bytes) -> bytes:
        if isinstance(view, Transaction):
            raise Busy("transactions cannot be nested")
        account = connection.account
        if not connection.privileged:
            self._accounts.check(account, TRANSACTIONS, account.transactions + 1, "a new transaction")
        txid = connection.new_txid()
        self._server.add_transaction(connection, txid)
        return b"%d\0" % txid

    def transaction_end(self, connection: Connection, view: View, payload: bytes) -> bytes:
        if payload not in (b"T\0", b"F\0"):
            raise InvalidRequest("a transaction ends with T or F")
        if not isinstance(view, Transaction):
            raise NotFound("no transaction")
        del connection.transactions[view.id]
        connection.account.transactions -= 1
        conflict = view.conflict() if payload == b"T\0" else None
        view.close()
        if payload == b"F\0":
            return OK
        if conflict is not None:
            self._server.blame(conflict[1], connection.domid)
            raise Conflict("changed by another client", shown(conflict[0]))
        if not connection.privileged:
            account = connection.account
            for domid, more in view.nodes_delta.items():
                if more > 0 and domid == connection.domid:
                    self._accounts.check(account, NODES, account.nodes + more, "committing a transaction")
        self._replay(connection, view)
        return OK

    def _replay(self, connection: Connection, transaction: Transaction) -> None:
        """Nothing it read has changed, so doing the same again on the tree has the same effect."""
        tree, watches = self._tree, self._watches
        tree.writer = connection.domid
        watches.once = set()
        for action, path, *arguments in transaction.log:
            if action == "rm":
                watches.fire_removed(tree.remove(path))
                continue
            node = tree.find(path)
            old = None
            if action == "perms":
                assert node is not None
                old = node.perms
                tree.set_perms(path, node, arguments[0])
            elif node is not None:
                tree.write(path, node, arguments[0])
            else:
                node = tree.create(path, arguments[0], arguments[1])
            watches.fire(path, node, old)
        watches.once = None
