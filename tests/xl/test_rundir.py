# SPDX-License-Identifier: GPL-2.0-only
"""The run directory: which one, made privately, refused when others could get in."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from dom0.rundir import RunDirError, run_directory


def test_the_environment_chooses(tmp_path: Path) -> None:
    chosen = tmp_path / "deep" / "run"
    assert run_directory({"XENPY_RUNDIR": str(chosen), "XDG_RUNTIME_DIR": "/nowhere"}) == chosen
    assert chosen.stat().st_mode & 0o777 == 0o700


def test_the_session_directory_comes_next(tmp_path: Path) -> None:
    assert run_directory({"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "xen-py"


@pytest.mark.parametrize("environ", [{}, {"XDG_RUNTIME_DIR": "/no/such/directory"}])
def test_the_temporary_directory_is_the_last_resort(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run_directory(environ) == tmp_path / f"xen-py-{os.geteuid()}"


def test_an_open_directory_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(RunDirError, match=r"open to others .mode 755.; chmod 700"):
        run_directory({"XENPY_RUNDIR": str(tmp_path)})


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(RunDirError, match="not a directory"):
        run_directory({"XENPY_RUNDIR": str(tmp_path / "link")})


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match=r"below: .*; set XENPY_RUNDIR"):
        run_directory({"XENPY_RUNDIR": str(tmp_path / "file" / "below")})


def test_a_stranger_s_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(RunDirError, match="belongs to user"):
        run_directory({"XENPY_RUNDIR": str(tmp_path)})


def test_a_path_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="too long for unix sockets"):
        run_directory({"XENPY_RUNDIR": str(tmp_path / ("x" * 100))})
