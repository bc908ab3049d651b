# SPDX-License-Identifier: GPL-2.0-only
"""docs/write-a-driver.md: its files are those of the example, and following it from an empty folder works."""

from __future__ import annotations

from pathlib import Path

import native_build
from tests.documents import carry_out, listings

PAGE = native_build.ROOT / "docs" / "write-a-driver.md"
EXAMPLE = native_build.ROOT / "examples" / "echo_device"


def test_the_listings_are_the_example() -> None:
    for name, text in listings(PAGE.read_text()).items():
        file = EXAMPLE / "tests" / name if name.startswith("test_") else EXAMPLE / name
        shown = text.removeprefix(f"# {name}\n")
        assert shown == file.read_text().removeprefix("# SPDX-License-Identifier: GPL-2.0-only\n"), name


def test_the_example_is_short() -> None:
    halves = [EXAMPLE / "echo_device" / f"{name}.py" for name in ("protocol", "backend", "frontend")]
    assert sum(len(path.read_text().splitlines()) for path in halves) < 150


def test_a_newcomer_gets_there(tmp_path: Path) -> None:
    folder, site, rundir = (tmp_path / name for name in ("work", "site", "run"))
    folder.mkdir()
    rundir.mkdir(mode=0o700)
    # what pip installs goes to a place of its own: the environment of the tests stays what it is
    variables = {"PIP_TARGET": str(site), "XENPY_RUNDIR": str(rundir)}
    carry_out(PAGE, folder, site, variables=variables)
