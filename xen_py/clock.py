# SPDX-License-Identifier: GPL-2.0-only
"""Where time comes from. Nothing else in the hypervisor asks the host for the time.

System time is in nanoseconds since some fixed moment (CLOCK_MONOTONIC's, for the real clock); the TSC a guest reads
must agree with it, so a clock also says what the TSC is and how fast it runs.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of system time, wall-clock time and TSC values. `virtual` clocks stand still unless advanced."""

    virtual: bool

    def now(self) -> int:
        """System time in ns."""

    def wall(self) -> int:
        """ns since 1970 (UTC)."""

    def tsc(self) -> int:
        """The TSC that belongs to `now()` at this moment."""

    def tsc_khz(self) -> int: ...


class RealClock:
    """The host's monotonic clock and time-stamp counter; guests read the TSC natively."""

    virtual = False
    _khz = 0
    _origin: tuple[int, int] | None = None

    def __init__(self) -> None:
        from xen_py.engine.unicorn import rdtsc

        self._rdtsc = rdtsc
        if RealClock._origin is None:
            RealClock._origin = self._pair()

    def now(self) -> int:
        return time.monotonic_ns()

    def wall(self) -> int:
        return time.time_ns()

    def tsc(self) -> int:
        return self._rdtsc()

    def _pair(self) -> tuple[int, int]:
        """(TSC, ns) of one moment: the closest of a few tries."""
        best = (1 << 62, 0, 0)
        for _ in range(8):
            before = time.monotonic_ns()
            tsc = self._rdtsc()
            after = time.monotonic_ns()
            best = min(best, (after - before, tsc, (before + after) // 2))
        return best[1], best[2]

    def tsc_khz(self) -> int:
        """Measured over at least 20 ms once per process tree, then remembered."""
        if not RealClock._khz:
            assert RealClock._origin is not None
            tsc0, ns0 = RealClock._origin
            if time.monotonic_ns() - ns0 < 20_000_000:
                time.sleep(0.02)
            tsc1, ns1 = self._pair()
            RealClock._khz = round((tsc1 - tsc0) * 1_000_000 / (ns1 - ns0))
        return RealClock._khz


class VirtualClock:
    """Time that moves only when told to; the TSC runs at 1 GHz, one tick a nanosecond."""

    virtual = True

    def __init__(self, start_ns: int = 0, wall_ns: int = 1_700_000_000_000_000_000) -> None:
        self._now = start_ns
        self._wall_offset = wall_ns - start_ns

    def now(self) -> int:
        return self._now

    def wall(self) -> int:
        return self._now + self._wall_offset

    def tsc(self) -> int:
        return self._now

    def tsc_khz(self) -> int:
        return 1_000_000

    def advance(self, ns: int) -> None:
        self._now += ns
