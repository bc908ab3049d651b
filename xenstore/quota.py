# SPDX-License-Identifier: GPL-2.0-only
"""What each domain may use of the store and what it uses now; says which quota ran out and for whom.

Owned by the server. Dom0 is counted but never limited. The limits are inclusive: a domain may hold
exactly `nodes` nodes. Source: docs/misc/xenstore.txt (GET_QUOTA, CONTROL quota), defaults of Xen 4.22.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from xenstore.errors import QuotaExceeded
from xenstore.types import DOM0, DomId


class Quota(NamedTuple):
    name: str
    default: int
    about: str


NODES: Final = Quota("nodes", 1000, "Nodes per domain")
WATCHES: Final = Quota("watches", 128, "Watches per domain")
OUTSTANDING: Final = Quota("outstanding", 20, "Outstanding requests per domain")
MEMORY: Final = Quota("memory", 2560 * 1024, "Total Xenstore memory per domain")
TRANSACTIONS: Final = Quota("transactions", 10, "Active transactions per domain")
TRANSACTION_NODES: Final = Quota("transaction-nodes", 1024, "Max. number of accessed nodes per transaction")
NODE_PERMISSIONS: Final = Quota("node-permissions", 5, "Max. number of permissions per node")
PATH_MAX: Final = Quota("path-max", 2048, "Max. length of a node path")
NODE_SIZE: Final = Quota("node-size", 2048, "Max. size of a node")
SOFT_MEMORY: Final = Quota("soft-memory", 2048 * 1024, "Total Xenstore memory per domain")

HARD: Final = (
    NODES, WATCHES, OUTSTANDING, MEMORY, TRANSACTIONS, TRANSACTION_NODES, NODE_PERMISSIONS, PATH_MAX, NODE_SIZE,
)  # fmt: skip
"""In the order in which Xen's daemon lists them."""
ALL: Final = {quota.name: quota for quota in (*HARD, SOFT_MEMORY)}
ALIASES: Final = {"permissions": "node-permissions"}
"""The specification's name next to the one Xen's daemon uses."""

LOG_EVERY: Final = 10.0
"""Seconds between two log lines about the same quota of the same domain."""


def named(name: str) -> Quota | None:
    return ALL.get(ALIASES.get(name, name))


class Account:
    """One domain's use, its highest use, its own limits and how often each quota refused it something."""

    __slots__ = ("_logged", "domid", "limits", "memory", "nodes", "peak", "refused", "transactions", "watches")

    def __init__(self, domid: DomId, limits: dict[str, int]) -> None:
        self.domid = domid
        self.limits = dict(limits)
        self.nodes = 0
        self.watches = 0
        self.transactions = 0
        self.memory = 0
        """Bytes of the paths, values and children lists of its nodes, and of its watches."""
        self.peak: dict[str, int] = {}
        self.refused: dict[str, int] = {}
        self._logged: dict[str, float] = {}

    def use(self, quota: Quota) -> int:
        """What is in use now of the quotas that are counted; for the others, the highest seen."""
        if quota is NODES:
            return self.nodes
        if quota is WATCHES:
            return self.watches
        if quota is TRANSACTIONS:
            return self.transactions
        if quota is MEMORY or quota is SOFT_MEMORY:
            return max(self.memory, 0)
        return 0

    def saw(self, quota: Quota, value: int) -> None:
        if value > self.peak.get(quota.name, 0):
            self.peak[quota.name] = value

    def should_log(self, quota: Quota, now: float) -> bool:
        """True at most once per quota in LOG_EVERY seconds: a guest must not be able to fill the log."""
        last = self._logged.get(quota.name)
        if last is not None and now - last < LOG_EVERY:
            return False
        self._logged[quota.name] = now
        return True


class Accounts:
    """The accounts of all domains and the limits that new domains start with."""

    def __init__(self, log: Callable[[str], None], clock: Callable[[], float]) -> None:
        self.limits: dict[str, int] = {quota.name: quota.default for quota in ALL.values()}
        self.peak: dict[str, int] = {}
        self.by_domain: dict[DomId, Account] = {}
        self._log = log
        self._clock = clock

    def of(self, domid: DomId) -> Account:
        account = self.by_domain.get(domid)
        if account is None:
            account = self.by_domain[domid] = Account(domid, self.limits)
        return account

    def forget(self, domid: DomId) -> None:
        self.by_domain.pop(domid, None)

    def check(self, account: Account, quota: Quota, value: int, what: str) -> None:
        """Raise QuotaExceeded, after logging which quota of which domain it was, if `value` is too much."""
        limit = account.limits[quota.name]
        if limit and value > limit and account.domid != DOM0:
            self.refuse(account, quota, value, what)
        account.saw(quota, value)
        if account.domid != DOM0 and value > self.peak.get(quota.name, 0):
            self.peak[quota.name] = value

    def refuse(self, account: Account, quota: Quota, value: int, what: str) -> None:
        limit = account.limits[quota.name]
        count = account.refused[quota.name] = account.refused.get(quota.name, 0) + 1
        message = (
            f"domain {account.domid} exceeds its quota {quota.name!r}: {what} needs {value}, the limit is {limit} "
            f"(refused {count} times so far; raise it with SET_QUOTA {account.domid} {quota.name})"
        )
        if account.should_log(quota, self._clock()):
            self._log(message)
        raise QuotaExceeded(message)

    def warn(self, account: Account, quota: Quota, value: int, what: str) -> None:
        """Log that a domain uses more than it should; nothing is refused."""
        limit = account.limits[quota.name]
        if limit and value > limit and account.domid != DOM0 and account.should_log(quota, self._clock()):
            self._log(f"domain {account.domid} is above its quota {quota.name!r}: {value} of {limit} after {what}")

    def reset_peaks(self) -> None:
        self.peak.clear()
        for account in self.by_domain.values():
            account.peak.clear()
