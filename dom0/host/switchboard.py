# SPDX-License-Identifier: GPL-2.0-only
"""Where events go: the bindings of the `EventBroker`, carried out.

The broker says which port of which domain a notification reaches; here that becomes a mark in a domain's inbox, or a
call of the dom0 backend that holds the port. Owner: the trio thread; handlers are called synchronously and are short.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from xen_py.abi.xen import NR_EVENT_CHANNELS_2L
from xen_py.evtchn import Delivery, EventBroker
from xen_py.foreign import OthersGrants
from xen_py.link import DirectLink
from xen_py.types import DomId, Port, XenError

DOM0 = DomId(0)


class Dom0Port:
    """A port of dom0, bound to one of a guest's; its handler is called when the guest notifies."""

    def __init__(self, switchboard: Switchboard, port: Port) -> None:
        self._switchboard = switchboard
        self.port = port

    def notify(self) -> None:
        """Send the guest an event."""
        self._switchboard.send(DOM0, self.port)

    def close(self) -> None:
        """Idempotent."""
        self._switchboard.hang_up(self.port)


class Switchboard:
    """All event channels of one host."""

    def __init__(self) -> None:
        self.broker = EventBroker()
        self._inboxes: dict[DomId, Callable[[Port], None]] = {}
        self._handlers: dict[Port, Callable[[], None]] = {}
        self.carry: Callable[[DomId, Port, Delivery], None] = self._carry
        """How an event gets from who sent it (domain and port) to where it goes: replaced by whoever watches events
        pass, or holds them up."""
        self.broker.add_domain(DOM0, 1, NR_EVENT_CHANNELS_2L - 1)

    def add_domain(self, domid: DomId, vcpus: int, max_port: int) -> None:
        self.broker.add_domain(domid, vcpus, max_port)

    def connect(self, domid: DomId, inbox: Callable[[Port], None]) -> None:
        """From now on events of the domain reach it; earlier ones had nobody to see them."""
        self._inboxes[domid] = inbox

    def remove_domain(self, domid: DomId) -> None:
        self._inboxes.pop(domid, None)
        self.broker.remove_domain(domid)

    def bind(self, domid: DomId, port: Port, handler: Callable[[], None]) -> Dom0Port:
        """Bind a new dom0 port to one the domain offers to dom0."""
        local = self.broker.bind_interdomain(DOM0, domid, port)
        self._handlers[local] = handler
        return Dom0Port(self, local)

    def hang_up(self, port: Port) -> None:
        if self._handlers.pop(port, None) is not None:
            self.broker.close(DOM0, port)

    def send(self, domid: DomId, port: Port) -> None:
        """Send through a port; one that is closed or bound to nobody is ignored."""
        with suppress(XenError):
            delivery = self.broker.send(domid, port)
            if delivery is not None:
                self.carry(domid, port, delivery)

    def _carry(self, _domid: DomId, _port: Port, delivery: Delivery) -> None:
        self.deliver(delivery)

    def deliver(self, delivery: Delivery) -> None:
        if delivery.domid == DOM0:
            handler = self._handlers.get(delivery.port)
            if handler is not None:
                handler()
        else:
            inbox = self._inboxes.get(delivery.domid)
            if inbox is not None:
                inbox(delivery.port)

    def link_for(
        self,
        domid: DomId,
        console_write: Callable[[bytes], None],
        log: Callable[[str], None],
        others: OthersGrants,
    ) -> DirectLink:
        """What serves the domain's own calls."""
        return DirectLink(self.broker, domid, self._sent, console_write, log, others)

    def _sent(self, domid: DomId, port: Port, delivery: Delivery) -> None:
        self.carry(domid, port, delivery)

    def statistics(self) -> dict[str, object]:
        return self.broker.statistics() | {"handlers": len(self._handlers)}
