# SPDX-License-Identifier: GPL-2.0-only
"""event_channel_op: ports and their bindings (event_channel.h).

Bindings are the host's (`HostLink`); what is pending is ours. Sending asks nobody: the domain knows which of its ports
are open and which are IPIs.
"""

from __future__ import annotations

from struct import Struct

from xen_py.abi.xen import DOMID_SELF
from xen_py.domain import Domain
from xen_py.evtchn import ChannelState, LocalPort
from xen_py.types import DomId, Errno, Port, VcpuId, XenError
from xen_py.vcpu import Vcpu

(
    _BIND_INTERDOMAIN,
    _BIND_VIRQ,
    _BIND_PIRQ,
    _CLOSE,
    _SEND,
    _STATUS,
    _ALLOC_UNBOUND,
    _BIND_IPI,
    _BIND_VCPU,
    _UNMASK,
    _RESET,
    _INIT_CONTROL,
    _EXPAND_ARRAY,
    _SET_PRIORITY,
    _RESET_CONT,
) = range(15)
_u32 = Struct("<I")
_u32x2 = Struct("<II")
_alloc = Struct("<HHI")
_bind = Struct("<HxxII")
_virq = Struct("<III")
_status = Struct("<HxxIIIII")


def event_channel_op(d: Domain, v: Vcpu, command: int, arg: int, *_: int) -> int:
    command &= 0xFFFFFFFF
    if command == _SEND:
        return _send(d, _u32.unpack(d.access.read(arg, 4))[0])
    if command == _UNMASK:
        port = _u32.unpack(d.access.read(arg, 4))[0]
        if port not in d.events.ports:
            raise XenError(Errno.EINVAL, f"port {port} is not open")
        d.events.unmask(Port(port))
    elif command == _ALLOC_UNBOUND:
        owner, remote, _port = _alloc.unpack(d.access.read(arg, 8))
        new = d.link.evtchn_alloc_unbound(DomId(owner), DomId(remote))
        if owner in (DOMID_SELF, d.domid):
            d.events.opened(new, LocalPort(ChannelState.UNBOUND, VcpuId(0)))
        d.access.write(arg, _alloc.pack(owner, remote, new))
    elif command == _BIND_INTERDOMAIN:
        remote, remote_port, _port = _bind.unpack(d.access.read(arg, 12))
        new = d.link.evtchn_bind_interdomain(DomId(remote), Port(remote_port))
        if remote in (DOMID_SELF, d.domid):
            d.events.bound_to_self(new, Port(remote_port))
        else:
            d.events.opened(new, LocalPort(ChannelState.INTERDOMAIN, VcpuId(0)))
        # The other end may have sent before we were bound.
        d.deliver(new)
        d.access.write(arg, _bind.pack(remote, remote_port, new))
    elif command == _BIND_VIRQ:
        virq, vcpu, _port = _virq.unpack(d.access.read(arg, 12))
        new = d.link.evtchn_bind_virq(virq, VcpuId(vcpu))
        d.events.opened(new, LocalPort(ChannelState.VIRQ, VcpuId(vcpu), virq))
        d.access.write(arg, _virq.pack(virq, vcpu, new))
    elif command == _BIND_IPI:
        vcpu, _port = _u32x2.unpack(d.access.read(arg, 8))
        new = d.link.evtchn_bind_ipi(VcpuId(vcpu))
        d.events.opened(new, LocalPort(ChannelState.IPI, VcpuId(vcpu)))
        d.access.write(arg, _u32x2.pack(vcpu, new))
    elif command == _CLOSE:
        port = _u32.unpack(d.access.read(arg, 4))[0]
        d.link.evtchn_close(Port(port))
        d.events.closed(Port(port))
    elif command == _BIND_VCPU:
        port, vcpu = _u32x2.unpack(d.access.read(arg, 8))
        d.link.evtchn_bind_vcpu(Port(port), VcpuId(vcpu))
        d.events.moved(Port(port), VcpuId(vcpu))
    elif command == _STATUS:
        _do_status(d, arg)
    elif command in (_RESET, _RESET_CONT):
        owner = int.from_bytes(d.access.read(arg, 2), "little")
        d.link.evtchn_reset(DomId(owner))
        for each in list(d.events.ports):
            d.events.closed(Port(each))
    else:
        raise XenError(Errno.ENOSYS, f"event_channel_op {command}")
    return 0


def _send(d: Domain, port: int) -> int:
    local = d.events.ports.get(port)
    if local is None or local.state == ChannelState.VIRQ:
        raise XenError(Errno.EINVAL, f"port {port} is not one to send through")
    if local.state == ChannelState.IPI or local.peer:
        d.deliver(local.peer or Port(port))
    else:
        d.link.evtchn_notify(Port(port))
    return 0


def _do_status(d: Domain, arg: int) -> None:
    owner, port, *_rest = _status.unpack(d.access.read(arg, 24))
    s = d.link.evtchn_status(DomId(owner), Port(port))
    one, two = 0, 0
    if s.state == ChannelState.UNBOUND:
        one = s.remote
    elif s.state == ChannelState.INTERDOMAIN:
        one, two = s.remote, s.remote_port
    elif s.state == ChannelState.VIRQ:
        one = s.virq
    d.access.write(arg, _status.pack(owner, port, s.state, s.vcpu, one, two))
