# SPDX-License-Identifier: GPL-2.0-only
"""A host for each test, and Debian's kernel."""

from __future__ import annotations

from tests.system.conftest import debian, host

__all__ = ["debian", "host"]
