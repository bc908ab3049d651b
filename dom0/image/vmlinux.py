# SPDX-License-Identifier: GPL-2.0-only
"""The unpacked vmlinux ELF file of a bzImage, for benchmarks and for looking into kernels."""

from __future__ import annotations

import os
from pathlib import Path

from dom0.builder.compression import Progress
from dom0.builder.kernel import read_file, unpack


def extract(kernel: str | os.PathLike[str], to: str | os.PathLike[str], progress: Progress | None = None) -> None:
    """Write the ELF file in `kernel` (anything `xl create` boots) to file `to`. BuildError or OSError if it fails."""
    data, _ = unpack(read_file(kernel, "kernel"), os.fspath(kernel), progress)
    Path(to).write_bytes(data)
