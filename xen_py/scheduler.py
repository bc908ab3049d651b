# SPDX-License-Identifier: GPL-2.0-only
"""Which vCPU of a domain has the engine: round robin in slices, and at once to a vCPU that another has woken.

An engine runs one vCPU at a time (two emulators sharing memory would not be atomic towards each other), so the vCPUs of
a domain take turns on it. A vCPU that is not running keeps its registers, FPU included, in `Vcpu.regs` and `Vcpu.fpu`.
A vCPU that sends an event to a sleeping one gives way at once: senders often spin until the other has answered.
Owned by the domain's thread; with one vCPU nothing here is ever called but `pick`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xen_py.engine import R
from xen_py.hvspace import GDT_LIMIT, gdt_va, ldt_va
from xen_py.vcpu import Runstate, Vcpu

if TYPE_CHECKING:
    from xen_py.domain import Domain

SLICE_NS = 2_000_000
"""How long a vCPU runs when others want to."""


class VcpuScheduler:
    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._blank = domain.engine.save_state()
        self._woken: Vcpu | None = None
        self.slice_end = 0
        """System time at which another vCPU's turn comes; 0 when no other wants to run."""
        self.switches = 0

    def woken(self, v: Vcpu) -> None:
        """An event has come for that vCPU: it is next."""
        if v is not self._domain.current:
            self._woken = v

    def _can_run(self, v: Vcpu) -> bool:
        if v.blocked and not v.polling and self._domain.upcall_due(v):
            v.blocked = False
        return v.online and not v.blocked

    def pick(self, give_way: bool) -> Vcpu | None:
        """The vCPU to run now, made current; None when all sleep. `give_way`: another first, if there is one."""
        d = self._domain
        vcpus = d.vcpus
        if len(vcpus) == 1:
            return vcpus[0] if self._can_run(vcpus[0]) else None
        start = d.current.id
        order = [vcpus[(start + n) % len(vcpus)] for n in range(len(vcpus))]
        if give_way or (self.slice_end and d.clock.now() >= self.slice_end):
            order.append(order.pop(0))
        woken, self._woken = self._woken, None
        if woken is not None and self._can_run(woken):
            order.insert(0, woken)
        ready = [v for v in order if self._can_run(v)]
        if not ready:
            return None
        self.slice_end = d.clock.now() + SLICE_NS if any(v is not ready[0] for v in ready) else 0
        self.switch_to(ready[0])
        d.arm_timer()
        return ready[0]

    def wants_turn(self) -> bool:
        """Whether the running vCPU should make way: its slice is over, or another has been woken."""
        return self._woken is not None or bool(self.slice_end and self._domain.clock.now() >= self.slice_end)

    def switch_to(self, v: Vcpu) -> None:
        d = self._domain
        old = d.current
        if v is old:
            return
        engine, regs = d.engine, d.engine.regs
        if old.runstate == Runstate.RUNNING:
            blocked = old.blocked or not old.online
            d.runstates.change(old, Runstate.BLOCKED if blocked else Runstate.RUNNABLE)
        old.regs = regs.tolist()
        old.fpu = engine.save_state()
        d.current = v
        engine.restore_state(v.fpu or self._blank)
        for n, value in enumerate(v.regs):
            regs[n] = value
        engine.set_gdt(gdt_va(v.id), GDT_LIMIT)
        engine.set_ldt(ldt_va(v.id), v.ldt_entries * 8 - 1 if v.ldt_entries else 0)
        engine.set_task_switched(v.cr0_ts)
        engine.set_vcpu(d.engine_words(v))
        d.access.root_index = (regs[R.CR3] >> 12) - d.frames.base
        self.switches += 1

    def statistics(self) -> dict[str, int]:
        return {"switches": self.switches}
