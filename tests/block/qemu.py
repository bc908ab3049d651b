# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's image tools, unpacked and not installed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests import debian

_PACKAGES = ("qemu-utils", "libfuse3-3", "libaio1t64|libaio1", "liburing2")


def tools(folder: Path) -> Path:
    """A folder to put into PATH."""
    root = debian.unpacked(*_PACKAGES)
    libraries = ":".join(str(root / top / "x86_64-linux-gnu") for top in ("usr/lib", "lib"))
    for name in ("qemu-nbd", "qemu-img"):
        script = folder / name
        script.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={libraries} exec {root}/usr/bin/{name} "$@"\n')
        script.chmod(0o755)
    return folder


def img(*arguments: str | Path) -> str:
    """qemu-img, found in PATH."""
    done = subprocess.run(
        ["qemu-img", *map(str, arguments)], env=os.environ, capture_output=True, text=True, check=True
    )
    return done.stdout
