# SPDX-License-Identifier: GPL-2.0-only
"""docs/testing-drivers.md is true: its tests run, print what it says, and it names every fault."""

from __future__ import annotations

from pathlib import Path

import native_build
from dom0.kit.faults import KINDS
from tests.documents import carry_out

PAGE = native_build.ROOT / "docs" / "testing-drivers.md"


def test_every_listing_and_command(tmp_path: Path) -> None:
    carry_out(PAGE, tmp_path, native_build.ROOT / "examples" / "echo_device")


def test_every_fault_is_described() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    described = [row.split("|")[1].strip() for row in rows]
    assert described[1:] == list(KINDS), "the table of faults in the page is not that of the kit"
