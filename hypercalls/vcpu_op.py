# SPDX-License-Identifier: GPL-2.0-only
"""vcpu_op: a vCPU's areas, timers and state (vcpu.h)."""

from __future__ import annotations

from struct import Struct

from hypercalls import vcpu_context
from xen_py.abi.xen import HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START, VCPU_INFO_SIZE
from xen_py.domain import Domain
from xen_py.frames import FrameType
from xen_py.types import PAGE_SIZE, Errno, XenError, is_canonical
from xen_py.vcpu import Vcpu

_singleshot = Struct("<QI")
_info = Struct("<QIxxxx")
(
    _INITIALISE,
    _UP,
    _DOWN,
    _IS_UP,
    _GET_RUNSTATE,
    _REGISTER_RUNSTATE,
    _SET_PERIODIC,
    _STOP_PERIODIC,
    _SET_SINGLESHOT,
    _STOP_SINGLESHOT,
    _REGISTER_INFO,
    _SEND_NMI,
    _GET_PHYSID,
    _REGISTER_TIME,
) = range(14)
_MIN_PERIOD = 1_000_000
_MAX_PERIOD = 1 << 56
_FAR_FUTURE = 1 << 50


def vcpu_op(d: Domain, v: Vcpu, command: int, vcpuid: int, arg: int, *_: int) -> int:
    command &= 0xFFFFFFFF
    vcpuid &= 0xFFFFFFFF
    if vcpuid >= len(d.vcpus):
        raise XenError(Errno.ENOENT, f"no vCPU {vcpuid}")
    target = d.vcpus[vcpuid]
    if command == _SET_SINGLESHOT:
        _only_self(v, target)
        # VCPU_SSHOTTMR_future is ignored, as by Xen since 4.18: a time that is past fires at once.
        # And a time of 0 is past, not "no timer", as it is in our own notes.
        timeout, _flags = _singleshot.unpack(d.access.read(arg, 12))
        target.singleshot = timeout or 1
        _timer_changed(d)
    elif command == _IS_UP:
        return int(target.online)
    elif command == _STOP_SINGLESHOT:
        _only_self(v, target)
        target.singleshot = 0
        d.arm_timer()
    elif command == _SET_PERIODIC:
        period = d.access.read_u64(arg)
        if not _MIN_PERIOD <= period <= _MAX_PERIOD:
            raise XenError(Errno.EINVAL, f"timer period of {period} ns")
        target.periodic_period = period
        target.periodic_next = d.clock.now() + period
        d.arm_timer()
    elif command == _STOP_PERIODIC:
        target.periodic_next = 0
        d.arm_timer()
    elif command == _REGISTER_INFO:
        _register_info(d, target, *_info.unpack(d.access.read(arg, 16)))
    elif command == _REGISTER_RUNSTATE:
        target.runstate_area = _area(d, arg)
        if target.runstate_area:
            d.write_kernel(v, target.runstate_area, d.runstates.current_record(target))
    elif command == _GET_RUNSTATE:
        d.access.write(arg, d.runstates.current_record(target))
    elif command == _REGISTER_TIME:
        target.time_area = _area(d, arg)
        d.update_time(target)
    elif command == _INITIALISE:
        return vcpu_context.initialise(d, target, arg)
    elif command == _UP:
        return vcpu_context.up(d, target)
    elif command == _DOWN:
        return vcpu_context.down(d, target)
    elif command == _SEND_NMI:
        raise XenError(Errno.ENOSYS, "vcpu_op send_nmi")
    elif command == _GET_PHYSID:
        raise XenError(Errno.EINVAL, "vCPUs are not pinned to processors")
    else:
        raise XenError(Errno.ENOSYS, f"vcpu_op {command}")
    return 0


def _only_self(v: Vcpu, target: Vcpu) -> None:
    if target is not v:
        raise XenError(Errno.EINVAL, "a vCPU sets its own singleshot timer only")


def _area(d: Domain, arg: int) -> int:
    """The address of an area to be registered: any of the guest's own, whether mapped now or not."""
    address = d.access.read_u64(arg)
    if HYPERVISOR_VIRT_START <= address < HYPERVISOR_VIRT_END or not is_canonical(address):
        raise XenError(Errno.EFAULT, f"area {address:#x} is not the guest's")
    return address


def _timer_changed(d: Domain) -> None:
    deadline = d.next_deadline()
    if deadline and deadline <= d.clock.now():
        d.run_timers()
    else:
        d.arm_timer()


def _register_info(d: Domain, target: Vcpu, mfn: int, offset: int) -> None:
    """Move vcpu_info into a page of the guest's choice, once."""
    if offset >= PAGE_SIZE:
        raise XenError(Errno.EINVAL, f"offset {offset:#x} is not inside the page")
    if target.info_registered:
        raise XenError(Errno.EBUSY, "vcpu_info is registered already")
    if offset > PAGE_SIZE - VCPU_INFO_SIZE or offset & 7:
        raise XenError(Errno.ENXIO, f"vcpu_info at offset {offset:#x} does not fit in a page")
    i = d.pages.get_page(mfn)
    try:
        d.pages.get_type(i, FrameType.WRITABLE)
    except XenError as e:
        d.pages.put_page(i)
        raise XenError(Errno.EACCES, e.why) from None
    at = (i << 12) + offset
    old = target.info_offset
    memory = d.memory.bytes
    memory[at : at + VCPU_INFO_SIZE] = memory[old : old + VCPU_INFO_SIZE]
    target.info_offset = at
    target.info_registered = True
    d.events.everything_pending(target.id)
    d.update_time(target)


def set_timer_op(d: Domain, v: Vcpu, timeout: int, *_: int) -> int:
    """The calling vCPU's singleshot timer in its old form; 0 stops it."""
    if timeout and (timeout >> 63 or timeout - d.clock.now() >= _FAR_FUTURE):
        # Kernels whose clock arithmetic wraps mean "soon" or "never"; Xen settles for this.
        d.log_once("timer", f"set_timer_op of {timeout:#x} is far in the future")
        timeout = d.clock.now() + 100_000_000
    v.singleshot = timeout
    _timer_changed(d)
    return 0
