# SPDX-License-Identifier: GPL-2.0-only
"""XenStore in Python: server, clients and tools. See docs/xenstore.md.

`Client` and `AsyncClient` are imported when they are first asked for, so the command-line tools start fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xenstore.aclient import AsyncClient, open_client
    from xenstore.client import Client
    from xenstore.commands import Event
    from xenstore.errors import XenstoreError

__all__ = ["AsyncClient", "Client", "Event", "XenstoreError", "open_client"]

_WHERE = {
    "AsyncClient": "xenstore.aclient",
    "Client": "xenstore.client",
    "Event": "xenstore.commands",
    "XenstoreError": "xenstore.errors",
    "open_client": "xenstore.aclient",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'xenstore' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_WHERE[name]), name)
