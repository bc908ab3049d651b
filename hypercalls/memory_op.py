# SPDX-License-Identifier: GPL-2.0-only
"""memory_op: how much memory a domain has and may have, and giving frames back and forth (memory.h)."""

from __future__ import annotations

from struct import Struct

from xen_py.abi.xen import DOMID_SELF, MACH2PHYS_NR_ENTRIES, MACH2PHYS_VIRT_END, MACH2PHYS_VIRT_START, Hypercall
from xen_py.domain import Domain
from xen_py.types import Errno, XenError
from xen_py.vcpu import Vcpu

_INCREASE, _DECREASE, _MAX_RAM_PAGE, _CURRENT, _MAXIMUM = 0, 1, 2, 3, 4
_POPULATE, _MEMORY_MAP, _MACHPHYS_MAPPING, _MAXIMUM_GPFN = 6, 9, 12, 14
_COMMAND_BITS = 6
_reservation = Struct("<QQIIHxxxxxx")
_map = Struct("<IxxxxQ")
_e820 = Struct("<QQI")
_E820_RAM = 1
_MOST_ORDER = 9
_MOST_EXTENTS = 0xFFFFFFFF >> _COMMAND_BITS


def memory_op(d: Domain, v: Vcpu, command: int, arg: int, *_: int) -> int:
    start = command >> _COMMAND_BITS
    command &= (1 << _COMMAND_BITS) - 1
    if command in (_INCREASE, _DECREASE, _POPULATE):
        return _reserve(d, command, arg, start)
    if start:
        raise XenError(Errno.ENOSYS, f"memory_op {command} has no continuation")
    if command in (_CURRENT, _MAXIMUM, _MAXIMUM_GPFN):
        owner = int.from_bytes(d.access.read(arg, 2), "little")
        _check_owner(d, owner)
        if command == _CURRENT:
            return d.frames.allocated
        return d.spec.memory.max_pages - (1 if command == _MAXIMUM_GPFN else 0)
    if command == _MAX_RAM_PAGE:
        return d.frames.base + d.spec.memory.max_pages - 1
    if command == _MACHPHYS_MAPPING:
        d.access.write(arg, Struct("<QQQ").pack(MACH2PHYS_VIRT_START, MACH2PHYS_VIRT_END, MACH2PHYS_NR_ENTRIES - 1))
        return 0
    if command == _MEMORY_MAP:
        entries, buffer = _map.unpack(d.access.read(arg, 16))
        if entries:
            d.access.write(buffer, _e820.pack(0, d.spec.memory.max_pages << 12, _E820_RAM))
        d.access.write(arg, _map.pack(min(entries, 1), buffer))
        return 0
    raise XenError(Errno.ENOSYS, f"memory_op {command}")


def _check_owner(d: Domain, owner: int) -> None:
    if owner not in (DOMID_SELF, d.domid):
        raise XenError(Errno.EPERM if owner == 0 else Errno.ESRCH, f"memory of domain {owner} is not this one's")


def _reserve(d: Domain, command: int, arg: int, start: int) -> int:
    """The number of extents done; fewer than asked for when something stood in the way, a bad pointer included."""
    done = start
    try:
        extents, count, order, _flags, owner = _reservation.unpack(d.access.read(arg, 32))
        _check_owner(d, owner)
        if order > _MOST_ORDER or count > _MOST_EXTENTS:
            return start
        while done < count:
            if done != start and d.must_yield():
                return d.continue_with(Hypercall.MEMORY_OP, command | done << _COMMAND_BITS, arg)
            at = extents + 8 * done
            if command == _DECREASE:
                _release(d, d.access.read_u64(at), order)
            else:
                gpfn = d.access.read_u64(at) if command == _POPULATE else None
                if command == _POPULATE or extents:
                    d.access.translate(at, True)  # nothing is given that cannot be announced
                mfn = d.allocate_frames(order, gpfn)
                if extents:
                    d.access.write_u64(at, mfn)
            done += 1
    except XenError as e:
        d.log_once("reservation", f"memory_op {command} stopped after {done}: {e}")
    return done


def _release(d: Domain, gmfn: int, order: int) -> None:
    for mfn in range(gmfn, gmfn + (1 << order)):
        d.release_frame(d.frames.index(mfn))
