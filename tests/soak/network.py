# SPDX-License-Identifier: GPL-2.0-only
"""Streams between two Debian guests, both ways, while cards come and go, guests are paused and all is captured.

    python -m tests.soak.network [--seconds 600]

Each stream's bytes are checked at its end, every checksum in the capture is right, and nothing is left behind. Returns
0, or stops at the first thing that is not as it must be, returns 1 and keeps its run directory.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.net.captures import read_capture
from tests.net.linux import Shell, guests, transfer
from tests.soak.report import Report
from tests.system.harness import Host, fetch_debian
from xen_py.io.packet import checksum_is_right

SETTLED = 2
"""Rounds after which the host has all it ever needs."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.network", description="Streams between guests.")
    parser.add_argument("--seconds", type=int, default=600)
    options = parser.parse_args(arguments)
    with Report("network") as report:
        fetch_debian()
        with Host(report.folder) as host:
            _run(host, options.seconds, report)
    return report.status


def _run(host: Host, seconds: int, report: Report) -> None:
    capture = report.folder / "capture.pcapng"
    # Linux's netfront never lets go of the receive buffers of a card that is detached, a MiB each: there is room for it
    memory = 160 + seconds // 3
    cards = "['mac=00:16:3e:00:00:01']", "['mac=00:16:3e:00:00:02']"
    with guests(host, *cards, memory=memory) as (one, two):
        for number, shell in ((1, one), (2, two)):
            shell.run(f"ip addr add 10.0.0.{number}/24 dev eth0; ip link set eth0 up")
        rounds, settled, deadline = 0, None, time.monotonic() + seconds
        while time.monotonic() < deadline or settled is None:
            _round(host, one, two)  # most packets go by the datapath; what is captured does not
            with host.session("netcap", "net0", "-w", str(capture)):
                _round(host, one, two)
            _, frames = read_capture(capture.read_bytes())
            wrong = [frame for frame in frames if not checksum_is_right(frame.data)]
            assert not wrong, f"{len(wrong)} of {len(frames)} captured frames have a wrong checksum"
            rounds += 1
            if rounds == SETTLED:
                settled = host.footprint()
                report.say(f"after {rounds} rounds, {len(frames)} frames in the last: {settled}")
        after = host.footprint()
        assert not (more := after.more_than(settled)), f"left behind: {more}"
        report.say(f"after {rounds} rounds: {after}, memory {after.pss_kb - settled.pss_kb:+d} kB")


def _round(host: Host, one: Shell, two: Shell) -> None:
    transfer(two, one, "10.0.0.2", 2)
    host.xl("network-attach", "net1", "bridge=other", "mac=00:16:3e:00:00:03")
    transfer(one, two, "10.0.0.1", 2)
    host.xl("network-detach", "net1", "00:16:3e:00:00:03")
    one.start("ping -c 5 -q 10.0.0.2")
    host.xl("pause", "net1")
    time.sleep(1)
    host.xl("unpause", "net1")
    one.wait("^done=0")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
