# SPDX-License-Identifier: GPL-2.0-only
"""A host for each test, Debian's kernel, and both ways in which rings are served."""

from __future__ import annotations

import pytest

from dom0.host.hosted import HostedVm
from tests.system.conftest import debian, host

__all__ = ["debian", "host"]


@pytest.fixture(params=["servers", "lane"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How rings of guests in this loop are served: by the tasks, or in C where it can, as those of others are."""
    monkeypatch.setattr(HostedVm, "direct", request.param == "lane")
    return str(request.param)
