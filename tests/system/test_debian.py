# SPDX-License-Identifier: GPL-2.0-only
"""Debian's unmodified kernel under stress, alone and two at once. The long version is in tests/soak."""

from __future__ import annotations

from pathlib import Path

from tests.system import scenarios
from tests.system.harness import Host


def test_boots_is_stressed_and_powers_off(host: Host, stress_ramdisk: Path) -> None:
    before = scenarios.footprint_of_a_used_host(host)
    result = scenarios.boot_and_stress(host, stress_ramdisk, seconds=9, megabytes=8)
    # by how much a sleep is late depends on who else uses this machine; the soak run looks closer
    assert result.slept > 0.9 * result.sleep
    scenarios.check_footprint(host, before)


def test_two_at_once_paused_killed_and_destroyed(host: Host, stress_ramdisk: Path) -> None:
    before = scenarios.footprint_of_a_used_host(host)
    with scenarios.two_debians(host, stress_ramdisk) as consoles:
        for console in consoles:
            console.send("stress 6 4\n")
            console.expect("^stress: begins")
        scenarios.pause_one(host, 1)
        for console in consoles:
            scenarios.expect_verdict(console)
            console.send("stress 600\n")
            console.expect("^stress: begins")
        scenarios.kill_one(host, consoles)
        consoles[1].send("stress 600\n")
        consoles[1].expect("^stress: begins")
        scenarios.destroy_busy(host, "two")
    scenarios.check_logs(host, ["one", "two"])
    scenarios.check_footprint(host, before)
