# SPDX-License-Identifier: GPL-2.0-only
"""Boots in a row: Debian's kernel to its prompt, a stress inside, power off; nothing may go wrong, and no clock may.

    python -m tests.soak.boots [--boots 20] [--seconds 60]

Prints a line a boot and returns 0, or stops at the first boot that fails, returns 1 and keeps its run directory.
"""

from __future__ import annotations

import argparse
import sys

from tests.soak.report import Report
from tests.system import scenarios
from tests.system.harness import Host, fetch_debian, stress_initramfs

CLOCK = 0.02
"""How far, as a part of it, a guest's sleep may be from what it should be by the host's clock."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.boots", description="Boots and stress in a row.")
    parser.add_argument("--boots", type=int, default=20)
    parser.add_argument("--seconds", type=int, default=60, help="length of the stress in each boot")
    options = parser.parse_args(arguments)
    with Report("boots") as report:
        fetch_debian()
        ramdisk = stress_initramfs(report.folder)
        with Host(report.folder) as host:
            before = scenarios.footprint_of_a_used_host(host)
            for number in range(1, options.boots + 1):
                result = scenarios.boot_and_stress(host, ramdisk, seconds=options.seconds)
                report.say(
                    f"boot {number} of {options.boots}: prompt after {result.prompt:.1f} s,"
                    f" stress {result.stress:.1f} s, passed; sleep {result.sleep} took {result.slept:.2f} s;"
                    f" {result.cpu:.1f} s of CPU time; powered off"
                )
                assert abs(result.slept - result.sleep) <= CLOCK * result.sleep, "the guest's clock is wrong"
            report.say(f"before: {before}")
            report.say(f"after:  {scenarios.check_footprint(host, before)}")
    return report.status


if __name__ == "__main__":
    sys.exit(main())
