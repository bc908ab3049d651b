# SPDX-License-Identifier: GPL-2.0-only
"""Two guests at once, and guests that come and go: each leaves the other alone and leaves nothing behind.

    python -m tests.soak.pairs [--seconds 60] [--cycles 50]

Returns 0, or stops at the first thing that is not as it must be, returns 1 and keeps its run directory.
"""

from __future__ import annotations

import argparse
import sys

from tests.soak.report import Report
from tests.system import scenarios
from tests.system.harness import Host, Session, fetch_debian, stress_initramfs

SETTLED_CYCLE = 5
"""After this many cycles the host has all it ever needs."""
MEMORY_KB = 5 * 1024
"""By this much its memory may grow afterwards."""
CORES = 1.8
"""What two busy guests use of two cores, on a machine that does nothing else."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.pairs", description="Guests in pairs, and cycles.")
    parser.add_argument("--seconds", type=int, default=60, help="length of the stress")
    parser.add_argument("--cycles", type=int, default=50)
    options = parser.parse_args(arguments)
    with Report("pairs") as report:
        fetch_debian()
        ramdisk = stress_initramfs(report.folder)
        with Host(report.folder) as host:
            before = scenarios.footprint_of_a_used_host(host)
            with scenarios.two_debians(host, ramdisk) as consoles:
                _stress_both(host, consoles, options.seconds, report)
                used, waited = scenarios.busy_cores(host, consoles, 15)
                report.say(f"two busy guests use {used:.2f} cores, and wait for {waited:.2f} that others use")
                assert used >= CORES, "two busy guests use too little of two cores: are others busy on this machine?"
                for console in consoles:
                    console.send("stress 600\n")
                    console.expect("^stress: begins")
                scenarios.kill_one(host, consoles)
                report.say("kill -9 of one VM process: it counts as crashed, the other guest goes on")
                consoles[1].send("stress 600\n")
                consoles[1].expect("^stress: begins")
                scenarios.destroy_busy(host, "two")
                report.say("destroyed in the middle of its stress: gone")
            scenarios.check_logs(host, ["one", "two"])
            report.say(f"before: {before}")
            report.say(f"after:  {scenarios.check_footprint(host, before)}")
            _cycle(host, options.cycles, report)
    return report.status


def _stress_both(host: Host, consoles: tuple[Session, Session], seconds: int, report: Report) -> None:
    for console in consoles:
        console.send(f"stress {seconds}\n")
        console.expect("^stress: begins")
    scenarios.pause_one(host, seconds / 6)
    report.say(f"both under stress, one paused for {seconds / 6:.0f} s and unpaused: it stood still, the other did not")
    for console in consoles:
        scenarios.expect_verdict(console, 120 + 20.0 * seconds)
    report.say("both passed their stress")


def _cycle(host: Host, cycles: int, report: Report) -> None:
    for _ in range(SETTLED_CYCLE):
        scenarios.cycle_hello(host)
    settled = host.footprint()
    for _ in range(cycles - SETTLED_CYCLE):
        scenarios.cycle_hello(host)
    after = scenarios.check_footprint(host, settled)
    report.say(f"after {SETTLED_CYCLE} cycles of the hello guest: {settled}")
    report.say(f"after {cycles} cycles: {after}, memory {after.pss_kb - settled.pss_kb:+d} kB")
    assert after.pss_kb <= settled.pss_kb + MEMORY_KB, "the host's memory grows"


if __name__ == "__main__":
    sys.exit(main())
