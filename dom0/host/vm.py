# SPDX-License-Identifier: GPL-2.0-only
"""One domain's running half, as the host sees it: its memory, its doorbell, its link, and the loop at the other end.

`Vm` is the same whether the loop is a VM process or a thread (`dom0.host.spawn`). It serves the domain's calls,
carries its notifications to the event broker, and tells the toolstack the two things that can happen to it: the
domain ended by itself (`on_over`), or the loop went away unasked (`on_death`). Whatever arrives from the loop is
checked as if the guest had sent it, because one that has broken the emulator might have.

Owner: the trio thread. `run` must be running for any of it to work.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import time
from array import array
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import trio

from dom0.backend.grants import GuestGone, GuestGrants
from dom0.host.foreign import ForeignGrants, NotHeld
from dom0.host.linger import watched
from dom0.host.messages import LONGEST, BadMessage, pack, parse
from dom0.host.spawn import LoopEnd, Spawner
from xen_py.abi.grant_table import GrantStatus
from xen_py.doorbell import Doorbell, RunState
from xen_py.evtchn import EvtchnStatus
from xen_py.link import HostLink
from xen_py.memory import GuestMemory
from xen_py.spec import DomainSpec
from xen_py.trace import Record, Tracer
from xen_py.types import Port, XenError

_log = logging.getLogger("xen-py.vm")

PATIENCE = 10
"""Seconds a loop may take to come out of its guest, or to end, before it counts as stuck."""

_NUMBERS = range(1 << 32)
_CALLS: dict[str, int] = {
    "evtchn_alloc_unbound": 2,
    "evtchn_bind_interdomain": 2,
    "evtchn_bind_virq": 2,
    "evtchn_bind_ipi": 1,
    "evtchn_bind_vcpu": 2,
    "evtchn_close": 1,
    "evtchn_status": 2,
    "evtchn_reset": 1,
}
"""What a domain may call, and with how many numbers."""
_OTHERS: dict[str, tuple[type, ...]] = {
    "others_map": (int, int, int),
    "others_unmap": (int, int, int),
    "others_read": (int, int, int, int),
    "others_write": (int, int, int, bytes),
    "others_memory": (int,),
}
"""What it may call about the grants of others, and with what: the owner's domid first."""


@dataclass
class VmStatistics:
    calls: int = 0
    notifications: int = 0
    """Ports the domain has rung."""
    delivered: int = 0
    """Ports rung for the domain."""
    orders: int = 0


class VmStuck(Exception):
    """The loop does not answer."""


@dataclass
class _Order:
    """Something the loop has been told to do."""

    kind: str
    check: Callable[[Any], bool]
    """Whether a result can be: the loop is not believed."""
    done: trio.Event = field(default_factory=trio.Event)
    answered: bool = False
    result: Any = None


@dataclass(frozen=True)
class VmInfo:
    pid: int
    state: RunState
    pages: int
    cpu_time_ns: int
    vcpus: tuple[tuple[bool, bool, int], ...]
    """For each vCPU: online, blocked, nanoseconds run."""


class Vm:
    """See the module. `services` answers the domain's calls, `foreign` those about grants of other guests."""

    direct = True
    """Its memory and its events are there for native code."""

    def __init__(
        self,
        spec: DomainSpec,
        memory: GuestMemory,
        services: HostLink,
        foreign: ForeignGrants,
        on_over: Callable[[int, str], None],
        on_death: Callable[[str], None],
    ) -> None:
        self.spec = spec
        self.memory = memory
        self._services = services
        self._foreign = foreign
        self._asking = False
        """A call about grants of others is being answered."""
        self._on_over = on_over
        self._on_death = on_death
        self._doorbell = Doorbell.create()
        self._socket: trio.socket.SocketType
        self._plain_socket: socket.socket
        self._early: deque[bytes] = deque()
        """Messages that `order_now` came across, still to be served."""
        self._receiving = trio.CancelScope()
        self._sending = trio.Lock()
        self._loop: LoopEnd | None = None
        self._orders: dict[int, _Order] = {}
        self.grants = GuestGrants(spec.domid, memory, self.order)
        self.pauses = 1
        self._statistics = VmStatistics()
        self._tracer: Tracer | None = None
        self._over = False
        self._killed = False
        self._trouble: str | None = None
        self._last_info = VmInfo(0, RunState.STARTING, spec.nr_pages, 0, ())
        self.ended = trio.Event()
        """The loop is gone and nothing more will come from it."""

    async def run(self, spawner: Spawner, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the loop, paused, and serve it to its end."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._plain_socket = ours
        self._socket = trio.socket.from_stdlib_socket(ours)
        how: str | None = None
        try:
            with theirs:
                loop = await spawner.spawn(self.spec, [self.memory.fd, *self._doorbell.fds, theirs.fileno()])
            self._loop = loop
            task_status.started()
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._carry_notifications)
                    await self._serve_messages(nursery)
                    nursery.cancel_scope.cancel()
            except* Exception as errors:
                # a bug of ours that this domain has brought out: it costs this domain, not the host
                _log.exception("serving domain %d failed", self.spec.domid)
                self._trouble = f"xen-py failed: {errors.exceptions[0]!r}"
            finally:
                with trio.CancelScope(shield=True):
                    how = await self._end_of(loop)
        finally:
            self._socket.close()
            self.info()  # the last figures, for who asks later
            self._doorbell.close()
            self._loop = None
            for order in self._orders.values():
                order.done.set()
            self._orders.clear()
            self.ended.set()
        if not self._killed and not self._over:
            self._on_death(self._trouble or how or "the domain's loop ended unasked")

    async def _end_of(self, loop: LoopEnd) -> str | None:
        """The link is closed, or we are leaving: see the loop off, by force where it lingers."""
        self._hang_up()
        if not self._killed:
            with trio.move_on_after(1):
                return await loop.wait()
        loop.kill()
        with trio.move_on_after(PATIENCE):
            return await loop.wait()
        return "the domain's loop does not end"

    def _hang_up(self) -> None:
        """A loop on a thread ends by this: its link is closed, and its guest is left to see that."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._doorbell.inbox.poke()

    # what the domain sends

    async def _carry_notifications(self) -> None:
        outbox = self._doorbell.outbox
        with watched(outbox):
            while True:
                await trio.lowlevel.wait_readable(outbox.eventfd)
                for port in outbox.take():
                    self._statistics.notifications += 1
                    with suppress(XenError):
                        self._services.evtchn_notify(port)

    async def _serve_messages(self, nursery: trio.Nursery) -> None:
        """Until the link closes, or says what no correct loop says."""
        try:
            while data := await self._receive():
                await self._serve(parse(data), nursery)
        except BadMessage as error:
            self._broke_the_link(error)
        except OSError:
            return  # it is gone

    def _broke_the_link(self, error: Exception) -> None:
        self._trouble = f"the domain's process broke the link: {error}"
        if self._loop is not None:
            self._loop.kill()

    async def _receive(self) -> bytes:
        """One message. A loop that closed its end with orders unread shows first as a reset, its last words follow."""
        while not self._early:
            with trio.CancelScope() as self._receiving:
                try:
                    return await self._socket.recv(LONGEST)
                except ConnectionResetError:
                    return await self._socket.recv(LONGEST)
        return self._early.popleft()

    async def _serve(self, message: list[Any], nursery: trio.Nursery) -> None:
        match message:
            case ["call", str(method), list(arguments)] if method in _OTHERS:
                if self._asking:
                    raise BadMessage("a call while another is being answered")
                if tuple(map(type, arguments)) != _OTHERS[method] or any(
                    type(n) is int and n not in _NUMBERS for n in arguments
                ):
                    raise BadMessage(f"call {method!r} with {arguments!r}")
                # not in this task: the answer may depend on what this loop does about its own grants meanwhile
                self._asking = True
                nursery.start_soon(self._answer_about_others, method, arguments)
            case ["call", str(method), list(arguments)]:
                await self._send(*self._call(method, arguments))
            case ["console", bytes(data)]:
                self._services.console_write(data)
            case ["trace", int(lost), list(records)]:
                self._pass_on(lost, records)
            case ["log", str(text)]:
                self._services.log(text)
            case ["done", int(number), result] if number in self._orders:
                order = self._orders[number]
                if not order.check(result):
                    raise BadMessage(f"a result of {order.kind!r} that cannot be")
                del self._orders[number]
                order.result, order.answered = result, True
                order.done.set()
            case ["over", int(reason), str(why)] if not self._over:
                self._over = True
                self._on_over(reason, why)
            case ["broken", str(text)]:
                self._trouble = f"xen-py failed: {text.strip().splitlines()[-1] if text.strip() else 'no reason given'}"
                self._services.log(text)
            case _:
                raise BadMessage(f"unexpected {message[0]!r}")

    async def _answer_about_others(self, method: str, arguments: list[Any]) -> None:
        self._statistics.calls += 1
        user = self.spec.domid
        try:
            if method != "others_memory":
                operation = getattr(self._foreign, method.removeprefix("others_"))
                result = await operation(user, *arguments)
                self._asking = False
                await self._send("answer", result)
                return
            memory = self._foreign.memory(user, *arguments)
            self._asking = False
            if memory is None:
                await self._send("answer", int(GrantStatus.GENERAL_ERROR))
            else:
                await self._send("answer", memory.geometry.nr_frames, fd=memory.fd)
        except NotHeld as error:
            self._broke_the_link(error)

    def _pass_on(self, lost: int, records: list[Any]) -> None:
        """Records of the domain's loop: whatever they say, it is this domain that says it."""
        tracer = self._tracer
        if tracer is None or not tracer.on:
            return
        try:
            for plain in records:
                tracer.pass_on(Record.from_plain(plain)._replace(domid=self.spec.domid))
        except ValueError as error:
            raise BadMessage(str(error)) from error
        if lost:
            tracer.record(self.spec.domid, "domain", "records lost", count=lost)

    def _call(self, method: str, arguments: list[Any]) -> tuple[object, ...]:
        if _CALLS.get(method) != len(arguments) or not all(type(n) is int and n in _NUMBERS for n in arguments):
            raise BadMessage(f"call {method!r} with {arguments!r}")
        self._statistics.calls += 1
        try:
            result = getattr(self._services, method)(*arguments)
        except XenError as error:
            return "failed", int(error.errno), error.why
        return "answer", astuple(result) if isinstance(result, EvtchnStatus) else result

    # what the host does with it

    def deliver(self, port: Port) -> None:
        """Mark `port` pending for the guest; it sees it when its loop next looks, which is soon."""
        if self._loop is not None:
            self._statistics.delivered += 1
            self._doorbell.inbox.ring(port)

    def another_doorbell(self) -> Doorbell | None:
        """The page and its eventfds once more, to outlive the loop; None when that is gone."""
        if self._loop is None:
            return None
        return Doorbell(*(os.dup(fd) for fd in self._doorbell.fds))

    async def pause(self) -> None:
        """Hold the domain; returns once its vCPUs have left the engine. Pauses count."""
        self.pauses += 1
        await self._order("pause")

    async def unpause(self) -> None:
        """Take one pause back. A domain that is not paused stays as it is."""
        if self.pauses:
            self.pauses -= 1
            await self._order("unpause")

    async def destroy(self) -> None:
        """End the loop, whatever it is doing."""
        self._killed = True
        if self._loop is not None:
            self._loop.kill()
            self._hang_up()
        await self.ended.wait()

    async def trace(self, tracer: Tracer | None) -> None:
        """Have what the domain does recorded there, as far as the records keep up; None ends it."""
        self._tracer = self.grants.tracer = tracer
        with suppress(GuestGone):
            await self.order("trace", tracer is not None, check=lambda result: result is None)

    async def _order(self, kind: str) -> None:
        if self._loop is None or self._over:
            return
        try:
            with trio.fail_after(PATIENCE), suppress(GuestGone):
                await self.order(kind, check=lambda result: result is None)
        except trio.TooSlowError:
            raise VmStuck(f"domain {self.spec.domid} has not answered for {PATIENCE} seconds") from None

    async def route(self, port: Port, eventfd: int | None) -> None:
        """Have what the domain sends through that port of its go to an eventfd instead of to the host; None ends it.

        It ends by itself when the domain closes the port. GuestGone when there is no loop.
        """
        await self.order("route", port, eventfd is not None, check=lambda result: result is None, fd=eventfd)

    async def order(self, kind: str, *args: object, check: Callable[[Any], bool], fd: int | None = None) -> Any:
        """Have the loop do something; its result, which `check` has found possible. GuestGone when there is no loop.

        A caller that is cancelled meanwhile has ordered it all the same. It takes as long as the loop does.
        """
        if self._loop is None:
            raise GuestGone(f"domain {self.spec.domid} is gone")
        number, order = self._new_order(kind, check)
        await self._send(kind, number, *args, fd=fd)
        if self._loop is not None:  # it may have gone meanwhile, and the doorbell with it
            # a loop inside its guest looks at its messages when it is kicked
            self._doorbell.inbox.poke()
        await order.done.wait()
        if not order.answered:
            raise GuestGone(f"domain {self.spec.domid} is gone")
        return order.result

    def order_now(self, kind: str, *args: object, check: Callable[[Any], bool]) -> Any:
        """`order` for a guest in the host's own loop, which cannot wait: until the answer is there, all of it stops.

        Whatever else the loop says meanwhile is served afterwards. A loop that does not answer is as good as gone.
        """
        if self._loop is None:
            raise GuestGone(f"domain {self.spec.domid} is gone")
        link = self._plain_socket
        number, _ = self._new_order(kind, check)
        gone = GuestGone(f"domain {self.spec.domid} has not answered")
        until = time.monotonic() + PATIENCE
        sent = False
        while (left := until - time.monotonic()) > 0:
            readable, writable, _ = select.select([link], [] if sent else [link], [], left)
            try:
                if writable:
                    link.send(pack(kind, number, *args))
                    sent = True
                    self._doorbell.inbox.poke()
                data = link.recv(LONGEST) if readable else None
            except BlockingIOError:
                continue
            except OSError:
                raise gone from None
            if data is None:
                continue
            match parse(data) if data else []:
                case ["done", answered, result] if answered == number:
                    del self._orders[number]
                    if check(result):
                        return result
                    self._broke_the_link(BadMessage(f"a result of {kind!r} that cannot be"))
                    raise gone
            self._early.append(data)
            self._receiving.cancel()
            if not data:
                raise gone
        raise gone

    def _new_order(self, kind: str, check: Callable[[Any], bool]) -> tuple[int, _Order]:
        self._statistics.orders += 1
        number = self._statistics.orders
        order = self._orders[number] = _Order(kind, check)
        return number, order

    async def _send(self, *parts: object, fd: int | None = None) -> None:
        """One message, with a descriptor if there is one to go with it."""
        rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))]
        async with self._sending:
            with suppress(OSError, trio.ClosedResourceError):  # a loop that is gone shows in _serve_messages
                await self._socket.sendmsg([pack(*parts)], rights)

    # what the host may know without asking

    def info(self) -> VmInfo:
        """The domain's own figures as it last published them; the CPU time is the kernel's where it knows it."""
        loop = self._loop
        if loop is None:
            return self._last_info
        vcpus = self._doorbell.vcpus()
        cpu_time_ns = loop.cpu_time_ns()
        if cpu_time_ns is None:
            cpu_time_ns = sum(n for _, _, n in vcpus)
        self._last_info = VmInfo(loop.pid, self._doorbell.state, self._doorbell.pages, cpu_time_ns, tuple(vcpus))
        return self._last_info

    def statistics(self) -> VmStatistics:
        return replace(self._statistics)
