# SPDX-License-Identifier: GPL-2.0-only
"""What `xl debug-keys` has the hypervisor print into its message buffer.

Keys and layout are Xen's (xen/common/keyhandler.c, gnttab_usage_print in grant_table.c). Xen lists every grant in use;
here a domain with very many is listed in part, and all of its grants are summed up by whom they are for. A key
that means nothing is ignored, as Xen does. Owner: the trio thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import trio

from dom0.backend.grants import GuestGone, GuestGrants
from xen_py.types import DomId

PATIENCE = 5
"""Seconds a domain may take to tell what it knows: its process may be stopped."""

Tables = Callable[[], Iterable[tuple[DomId, GuestGrants]]]
"""The grants of every domain there is."""


class DebugKeys:
    """The keys of one host. `say` takes lines for the message buffer."""

    def __init__(self, tables: Tables, say: Callable[[str], None]) -> None:
        self._tables = tables
        self._say = say
        self._keys: dict[str, tuple[str, Callable[[str], Awaitable[list[str]]]]] = {
            "g": ("print grant table usage", self._grants),
            "h": ("show this message", self._help),
        }

    async def press(self, keys: str) -> None:
        """Each key in turn; what one prints is not mixed with other messages."""
        for key in keys:
            if key in self._keys:
                self._say("\n".join(await self._keys[key][1](key)))

    async def _help(self, key: str) -> list[str]:
        lines = [f"'{key}' pressed -> showing installed handlers"]
        return lines + [f" key '{k}' (ascii '{ord(k):02x}') => {text}" for k, (text, _) in sorted(self._keys.items())]

    async def _grants(self, key: str) -> list[str]:
        lines = [f"gnttab_usage_print_all [ key '{key}' pressed"]
        for domid, grants in list(self._tables()):
            try:
                with trio.fail_after(PATIENCE):
                    lines += grant_table_lines(domid, await grants.usage())
            except (GuestGone, trio.TooSlowError):
                held = grants.statistics().pinned
                lines.append(f"grant-table for remote d{domid}: it does not answer; dom0 has {held} grants in use")
        return [*lines, "gnttab_usage_print_all ] done"]


def grant_table_lines(domid: int, usage: dict[str, Any]) -> list[str]:
    """One domain's grants, from `GrantTable.usage`."""
    lines = [
        "      -------- active --------       -------- shared --------",
        "[ref] localdom mfn      pin          localdom gmfn     flags",
        f"grant-table for remote d{domid} (v1)",
        f"  {usage['frames']} frames ({usage['max_frames']} max), "
        f"{usage['maptrack_frames']} maptrack frames ({usage['max_maptrack_frames']} max)",
    ]
    for ref, user, mfn, pin, grantee, frame, flags in usage["pinned"]:
        lines.append(f"[0x{ref:03x}]  {user:5d} 0x{mfn:05x} 0x{pin:08x}      {grantee:5d} 0x{frame:06x} 0x{flags:02x}")
    if not usage["in_use"]:
        lines.append("no active grant table entries")
    if unlisted := usage["in_use"] - len(usage["pinned"]):
        lines.append(f"  and {unlisted} more active entries")
    for grantee, readonly, entries, in_use in usage["granted"]:
        lines.append(f"  granted to d{grantee}{' read-only' if readonly else ''}: {entries} entries, {in_use} active")
    if usage["unlisted"]:
        lines.append(f"  granted to others: {usage['unlisted']} entries")
    if usage["revoked"]:
        lines.append(f"  active though the guest has taken them back: {usage['revoked']} entries")
    return lines
