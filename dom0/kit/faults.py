# SPDX-License-Identifier: GPL-2.0-only
"""What real machines do to drivers, on demand: a plan of faults that can be read, cut down and run again.

A plan is a list of `Fault`s, plain data, made by a seed or by hand; `Injector` carries it out on a seeded machine, each
at its moment of virtual time. The seams are those that drivers stand on: events on their way, the ring's pages, the
store's nodes, grants, the toolstack and the backend's own task. An event that is lost arrives LOST_SECONDS later all
the same, as the next event on a busy port would: a driver may not need every event at once, but it may not hang for
ever for want of one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import trio

from dom0.host.machine import Machine
from dom0.kit.seeded import Deliveries
from dom0.toolstack.devices import DeviceError
from xen_py.drive.queue import BackQueue
from xen_py.evtchn import Delivery
from xen_py.io.ring import HEADER_SIZE, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, RingStatistics
from xen_py.io.xenbus_toolstack import Happening
from xen_py.types import DomId, Port
from xenstore.errors import XenstoreError

LOST_SECONDS = 1.0
LATE_SECONDS = 0.05
WINDOW = 0.02
"""Seconds from the start in which faults happen: a handshake and some requests take about as long."""
RING_SECONDS = 0.01
"""How long a fault of the ring waits for one to be in use."""

KINDS = (
    "event lost",
    "event late",
    "event doubled",
    "guest stalls",
    "backend stalls",
    "frontend closes",
    "device detached",
    "ring index",
    "ring slots",
    "state node",
    "ring node",
    "backend node",
    "grant revoked",
    "backend restarts",
    "store restarts",
    "guest destroyed",
)
CORRUPTING = frozenset({"ring index", "ring slots", "ring node"})
"""After these the data that a driver gets may be wrong without its fault, or never come: a ring node can name another
page that is granted too."""


_TICKS = 4
"""Turns of the scheduler in which a backend's task gets to look at its ring."""


class Fault(NamedTuple):
    """`number` is the fault's own die: which index, which value."""

    at: float
    kind: str
    number: int

    def __str__(self) -> str:
        return f"{self.kind} at {self.at * 1000:.3f} ms (die {self.number:#x})"


def plan(seed: int, most: int = 4, kinds: Sequence[str] = KINDS) -> list[Fault]:
    """Up to `most` faults, in the order in which they happen."""
    dice = random.Random(f"faults {seed}")
    count = dice.randint(0, most)
    faults = [Fault(dice.uniform(0, WINDOW), dice.choice(kinds), dice.getrandbits(32)) for _ in range(count)]
    return sorted(faults)


class Victim(Protocol):
    """What an injector must know of the device under test."""

    kind: str
    devid: int

    @property
    def guest(self) -> Any:
        """`domU.guest.Guest`."""

    @property
    def frontend(self) -> Any:
        """The frontend at work, or None."""


class Injector(Deliveries):
    """Carries out a plan; its events take a random way, as in any seeded machine."""

    def __init__(self, machine: Machine, victim: Victim, faults: Sequence[Fault]) -> None:
        super().__init__(machine)
        self._victim = victim
        self._faults = faults
        self._next_event: list[str] = []
        self._stalled_until = 0.0
        self.done: list[Fault] = []
        self.finished = trio.Event()

    async def run(self) -> None:
        """Until the last fault has happened."""
        began = trio.current_time()
        for fault in self._faults:
            await trio.sleep_until(began + fault.at)
            self.done.append(fault)
            if fault.kind.startswith("event "):
                self._next_event.append(fault.kind)
            elif not self._victim.guest.kernel.is_dead():
                await getattr(self, "_" + fault.kind.replace(" ", "_"))(fault.number)
        self.finished.set()

    # ---- events ----

    def carry(self, sender: DomId, port: Port, delivery: Delivery) -> None:
        if delivery.domid == 0 and trio.current_time() < self._stalled_until:
            return self.send(delivery, self._stalled_until - trio.current_time())
        if not self._next_event or 0 not in (sender, delivery.domid):
            return super().carry(sender, port, delivery)
        kind = self._next_event.pop(0)
        if kind == "event doubled":
            super().carry(sender, port, delivery)
            super().carry(sender, port, delivery)
        else:
            self.send(delivery, LOST_SECONDS if kind == "event lost" else LATE_SECONDS)
        return None

    async def _backend_stalls(self, number: int) -> None:
        """Dom0 has other things to do: no event reaches it for up to a second."""
        self._stalled_until = trio.current_time() + 0.001 * (number % 1000)

    # ---- the rest ----

    async def _guest_stalls(self, number: int) -> None:
        vm = self._machine.toolstack.find(self._victim.guest.domid).vm
        if vm is not None:
            await vm.pause()
            await trio.sleep(0.001 * (number % 1000))
            await vm.unpause()

    async def _frontend_closes(self, _number: int) -> None:
        if self._victim.frontend is not None:
            self._victim.frontend.unwant()

    async def _device_detached(self, number: int) -> None:
        device = self._machine.toolstack.devices.find(self._victim.guest.domid, self._victim.kind, self._victim.devid)
        if device is not None:
            try:
                await self._machine.toolstack.devices.remove(device, list(Happening)[1 + number % 3])
            except DeviceError:
                return  # it is still there, or was taken by force: both may be

    async def _ring_index(self, number: int) -> None:
        """One of the four indices, to anything or a little further; and the backend looks at once."""
        victim, queues = self._victim, await self._rings_in_use()
        made = victim.frontend._queue if victim.frontend is not None else None
        for page in self._ring_pages()[:1]:
            at = 4 * (REQ_PROD, RSP_PROD, REQ_PROD, RSP_PROD, REQ_EVENT, RSP_EVENT)[number % 6]
            value = number >> 8 if number & 16 else int.from_bytes(page[at : at + 4], "little") + (number >> 8) % 64
            page[at : at + 4] = (value & 0xFFFFFFFF).to_bytes(4, "little")
        for queue in queues:
            queue.on_event()
        for _ in range(_TICKS):
            await trio.lowlevel.checkpoint()
        if made is not None:
            for queue in queues:
                _check_taken(queue.statistics(), made.statistics())

    async def _ring_slots(self, number: int) -> None:
        """Noise in every slot, and as if some of it were new: the frontend's requests or the backend's responses."""
        queues = await self._rings_in_use()
        dice = random.Random(number)
        at = 4 * (REQ_PROD, RSP_PROD)[number % 2]
        pages = self._ring_pages()
        for page in pages:
            page[HEADER_SIZE:] = dice.randbytes(len(page) - HEADER_SIZE)
        for page in pages[:1]:
            ahead = int.from_bytes(page[at : at + 4], "little") + (number >> 8) % 4
            page[at : at + 4] = (ahead & 0xFFFFFFFF).to_bytes(4, "little")
        for queue in queues:
            queue.on_event()

    async def _rings_in_use(self) -> list[BackQueue]:
        """The backend's rings, once it has some: a ring that nobody looks at yet is no target."""
        victim = self._victim
        with trio.move_on_after(RING_SECONDS):
            while True:
                backend = self._machine.backends.device(victim.kind, victim.guest.domid, victim.devid)
                if backend is not None and backend.queues:
                    return list(backend.queues)
                await trio.sleep(RING_SECONDS / 50)
        return []

    def _ring_pages(self) -> list[memoryview]:
        frontend = self._victim.frontend
        return [page.data for _, page in frontend.shared] if frontend is not None else []

    async def _state_node(self, number: int) -> None:
        await self._write("state", ["banana", "", "9", "-1", "4", "6", "0", "1", "5 "][number % 9])

    async def _ring_node(self, number: int) -> None:
        names = ("ring-ref", "event-channel", "ring-page-order", "ring-ref0", "multi-queue-num-queues")
        values = ("4294967296", "-1", "", "x" * 300, "0", "7", "1023", "99999")
        await self._write(names[number % 5], values[number // 5 % 8])

    async def _backend_node(self, number: int) -> None:
        """What dom0 shows a frontend, which must not believe it either."""
        names = ("state", "ring-page-order", "max-ring-page-order")
        values = ("banana", "4294967296", "-1", "", "x" * 300, "5", "6", "0")
        path = f"/local/domain/0/backend/{self._victim.kind}/{self._victim.guest.domid}/{self._victim.devid}"
        if self._machine.store.exists(path):
            self._machine.store.write(f"{path}/{names[number % 3]}", values[number // 3 % 8])

    async def _store_restarts(self, _number: int) -> None:
        self._machine.daemon.restart()

    async def _write(self, node: str, value: str) -> None:
        """As the guest, which may write what it likes there."""
        guest = self._victim.guest
        try:
            await guest.store.write(f"{guest.path}/device/{self._victim.kind}/{self._victim.devid}/{node}", value)
        except XenstoreError:
            return  # the device is gone

    async def _grant_revoked(self, number: int) -> None:
        frontend = self._victim.frontend
        if frontend is not None and frontend.shared:
            ref, _ = frontend.shared[number % len(frontend.shared)]
            frontend.guest.grants.revoke(ref)

    async def _backend_restarts(self, _number: int) -> None:
        self._machine.backends.restart(self._victim.kind, self._victim.guest.domid, self._victim.devid)

    async def _guest_destroyed(self, _number: int) -> None:
        await self._machine.toolstack.destroy(self._victim.guest.domid)


def _check_taken(backend: RingStatistics, frontend: RingStatistics) -> None:
    """No backend may take requests that its ring cannot hold, whatever index it is shown.

    An index that is wrong and possible cannot be told from a right one; one that is impossible can.
    """
    ahead = (backend.consumed - frontend.produced) & 0xFFFFFFFF
    assert ahead >> 31 or ahead <= frontend.slots, (
        f"the backend believed an index and took {ahead} requests more than there were"
    )
