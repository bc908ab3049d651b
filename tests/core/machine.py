# SPDX-License-Identifier: GPL-2.0-only
"""A domain small enough to see all of it: hand-made page tables, a few pages, machine code put in as bytes.

Every PFN is mapped at `VA(pfn)`. The first PFNs have fixed uses (the names below); the rest is for the test. Page
tables are mapped read-only as Xen demands, all pages but CODE without execute permission.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dom0.host import grantorders
from dom0.host.foreign import ForeignGrants
from hypercalls.table import dispatch
from xen_py import traps
from xen_py.abi.xen import DOMID_SELF, Hypercall
from xen_py.clock import Clock, VirtualClock
from xen_py.domain import Domain
from xen_py.engine import R
from xen_py.engine.unicorn import UnicornEngine
from xen_py.evtchn import Delivery, EventBroker
from xen_py.foreign import room_for
from xen_py.link import DirectLink
from xen_py.memory import GuestMemory, MemoryGeometry
from xen_py.spec import Blocked, DomainSpec, Shutdown, Step
from xen_py.start import StartState
from xen_py.types import DomId, Mfn, Pfn, Port

BASE = 0xFFFFFFFF80000000
START, L4, L3, L2, L1, STACK, CODE, DATA, STORE, CONSOLE, USER_L4, USER_L3, USER_L2, USER_L1, USER_CODE, USER_STACK = (
    range(16)
)
FREE = 16
"""First PFN without a fixed use."""
PAGES = 64
MAX_PAGES = 80

P, RW, USER, A, D, NX = 1, 2, 4, 0x20, 0x40, 1 << 63
RO_FLAGS = P | USER | A | D | NX
RW_FLAGS = RO_FLAGS | RW
TABLE_FLAGS = P | RW | USER | A | D

USER_VA = 0x400000
"""USER_CODE is here, USER_STACK one page above, in the user's own page tables."""
SYSCALL = b"\x0f\x05"


def VA(pfn: int, offset: int = 0) -> int:
    return BASE + pfn * 4096 + offset


@dataclass
class Machine:
    """The domain and all around it. `mfn(pfn)` is where the builder would have put a page."""

    domain: Domain
    memory: GuestMemory
    broker: EventBroker
    clock: Any
    """A VirtualClock, unless the test has asked for another."""
    delivered: list[Delivery] = field(default_factory=list)
    console: bytearray = field(default_factory=bytearray)
    messages: list[str] = field(default_factory=list)

    def mfn(self, pfn: int) -> Mfn:
        return Mfn(self.memory.geometry.mfn_base + pfn)

    @property
    def regs(self) -> memoryview:
        return self.domain.engine.regs

    def page(self, pfn: int) -> memoryview:
        return self.memory.bytes[pfn << 12 : (pfn + 1) << 12]

    def words(self, pfn: int) -> memoryview:
        return self.memory.words[pfn * 512 : (pfn + 1) * 512]

    def put(self, pfn: int, data: bytes, offset: int = 0) -> int:
        """Write into a page as the guest would have; the virtual address."""
        at = (pfn << 12) + offset
        self.memory.bytes[at : at + len(data)] = data
        return VA(pfn, offset)

    def get(self, pfn: int, size: int, offset: int = 0) -> bytes:
        return bytes(self.page(pfn)[offset : offset + size])

    def call(self, number: int, *args: int) -> int:
        """A hypercall of vCPU 0, as dispatch sees it."""
        a = (*args, 0, 0, 0, 0, 0, 0)
        return dispatch(self.domain, self.domain.vcpus[0], number, a[0], a[1], a[2], a[3], a[4], a[5])

    def entry(self, pfn: int, flags: int) -> int:
        return self.mfn(pfn) << 12 | flags

    def l1_pointer(self, pfn: int) -> int:
        """Machine address of the L1 entry that maps VA(pfn)."""
        return (self.mfn(L1) << 12) + pfn * 8

    def update(self, pointer: int, value: int) -> int:
        """One mmu_update."""
        self.put(DATA, pointer.to_bytes(8, "little") + value.to_bytes(8, "little"), 0xF00)
        return self.call(Hypercall.MMU_UPDATE, VA(DATA, 0xF00), 1, 0, DOMID_SELF)

    def mmuext(self, command: int, arg1: int = 0, arg2: int = 0) -> int:
        data = command.to_bytes(8, "little") + arg1.to_bytes(8, "little") + arg2.to_bytes(8, "little")
        self.put(DATA, data, 0xF20)
        return self.call(Hypercall.MMUEXT_OP, VA(DATA, 0xF20), 1, 0, DOMID_SELF)

    def read_only(self, pfn: int) -> None:
        """Take away the guest's writable mapping of a page, so that it can become a table."""
        assert self.call(Hypercall.UPDATE_VA_MAPPING, VA(pfn), self.entry(pfn, RO_FLAGS), 2) == 0

    def set_code(self, code: bytes, offset: int = 0) -> None:
        """Put kernel code down and RIP on it; it may be changed between runs."""
        self.put(CODE, code, offset)
        self.domain.space.written_from_outside(CODE)
        self.regs[R.RIP] = VA(CODE, offset)

    def run(self, code: bytes | None = None, steps: int = 50) -> Step:
        """Step until the guest blocks for good or is over. Kernel code normally ends in SCHEDOP_block or shutdown."""
        if code is not None:
            self.set_code(code)
        for _ in range(steps):
            step = self.domain.step()
            if isinstance(step, Shutdown) or (isinstance(step, Blocked) and step.deadline_ns is None):
                return step
        raise AssertionError(f"the guest is still running at {self.regs[R.RIP]:#x} after {steps} steps")

    def exit(self, code: bytes | None = None) -> int:
        """Run guest code up to one exit of the engine, handling nothing; the ExitKind."""
        if code is not None:
            self.set_code(code)
        engine = self.domain.engine
        engine.set_vcpu(None)
        engine.clear_kick()
        return engine.run()

    def user_mode(self, code: bytes) -> None:
        """Be in guest user mode before that code."""
        self.put(USER_CODE, code)
        self.domain.space.written_from_outside(USER_CODE)
        v = self.domain.vcpus[0]
        if not v.user_root:
            assert self.mmuext(15, self.mfn(USER_L4)) == 0
        if v.kernel_mode:
            traps.toggle_mode(self.domain, v)
        self.regs[R.RIP] = USER_VA
        self.regs[R.RSP] = USER_VA + 0x1800

    def order_now(self, kind: str, *args: object, check: Callable[[Any], bool]) -> Any:
        """As `dom0.host.vm.Vm.order_now`: what the host has the domain do about its grants."""
        result = grantorders.carry_out(self.domain, kind, list(args))
        assert check(result)
        return result

    def close(self) -> None:
        self.domain.close()
        self.memory.close()


class Neighbours:
    """Machines that are domains of one host and may use each other's grants."""

    def __init__(self) -> None:
        self.broker = EventBroker()
        self.broker.add_domain(DomId(0), 1, 4095)
        self.machines: dict[DomId, Machine] = {}
        self.foreign = ForeignGrants(None, self.machines.get)  # type: ignore[arg-type]

    def build(self, domid: DomId, max_pages: int = MAX_PAGES) -> Machine:
        self.broker.add_domain(domid, 1)
        self.machines[domid] = machine = _build(self, domid, 1, max_pages, VirtualClock(1_000_000_000))
        return machine

    def close(self) -> None:
        for machine in self.machines.values():
            machine.close()


def build_machine(vcpus: int = 1, clock: Clock | None = None) -> Machine:
    """A fresh machine; time stands still until `clock.advance`, unless a clock is given. Domain 2 is there and bare."""
    alone = Neighbours()
    alone.broker.add_domain(DomId(1), vcpus)
    alone.broker.add_domain(DomId(2), 1)
    return _build(alone, DomId(1), vcpus, MAX_PAGES, clock or VirtualClock(1_000_000_000))


def _build(neighbours: Neighbours, domid: DomId, vcpus: int, max_pages: int, clock: Any) -> Machine:
    geometry = MemoryGeometry.for_domain(max_pages)
    memory = GuestMemory.create(geometry, "xen-py test", room_for(geometry))
    words = memory.words
    base = geometry.mfn_base

    def link(table: int, slot: int, pfn: int, flags: int) -> None:
        words[table * 512 + slot] = base + pfn << 12 | flags

    link(L4, 511, L3, TABLE_FLAGS)
    link(L3, 510, L2, TABLE_FLAGS)
    link(L2, 0, L1, TABLE_FLAGS)
    read_only = {L4, L3, L2, L1, USER_L4, USER_L3, USER_L2, USER_L1}
    for pfn in range(PAGES):
        flags = RO_FLAGS if pfn in read_only else RW_FLAGS
        link(L1, pfn, pfn, flags & ~NX if pfn == CODE else flags)
    link(USER_L4, 0, USER_L3, TABLE_FLAGS)
    link(USER_L3, 0, USER_L2, TABLE_FLAGS)
    link(USER_L2, 2, USER_L1, TABLE_FLAGS)
    link(USER_L1, 0, USER_CODE, RW_FLAGS & ~NX)
    link(USER_L1, 1, USER_STACK, RW_FLAGS)

    broker = neighbours.broker
    store_port = broker.alloc_unbound(DomId(0), domid, DomId(0))
    console_port = broker.alloc_unbound(DomId(0), domid, DomId(0))
    delivered: list[Delivery] = []
    console = bytearray()
    messages: list[str] = []
    spec = DomainSpec(
        domid=domid,
        name="test",
        uuid=bytes(range(16)),
        vcpus=vcpus,
        nr_pages=PAGES,
        memory=geometry,
        start=StartState(VA(CODE), VA(STACK, 4096), VA(START), Mfn(base + L4), ((Pfn(L4), 4),)),
        store_port=store_port,
        console_port=console_port,
        store_mfn=Mfn(base + STORE),
        console_mfn=Mfn(base + CONSOLE),
    )

    def deliver(_domid: DomId, _port: Port, delivery: Delivery) -> None:
        delivered.append(delivery)

    host = DirectLink(broker, domid, deliver, console.extend, messages.append, neighbours.foreign.now(domid))
    domain = Domain(spec, memory, host, clock, UnicornEngine(4 << 20), dispatch)
    domain.vcpus[0].periodic_next = 0  # no timer unless the test sets one
    return Machine(domain, memory, broker, clock, delivered, console, messages)
