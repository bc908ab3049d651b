# SPDX-License-Identifier: GPL-2.0-only
"""What the tests of xl share: a run directory, a fake host in it, and xl itself."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import pytest

from dom0.xl.main import main
from tests.xl.fake_host import FakeHost


class Ran(NamedTuple):
    """How one run of xl ended."""

    status: int
    out: str
    err: str


Xl: TypeAlias = Callable[..., Ran]


@pytest.fixture
def rundir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run directory with a path short enough for sockets; xl finds it in the environment."""
    with tempfile.TemporaryDirectory(prefix="xl-") as path:
        monkeypatch.setenv("XENPY_RUNDIR", path)
        yield Path(path)


@pytest.fixture
def host(rundir: Path) -> Iterator[FakeHost]:
    fake = FakeHost(rundir)
    yield fake
    fake.close()


@pytest.fixture
def xl(rundir: Path, capsys: pytest.CaptureFixture[str]) -> Xl:
    """Run xl in this process."""

    def run(*words: str) -> Ran:
        capsys.readouterr()
        status = main(list(words))
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return run
