# SPDX-License-Identifier: GPL-2.0-only
"""A person at a guest's console: `xl create -c` and `xl console` on a terminal, with programs that use all of it."""

from __future__ import annotations

import hashlib

from tests.system.harness import Host

ESCAPE = "\x1d"
SIZE = (30, 100)


def test_full_screen_programs_and_the_way_out(host: Host, debian: None) -> None:
    path = host.debian("screen")
    with host.session("create", "-c", str(path), terminal=SIZE) as terminal:
        # attached from the first instruction on: this is the first line a kernel says
        terminal.expect(r"Linux version 6\.")
        terminal.expect(r"/ # ")
        terminal.send("stty rows 30 cols 100\n")
        terminal.expect(r"/ # ")
        terminal.send("vi /tmp/letter\n")
        terminal.expect(r"/tmp/letter.*1/1 100%")
        lines = [f"line {number}: the quick brown fox" for number in range(1, 41)]
        terminal.send("i" + "\r".join(lines) + "\x1b")
        terminal.expect(r"- /tmp/letter \[Modified\] 40/40 100%")  # what follows an Escape at once is part of it
        terminal.send("1G" + "3dd" + "G" + "yyp")  # the first three lines go, the last is doubled
        terminal.expect(r"Put 1 lines")
        terminal.send(":s/quick/slow/\r:wq\r")
        terminal.expect(r"/ # ")
        terminal.send(ESCAPE)
        assert terminal.finish() == 0
    expected = "\n".join([*lines[3:], lines[-1].replace("quick", "slow")]) + "\n"

    with host.session("console", "screen", terminal=SIZE) as terminal:
        terminal.send("md5sum /tmp/letter\n")
        terminal.expect(hashlib.md5(expected.encode()).hexdigest())
        terminal.expect(r"/ # ")
        terminal.send("top -d 1\n")
        terminal.expect(r"Mem: \d+K used")
        terminal.expect(r"Mem: \d+K used")
        terminal.send("\x03")  # Ctrl-C is the guest's
        terminal.expect(r"/ # ")
        terminal.send("poweroff\n")
        assert terminal.finish() == 0
        terminal.output.index(b"reboot: System halted")
