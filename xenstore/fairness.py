# SPDX-License-Identifier: GPL-2.0-only
"""Nobody may starve others of transactions: a domain whose writes make them fail has to slow down.

Each time a transaction fails, the domain that changed what it had read pays a credit; credits come back with
time. Without credit its requests wait, so the victim's next attempt succeeds. Dom0 is exempt. Owned by the
server. The idea is oxenstored's conflict credit; Xen's C daemon limits the rate of writes for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from xenstore.types import DOM0, DomId

BURST: Final = 5.0
"""Conflicts a domain may cause at once."""
PER_SECOND: Final = 20.0
"""Conflicts per second it may cause for ever."""


class Fairness:
    """Conflict credits of the domains. Only those that have lost credit are remembered."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._credits: dict[DomId, tuple[float, float]] = {}
        self.conflicts: dict[DomId, int] = {}
        """How many failed transactions each domain has caused others, ever."""

    def blame(self, culprit: DomId, victim: DomId) -> float:
        """`culprit` made a transaction of `victim` fail; gives the time until which it must wait, 0 if it need not."""
        if culprit in (DOM0, victim):
            return 0.0
        self.conflicts[culprit] = self.conflicts.get(culprit, 0) + 1
        now = self._clock()
        credit, since = self._credits.get(culprit, (BURST, now))
        credit = min(BURST, credit + (now - since) * PER_SECOND) - 1.0
        self._credits[culprit] = (credit, now)
        return now + (1.0 - credit) / PER_SECOND if credit < 0 else 0.0

    def forget(self, domid: DomId) -> None:
        self._credits.pop(domid, None)
        self.conflicts.pop(domid, None)
