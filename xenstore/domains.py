# SPDX-License-Identifier: GPL-2.0-only
"""Domains as the store knows them: introduced, shut down, gone; what features and quotas each has.

The host tells of a domain's life through `introduced`, `shut_down` and `gone`; dom0 clients through requests.
What becomes of a dead domain's nodes is decided here. Owned by the server.
Source: docs/misc/xenstore.txt, sections "Domain management" and GET/SET_FEATURE, GET/SET_QUOTA.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xenstore.connection import Connection
from xenstore.errors import Busy, InvalidRequest, NotFound, PermissionDenied
from xenstore.quota import ALL, HARD, named
from xenstore.requests import OK, Handler, View, one_string, strings
from xenstore.tree import INTRODUCE, RELEASE
from xenstore.types import DOM0, DOMID_MAX, DOMID_SELF, DomId
from xenstore.wire import FEATURES, MsgType

if TYPE_CHECKING:
    from xenstore.server import Server

VALUE_MAX = 0xFFFFFFFE


class Domain:
    """One domain that has been introduced, or for which something has been set before that."""

    __slots__ = ("connection", "domid", "features", "introduced", "shutdown", "target")

    def __init__(self, domid: DomId) -> None:
        self.domid = domid
        self.features = FEATURES
        self.introduced = False
        self.shutdown = False
        self.target: DomId | None = None
        self.connection: Connection | None = None
        """Its ring's connection, if it has one."""


def parse_domid(text: bytes) -> DomId:
    if not text.isdigit() or len(text) > 5 or int(text) > DOMID_MAX:
        raise InvalidRequest(f"not a domain id: {text.decode('ascii', 'backslashreplace')!r}")
    return DomId(int(text))


def parse_number(text: bytes) -> int:
    if not text.isdigit() or len(text) > 10 or int(text) > VALUE_MAX:
        raise InvalidRequest(f"not a number: {text.decode('ascii', 'backslashreplace')!r}")
    return int(text)


def dom0_only(handler: Handler) -> Handler:
    """A request that other domains may not make."""

    def checked(connection: Connection, view: View, payload: bytes) -> bytes:
        if not connection.privileged:
            raise PermissionDenied("only dom0 may do this")
        return handler(connection, view, payload)

    return checked


class Domains:
    """All domains, and the requests about them."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._domains: dict[DomId, Domain] = {}
        self.on_introduce: Callable[[DomId, int, int], None] | None = None
        """Host's answer to INTRODUCE (domid, gfn, port): connects the ring and calls `introduced`."""
        self.on_release: Callable[[DomId], None] | None = None
        """Host's answer to RELEASE: drops the ring and calls `gone`."""
        self.get(DOM0).introduced = True

    def handlers(self) -> dict[MsgType, Handler]:
        return {
            MsgType.INTRODUCE: dom0_only(self.introduce),
            MsgType.RELEASE: dom0_only(self.release),
            MsgType.GET_DOMAIN_PATH: self.get_domain_path,
            MsgType.IS_DOMAIN_INTRODUCED: dom0_only(self.is_domain_introduced),
            MsgType.RESUME: dom0_only(self.resume),
            MsgType.SET_TARGET: dom0_only(self.set_target),
            MsgType.GET_FEATURE: self.get_feature,
            MsgType.SET_FEATURE: dom0_only(self.set_feature),
            MsgType.GET_QUOTA: dom0_only(self.get_quota),
            MsgType.SET_QUOTA: dom0_only(self.set_quota),
        }

    def get(self, domid: DomId) -> Domain:
        return self._domains.setdefault(domid, Domain(domid))

    def known(self) -> list[Domain]:
        return list(self._domains.values())

    def is_introduced(self, domid: DomId) -> bool:
        domain = self._domains.get(domid)
        return domain is not None and domain.introduced

    # -- a domain's life

    def introduced(self, domid: DomId, connection: Connection | None = None) -> None:
        """The domain can talk to the store from now on."""
        domain = self.get(domid)
        domain.connection = connection
        if connection is not None:
            connection.features = domain.features
            connection.target = domain.target if connection.target is None else connection.target
            domain.target = connection.target
        if not domain.introduced:
            domain.introduced = True
            domain.shutdown = False
            self._server.watches.fire_special(INTRODUCE, domid)

    def shut_down(self, domid: DomId) -> None:
        """The domain has stopped running, for whatever reason; said once until RESUME."""
        domain = self._domains.get(domid)
        if domain is not None and domain.introduced and not domain.shutdown:
            domain.shutdown = True
            self._server.watches.fire_special(RELEASE, domid)

    def gone(self, domid: DomId) -> None:
        """The domain exists no more: its nodes go, with all below them, and so do all rights it had."""
        domain = self._domains.pop(domid, None)
        if domain is not None and domain.connection is not None:
            self._server.disconnect(domain.connection)
        for other in self._domains.values():
            if other.target == domid:
                other.target = None
                if other.connection is not None:
                    other.connection.target = None
        self._forget_in_tree(domid)
        self._server.fairness.forget(domid)
        self._server.accounts.forget(domid)
        if domain is not None and domain.introduced:
            self._server.watches.fire_special(RELEASE, domid)

    def _forget_in_tree(self, domid: DomId) -> None:
        tree, watches = self._server.tree, self._server.watches
        tree.writer = DOM0
        owned, named_in = [], []
        for path, node in tree.nodes.items():
            if node.perms.owner == domid:
                owned.append(path)
            elif node.perms.rest and node.perms.without(domid) is not node.perms:
                named_in.append(path)
        for path in owned:
            node_now = tree.find(path)
            if node_now is None:
                continue
            if path[:1] == b"@":
                tree.set_perms(path, node_now, node_now.perms.owned_by(DOM0).without(domid))
            elif path != b"/":
                watches.fire_removed(tree.remove(path))
            else:
                tree.set_perms(path, node_now, node_now.perms.owned_by(DOM0).without(domid))
        for path in named_in:
            if (node_now := tree.find(path)) is not None:
                tree.set_perms(path, node_now, node_now.perms.without(domid))

    def usage(self, domid: DomId) -> dict[str, Any]:
        """What a domain uses of the store; plain data."""
        account = self._server.accounts.of(domid)
        return {
            "introduced": self.is_introduced(domid),
            "nodes": account.nodes,
            "watches": account.watches,
            "transactions": account.transactions,
            "memory": max(account.memory, 0),
            "limits": dict(account.limits),
            "peak": dict(account.peak),
            "refused": dict(account.refused),
            "conflicts_caused": self._server.fairness.conflicts.get(domid, 0),
        }

    # -- requests

    def introduce(self, connection: Connection, view: View, payload: bytes) -> bytes:
        arguments = strings(payload)
        if len(arguments) < 3:
            raise InvalidRequest("expected a domain id, a frame number and an event channel")
        domid = parse_domid(arguments[0])
        gfn = arguments[1].removeprefix(b"-")
        if not gfn.isdigit() or len(gfn) > 20:
            raise InvalidRequest("not a frame number")
        port = parse_number(arguments[2])
        if port <= 0:
            raise InvalidRequest("not an event channel")
        if self.on_introduce is not None:
            self.on_introduce(domid, int(arguments[1]), port)
        else:
            self.introduced(domid)
        return OK

    def _connected(self, payload: bytes) -> Domain:
        domid = parse_domid(one_string(payload))
        if domid == DOM0:
            raise InvalidRequest("dom0 cannot be released or resumed")
        return self._introduced(domid)

    def _introduced(self, domid: DomId) -> Domain:
        domain = self._domains.get(domid)
        if domain is None or not domain.introduced:
            raise NotFound(f"domain {domid} has not been introduced")
        return domain

    def release(self, connection: Connection, view: View, payload: bytes) -> bytes:
        domain = self._connected(payload)
        if self.on_release is not None:
            self.on_release(domain.domid)
        else:
            self.gone(domain.domid)
        return OK

    def resume(self, connection: Connection, view: View, payload: bytes) -> bytes:
        self._connected(payload).shutdown = False
        return OK

    def get_domain_path(self, connection: Connection, view: View, payload: bytes) -> bytes:
        return b"/local/domain/%d\0" % parse_domid(one_string(payload))

    def is_domain_introduced(self, connection: Connection, view: View, payload: bytes) -> bytes:
        domid = parse_domid(one_string(payload))
        return b"T\0" if domid == DOMID_SELF or self.is_introduced(domid) else b"F\0"

    def set_target(self, connection: Connection, view: View, payload: bytes) -> bytes:
        arguments = strings(payload)
        if len(arguments) < 2:
            raise InvalidRequest("expected two domain ids")
        domain = self._introduced(parse_domid(arguments[0]))
        domain.target = self._introduced(parse_domid(arguments[1])).domid
        if domain.connection is not None:
            domain.connection.target = domain.target
        return OK

    def get_feature(self, connection: Connection, view: View, payload: bytes) -> bytes:
        arguments = strings(payload)
        if not any(arguments):
            return b"%d\0" % connection.features
        if not connection.privileged:
            raise PermissionDenied("only dom0 may ask about other domains")
        if len(arguments) > 1:
            raise InvalidRequest("expected one domain id")
        domain = self._domains.get(parse_domid(arguments[0]))
        return b"%d\0" % (domain.features if domain is not None else FEATURES)

    def set_feature(self, connection: Connection, view: View, payload: bytes) -> bytes:
        arguments = strings(payload)
        if len(arguments) != 2:
            raise InvalidRequest("expected a domain id and feature bits")
        domid, features = parse_domid(arguments[0]), parse_number(arguments[1])
        if self.is_introduced(domid):
            raise Busy(f"domain {domid} is already introduced")
        if features & ~FEATURES:
            raise InvalidRequest(f"unknown feature bits {features & ~FEATURES:#x}")
        self.get(domid).features = features
        return OK

    def get_quota(self, connection: Connection, view: View, payload: bytes) -> bytes:
        arguments = strings(payload)
        if len(arguments) > 2:
            raise InvalidRequest("expected a domain id and a quota")
        if not any(arguments):
            return " ".join(ALL_NAMES).encode() + b"\0"
        limits = self._server.accounts.limits
        if len(arguments) == 2:
            limits = self._limits_of(parse_domid(arguments[0]))
        return b"%d\0" % limits[_quota_name(arguments[-1])]

    def set_quota(self, connection: Connection, view: View, payload: bytes) -> bytes:
        arguments = strings(payload)
        if len(arguments) not in (2, 3):
            raise InvalidRequest("expected a domain id, a quota and a number")
        name, value = _quota_name(arguments[-2]), parse_number(arguments[-1])
        if len(arguments) == 3:
            self._limits_of(parse_domid(arguments[0]))[name] = value
        else:
            self._server.accounts.limits[name] = value
        return OK

    def _limits_of(self, domid: DomId) -> dict[str, int]:
        return self._server.accounts.of(domid).limits


ALL_NAMES = tuple(name for quota in HARD for name in (quota.name, f"soft-{quota.name}") if name in ALL)


def _quota_name(text: bytes) -> str:
    quota = named(text.decode("ascii", "backslashreplace"))
    if quota is None:
        raise InvalidRequest(f"unknown quota {text.decode('ascii', 'backslashreplace')!r}")
    return quota.name


