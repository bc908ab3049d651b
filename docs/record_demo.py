#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Make docs/demo.svg: a real session on a terminal, as README.md shows it. Takes a boot's time.

    python docs/record_demo.py

What a person would type is typed, what comes is shown; only the middle of the kernel's messages is left out.
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tests.system.harness import Host, fetch_debian  # noqa: E402

WIDTH, FIRST, LAST = 100, 7, 8
PROMPT = "$ "
GUEST_PROMPT = r"/ # (\x1b\[6n)?"


def main() -> int:
    fetch_debian()
    screen = Console(record=True, width=WIDTH, file=io.StringIO())
    with tempfile.TemporaryDirectory() as folder, Host(Path(folder)) as host:
        config = "examples/debian.cfg"
        typed(screen, f"xl create -c {config}")
        with host.session("create", "-c", config, terminal=(40, WIDTH)) as terminal:
            terminal.expect(GUEST_PROMPT)
            lines = [line for line in shown(terminal.output) if line]
            for line in [*lines[:FIRST], "...", *lines[-LAST:-1]]:
                screen.print(Text(line))
            for command in ("uname -srv", "cat /sys/hypervisor/type /proc/uptime"):
                start = len(terminal.output)
                terminal.send(command + "\n")
                terminal.expect(GUEST_PROMPT)
                answer = shown(terminal.output[start:])[:-1]
                screen.print(Text("/ # ") + Text(answer[0], "bold"), *map(Text, answer[1:]), sep="\n")
            screen.print(Text("/ # ") + Text("Ctrl-]", "dim"))
            terminal.send("\x1d")
            terminal.finish()
        for command in ("list", "shutdown -w debian"):
            typed(screen, f"xl {command}")
            screen.print(Text(host.xl(*command.split()).expandtabs().rstrip()))
    drawing = screen.export_svg(title="Xen in Python")
    # fonts of the reader's machine: a picture that sends its readers elsewhere for fonts is a nuisance
    (HERE / "demo.svg").write_text(re.sub(r"@font-face \{.*?\}\s*", "", drawing, flags=re.DOTALL))
    return 0


def typed(screen: Console, command: str) -> None:
    screen.print(Text(PROMPT, "green") + Text(command, "bold"))


def shown(output: bytes) -> list[str]:
    """The lines of what a terminal was sent, without control sequences and what they erase (a progress bar)."""
    lines = output.decode(errors="replace").replace("\r\n", "\n").split("\n")
    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", re.sub(r".*\x1b\[2K", "", line)) for line in lines]


if __name__ == "__main__":
    sys.exit(main())
