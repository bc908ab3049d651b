# SPDX-License-Identifier: GPL-2.0-only
"""The domain's end of the link: what a domain asks of the host, and the orders it gets from there.

Lives with the domain: in its VM process, or on its thread inside the host. One thread uses it. Calls are synchronous.
An order that arrives while an answer is awaited is kept until the loop looks, unless it is about the domain's grants:
those are carried out at once, for somebody may be waiting who is waited for here. So is where the events of a port go.
"""

from __future__ import annotations

import os
import select
import socket
from array import array
from collections import deque
from collections.abc import Callable
from typing import Any

from dom0.host.grantorders import ORDERS
from dom0.host.messages import LONGEST, BadMessage, pack, parse
from xen_py.abi.grant_table import GrantStatus
from xen_py.doorbell import MAX_PORTS, Doorbell
from xen_py.evtchn import ChannelState, EvtchnStatus
from xen_py.foreign import OthersGrants
from xen_py.grants import GrantError
from xen_py.types import DomId, Errno, GrantRef, Port, VcpuId, XenError


class HostGone(Exception):
    """The host has closed the link: the domain ends here."""


class LoopLink:
    """`xen_py.link.HostLink` over the socket and the doorbell page."""

    def __init__(self, sock: socket.socket, doorbell: Doorbell) -> None:
        self._socket = sock
        self._doorbell = doorbell
        self._orders: deque[list[Any]] = deque()
        self.routes = memoryview(array("i", [-1]) * MAX_PORTS)
        """Eventfds of backends' threads, for the ports whose events go to them; -1 for the others."""
        self.others: OthersGrants = _OthersOverLink(self._call)
        self._carry_out: Callable[[str, list[Any]], object] | None = None
        self.on_kept: Callable[[], None] = lambda: None
        """Called when an order has been put aside while an answer was awaited."""

    # HostLink

    def evtchn_alloc_unbound(self, owner: DomId, remote: DomId) -> Port:
        return Port(self._call("evtchn_alloc_unbound", owner, remote)[0])

    def evtchn_bind_interdomain(self, remote: DomId, remote_port: Port) -> Port:
        return Port(self._call("evtchn_bind_interdomain", remote, remote_port)[0])

    def evtchn_bind_virq(self, virq: int, vcpu: VcpuId) -> Port:
        return Port(self._call("evtchn_bind_virq", virq, vcpu)[0])

    def evtchn_bind_ipi(self, vcpu: VcpuId) -> Port:
        return Port(self._call("evtchn_bind_ipi", vcpu)[0])

    def evtchn_bind_vcpu(self, port: Port, vcpu: VcpuId) -> None:
        self._call("evtchn_bind_vcpu", port, vcpu)

    def evtchn_close(self, port: Port) -> None:
        self._call("evtchn_close", port)
        self._unroute(port)

    def evtchn_status(self, domid: DomId, port: Port) -> EvtchnStatus:
        state, *rest = self._call("evtchn_status", domid, port)[0]
        return EvtchnStatus(ChannelState(state), *rest)

    def evtchn_reset(self, domid: DomId) -> None:
        self._call("evtchn_reset", domid)
        for port in range(MAX_PORTS):
            self._unroute(Port(port))

    def evtchn_notify(self, port: Port) -> None:
        eventfd = self.routes[port]
        if eventfd < 0:
            self._doorbell.outbox.ring(port)
        else:
            os.eventfd_write(eventfd, 1)

    def console_write(self, data: bytes) -> None:
        for start in range(0, len(data), LONGEST // 2):
            self._send("console", data[start : start + LONGEST // 2])

    def log(self, text: str) -> None:
        self._send("log", text[: LONGEST // 8])

    # the loop's own

    def serve_grants(self, carry_out: Callable[[str, list[Any]], object]) -> None:
        """From now on, for as long as the link is used, orders about its grants are carried out so."""
        self._carry_out = carry_out
        self._carry_out_grants()

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
        """What the host has asked for since the last look, but for what was about grants. HostGone when it has gone."""
        while True:
            try:
                data, fds = self._receive(socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                raise HostGone(str(error)) from error
            self._keep(data, fds)
        self._carry_out_grants()
        taken = list(self._orders)
        self._orders.clear()
        return taken

    def wait(self, seconds: float | None) -> None:
        """Sleep until the host has sent an order or rung the inbox, or the time is over."""
        if not self._orders:
            select.select([self._socket.fileno(), self._doorbell.inbox.eventfd], [], [], seconds)

    def _call(self, method: str, *args: object) -> tuple[Any, list[int]]:
        """The answer, and the descriptors that came with it."""
        self._send("call", method, args)
        while True:
            try:
                data, fds = self._receive(0)
            except OSError as error:
                raise HostGone(str(error)) from error
            message = self._keep(data, fds)
            if message is None:
                self._carry_out_grants()
                continue
            if self._orders:
                self.on_kept()
            if message[0] == "answer":
                return message[1], fds
            raise XenError(Errno(message[1]), message[2])

    def _carry_out_grants(self) -> None:
        if self._carry_out is None:
            return
        mine = [message for message in self._orders if message[0] in ORDERS]
        if mine:
            self._orders = deque(message for message in self._orders if message[0] not in ORDERS)
        for kind, order, *args in mine:
            self.done(order, self._carry_out(kind, args))

    def _receive(self, flags: int) -> tuple[bytes, list[int]]:
        """A message, and the descriptor that came with it. `socket.recv_fds` does not pass its flags on."""
        data, ancillary, _, _ = self._socket.recvmsg(LONGEST, socket.CMSG_SPACE(4), flags)
        return data, [fd for _, _, packed in ancillary for fd in array("i", packed[:4])]

    def _unroute(self, port: Port) -> None:
        eventfd, self.routes[port] = self.routes[port], -1
        if eventfd >= 0:
            os.close(eventfd)

    def _keep(self, data: bytes, fds: list[int]) -> list[Any] | None:
        """Put an order aside; an answer is for the caller."""
        if not data:
            raise HostGone("the link is closed")
        message = parse(data)
        match message:
            case ["answer", _] | ["failed", int(), str()]:
                return message
            case ["route", int(order), int(port), there]:
                self._unroute(Port(port))
                if there:
                    (self.routes[port],) = fds
                self.done(order)
                return None
            case [str(kind), int(), *_] if kind in ORDERS or kind in ("pause", "unpause", "trace"):
                self._orders.append(message)
                return None
        raise BadMessage(f"unknown message {message[0]!r} from the host")

    def _send(self, *parts: object) -> None:
        try:
            self._socket.send(pack(*parts))
        except OSError as error:
            raise HostGone(str(error)) from error


class _OthersOverLink:
    """`xen_py.foreign.OthersGrants`, by calls whose answers are negative where a status refuses."""

    def __init__(self, call: Callable[..., tuple[Any, list[int]]]) -> None:
        self._call = call

    def map(self, owner: DomId, ref: GrantRef, flags: int) -> int:
        return int(self._accepted("others_map", owner, ref, flags))

    def unmap(self, owner: DomId, ref: GrantRef, flags: int) -> None:
        self._call("others_unmap", owner, ref, flags)

    def memory(self, owner: DomId) -> tuple[int, int]:
        frames, fds = self._call("others_memory", owner)
        if frames < 0:
            raise GrantError(GrantStatus(frames), f"memory of domain {owner}")
        (fd,) = fds
        return fd, frames

    def read(self, owner: DomId, ref: GrantRef, offset: int, length: int) -> bytes:
        return bytes(self._accepted("others_read", owner, ref, offset, length))

    def write(self, owner: DomId, ref: GrantRef, offset: int, data: bytes) -> None:
        self._accepted("others_write", owner, ref, offset, data)

    def _accepted(self, method: str, owner: DomId, ref: GrantRef, *args: object) -> Any:
        result, _ = self._call(method, owner, ref, *args)
        if isinstance(result, int) and result < 0:
            raise GrantError(GrantStatus(result), f"grant {ref} of domain {owner}")
        return result
