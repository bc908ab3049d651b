# SPDX-License-Identifier: GPL-2.0-only
"""Compiling the C parts: what is rebuilt when, what a failed run leaves, and what the library needs to be loaded."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

import native_build


def test_stale_means_missing_or_older_than_a_source(tmp_path: Path) -> None:
    source, output = tmp_path / "a.c", tmp_path / "a.o"
    source.write_text("")
    assert native_build.is_stale(output, [source])
    output.write_text("")
    newer = output.stat().st_mtime_ns + 1_000_000
    os.utime(output, ns=(newer, newer))
    assert not native_build.is_stale(output, [source])
    os.utime(source, ns=(newer + 1, newer + 1))
    assert native_build.is_stale(output, [source])


def test_what_is_up_to_date_is_left_alone() -> None:
    native_build.build_engine()
    native_build.build_guests()
    assert native_build.build_engine() == []
    assert native_build.build_guests() == []


def test_a_failed_run_tells_why_and_leaves_the_old_output(tmp_path: Path) -> None:
    source, output = tmp_path / "bad.c", tmp_path / "bad.so"
    source.write_text("int f(void) { return nothing; }\n")
    output.write_text("old")
    with pytest.raises(native_build.BuildError, match="undeclared identifier 'nothing'"):
        native_build.zig_cc(["-target", native_build.ENGINE_TARGET, "-shared", source], output)
    assert output.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.c", "bad.so"]


def test_the_engine_library_loads_by_itself() -> None:
    native_build.build_engine()
    ctypes.CDLL(str(native_build.ENGINE_LIBRARY))
