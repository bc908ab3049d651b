# SPDX-License-Identifier: GPL-2.0-only
"""A domain: its vCPUs, memory, page tables, timers and pending events, and the loop that runs it.

One thread owns a `Domain` and calls `step()`; only `kick()` may be called from elsewhere. Everything a guest does wrong
costs it an errno (at the hypercall boundary, in the `hypercalls` package) or its life (`GuestCrash`, here).

The hypercalls come in as a function, because this package is below the one that implements them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from xen_py import cpuid, exits, pvclock, traps
from xen_py.abi.version import XENVER_VERSION
from xen_py.abi.xen import (
    FLAT_KERNEL_CS,
    INVALID_M2P_ENTRY,
    MAX_VCPUS_LEGACY,
    VCPU_INFO_SIZE,
    VCPU_INFO_TIME,
    VCPU_INFO_UPCALL_MASK,
    VCPU_INFO_UPCALL_PENDING,
    Hypercall,
    ShutdownReason,
    Virq,
    VmAssist,
)
from xen_py.clock import Clock
from xen_py.engine import Engine, EventPaths, R
from xen_py.evtchn import ChannelState, LocalPort, PendingEvents
from xen_py.foreign import ForeignMemory
from xen_py.frames import FrameFlag, FrameTable, FrameType
from xen_py.grants import GrantTable
from xen_py.guestmem import GuestAccess
from xen_py.hvspace import GDT_LIMIT, HypervisorSpace, gdt_va, ldt_va
from xen_py.link import HostLink
from xen_py.maptrack import Maptrack
from xen_py.memory import GuestMemory
from xen_py.mmu import PageTables
from xen_py.runstate import RunstateClock
from xen_py.scheduler import VcpuScheduler
from xen_py.spec import Blocked, DomainInfo, DomainSpec, Kicked, Shutdown, Step, VcpuInfo
from xen_py.trace import Tracer, traced_hypercalls
from xen_py.types import Errno, GuestCrash, Mfn, Port, VcpuId, XenError
from xen_py.vcpu import Runstate, Vcpu

Dispatch = Callable[["Domain", Vcpu, int, int, int, int, int, int, int], int]
"""hypercall(domain, vcpu, number, a1..a6) -> result, negative for -errno."""

_M64 = (1 << 64) - 1
_MOST_SAID = 200
_OTHER_CALL = 64
"""Hypercall numbers from here on are counted as one: a guest must not be able to fill our memory with counts."""
_PF_PRESENT, _PF_WRITE, _PF_RESERVED, _PF_FETCH = 1, 2, 8, 16


class Domain:
    """See the module."""

    def __init__(
        self,
        spec: DomainSpec,
        memory: GuestMemory,
        link: HostLink,
        clock: Clock,
        engine: Engine,
        hypercall: Dispatch,
    ) -> None:
        self.spec = spec
        self.domid = spec.domid
        self.memory = memory
        self.link = link
        self.clock = clock
        self.engine = engine
        self.hypercall = self._untraced = hypercall
        self.tracer: Tracer | None = None
        self.counters: Counter[str] = Counter()
        self.hypercall_counts: Counter[int] = Counter()
        self._said: set[str] = set()
        self.vm_assist = 0
        self.architectural_iopl = False
        self.writable_pagetables = False
        self.shutdown: Shutdown | None = None
        self.yielded = False
        self.give_way = False
        self._several = spec.vcpus > 1
        self.continuation: tuple[int, ...] | None = None
        self.access = GuestAccess(memory)
        self.frames = FrameTable(memory)
        engine.map(spec.memory.mfn_base << 12, memory.own)
        self.space = HypervisorSpace(self.frames, memory, engine, spec.vcpus)
        self.pages = PageTables(self.frames, memory.words, self.space, engine.flush_tlb, self._frame_freed)
        self.grants = GrantTable(spec.domid, memory, self.pages, spec.max_grant_frames)
        self.maptrack = Maptrack(spec.max_maptrack_frames)
        self.foreign = ForeignMemory(memory, engine, link.others)
        at = spec.memory.index(spec.memory.shared_info_mfn) << 12
        self.shared_info = memory.bytes[at : at + 4096]
        self.vcpus = [Vcpu(VcpuId(n)) for n in range(spec.vcpus)]
        for v in self.vcpus:
            v.info_offset = at + VCPU_INFO_SIZE * min(v.id, MAX_VCPUS_LEGACY - 1)
        self.events = PendingEvents(self.shared_info, self._vcpu_info)
        self.runstates = RunstateClock(self)
        self._tsc_scale = pvclock.scale(clock.tsc_khz())
        self._cpuid_rows = cpuid.cpuid_table(clock.tsc_khz(), random=not clock.virtual)
        engine.set_cpuid(self._cpuid_rows)
        if clock.virtual:
            engine.set_tsc(0, trap=True)
        self.current = self.vcpus[0]
        self._start()
        engine.accelerate(memory.bytes, self.frames, self.space.m2p_entry, XENVER_VERSION)
        engine.see_to_events(self.events, at, self._tsc_scale, alone=not self._several and not clock.virtual)
        engine.set_vcpu(self.current.words)
        self.scheduler = VcpuScheduler(self)

    # ---- birth ----

    def _start(self) -> None:
        """Own the memory, type the page tables, and put vCPU 0 before its first instruction."""
        spec, geometry = self.spec, self.spec.memory
        for i in range(spec.nr_pages):
            self.frames.allocate(i)
            self.space.m2p[i] = i
        for i in range(geometry.max_pages, geometry.nr_frames):
            self.frames.allocate_special(i)
        for v in self.vcpus:
            self.memory.bytes[v.info_offset + VCPU_INFO_UPCALL_MASK] = 1
        for port in (spec.store_port, spec.console_port):
            self.events.opened(port, LocalPort(ChannelState.UNBOUND, VcpuId(0)))
        pvclock.write_wall_clock(self.shared_info, self.clock)
        v = self.vcpus[0]
        self.pages.pin(spec.start.cr3, FrameType.L4)
        self.pages.get_page_and_type(spec.start.cr3, FrameType.L4)
        v.root = spec.start.cr3
        r = self.engine.regs
        r[R.RIP] = spec.start.rip
        r[R.RSP] = spec.start.rsp
        r[R.RSI] = spec.start.rsi
        r[R.RFLAGS] = 0x202
        r[R.CS], r[R.SS] = FLAT_KERNEL_CS, 0xE02B
        self.engine.set_gdt(gdt_va(0), GDT_LIMIT)
        self.set_root(v, v.root)
        v.online = v.initialised = True
        now = self.clock.now()
        v.periodic_next = now + v.periodic_period
        for each in self.vcpus:
            each.runstate_since = now
        self.runstates.change(v, Runstate.RUNNABLE)
        self.update_time(v)

    # ---- small services for hypercalls and traps ----

    def _vcpu_info(self, vcpu: VcpuId) -> memoryview:
        at = self.vcpus[vcpu].info_offset
        return self.memory.bytes[at : at + VCPU_INFO_SIZE]

    def log(self, text: str) -> None:
        self.link.log(f"d{self.domid}: {text}")

    def log_once(self, key: str, text: str) -> None:
        if key in self._said or len(self._said) > _MOST_SAID:
            return
        self._said.add(key)
        self.log(text if len(self._said) <= _MOST_SAID else "no more of these: it does a great many odd things")

    def set_root(self, v: Vcpu, root: Mfn) -> None:
        """Run on that L4 from now on. It must hold a type reference."""
        self.engine.regs[R.CR3] = root << 12
        self.access.root_index = root - self.frames.base

    def new_root(self, v: Vcpu, root: Mfn) -> None:
        """MMUEXT_NEW_BASEPTR."""
        if root == v.root:
            self.engine.flush_tlb()
            return
        i = self.pages.get_page_and_type(root, FrameType.L4)
        self.space.fill_l4(self.memory.words, i * 512)
        self.drop_ldt(v)
        old, v.root = v.root, root
        if v.kernel_mode:
            self.set_root(v, root)
        self.engine.flush_tlb()
        self.pages.put_page_and_type(self.frames.index(old))

    def new_user_root(self, v: Vcpu, root: Mfn) -> None:
        """MMUEXT_NEW_USER_BASEPTR; 0 takes it away."""
        if root == v.user_root:
            return
        if root:
            i = self.pages.get_page_and_type(root, FrameType.L4)
            if self.vm_assist >> VmAssist.M2P_STRICT & 1:
                self.space.hide_m2p(self.memory.words, i * 512)
        old, v.user_root = v.user_root, root
        if old:
            self.pages.put_page_and_type(self.frames.index(old))

    def trace(self, tracer: Tracer | None) -> None:
        """Have every hypercall recorded, or no more. Meanwhile the engine deals with none by itself."""
        self.tracer = tracer
        self.hypercall = self._untraced if tracer is None else traced_hypercalls(tracer, self._untraced)
        self.engine.set_vcpu(self.engine_words(self.current))

    def engine_words(self, v: Vcpu) -> memoryview | None:
        """What the engine may work on for that vCPU."""
        return None if self.tracer is not None else v.words

    def assists_changed(self) -> None:
        self.writable_pagetables = bool(self.vm_assist >> VmAssist.WRITABLE_PAGETABLES & 1)
        self.architectural_iopl = bool(self.vm_assist >> VmAssist.ARCHITECTURAL_IOPL & 1)
        self.engine.set_assists(
            self.writable_pagetables, self.architectural_iopl, bool(self.vm_assist >> VmAssist.M2P_STRICT & 1)
        )

    def descriptors_changed(self) -> None:
        """The contents of a descriptor table may have changed."""
        for v in self.vcpus:
            v.user_selectors_known = False

    def yield_cpu(self, v: Vcpu) -> None:
        """SCHEDOP_yield: let whoever waits for the domain's thread have it."""
        self.counters["yields"] += 1
        self.yielded = True

    def must_yield(self) -> bool:
        """Whether a long hypercall should leave the rest for later: somebody wants the domain's thread."""
        return bool(self.engine.kick_pending())

    def continue_with(self, number: int, *args: int) -> int:
        """hypercall_create_continuation: the guest will make this call instead, after whatever is waiting."""
        self.continuation = (number, *args)
        return 0

    def take_continuation(self) -> tuple[int, ...] | None:
        """For a multicall, which notes in its list what is left of the call in it."""
        continuation, self.continuation = self.continuation, None
        return continuation

    def count_hypercall(self, number: int) -> None:
        self.hypercall_counts[number if number < _OTHER_CALL else _OTHER_CALL] += 1

    def allocate_frames(self, order: int, gpfn: int | None) -> Mfn:
        """Give the domain 2**order adjoining frames it may still have; they become gpfn.. in the m2p table."""
        n = 1 << order
        if self.frames.allocated + n > self.spec.memory.max_pages:
            raise XenError(Errno.ENOMEM, f"the domain has all of its {self.spec.memory.max_pages} pages")
        first = self.frames.find_free(n)
        for k in range(n):
            self.frames.allocate(first + k)
            self.space.m2p[first + k] = INVALID_M2P_ENTRY if gpfn is None else gpfn + k & _M64
        return self.frames.mfn(first)

    def release_frame(self, i: int) -> None:
        """decrease_reservation: the domain gives up the frame; it goes when its last mapping is gone."""
        if not self.frames.flags[i] & FrameFlag.RESERVED:
            raise XenError(Errno.EINVAL, f"MFN {self.frames.mfn(i):#x} is not the domain's to release")
        self.frames.flags[i] &= ~FrameFlag.RESERVED
        self.pages.put_page(i)

    def _frame_freed(self, i: int) -> None:
        self.space.m2p[i] = INVALID_M2P_ENTRY
        self.memory.punch(self.frames.mfn(i))
        self.engine.flush_tlb()

    def set_task_switched(self, v: Vcpu, flag: bool) -> None:
        if v.cr0_ts != flag:
            v.cr0_ts = flag
            self.engine.set_task_switched(flag)

    def set_gdt(self, v: Vcpu, mfns: list[Mfn], entries: int) -> None:
        """Replace the GDT; all frames or none."""
        taken: list[int] = []
        try:
            for mfn in mfns:
                taken.append(self.pages.get_page_and_type(mfn, FrameType.SEGDESC))
        except XenError:
            for i in taken:
                self.pages.put_page_and_type(i)
            raise
        for page, old in enumerate(v.gdt_frames):
            self.space.set_gdt_page(v.id, page, None)
            self.pages.put_page_and_type(self.frames.index(old))
        for page, mfn in enumerate(mfns):
            self.space.set_gdt_page(v.id, page, mfn << 12)
        v.gdt_frames, v.gdt_entries = mfns, entries
        self.descriptors_changed()
        self.engine.flush_tlb()

    def set_ldt(self, v: Vcpu, base: int, entries: int) -> None:
        if (v.ldt_base, v.ldt_entries) == (base, entries):
            return
        self.drop_ldt(v)
        v.ldt_base, v.ldt_entries = base, entries
        self.engine.set_ldt(ldt_va(v.id), entries * 8 - 1 if entries else 0)

    def drop_ldt(self, v: Vcpu) -> None:
        """Forget which frames the LDT lies in; they are looked up again when used."""
        if not v.ldt_frames:
            return
        for page, mfn in v.ldt_frames.items():
            self.space.set_ldt_page(v.id, page, None)
            self.pages.put_page_and_type(self.frames.index(mfn))
        v.ldt_frames = {}
        v.ldt_pages = 0
        self.engine.flush_tlb()

    def map_ldt_page(self, v: Vcpu, page: int) -> bool:
        """A descriptor of a not yet mapped page of the LDT is wanted: map it, if it is one."""
        if page in v.ldt_frames or page * 512 >= v.ldt_entries:
            return False
        try:
            offset = self.access.translate(v.ldt_base + page * 4096, False)
            mfn = self.frames.mfn(offset >> 12)
            self.pages.get_page_and_type(mfn, FrameType.SEGDESC)
        except XenError:
            return False
        v.ldt_frames[page] = mfn
        v.ldt_pages = len(v.ldt_frames)
        self.space.set_ldt_page(v.id, page, mfn << 12)
        return True

    def descriptor(self, v: Vcpu, selector: int) -> int:
        """The raw descriptor a selector names, 0 when there is none."""
        n = selector >> 3
        if selector & 4:
            if n >= v.ldt_entries:
                return 0
            page = n // 512
            if page not in v.ldt_frames and not self.map_ldt_page(v, page):
                return 0
            mfn = v.ldt_frames[page]
        elif n < v.gdt_entries:
            mfn = v.gdt_frames[n // 512]
        else:
            return self.space.reserved_descriptor(selector & ~3)
        return self.memory.words[(mfn - self.frames.base) * 512 + n % 512]

    def is_long_mode_selector(self, v: Vcpu, selector: int) -> bool:
        """Whether code runs in 64-bit mode with that CS."""
        return selector == FLAT_KERNEL_CS or bool(self.descriptor(v, selector) >> 53 & 1)

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        for row_leaf, row_sub, eax, ebx, ecx, edx in self._cpuid_rows:
            if row_leaf == leaf and row_sub in (None, subleaf):
                return eax, ebx, ecx, edx
        return 0, 0, 0, 0

    # ---- time ----

    def update_time(self, v: Vcpu) -> None:
        """Write vcpu_time_info (and the copy the guest asked for) for this moment."""
        tsc, now = self.clock.tsc(), self.clock.now()
        v.time_version = (v.time_version + 2) & 0xFFFFFFFE
        record = pvclock.time_record(v.time_version, tsc, now, *self._tsc_scale)
        at = v.info_offset + VCPU_INFO_TIME
        self.memory.bytes[at : at + 32] = record
        if v.time_area:
            self.write_kernel(v, v.time_area, record)

    def write_kernel(self, v: Vcpu, va: int, data: bytes) -> None:
        """Write guest memory through the kernel's page tables in either mode; a bad address is ignored.

        A vCPU that has never run has no page tables: those of the one that asks for it serve.
        """
        access = self.access
        root, access.root_index = access.root_index, (v.root or self.current.root) - self.frames.base
        try:
            access.write(va, data)
        except XenError:
            self.log_once(f"area {va:#x}", f"registered area at {va:#x} cannot be written")
        finally:
            access.root_index = root

    def read_kernel(self, v: Vcpu, va: int, size: int) -> bytes:
        """Read guest memory through the kernel's page tables in either mode; EFAULT when it cannot be."""
        access = self.access
        root, access.root_index = access.root_index, v.root - self.frames.base
        try:
            return access.read(va, size)
        finally:
            access.root_index = root

    def next_deadline(self) -> int:
        """The earliest timer of any vCPU in system time, 0 for none. The periodic one ticks for a vCPU that runs."""
        best = 0
        for v in self.vcpus:
            if v.online:
                periodic = 0 if v.blocked else v.periodic_next
                for t in (v.singleshot, periodic, v.poll_deadline if v.polling else 0):
                    if t and (not best or t < best):
                        best = t
        return best

    def arm_timer(self) -> None:
        """Let the engine come back when the next timer is due."""
        if not self.clock.virtual:
            deadline = self.next_deadline()
            turn = self.scheduler.slice_end if self._several else 0
            self.engine.set_deadline(min(deadline, turn) if deadline and turn else deadline or turn)

    def run_timers(self) -> None:
        """Raise the timer events that are due."""
        now = self.clock.now()
        for v in self.vcpus:
            if not v.online:
                continue
            due = False
            if v.singleshot and v.singleshot <= now:
                v.singleshot = 0
                due = True
            if v.periodic_next and v.periodic_next <= now and not v.blocked:
                missed = (now - v.periodic_next) // v.periodic_period
                v.periodic_next += (missed + 1) * v.periodic_period
                due = True
            if due:
                self.raise_virq(v, Virq.TIMER)
            if v.polling and v.poll_deadline and v.poll_deadline <= now:
                self._end_poll(v)
        self.arm_timer()

    # ---- events ----

    def raise_virq(self, v: Vcpu, virq: int) -> None:
        port = self.events.virq_port(virq, v.id)
        if port is not None:
            self.deliver(port)

    def deliver(self, port: Port) -> None:
        """An event for one of our ports: mark it pending, wake whom it concerns. On the domain's thread only."""
        vcpu = self.events.raise_port(port)
        if vcpu is not None:
            self._end_poll(self.vcpus[vcpu])
            self.scheduler.woken(self.vcpus[vcpu])
        for v in self.vcpus:
            if v.polling and port in v.polling:
                self._end_poll(v)

    def _end_poll(self, v: Vcpu) -> None:
        """The vCPU wakes, which also ends a poll it may be in."""
        v.polling = ()
        v.poll_deadline = 0
        v.blocked = False

    def upcall_due(self, v: Vcpu) -> bool:
        info, memory = v.info_offset, self.memory.bytes
        return bool(memory[info + VCPU_INFO_UPCALL_PENDING]) and not memory[info + VCPU_INFO_UPCALL_MASK]

    # ---- the loop ----

    def step(self) -> Step:
        """Run until the outside is needed. Never raises for what the guest does."""
        if self.shutdown is not None:
            return self.shutdown
        try:
            return self._loop()
        except GuestCrash as crash:
            return self.crash(str(crash))

    def _loop(self) -> Step:
        engine, regs, handlers = self.engine, self.engine.regs, exits.HANDLERS
        memory, access, base = self.memory.bytes, self.access, self.frames.base
        scheduler, give_way = self.scheduler, self.give_way
        self.give_way = False
        while True:
            v = self.current
            if v.blocked or (self._several and (give_way or not v.online or scheduler.wants_turn())):
                picked = scheduler.pick(give_way)
                if picked is None:
                    return self._sleep()
                v = picked
            give_way = False
            if v.runstate != Runstate.RUNNING:
                self.runstates.change(v, Runstate.RUNNING)
                self.run_timers()
                self.update_time(v)
            info = v.info_offset
            if memory[info] and not memory[info + 1]:
                traps.deliver_events(self, v)
            engine.run()
            access.root_index = (regs[R.CR3] >> 12) - base
            result = handlers[regs[R.KIND]](self, v)
            if result is not None:
                if v.runstate == Runstate.RUNNING:
                    self.runstates.change(v, Runstate.RUNNABLE)
                return result

    def _sleep(self) -> Step:
        v = self.current
        if v.runstate == Runstate.RUNNING:
            self.runstates.change(v, Runstate.BLOCKED if v.online else Runstate.OFFLINE)
        deadline = self.next_deadline()
        now = self.clock.now()
        if deadline and deadline <= now:
            self.run_timers()
            if any(each.online and (not each.blocked or self.upcall_due(each)) for each in self.vcpus):
                return Kicked()
            deadline = self.next_deadline()
        self.engine.clear_kick()
        return Blocked(deadline or None)

    def kick(self) -> None:
        """Any thread: make a running `step` come back soon, or the next one at once."""
        self.engine.kick()

    def connect(self, paths: EventPaths) -> None:
        """Events come and go this way from now on."""
        self.engine.connect(paths)

    def crash(self, why: str) -> Shutdown:
        """The guest cannot go on."""
        self.log(f"domain crashed: {why}")
        self.shutdown = Shutdown(ShutdownReason.CRASH, why)
        return self.shutdown

    # ---- looking, ending ----

    def info(self) -> DomainInfo:
        now = self.clock.now()
        infos = tuple(
            VcpuInfo(
                v.id,
                v.online,
                v.runstate == Runstate.RUNNING,
                v.runstate == Runstate.BLOCKED,
                self.runstates.time_in(v, Runstate.RUNNING, now),
            )
            for v in self.vcpus
        )
        return DomainInfo(sum(i.cpu_time_ns for i in infos), self.frames.allocated, self.spec.memory.max_pages, infos)

    def statistics(self) -> dict[str, Any]:
        done = self.engine.accelerated()
        calls = self.hypercall_counts + Counter({int(n): count for n, count in done.items() if n.isdecimal()})
        return {
            "engine": self.engine.statistics(),
            "counters": dict(self.counters + Counter({n: c for n, c in done.items() if not n.isdecimal()})),
            "hypercalls": {
                (Hypercall(n).name.lower() if n in Hypercall._value2member_map_ else str(n)): count
                for n, count in calls.most_common()
            },
            "events": self.events.statistics(),
            "scheduler": self.scheduler.statistics(),
            "frames": self.frames.statistics(),
            "grants": self.grants.statistics() | self.maptrack.statistics() | self.foreign.statistics(),
        }

    def close(self) -> None:
        self.engine.close()
        self.space.close()
        self.frames.close()
        self.shared_info.release()
