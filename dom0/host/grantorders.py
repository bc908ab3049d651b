# SPDX-License-Identifier: GPL-2.0-only
"""The host's orders about a domain's grants, carried out by the domain's loop, which owns the pins.

Backends live in dom0, so dom0 is who pins. A batch is one message: its size is bounded by `MOST_PINS`. Runs on the
domain's thread, between runs of its engine; `dom0.backend.grants` is the other end.
"""

from __future__ import annotations

from typing import Any, Protocol

from xen_py.grants import GrantError, GrantTable
from xen_py.hvspace import HypervisorSpace
from xen_py.maptrack import Maptrack
from xen_py.types import DomId

MOST_PINS = 1024
"""Grants in one order."""
USAGE_ROWS = 256
"""Lines of a report on grants: entries in use, and domains granted to."""
_DOM0 = DomId(0)


class Granter(Protocol):
    """What is needed of `xen_py.domain.Domain`."""

    grants: GrantTable
    maptrack: Maptrack
    space: HypervisorSpace


def carry_out(domain: Granter, kind: str, args: list[Any]) -> object:
    """One order; the result goes back with its `done`."""
    match kind, args:
        case "pin", [wants]:
            return [_pin(domain.grants, ref, readonly) for ref, readonly in wants]
        case "unpin", [pins, written]:
            # What a backend wrote may be code by the time the guest hears of it.
            for index in written:
                domain.space.written_from_outside(index)
            for ref, readonly in pins:
                domain.grants.unpin(ref, _DOM0, readonly=readonly)
            return None
        case "grants", []:
            return domain.grants.usage(USAGE_ROWS) | domain.maptrack.statistics()
    raise ValueError(f"no order {kind!r} with {len(args)} arguments")


def _pin(grants: GrantTable, ref: int, readonly: bool) -> int:
    """Frame index, or the (negative) status."""
    try:
        return grants.pin(ref, _DOM0, readonly=readonly)
    except GrantError as error:
        return int(error.status)
