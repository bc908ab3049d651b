# SPDX-License-Identifier: GPL-2.0-only
"""Guests come and go, and nothing of them stays."""

from __future__ import annotations

from tests.system import scenarios
from tests.system.harness import Host

CYCLES = 8


def test_nothing_is_left_of_destroyed_guests(host: Host) -> None:
    before = scenarios.footprint_of_a_used_host(host)
    for _ in range(CYCLES):
        scenarios.cycle_hello(host)
    scenarios.check_footprint(host, before)
    assert list((host.rundir / "console").iterdir()) == []
    scenarios.check_logs(host, ["hello"])
