# SPDX-License-Identifier: GPL-2.0-only
"""set_trap_table, callback_op and its ancestors: where the guest wants to be entered (xen.h, callback.h, nmi.h)."""

from __future__ import annotations

from struct import Struct

from xen_py import traps
from xen_py.abi.xen import FLAT_KERNEL_CS, TI_GET_IF
from xen_py.domain import Domain
from xen_py.types import Errno, XenError, is_canonical
from xen_py.vcpu import TrapGate, Vcpu

_trap_info = Struct("<BBHxxxxQ")
_register = Struct("<HHxxxxQ")
_EVENT, _FAILSAFE, _SYSCALL, _NMI, _SYSENTER, _SYSCALL32 = 0, 1, 2, 4, 5, 7
_MASK_EVENTS = 1


def set_trap_table(d: Domain, v: Vcpu, table: int, *_: int) -> int:
    if not table:
        v.traps.clear()
        return 0
    # The table ends with a zero address; a guest that forgets it meets the end of its memory or of our patience.
    for n in range(4096):
        vector, flags, cs, address = _trap_info.unpack(d.access.read(table + 16 * n, 16))
        if not address:
            return 0
        if not is_canonical(address):
            raise XenError(Errno.EINVAL, f"trap handler {address:#x} is not canonical")
        v.traps[vector] = TrapGate(address, cs | 3, flags)
    raise XenError(Errno.EINVAL, "the trap table has no end")


def _register_callback(v: Vcpu, kind: int, flags: int, address: int) -> None:
    if not is_canonical(address):
        raise XenError(Errno.EINVAL, f"callback {address:#x} is not canonical")
    masks = bool(flags & _MASK_EVENTS)
    if kind == _EVENT:
        v.event_callback = address
    elif kind == _FAILSAFE:
        v.failsafe_callback, v.failsafe_masks_events = address, masks
    elif kind == _SYSCALL:
        v.syscall_callback, v.syscall_masks_events = address, masks
    elif kind == _SYSCALL32:
        v.syscall32_callback, v.syscall32_masks_events = address, masks
    elif kind == _SYSENTER:
        v.sysenter_callback, v.sysenter_masks_events = address, masks
    elif kind == _NMI:
        v.traps[traps.NMI] = TrapGate(address, FLAT_KERNEL_CS, TI_GET_IF)
    else:
        raise XenError(Errno.ENOSYS, f"callback type {kind}")


def callback_op(d: Domain, v: Vcpu, command: int, arg: int, *_: int) -> int:
    command &= 0xFFFFFFFF
    if command == 0:
        _register_callback(v, *_register.unpack(d.access.read(arg, 16)))
        return 0
    if command == 1:
        kind = int.from_bytes(d.access.read(arg, 4)[:2], "little")
        if kind == _NMI:
            v.traps[traps.NMI] = TrapGate()
            return 0
        if kind in (_EVENT, _FAILSAFE, _SYSCALL, _SYSENTER, _SYSCALL32):
            raise XenError(Errno.EINVAL, "this callback cannot be taken back")
        raise XenError(Errno.ENOSYS, f"callback type {kind}")
    raise XenError(Errno.ENOSYS, f"callback_op {command}")


def set_callbacks(d: Domain, v: Vcpu, event: int, failsafe: int, syscall: int, *_: int) -> int:
    """The old form of callback_op: bad addresses are passed over, one by one."""
    for kind, address in ((_EVENT, event), (_FAILSAFE, failsafe), (_SYSCALL, syscall)):
        if is_canonical(address):
            _register_callback(v, kind, 0, address)
    return 0


def nmi_op(d: Domain, v: Vcpu, command: int, arg: int, *_: int) -> int:
    command &= 0xFFFFFFFF
    if command == 0:
        _register_callback(v, _NMI, 0, d.access.read_u64(arg))
        return 0
    if command == 1:
        v.traps[traps.NMI] = TrapGate()
        return 0
    raise XenError(Errno.ENOSYS, f"nmi_op {command}")
