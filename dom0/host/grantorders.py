# SPDX-License-Identifier: GPL-2.0-only
"""The host's orders about a domain's grants, carried out by the domain's loop, which owns the pins.

`pin` and `unpin` are for backends, which live in dom0 and want many grants at once: a batch is one message, its size is
bounded by `MOST_PINS` (`dom0.backend.grants` is the other end). `copy_in` is theirs too: the data comes with the order.
`map`, `unmap`, `read` and `write` are for another guest, which the host names (`dom0.host.foreign`); its flags are
those of a mapping, GNTMAP_host, _device, _readonly.

Runs on the domain's thread, between runs of its engine, and also while a hypercall of the domain waits for the host:
two guests that use each other's grants would wait for ever otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from xen_py.abi.grant_table import GrantStatus, MapFlag
from xen_py.grants import GrantError, GrantTable
from xen_py.hvspace import HypervisorSpace
from xen_py.maptrack import Maptrack
from xen_py.types import PAGE_SHIFT, DomId

MOST_PINS = 1024
"""Grants in one order."""
USAGE_ROWS = 256
"""Lines of a report on grants: entries in use, and domains granted to."""
MOST_COPIED = 96 << 10
"""Bytes in one order that carries them."""
ORDERS = frozenset({"pin", "unpin", "copy_in", "map", "unmap", "read", "write", "grants"})
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
        case "copy_in", [parts]:
            return [_attempt(partial(_write, domain, _DOM0, *part)) for part in parts]
        case "map", [user, ref, flags]:
            return _attempt(lambda: domain.grants.pin(ref, user, **_kinds(flags)))
        case "unmap", [user, ref, flags]:
            domain.grants.unpin(ref, user, **_kinds(flags))
            return None
        case "read", [user, ref, offset, length]:
            return _attempt(lambda: _read(domain.grants, user, ref, offset, length))
        case "write", [user, ref, offset, data]:
            return _attempt(lambda: _write(domain, user, ref, offset, data))
        case "grants", []:
            return domain.grants.usage(USAGE_ROWS) | domain.maptrack.statistics()
    raise ValueError(f"no order {kind!r} with {len(args)} arguments")


def _pin(grants: GrantTable, ref: int, readonly: bool) -> int:
    """Frame index, or the (negative) status."""
    try:
        return grants.pin(ref, _DOM0, readonly=readonly)
    except GrantError as error:
        return int(error.status)


def _attempt(operation: Callable[[], object]) -> object:
    """Its result, or the (negative) status."""
    try:
        return operation()
    except GrantError as error:
        return int(error.status)


def _kinds(flags: int) -> dict[str, bool]:
    return {
        "host": bool(flags & MapFlag.HOST),
        "device": bool(flags & MapFlag.DEVICE),
        "readonly": bool(flags & MapFlag.READONLY),
    }


def _read(grants: GrantTable, user: DomId, ref: int, offset: int, length: int) -> bytes:
    with grants.held(ref, user, readonly=True) as index:
        return bytes(grants.memory.bytes[(index << PAGE_SHIFT) + offset :][:length])


def _write(domain: Granter, user: DomId, ref: int, offset: int, data: bytes) -> int:
    with domain.grants.held(ref, user, readonly=False) as index:
        at = (index << PAGE_SHIFT) + offset
        domain.grants.memory.bytes[at : at + len(data)] = data
        domain.space.written_from_outside(index)
    return int(GrantStatus.OKAY)
