# SPDX-License-Identifier: GPL-2.0-only
"""A host for each test, Debian's kernel, and the ways in which rings are served."""

from __future__ import annotations

import pytest

from dom0.host.hosted import HostedVm
from tests.net.doorbells import give_doorbells
from tests.system.conftest import debian, host

__all__ = ["debian", "host"]


@pytest.fixture(params=["servers", "lane", "datapath"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How rings of guests in this loop are served: by the tasks, or in C where it can, as those of others are.

    In C it is by the loop alone, or with the datapath's thread.
    """
    monkeypatch.setattr(HostedVm, "direct", request.param == "lane")
    if request.param == "datapath":
        give_doorbells(monkeypatch)
    return str(request.param)
