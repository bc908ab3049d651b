# SPDX-License-Identifier: GPL-2.0-only
"""A fresh small domain for a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.core.machine import Machine, build_machine


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = build_machine()
    yield made
    made.close()
