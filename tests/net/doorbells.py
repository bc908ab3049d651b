# SPDX-License-Identifier: GPL-2.0-only
"""Guests of the test's own loop with doorbells, as those in other processes have: native threads reach them.

Events that a guest sends through a port that has been routed go to an eventfd; what a native thread rings in the inbox
is delivered by a task of the loop.
"""

from __future__ import annotations

import os
from weakref import WeakKeyDictionary

import pytest
import trio

from dom0.host.hosted import HostedVm
from dom0.host.switchboard import Switchboard
from xen_py.doorbell import Doorbell
from xen_py.evtchn import Delivery
from xen_py.types import DomId, Port


def give_doorbells(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the rest of the test; machines must not share domids."""
    doorbells: WeakKeyDictionary[HostedVm, Doorbell] = WeakKeyDictionary()
    routes: dict[tuple[DomId, Port], int] = {}
    carried = Switchboard._carry

    async def deliver(vm: HostedVm, doorbell: Doorbell) -> None:
        try:
            while True:
                await trio.lowlevel.wait_readable(doorbell.inbox.eventfd)
                for port in doorbell.inbox.take():
                    vm.deliver(port)
        finally:
            doorbell.close()

    def another_doorbell(vm: HostedVm) -> Doorbell:
        if vm not in doorbells:
            doorbells[vm] = Doorbell.create()
            trio.lowlevel.spawn_system_task(deliver, vm, doorbells[vm])
        return Doorbell(*(os.dup(fd) for fd in doorbells[vm].fds))

    async def route(vm: HostedVm, port: Port, eventfd: int | None) -> None:
        await trio.lowlevel.checkpoint()
        old = routes.pop((vm.spec.domid, port), None)
        if old is not None:
            os.close(old)
        if eventfd is not None:
            routes[vm.spec.domid, port] = os.dup(eventfd)

    def carry(board: Switchboard, domid: DomId, port: Port, delivery: Delivery) -> None:
        if (domid, port) in routes:
            os.eventfd_write(routes[domid, port], 1)
        else:
            carried(board, domid, port, delivery)

    monkeypatch.setattr(HostedVm, "direct", True)
    monkeypatch.setattr(HostedVm, "another_doorbell", another_doorbell)
    monkeypatch.setattr(HostedVm, "route", route)
    monkeypatch.setattr(Switchboard, "_carry", carry)
