# SPDX-License-Identifier: GPL-2.0-only
"""sched_op: yield, block, poll, shut down (sched.h)."""

from __future__ import annotations

from struct import Struct

from xen_py.abi.xen import VCPU_INFO_UPCALL_MASK, ShutdownReason
from xen_py.domain import Domain
from xen_py.spec import Shutdown
from xen_py.types import Errno, XenError
from xen_py.vcpu import Vcpu

_poll = Struct("<QIxxxxQ")
_YIELD, _BLOCK, _SHUTDOWN, _POLL, _REMOTE_SHUTDOWN, _SHUTDOWN_CODE, _WATCHDOG = range(7)
_MOST_PORTS = 128


def sched_op(d: Domain, v: Vcpu, command: int, arg: int, *_: int) -> int:
    command &= 0xFFFFFFFF
    if command == _YIELD:
        d.yield_cpu(v)
        return 0
    if command == _BLOCK:
        d.memory.bytes[v.info_offset + VCPU_INFO_UPCALL_MASK] = 0
        if not d.upcall_due(v):
            v.blocked = True
        return 0
    if command == _SHUTDOWN:
        reason = int.from_bytes(d.access.read(arg, 4), "little")
        if reason not in ShutdownReason._value2member_map_:
            raise XenError(Errno.EINVAL, f"shutdown reason {reason}")
        d.shutdown = Shutdown(ShutdownReason(reason), f"the guest asked for it ({ShutdownReason(reason).name.lower()})")
        return 0
    if command == _POLL:
        return _do_poll(d, v, arg)
    if command == _SHUTDOWN_CODE:
        reason = int.from_bytes(d.access.read(arg, 4), "little")
        d.log(f"shutdown code {reason} announced")
        return 0
    raise XenError(Errno.ENOSYS, f"sched_op {command}")


def _do_poll(d: Domain, v: Vcpu, arg: int) -> int:
    """Sleep until one of the ports is pending (masked or not) or the time has come."""
    ports_at, count, timeout = _poll.unpack(d.access.read(arg, 24))
    if count > _MOST_PORTS:
        raise XenError(Errno.EINVAL, f"poll of {count} ports")
    ports = memoryview(d.access.read(ports_at, 4 * count)).cast("I").tolist() if count else []
    if any(port not in d.events.ports for port in ports):
        raise XenError(Errno.EINVAL, "poll of a port that is not open")
    if d.upcall_due(v) or any(d.events.is_pending(port) for port in ports):
        return 0
    if timeout and timeout <= d.clock.now():
        return 0
    v.polling = tuple(ports) or (-1,)
    v.poll_deadline = timeout
    v.blocked = True
    d.arm_timer()
    return 0
