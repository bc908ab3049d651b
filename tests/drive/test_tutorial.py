# SPDX-License-Identifier: GPL-2.0-only
"""docs/write-a-driver.md: its files are those of the example, and following it from an empty folder works."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import native_build
from tests.documents import follow, listings

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
    """From an empty folder: with nothing of this environment but its Python, and xen-py as pip installs it."""
    folder, rundir, copy = (tmp_path / name for name in ("work", "run", "xen-py"))
    for made in (folder, copy):
        made.mkdir()
    rundir.mkdir(mode=0o700)
    for name in subprocess.check_output(["git", "ls-files"], cwd=native_build.ROOT, text=True).splitlines():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(native_build.ROOT / name, copy / name)
    path = [folder / "env" / "bin", Path(sys.executable).parent, os.environ["PATH"]]
    variables = {
        "PATH": os.pathsep.join(map(str, path)),  # as after `. env/bin/activate`: each command has a shell of its own
        "PYTHONPATH": "",
        "PIP_QUIET": "2",  # no warnings either: an index may have some
        "XEN_PY": str(copy),
        "XENPY_RUNDIR": str(rundir),
    }
    follow(PAGE, folder, variables)
