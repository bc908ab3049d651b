# SPDX-License-Identifier: GPL-2.0-only
"""What the tests that boot native guests share: the guests, built from the sources as they are now."""

from __future__ import annotations

import pytest

import native_build


@pytest.fixture(scope="session", autouse=True)
def built_guests() -> None:
    native_build.build_guests()
