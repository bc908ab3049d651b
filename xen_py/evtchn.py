# SPDX-License-Identifier: GPL-2.0-only
"""Event channels: who is bound to whom (the host's side) and what is pending (the domain's side).

`EventBroker` holds the bindings of all domains and belongs to the host's thread. It is plain data and calls nobody: an
operation that makes an event somewhere returns where (`Delivery`), and the host sees to it.

`PendingEvents` works on one domain's shared_info and belongs to that domain's thread, because pending bits, selector
words and masks are read-modify-written by the guest too (docs/architecture.md).

Semantics: xen/common/event_channel.c and event_2l.c (the 2-level ABI).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, NamedTuple

from xen_py.abi.xen import (
    DOMID_SELF,
    NR_EVENT_CHANNELS_2L,
    NR_VIRQS,
    PER_DOMAIN_VIRQS,
    PER_VCPU_VIRQS,
    SHARED_INFO_EVTCHN_MASK,
    SHARED_INFO_EVTCHN_PENDING,
    VCPU_INFO_PENDING_SEL,
    VCPU_INFO_UPCALL_PENDING,
    Virq,
)
from xen_py.types import DomId, Errno, Port, VcpuId, XenError


class ChannelState(IntEnum):
    """`EVTCHNSTAT_*` of event_channel.h."""

    CLOSED = 0
    UNBOUND = 1
    INTERDOMAIN = 2
    PIRQ = 3
    VIRQ = 4
    IPI = 5


@dataclass
class Channel:
    """One port. `remote` and `remote_port` are for UNBOUND (who may bind) and INTERDOMAIN, `virq` for VIRQ."""

    state: ChannelState
    vcpu: VcpuId = VcpuId(0)
    remote: DomId = DomId(0)
    remote_port: Port = Port(0)
    virq: int = 0


@dataclass(frozen=True)
class EvtchnStatus:
    """What EVTCHNOP_status answers."""

    state: ChannelState
    vcpu: VcpuId = VcpuId(0)
    remote: DomId = DomId(0)
    remote_port: Port = Port(0)
    virq: int = 0


class Delivery(NamedTuple):
    """Mark `port` of `domid` pending."""

    domid: DomId
    port: Port


@dataclass
class _Ports:
    vcpus: int
    max_port: int
    channels: dict[int, Channel] = field(default_factory=dict)
    lowest: int = 1


class EventBroker:
    """The bindings of every domain."""

    def __init__(self) -> None:
        self._domains: dict[int, _Ports] = {}

    def add_domain(self, domid: DomId, vcpus: int, max_port: int = 1023) -> None:
        """A domain with ports 1..max_port (xl's `max_event_channels`)."""
        if domid in self._domains:
            raise ValueError(f"domain {domid} has event channels already")
        self._domains[domid] = _Ports(vcpus, min(max_port, NR_EVENT_CHANNELS_2L - 1))

    def remove_domain(self, domid: DomId) -> None:
        """The domain is gone: its ports are closed, so ports bound to them become unbound."""
        for port in list(self._of(domid).channels):
            self.close(domid, Port(port))
        del self._domains[domid]

    def _of(self, domid: int) -> _Ports:
        try:
            return self._domains[domid]
        except KeyError:
            raise XenError(Errno.ESRCH, f"no domain {domid}") from None

    def _channel(self, domid: DomId, port: int) -> Channel:
        channel = self._of(domid).channels.get(port)
        if channel is None:
            raise XenError(Errno.EINVAL, f"port {port} of domain {domid} is not in use")
        return channel

    def _allocate(self, domid: DomId, channel: Channel) -> Port:
        ports = self._of(domid)
        port = ports.lowest
        while port in ports.channels:
            port += 1
        if port > ports.max_port:
            raise XenError(Errno.ENOSPC, f"domain {domid} has all of its {ports.max_port} event channels in use")
        ports.channels[port] = channel
        ports.lowest = port + 1
        return Port(port)

    def alloc_unbound(self, caller: DomId, owner: DomId, remote: DomId) -> Port:
        """A port of `owner` that `remote` may bind to; another's port only dom0 may allocate."""
        owner = caller if owner == DOMID_SELF else owner
        remote = caller if remote == DOMID_SELF else remote
        self._of(owner)
        if owner != caller and caller != 0:
            raise XenError(Errno.EPERM, f"domain {caller} may not allocate ports of domain {owner}")
        return self._allocate(owner, Channel(ChannelState.UNBOUND, remote=remote))

    def bind_interdomain(self, caller: DomId, remote: DomId, remote_port: Port) -> Port:
        """Bind a new port of `caller` to an unbound one of `remote`. The new port is to be marked pending at once."""
        remote = caller if remote == DOMID_SELF else remote
        other = self._of(remote).channels.get(remote_port)
        if other is None or other.state != ChannelState.UNBOUND or other.remote != caller:
            raise XenError(Errno.EINVAL, f"port {remote_port} of domain {remote} is not waiting for domain {caller}")
        port = self._allocate(caller, Channel(ChannelState.INTERDOMAIN, remote=remote, remote_port=remote_port))
        other.state = ChannelState.INTERDOMAIN
        other.remote = caller
        other.remote_port = port
        return port

    def bind_virq(self, caller: DomId, virq: int, vcpu: VcpuId) -> Port:
        if not 0 <= virq < NR_VIRQS:
            raise XenError(Errno.EINVAL, f"no VIRQ {virq}")
        if virq not in PER_VCPU_VIRQS and vcpu != 0:
            raise XenError(Errno.EINVAL, f"VIRQ {virq} binds to vCPU 0 only")
        ports = self._of(caller)
        if not 0 <= vcpu < ports.vcpus:
            raise XenError(Errno.ENOENT, f"domain {caller} has no vCPU {vcpu}")
        if virq not in PER_VCPU_VIRQS and virq not in PER_DOMAIN_VIRQS and caller != 0:
            raise XenError(Errno.EBUSY, f"VIRQ {virq} is dom0's")
        for channel in ports.channels.values():
            same_vcpu = virq not in PER_VCPU_VIRQS or channel.vcpu == vcpu
            if channel.state == ChannelState.VIRQ and channel.virq == virq and same_vcpu:
                raise XenError(Errno.EEXIST, f"VIRQ {virq} of vCPU {vcpu} is bound")
        return self._allocate(caller, Channel(ChannelState.VIRQ, vcpu=vcpu, virq=virq))

    def bind_ipi(self, caller: DomId, vcpu: VcpuId) -> Port:
        if not 0 <= vcpu < self._of(caller).vcpus:
            raise XenError(Errno.ENOENT, f"domain {caller} has no vCPU {vcpu}")
        return self._allocate(caller, Channel(ChannelState.IPI, vcpu=vcpu))

    def bind_vcpu(self, caller: DomId, port: Port, vcpu: VcpuId) -> None:
        if not 0 <= vcpu < self._of(caller).vcpus:
            raise XenError(Errno.ENOENT, f"domain {caller} has no vCPU {vcpu}")
        channel = self._channel(caller, port)
        if channel.state == ChannelState.IPI or (channel.state == ChannelState.VIRQ and channel.virq in PER_VCPU_VIRQS):
            raise XenError(Errno.EINVAL, f"port {port} belongs to a vCPU and cannot move")
        channel.vcpu = vcpu

    def close(self, caller: DomId, port: Port) -> None:
        """Free a port; the port bound to it becomes unbound again."""
        channel = self._channel(caller, port)
        ports = self._domains[caller]
        del ports.channels[port]
        ports.lowest = min(ports.lowest, port)
        if channel.state == ChannelState.INTERDOMAIN:
            peers = self._domains.get(channel.remote)
            peer = peers.channels.get(channel.remote_port) if peers else None
            if peer is not None:
                peer.state = ChannelState.UNBOUND
                peer.remote = caller
                peer.remote_port = Port(0)

    def status(self, caller: DomId, domid: DomId, port: Port) -> EvtchnStatus:
        domid = caller if domid == DOMID_SELF else domid
        ports = self._of(domid)
        if domid != caller and caller != 0:
            raise XenError(Errno.EPERM, f"domain {caller} may not look at ports of domain {domid}")
        if not 0 < port < NR_EVENT_CHANNELS_2L:
            raise XenError(Errno.EINVAL, f"no port {port}")
        c = ports.channels.get(port)
        if c is None:
            return EvtchnStatus(ChannelState.CLOSED)
        return EvtchnStatus(c.state, c.vcpu, c.remote, c.remote_port, c.virq)

    def reset(self, caller: DomId, domid: DomId) -> None:
        """Close every port of the domain."""
        domid = caller if domid == DOMID_SELF else domid
        self._of(domid)
        if domid != caller and caller != 0:
            raise XenError(Errno.EPERM, f"domain {caller} may not reset domain {domid}")
        for port in list(self._domains[domid].channels):
            self.close(domid, Port(port))

    def send(self, caller: DomId, port: Port) -> Delivery | None:
        """Where a notification through that port goes; None when nobody is bound to it."""
        channel = self._channel(caller, port)
        if channel.state == ChannelState.INTERDOMAIN:
            return Delivery(channel.remote, channel.remote_port)
        if channel.state == ChannelState.IPI:
            return Delivery(caller, port)
        if channel.state == ChannelState.UNBOUND:
            return None
        raise XenError(Errno.EINVAL, f"port {port} of domain {caller} is not one to send through")

    def ports(self, domid: DomId) -> Iterator[tuple[Port, Channel]]:
        for port, channel in sorted(self._of(domid).channels.items()):
            yield Port(port), channel

    def statistics(self) -> dict[str, Any]:
        return {
            "domains": len(self._domains),
            "ports": {domid: len(p.channels) for domid, p in self._domains.items()},
        }

    def save(self) -> dict[str, Any]:
        return {
            "domains": [
                [
                    domid,
                    p.vcpus,
                    p.max_port,
                    [[port, int(c.state), c.vcpu, c.remote, c.remote_port, c.virq] for port, c in p.channels.items()],
                ]
                for domid, p in self._domains.items()
            ]
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._domains = {
            domid: _Ports(
                vcpus,
                max_port,
                {
                    port: Channel(ChannelState(kind), VcpuId(vcpu), DomId(remote), Port(rport), virq)
                    for port, kind, vcpu, remote, rport, virq in channels
                },
            )
            for domid, vcpus, max_port, channels in state["domains"]
        }


@dataclass(frozen=True)
class LocalPort:
    """What a domain remembers of one of its ports, so that sending needs no question to the host."""

    state: ChannelState
    vcpu: VcpuId
    virq: int = 0
    peer: Port = Port(0)
    """The other end, where that is a port of the domain itself: such events go no further than the domain."""


class PortKind:
    """What an engine that deals with events by itself has to know of a port (events.c)."""

    CLOSED, LOCAL, OUTWARD = range(3)
    """OUTWARD: what is sent through it leaves the domain."""


class PendingEvents:
    """The pending and mask bits of one domain, and which of its ports are timers, IPIs, or somebody else's."""

    def __init__(self, shared_info: memoryview, vcpu_info: Callable[[VcpuId], memoryview]) -> None:
        self._words = shared_info.cast("Q")
        self._vcpu_info = vcpu_info
        self.ports: dict[int, LocalPort] = {}
        self._virqs: dict[tuple[int, int], int] = {}
        self.kinds = memoryview(bytearray(NR_EVENT_CHANNELS_2L))
        """`PortKind` of each port; shared with the engine, as the two words are."""
        self.shared = memoryview(bytearray(16)).cast("Q")
        """How many events have been raised, and the port of vCPU 0's timer (0: none)."""

    @property
    def raised(self) -> int:
        return self.shared[0]

    def _know(self, port: int, local: LocalPort) -> None:
        self.ports[port] = local
        outward = local.state in (ChannelState.UNBOUND, ChannelState.INTERDOMAIN) and not local.peer
        self.kinds[port] = PortKind.OUTWARD if outward else PortKind.LOCAL

    def opened(self, port: Port, local: LocalPort) -> None:
        """A port came to be: unmasked events of its earlier life are forgotten."""
        self._know(port, local)
        if local.state == ChannelState.VIRQ:
            self._virqs[local.virq, local.vcpu] = port
            self._timer_moved()
        word = (SHARED_INFO_EVTCHN_PENDING >> 3) + (port >> 6)
        self._words[word] &= ~(1 << (port & 63))

    def bound_to_self(self, port: Port, other: Port) -> None:
        """bind_interdomain of a domain with itself: `port` is new, `other` was waiting."""
        self.opened(port, LocalPort(ChannelState.INTERDOMAIN, VcpuId(0), peer=other))
        self._know(other, LocalPort(ChannelState.INTERDOMAIN, self.ports[other].vcpu, peer=port))

    def closed(self, port: Port) -> None:
        local = self.ports.pop(port, None)
        if local is not None:
            self.kinds[port] = PortKind.CLOSED
            if local.state == ChannelState.VIRQ:
                self._virqs.pop((local.virq, local.vcpu), None)
                self._timer_moved()
            if local.peer in self.ports:
                self._know(local.peer, LocalPort(ChannelState.UNBOUND, self.ports[local.peer].vcpu))
        word = (SHARED_INFO_EVTCHN_PENDING >> 3) + (port >> 6)
        self._words[word] &= ~(1 << (port & 63))

    def moved(self, port: Port, vcpu: VcpuId) -> None:
        local = self.ports[port]
        if local.state == ChannelState.VIRQ:  # a global one; its events look for it under the vCPU it was bound to
            self._virqs[local.virq, vcpu] = self._virqs.pop((local.virq, local.vcpu))
            self._timer_moved()
        self._know(port, replace(local, vcpu=vcpu))

    def _timer_moved(self) -> None:
        self.shared[1] = self._virqs.get((Virq.TIMER, 0), 0)

    def virq_port(self, virq: int, vcpu: VcpuId) -> Port | None:
        port = self._virqs.get((virq, vcpu))
        return None if port is None else Port(port)

    def raise_port(self, port: Port) -> VcpuId | None:
        """evtchn_port_set_pending: mark pending; the vCPU to wake, or None when nothing new is to be seen."""
        local = self.ports.get(port)
        if local is None:
            return None  # closed while the notification was under way
        vcpu = local.vcpu
        words = self._words
        at = (SHARED_INFO_EVTCHN_PENDING >> 3) + (port >> 6)
        bit = 1 << (port & 63)
        pending = words[at]
        if pending & bit:
            return None
        words[at] = pending | bit
        self.shared[0] += 1
        if words[(SHARED_INFO_EVTCHN_MASK >> 3) + (port >> 6)] & bit:
            return None
        self._select(vcpu, port >> 6)
        return vcpu

    def unmask(self, port: Port) -> None:
        """EVTCHNOP_unmask: clear the mask and see to an event that came meanwhile."""
        words = self._words
        at = (SHARED_INFO_EVTCHN_MASK >> 3) + (port >> 6)
        bit = 1 << (port & 63)
        masked = words[at]
        if not masked & bit:
            return
        words[at] = masked & ~bit
        if words[(SHARED_INFO_EVTCHN_PENDING >> 3) + (port >> 6)] & bit:
            local = self.ports.get(port)
            self._select(local.vcpu if local else VcpuId(0), port >> 6)

    def is_pending(self, port: int) -> bool:
        return bool(self._words[(SHARED_INFO_EVTCHN_PENDING >> 3) + (port >> 6)] >> (port & 63) & 1)

    def _select(self, vcpu: VcpuId, word: int) -> None:
        info = self._vcpu_info(vcpu)
        selector = int.from_bytes(info[VCPU_INFO_PENDING_SEL : VCPU_INFO_PENDING_SEL + 8], "little")
        if not selector >> word & 1:
            info[VCPU_INFO_PENDING_SEL : VCPU_INFO_PENDING_SEL + 8] = (selector | 1 << word).to_bytes(8, "little")
            info[VCPU_INFO_UPCALL_PENDING] = 1

    def everything_pending(self, vcpu: VcpuId) -> None:
        """After vcpu_info has moved: let the guest look at every word (VCPUOP_register_vcpu_info)."""
        info = self._vcpu_info(vcpu)
        info[VCPU_INFO_PENDING_SEL : VCPU_INFO_PENDING_SEL + 8] = b"\xff" * 8
        info[VCPU_INFO_UPCALL_PENDING] = 1

    def statistics(self) -> dict[str, int]:
        return {"ports": len(self.ports), "raised": self.raised}
