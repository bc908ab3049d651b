# SPDX-License-Identifier: GPL-2.0-only
"""Where a domain's first vCPU starts: what the domain builder hands to the hypervisor.

Plain data, made by the builder (or by a restore), read once by `xen_py.domain.Domain`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xen_py.types import Mfn, Pfn


@dataclass(frozen=True)
class StartState:
    """vCPU 0 at its first instruction; everything not named here is zero or a constant of the ABI."""

    rip: int
    """Entry point."""
    rsp: int
    """Top of the boot stack."""
    rsi: int
    """Virtual address of start_info."""
    cr3: Mfn
    """L4 table, pinned and validated by Domain before the first instruction."""
    page_tables: tuple[tuple[Pfn, int], ...]
    """(first PFN, count) runs of the initial table pages (informative)."""

    def to_plain(self) -> dict[str, Any]:
        return {
            "rip": self.rip,
            "rsp": self.rsp,
            "rsi": self.rsi,
            "cr3": self.cr3,
            "page_tables": [[pfn, count] for pfn, count in self.page_tables],
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> StartState:
        return cls(
            plain["rip"],
            plain["rsp"],
            plain["rsi"],
            Mfn(plain["cr3"]),
            tuple((Pfn(pfn), count) for pfn, count in plain["page_tables"]),
        )
