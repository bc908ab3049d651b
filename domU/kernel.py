# SPDX-License-Identifier: GPL-2.0-only
"""The lowest layer of a Python guest: what its domain was born with, its pages, and hypercalls.

The guest finds its way as any PV kernel does: start_info says where the other pages are, the p2m list which machine
frame a page has. Hypercalls take their arguments from guest memory, so `call` puts them into a page of the guest first.
The guest's own accesses need no page tables: it has its memory in view, as a kernel has a direct map.

Owned by the domain's thread, which is the guest's only one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Any

from xen_py.abi.start_info import StartInfo
from xen_py.abi.xen import Hypercall, ShutdownReason
from xen_py.domain import Domain
from xen_py.types import PAGE_SHIFT, PAGE_SIZE, Errno, Gfn, Mfn, Pfn, XenError

_u32 = Struct("<I")
_EVENT_CHANNEL_OP = int(Hypercall.EVENT_CHANNEL_OP)
_SEND = 4
_SCHED_SHUTDOWN = 2
_CONSOLE_WRITE = 0
_VCPU_STOP_PERIODIC_TIMER = 7
_SETS_TIMERS = frozenset({Hypercall.VCPU_OP, Hypercall.SET_TIMER_OP})


class OutOfMemory(Exception):
    """The guest has no free page left; its configuration can give it more (memory = ...)."""


@dataclass(eq=False, slots=True)
class Page:
    """One page of the guest's memory that it has taken for itself."""

    pfn: Pfn
    mfn: Mfn
    data: memoryview
    """4096 bytes, writable."""

    @property
    def gfn(self) -> Gfn:
        """The frame as others are told it: a PV guest's is the machine frame."""
        return Gfn(self.mfn)


class Kernel:
    """One guest's ground. `domain` is run by nobody else."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self._vcpu = domain.vcpus[0]
        self._dead = False
        self.on_timer: Callable[[], None] = lambda: None
        """Called after a hypercall that may have set a timer."""
        self.upcall: Callable[[], None] = lambda: None
        """Called after every hypercall: it may have made an event pending."""
        self.on_over: Callable[[], None] = lambda: None
        """Called when a hypercall has ended the domain."""
        start = domain.spec.start
        self.start_info = StartInfo.unpack(domain.access.read(start.rsi, PAGE_SIZE))
        self._virt_base = start.rip & -PAGE_SIZE
        tables_end = (self.start_info.pt_base - self._virt_base >> PAGE_SHIFT) + self.start_info.nr_pt_frames
        boot_stack = 1
        first = tables_end + boot_stack
        self._argument = self._page(Pfn(first))
        self.argument_va = self._virt_base + (first << PAGE_SHIFT)
        self._free = list(range(self.start_info.nr_pages - 1, first, -1))
        """PFNs, the next one last: low pages first, which are mapped."""
        self._taken = 0
        self.call(Hypercall.VCPU_OP, _VCPU_STOP_PERIODIC_TIMER, 0)

    # ---- memory ----

    def _page(self, pfn: Pfn) -> Page:
        mfn = Mfn(int.from_bytes(self.domain.access.read(self.start_info.mfn_list + 8 * pfn, 8), "little"))
        return Page(pfn, mfn, self.domain.memory.frame(mfn))

    def page_of(self, mfn: Mfn) -> Page:
        """The page with that machine frame: one of start_info's."""
        return Page(Pfn(self.domain.space.m2p[self.domain.frames.index(mfn)]), mfn, self.domain.memory.frame(mfn))

    def allocate(self) -> Page:
        """A free page, all zero."""
        if not self._free:
            raise OutOfMemory(f"all {self.start_info.nr_pages} pages are in use")
        page = self._page(Pfn(self._free.pop()))
        page.data[:] = bytes(PAGE_SIZE)
        self._taken += 1
        return page

    def free(self, page: Page) -> None:
        """Give a page back; nobody may use it any more, nor its `data`."""
        page.data.release()
        self._free.append(page.pfn)
        self._taken -= 1

    def shared_info(self) -> memoryview:
        """The page shared with the hypervisor."""
        return self.domain.memory.frame(Mfn(self.start_info.shared_info >> PAGE_SHIFT))

    # ---- hypercalls ----

    def hypercall(self, number: int, *arguments: int) -> int:
        """Any hypercall, with its arguments as they go into registers; the result. XenError where it is -errno."""
        domain = self.domain
        if self.is_dead():
            raise XenError(Errno.ESRCH, "the domain is over")
        domain.count_hypercall(number)
        a1, a2, a3, a4, a5, a6 = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
        while True:
            result = domain.hypercall(domain, self._vcpu, number, a1, a2, a3, a4, a5, a6)
            rest = domain.take_continuation()
            if rest is None:
                break
            domain.engine.clear_kick()
            number, a1, a2, a3, a4, a5, a6 = (*rest, 0, 0, 0, 0, 0, 0)[:7]
        if number in _SETS_TIMERS:
            self.on_timer()
        self.upcall()
        if domain.shutdown is not None:
            self.on_over()
        if -4096 < result < 0:
            errno = Errno(-result) if -result in Errno._value2member_map_ else Errno.EINVAL
            raise XenError(errno, f"hypercall {number}")
        return result

    def call(self, number: int, command: int, *arguments: int) -> int:
        """A hypercall with a command and plain numbers."""
        return self.hypercall(number, command, *arguments)

    def call_with(self, number: int, command: int, structure: bytes, *more: int) -> bytes:
        """A hypercall whose second argument is the address of `structure`; the structure as it is afterwards."""
        argument = self._argument.data
        size = len(structure)
        argument[:size] = structure
        self.hypercall(number, command, self.argument_va, *more)
        return bytes(argument[:size])

    def send_event(self, port: int) -> None:
        """EVTCHNOP_send, the hypercall made most often, by the shortest way."""
        if self.is_dead():
            return
        domain = self.domain
        _u32.pack_into(self._argument.data, 0, port)
        domain.count_hypercall(_EVENT_CHANNEL_OP)
        domain.hypercall(domain, self._vcpu, _EVENT_CHANNEL_OP, _SEND, self.argument_va, 0, 0, 0, 0)
        self.upcall()

    def print_emergency(self, text: str) -> None:
        """To the guest's log by console_io, past the console and whatever waits in it."""
        data = text.encode(errors="replace")
        for start in range(0, len(data), PAGE_SIZE):
            piece = data[start : start + PAGE_SIZE]
            self._argument.data[: len(piece)] = piece
            self.hypercall(Hypercall.CONSOLE_IO, _CONSOLE_WRITE, len(piece), self.argument_va)

    def shutdown(self, reason: ShutdownReason) -> None:
        """SCHEDOP_shutdown: the domain is over; no further hypercall is possible."""
        self.call_with(Hypercall.SCHED_OP, _SCHED_SHUTDOWN, int(reason).to_bytes(4, "little"))

    def kill(self) -> None:
        """The domain is being destroyed: no further hypercall is possible."""
        self._dead = True

    def is_dead(self) -> bool:
        """The domain is over: nothing reaches anybody any more."""
        return self._dead or self.domain.shutdown is not None

    def statistics(self) -> dict[str, Any]:
        return {"pages": self.start_info.nr_pages, "pages_free": len(self._free), "pages_taken": self._taken}
