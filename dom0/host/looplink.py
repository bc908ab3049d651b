# SPDX-License-Identifier: GPL-2.0-only
"""The domain's end of the link: what a domain asks of the host, and the orders it gets from there.

Lives with the domain: in its VM process, or on its thread inside the host. One thread uses it. Calls are synchronous:
an order that arrives while an answer is awaited is kept until the loop looks.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from dom0.host.messages import LONGEST, BadMessage, pack, parse
from xen_py.doorbell import Doorbell
from xen_py.evtchn import ChannelState, EvtchnStatus
from xen_py.types import DomId, Errno, Port, VcpuId, XenError


class HostGone(Exception):
    """The host has closed the link: the domain ends here."""


class LoopLink:
    """`xen_py.link.HostLink` over the socket and the doorbell page."""

    def __init__(self, sock: socket.socket, doorbell: Doorbell) -> None:
        self._socket = sock
        self._doorbell = doorbell
        self._orders: deque[list[Any]] = deque()
        self.on_kept: Callable[[], None] = lambda: None
        """Called when an order has been put aside."""

    # HostLink

    def evtchn_alloc_unbound(self, owner: DomId, remote: DomId) -> Port:
        return Port(self._call("evtchn_alloc_unbound", owner, remote))

    def evtchn_bind_interdomain(self, remote: DomId, remote_port: Port) -> Port:
        return Port(self._call("evtchn_bind_interdomain", remote, remote_port))

    def evtchn_bind_virq(self, virq: int, vcpu: VcpuId) -> Port:
        return Port(self._call("evtchn_bind_virq", virq, vcpu))

    def evtchn_bind_ipi(self, vcpu: VcpuId) -> Port:
        return Port(self._call("evtchn_bind_ipi", vcpu))

    def evtchn_bind_vcpu(self, port: Port, vcpu: VcpuId) -> None:
        self._call("evtchn_bind_vcpu", port, vcpu)

    def evtchn_close(self, port: Port) -> None:
        self._call("evtchn_close", port)

    def evtchn_status(self, domid: DomId, port: Port) -> EvtchnStatus:
        state, *rest = self._call("evtchn_status", domid, port)
        return EvtchnStatus(ChannelState(state), *rest)

    def evtchn_reset(self, domid: DomId) -> None:
        self._call("evtchn_reset", domid)

    def evtchn_notify(self, port: Port) -> None:
        self._doorbell.outbox.ring(port)

    def console_write(self, data: bytes) -> None:
        for start in range(0, len(data), LONGEST // 2):
            self._send("console", data[start : start + LONGEST // 2])

    def log(self, text: str) -> None:
        self._send("log", text[: LONGEST // 8])

    # the loop's own

    def done(self, order: int, result: object = None) -> None:
        self._send("done", order, result)

    def over(self, reason: int, why: str) -> None:
        self._send("over", reason, why[: LONGEST // 8])

    def records(self, lost: int, records: list[list[Any]]) -> bool:
        """Hand records of a trace over; False where the host does not keep up: they are not sent."""
        try:
            self._socket.send(pack("trace", lost, records), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError as error:
            raise HostGone(str(error)) from error
        return True

    def broken(self, text: str) -> None:
        self._send("broken", text[-LONGEST // 8 :])

    @property
    def fd(self) -> int:
        """Readable when there is something to receive."""
        return self._socket.fileno()

    def orders(self) -> list[list[Any]]:
        """What the host has asked for since the last look. HostGone when it has closed the link."""
        while True:
            try:
                data = self._socket.recv(LONGEST, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                raise HostGone(str(error)) from error
            self._keep(data)
        taken = list(self._orders)
        self._orders.clear()
        return taken

    def wait(self, seconds: float | None) -> None:
        """Sleep until the host has sent an order or rung the inbox, or the time is over."""
        if not self._orders:
            select.select([self._socket.fileno(), self._doorbell.inbox.eventfd], [], [], seconds)

    def _call(self, method: str, *args: int) -> Any:
        self._send("call", method, args)
        while True:
            try:
                data = self._socket.recv(LONGEST)
            except OSError as error:
                raise HostGone(str(error)) from error
            message = self._keep(data)
            if message is None:
                continue
            if message[0] == "answer":
                return message[1]
            raise XenError(Errno(message[1]), message[2])

    def _keep(self, data: bytes) -> list[Any] | None:
        """Put an order aside; an answer is for the caller."""
        if not data:
            raise HostGone("the link is closed")
        message = parse(data)
        match message:
            case ["answer", _] | ["failed", int(), str()]:
                return message
            case ["pause" | "unpause" | "pin" | "unpin" | "grants" | "trace", int(), *_]:
                self._orders.append(message)
                self.on_kept()
                return None
        raise BadMessage(f"unknown message {message[0]!r} from the host")

    def _send(self, *parts: object) -> None:
        try:
            self._socket.send(pack(*parts))
        except OSError as error:
            raise HostGone(str(error)) from error
