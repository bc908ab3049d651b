# SPDX-License-Identifier: GPL-2.0-only
"""CONTROL: what an administrator asks the daemon itself (`xenstore-control`).

Dom0 only. Replies look like those of Xen's daemon, which scripts parse; `stats` is an addition.
Source: docs/misc/xenstore.txt, section CONTROL.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from xenstore.connection import Connection
from xenstore.domains import dom0_only, parse_domid, parse_number
from xenstore.errors import InvalidRequest, NotFound, XenstoreError
from xenstore.paths import parent
from xenstore.quota import HARD, MEMORY, SOFT_MEMORY
from xenstore.requests import OK, Handler, View
from xenstore.wire import PAYLOAD_MAX, MsgType

if TYPE_CHECKING:
    from xenstore.server import Server

log = logging.getLogger("xenstore")

Command = Callable[[list[str]], bytes]


def _text(text: str) -> bytes:
    return text.encode() + b"\0"


class Control:
    """The commands, each with its parameters as `help` shows them."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.commands: dict[str, tuple[Command, str]] = {
            "check": (self.check, ""),
            "log": (self.log, "[on|off|+<switch>|-<switch>]"),
            "logfile": (self.logfile, "<file>"),
            "memreport": (self.memreport, "[<file>]"),
            "print": (self.print, "<string>"),
            "quota": (self.quota, "[set <name> <val>|<domid>|max [-r]]"),
            "quota-soft": (self.quota_soft, "[set <name> <val>]"),
            "stats": (self.stats, "[<domid>|json [<domid>]]"),
            "help": (self.help, ""),
        }
        self._handler: logging.Handler | None = None
        self._logfile: str | None = None

    def handlers(self) -> dict[MsgType, Handler]:
        return {MsgType.CONTROL: dom0_only(self.request)}

    def request(self, connection: Connection, view: View, payload: bytes) -> bytes:
        words = [word.decode("utf-8", "backslashreplace") for word in payload.split(b"\0")[:-1]]
        if not words or words[0] not in self.commands:
            raise InvalidRequest("unknown control command")
        return self.commands[words[0]][0](words[1:])

    def help(self, arguments: list[str]) -> bytes:
        _none(arguments)
        return _text("".join(f"{name:<15} {usage}\n" for name, (_, usage) in self.commands.items()))

    def check(self, arguments: list[str]) -> bytes:
        """Whether the tree hangs together and the accounts are right; what is wrong goes to the log."""
        _none(arguments)
        for problem in self.problems():
            self._server.warn(f"check: {problem}")
        return OK

    def problems(self) -> list[str]:
        tree = self._server.tree
        found = []
        owned: dict[int, int] = {}
        for path, node in tree.nodes.items():
            owned[node.perms.owner] = owned.get(node.perms.owner, 0) + 1
            if path[:1] == b"/" and path != b"/":
                above = tree.find(parent(path))
                if above is None or not above.children or path.rpartition(b"/")[2] not in above.children:
                    found.append(f"{path!r} is orphaned")
            prefix = b"/" if path == b"/" else path + b"/"
            missing = [name for name in node.children or () if prefix + name not in tree.nodes]
            found += [f"{prefix + name!r} is missing" for name in missing]
        for domid, account in self._server.accounts.by_domain.items():
            if account.nodes != owned.get(domid, 0):
                found.append(f"domain {domid} owns {owned.get(domid, 0)} nodes, accounted are {account.nodes}")
        return found

    def log(self, arguments: list[str]) -> bytes:
        if not arguments:
            return _text(f"Log switch settings:\n{'io':<8}: {'on' if self._server.tracing else 'off'}\n")
        if len(arguments) != 1:
            raise InvalidRequest("expected one argument")
        word = arguments[0]
        if word in ("on", "off"):
            self._open_log(word == "on")
        elif word in ("+io", "-io"):
            self._server.trace(word == "+io")
        else:
            raise InvalidRequest(f"unknown log switch {word!r}")
        return OK

    def logfile(self, arguments: list[str]) -> bytes:
        if len(arguments) != 1 or not arguments[0].startswith("/"):
            raise InvalidRequest("expected an absolute file name")
        self._logfile = arguments[0]
        self._open_log(True)
        return OK

    def _open_log(self, on: bool) -> None:
        if self._handler is not None:
            log.removeHandler(self._handler)
            self._handler.close()
            self._handler = None
        if on and self._logfile is not None:
            try:
                self._handler = logging.FileHandler(self._logfile)
            except OSError as error:
                raise XenstoreError(f"cannot open {self._logfile}: {error.strerror}") from error
            self._handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
            log.addHandler(self._handler)

    def memreport(self, arguments: list[str]) -> bytes:
        if len(arguments) > 1:
            raise InvalidRequest("expected at most one file name")
        report = json.dumps(self._server.statistics(), indent=1)
        if not arguments:
            log.info("memory report: %s", report)
            return OK
        if not arguments[0].startswith("/"):
            raise InvalidRequest("expected an absolute file name")
        try:
            with open(arguments[0], "a") as file:
                file.write(report + "\n")
        except OSError as error:
            raise XenstoreError(f"cannot write {arguments[0]}: {error.strerror}") from error
        return OK

    def print(self, arguments: list[str]) -> bytes:
        if len(arguments) != 1:
            raise InvalidRequest("expected one string")
        log.info("control: %s", arguments[0])
        return OK

    def quota(self, arguments: list[str]) -> bytes:
        limits = self._server.accounts.limits
        if not arguments:
            lines = (f"{quota.name:<17}: {limits[quota.name]:8} {quota.about}\n" for quota in HARD)
            return _text("Quota settings:\n" + "".join(lines))
        if arguments[0] == "set":
            return self._set_quota(arguments[1:], {quota.name: quota.name for quota in HARD})
        if arguments[0] == "max":
            return self._quota_max(arguments[1:])
        if len(arguments) != 1:
            raise InvalidRequest("expected a domain id")
        domid = parse_domid(arguments[0].encode())
        account = self._server.accounts.by_domain.get(domid)
        if account is None:
            raise NotFound(f"nothing is known of domain {domid}")
        uses = [(quota.name, account.use(quota), account.peak.get(quota.name, 0)) for quota in HARD]
        lines = (f"{name:<17}: {use:8} (max {max(use, peak):8})\n" for name, use, peak in uses)
        return _text(f"Domain {domid}:\n" + "".join(lines))

    def _quota_max(self, arguments: list[str]) -> bytes:
        if arguments not in ([], ["-r"]):
            raise InvalidRequest("expected nothing or -r")
        accounts = self._server.accounts
        if arguments:
            accounts.reset_peaks()
        lines = (f"{quota.name:<17}: {accounts.peak.get(quota.name, 0):8}\n" for quota in HARD)
        return _text("Max. seen accounting values:\n" + "".join(lines))

    def quota_soft(self, arguments: list[str]) -> bytes:
        if not arguments:
            limit = self._server.accounts.limits[SOFT_MEMORY.name]
            return _text(f"Quota settings:\n{MEMORY.name:<17}: {limit:8} {MEMORY.about}\n")
        if arguments[0] != "set":
            raise InvalidRequest("expected set")
        return self._set_quota(arguments[1:], {MEMORY.name: SOFT_MEMORY.name})

    def _set_quota(self, arguments: list[str], names: dict[str, str]) -> bytes:
        if len(arguments) != 2 or arguments[0] not in names:
            raise InvalidRequest("expected the name of a quota and a positive number")
        value = parse_number(arguments[1].encode())
        if not 0 < value < 2**31:
            raise InvalidRequest("a quota set in this way is a positive number")
        accounts = self._server.accounts
        for limits in (accounts.limits, *(account.limits for account in accounts.by_domain.values())):
            limits[names[arguments[0]]] = value
        return OK

    def stats(self, arguments: list[str]) -> bytes:
        """Who uses how much of the store, and which quota has refused whom how often."""
        as_json = arguments[:1] == ["json"]
        rest = arguments[1:] if as_json else arguments
        if len(rest) > 1:
            raise InvalidRequest("expected at most one domain id")
        statistics = self._server.statistics()
        if rest:
            domid = parse_domid(rest[0].encode())
            if domid not in statistics["domains"]:
                raise NotFound(f"nothing is known of domain {domid}")
            statistics = {"domains": {domid: statistics["domains"][domid]}}
        return _text(_fitting(json.dumps(statistics, separators=(",", ":")) if as_json else _table(statistics)))


def _none(arguments: list[str]) -> None:
    if arguments:
        raise InvalidRequest("expected no arguments")


def _fitting(text: str) -> str:
    if len(text.encode()) < PAYLOAD_MAX:
        return text
    raise InvalidRequest("too many domains for one reply: ask for one domain")


def _table(statistics: dict[str, object]) -> str:
    lines = [f"{name}: {value}" for name, value in statistics.items() if name != "domains"]
    lines.append(f"{'domid':>5} {'nodes':>11} {'watches':>9} {'transactions':>12} {'memory':>17}  refused")
    domains = statistics["domains"]
    assert isinstance(domains, dict)
    for domid, usage in domains.items():
        limits = usage["limits"] if domid else {}

        def used(name: str, usage: dict[str, int] = usage, limits: dict[str, int] = limits) -> str:
            return f"{usage[name]}/{limits[name]}" if limits else str(usage[name])

        refused = " ".join(f"{name}:{count}" for name, count in usage["refused"].items()) or "-"
        lines.append(
            f"{domid:>5} {used('nodes'):>11} {used('watches'):>9} {used('transactions'):>12} {used('memory'):>17}"
            f"  {refused}"
        )
    return "\n".join(lines) + "\n"
