# SPDX-License-Identifier: GPL-2.0-only
"""The narrow link: what a domain asks of the host, whatever lies between the two.

Event channel bindings of all domains belong to the host; a domain's own thread asks for changes through a `HostLink`
and waits for the answer. All calls raise `XenError`. `evtchn_notify` is the exception: it is a mark and a doorbell,
nobody answers it.

`DirectLink` is the link of a domain stepped by the thread that owns the `EventBroker`; the host process also uses it
to serve the calls that arrive from a domain's loop elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from xen_py.evtchn import Delivery, EventBroker, EvtchnStatus
from xen_py.foreign import OthersGrants
from xen_py.types import DomId, Port, VcpuId


class HostLink(Protocol):
    """What a domain asks of the host. Used by the domain's thread only."""

    others: OthersGrants
    """The grants of other domains; refusals there are `GrantError`."""

    def evtchn_alloc_unbound(self, owner: DomId, remote: DomId) -> Port: ...
    def evtchn_bind_interdomain(self, remote: DomId, remote_port: Port) -> Port: ...
    def evtchn_bind_virq(self, virq: int, vcpu: VcpuId) -> Port: ...
    def evtchn_bind_ipi(self, vcpu: VcpuId) -> Port: ...
    def evtchn_bind_vcpu(self, port: Port, vcpu: VcpuId) -> None: ...
    def evtchn_close(self, port: Port) -> None: ...
    def evtchn_status(self, domid: DomId, port: Port) -> EvtchnStatus: ...
    def evtchn_reset(self, domid: DomId) -> None: ...

    def evtchn_notify(self, port: Port) -> None:
        """Tell the other end of a local interdomain port; asynchronous, a port nobody is bound to is ignored."""

    def console_write(self, data: bytes) -> None:
        """console_io: to the guest's log and to `xl dmesg`."""

    def log(self, text: str) -> None:
        """One hypervisor message about this domain, for `xl dmesg`."""


class DirectLink:
    """A `HostLink` without a seam: calls the broker; `deliver` carries events to where the broker says.

    The thread that owns the broker calls it.
    """

    def __init__(
        self,
        broker: EventBroker,
        domid: DomId,
        deliver: Callable[[DomId, Port, Delivery], None],
        console_write: Callable[[bytes], None],
        log: Callable[[str], None],
        others: OthersGrants,
    ) -> None:
        self.others = others
        self._broker = broker
        self._domid = domid
        self._deliver = deliver
        self._console_write = console_write
        self._log = log

    def console_write(self, data: bytes) -> None:
        self._console_write(data)

    def log(self, text: str) -> None:
        self._log(text)

    def evtchn_alloc_unbound(self, owner: DomId, remote: DomId) -> Port:
        return self._broker.alloc_unbound(self._domid, owner, remote)

    def evtchn_bind_interdomain(self, remote: DomId, remote_port: Port) -> Port:
        return self._broker.bind_interdomain(self._domid, remote, remote_port)

    def evtchn_bind_virq(self, virq: int, vcpu: VcpuId) -> Port:
        return self._broker.bind_virq(self._domid, virq, vcpu)

    def evtchn_bind_ipi(self, vcpu: VcpuId) -> Port:
        return self._broker.bind_ipi(self._domid, vcpu)

    def evtchn_bind_vcpu(self, port: Port, vcpu: VcpuId) -> None:
        self._broker.bind_vcpu(self._domid, port, vcpu)

    def evtchn_close(self, port: Port) -> None:
        self._broker.close(self._domid, port)

    def evtchn_status(self, domid: DomId, port: Port) -> EvtchnStatus:
        return self._broker.status(self._domid, domid, port)

    def evtchn_reset(self, domid: DomId) -> None:
        self._broker.reset(self._domid, domid)

    def evtchn_notify(self, port: Port) -> None:
        delivery = self._broker.send(self._domid, port)
        if delivery is not None:
            self._deliver(self._domid, port, delivery)
