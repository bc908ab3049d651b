# SPDX-License-Identifier: GPL-2.0-only
"""The privileged control domain: xl, toolstack, domain builder, backend drivers, the host process.

`open_machine` is its front door for Python programs; it is only imported when asked for, since `xl` needs none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dom0.host.machine import open_machine

__all__ = ["open_machine"]


def __getattr__(name: str) -> Any:
    if name == "open_machine":
        from dom0.host.machine import open_machine

        return open_machine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
