# SPDX-License-Identifier: GPL-2.0-only
"""A program of tests in a network and a mount namespace of its own: loopback, ports and files of /etc are its own.

Needs no root where the system lets users make namespaces.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import native_build


def run_apart(module: str, folder: Path) -> None:
    """Run `python -m MODULE FOLDER` there, with the loopback up. AssertionError with its output if it fails."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    line = 'ip link set lo up && exec "$0" -m "$@"'
    done = subprocess.run(
        ["unshare", *user, "--net", "--mount", "sh", "-c", line, sys.executable, module, str(folder)],
        cwd=native_build.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def put_over(target: str, text: str, folder: Path) -> None:
    """Have a file of the system's read like this, for this program and what it starts."""
    file = folder / Path(target).name
    file.write_text(text)
    subprocess.run(["mount", "--bind", str(file), target], check=True)
