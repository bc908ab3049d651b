# SPDX-License-Identifier: GPL-2.0-only
"""A host for each test, and what it may boot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.harness import Host, fetch_debian, stress_initramfs


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path) as running:
        yield running


@pytest.fixture(scope="session")
def debian() -> None:
    """Debian's kernel is in the cache."""
    fetch_debian()


@pytest.fixture(scope="session")
def stress_ramdisk(debian: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stress_initramfs(tmp_path_factory.mktemp("images"))
