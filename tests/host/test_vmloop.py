# SPDX-License-Identifier: GPL-2.0-only
"""The loop of a domain, at the moment where an order of the host could be missed."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack, closing

import pytest

from dom0.host.looplink import HostGone, LoopLink
from dom0.host.messages import LONGEST, pack, parse
from dom0.host.vmloop import VmLoop
from tests.core.machine import build_machine
from tests.host.guests import PATIENCE
from xen_py.clock import RealClock
from xen_py.doorbell import Bell, Doorbell
from xen_py.types import Port

ENDLESS = b"\xeb\xfe"


class LateOrders:
    """The host's end: each order is sent after the loop has looked for orders, and before it empties its inbox."""

    def __init__(self, inbox: Bell, link: socket.socket, orders: list[bytes]) -> None:
        self._poke = inbox.poke
        self._take = inbox.take
        self._link = link
        self._left = orders

    def take(self) -> list[Port]:
        if self._left:
            self._link.send(self._left.pop(0))
            self._poke()
        return self._take()


@pytest.mark.parametrize("vcpus", [1, 2])
def test_an_order_is_obeyed_whenever_it_comes(vcpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest neither sleeps nor calls nor has a timer: nothing else ends its stay in translated code."""
    with ExitStack() as stack:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(ours)
        stack.enter_context(theirs)
        ours.settimeout(PATIENCE)
        doorbell = stack.enter_context(closing(Doorbell.create()))
        orders = [pack("grants", 1), pack("trace", 2, True), pack("trace", 3, False), pack("grants", 4)]
        monkeypatch.setattr(doorbell.inbox, "take", LateOrders(doorbell.inbox, ours, orders).take)

        def drive() -> None:
            clock = RealClock()
            with closing(build_machine(vcpus, clock)) as machine:
                machine.set_code(ENDLESS)
                with pytest.raises(HostGone):
                    VmLoop(machine.domain, LoopLink(theirs, doorbell), doorbell, clock, pauses=0).run()

        loop = threading.Thread(target=drive)
        loop.start()
        done: list[object] = []
        try:
            while len(done) < 4:
                match parse(ours.recv(LONGEST)):
                    case ["done", number, _]:
                        done.append(number)
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            doorbell.inbox.poke()
            loop.join(PATIENCE)
        assert done == [1, 2, 3, 4]
        assert not loop.is_alive()
