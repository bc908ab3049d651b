# SPDX-License-Identifier: GPL-2.0-only
"""Sleep, waking, timers and sending without Python (engine/native/events.c), next to what Python does."""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from tests.core.machine import CODE, DATA, FREE, L1, SYSCALL, USER_VA, VA, build_machine
from xen_py import pvclock, traps
from xen_py.abi.xen import SHARED_INFO_EVTCHN_MASK, Hypercall, Virq
from xen_py.clock import RealClock
from xen_py.doorbell import MAX_PORTS, Doorbell, RunState
from xen_py.engine import EventPaths, ExitKind, R
from xen_py.evtchn import ChannelState, LocalPort
from xen_py.types import Port, VcpuId
from xen_py.vcpu import Runstate, TrapGate

END = b"\xcd\x82"
FOREVER = b"\xeb\xfe"
ROUND_AND_ROUND = b"\xff\xe0"
"""jmp *%rax: where a guest looks for its events, with its own address in RAX."""
EVENT_TARGET = 0x300
BLOCK = 1
SEND = 4
SET_SINGLESHOT, STOP_SINGLESHOT = 8, 9
THEIRS, MASKED, TIMER, IPI = Port(70), Port(71), Port(72), Port(73)


class Live:
    """A machine on real time, connected as a loop connects its domain."""

    def __init__(self, stack: ExitStack, vcpus: int = 1) -> None:
        self.doorbell = stack.enter_context(closing(Doorbell.create()))
        self.machine = stack.enter_context(closing(build_machine(vcpus, RealClock())))
        self.link, self.host = map(stack.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        self.routes = memoryview(array("i", [-1] * MAX_PORTS))
        d = self.domain = self.machine.domain
        d.connect(EventPaths(self.doorbell, self.link.fileno(), self.routes))
        v = self.vcpu = d.vcpus[0]
        v.event_callback = VA(CODE, EVENT_TARGET)
        v.traps[0x82] = TrapGate(VA(CODE, EVENT_TARGET), 0xE033, 3)
        v.kernel_sp = VA(DATA, 0xE00)
        d.shared_info[v.info_offset % 4096 + 1] = 0
        for port, state, virq in (
            (THEIRS, ChannelState.INTERDOMAIN, 0),
            (MASKED, ChannelState.INTERDOMAIN, 0),
            (TIMER, ChannelState.VIRQ, Virq.TIMER),
            (IPI, ChannelState.IPI, 0),
        ):
            d.events.opened(port, LocalPort(state, VcpuId(0), virq))
        d.shared_info.cast("Q")[SHARED_INFO_EVTCHN_MASK // 8 + MASKED // 64] |= 1 << MASKED % 64
        self.machine.put(CODE, SYSCALL + END)
        self.machine.put(CODE, FOREVER, 0x40)
        self.machine.put(CODE, END, EVENT_TARGET)
        d.space.written_from_outside(CODE)
        d.runstates.change(v, Runstate.RUNNING)

    def call(self, number: int, *arguments: int) -> int:
        """Make the hypercall from guest code; the ExitKind."""
        r = self.machine.regs
        for register, value in zip((R.RDI, R.RSI, R.RDX), (*arguments, 0, 0, 0), strict=False):
            r[register] = value
        return self.go(VA(CODE), rax=number)

    def go(self, rip: int, rax: int = 0) -> int:
        r = self.machine.regs
        r[R.RIP], r[R.RAX], r[R.RSP], r[R.RFLAGS] = rip, rax, VA(DATA, 0xD00), 0x202
        return self.domain.engine.run()

    def upcall_made(self) -> bool:
        """Whether the guest has run to the end of its event handler."""
        return self.machine.regs[R.RIP] == VA(CODE, EVENT_TARGET) + 2

    def count(self, name: str | int) -> int:
        return self.domain.engine.accelerated().get(str(int(name)) if isinstance(name, int) else name, 0)


@pytest.fixture
def live() -> Iterator[Live]:
    with ExitStack() as stack:
        yield Live(stack)


def meanwhile(live: Live, what: Callable[[], object]) -> threading.Thread:
    """Do it on another thread once the guest sleeps."""

    def run() -> None:
        while live.doorbell.state != RunState.BLOCKED:
            time.sleep(0.001)
        what()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_an_event_that_waits_is_an_upcall_at_once(live: Live) -> None:
    live.doorbell.inbox.ring(THEIRS)
    assert live.call(Hypercall.SCHED_OP, BLOCK) == ExitKind.SOFTINT
    assert live.upcall_made()
    assert live.domain.events.is_pending(THEIRS)
    assert live.domain.events.raised == 1
    assert not select.select([live.doorbell.inbox.eventfd], [], [], 0)[0]
    assert not live.vcpu.blocked


def test_a_sleeper_wakes_for_what_is_not_masked(live: Live) -> None:
    def ring() -> None:
        assert live.doorbell.vcpus() == [(True, True, live.vcpu.runstate_times[Runstate.RUNNING])]
        assert live.doorbell.pages == live.domain.frames.allocated
        live.doorbell.inbox.ring(MASKED)
        time.sleep(0.02)
        assert live.doorbell.state == RunState.BLOCKED
        live.doorbell.inbox.ring(THEIRS)

    began = live.vcpu.runstate_times.tolist()
    thread = meanwhile(live, ring)
    assert live.call(Hypercall.SCHED_OP, BLOCK) == ExitKind.SOFTINT
    thread.join()
    assert live.upcall_made()
    assert live.domain.events.is_pending(MASKED)
    assert live.domain.events.is_pending(THEIRS)
    assert live.doorbell.state == RunState.RUNNING
    assert live.count("sleeps") == 1
    assert live.vcpu.runstate_times[Runstate.BLOCKED] - began[Runstate.BLOCKED] >= 20_000_000
    live.doorbell.inbox.ring(MASKED)
    assert live.domain.engine.run() == ExitKind.EXCEPTION  # behind the END, where nothing is


def soon(what: Callable[[], object]) -> threading.Thread:
    thread = threading.Timer(0.02, what)
    thread.start()
    return thread


@pytest.mark.parametrize("user", [False, True])
def test_a_guest_that_jumps_looks_by_itself(live: Live, user: bool) -> None:
    """Nobody has to be woken, and the guest is not left: neither the eventfd nor a signal is needed."""
    where = VA(CODE, 0x40)
    if user:
        live.machine.user_mode(ROUND_AND_ROUND)
        where = USER_VA
    else:
        live.machine.put(CODE, ROUND_AND_ROUND, 0x40)
        live.domain.space.written_from_outside(CODE)
    inbox = live.doorbell.inbox
    r = live.machine.regs
    for tries in range(20):
        kicks, runs = live.count("kicks"), live.domain.engine.statistics()["runs"]
        thread = soon(lambda: (inbox.ring(MASKED), inbox.ring(THEIRS)))
        r[R.RIP], r[R.RAX], r[R.RFLAGS], r[R.RSP] = where, where, 0x202, (USER_VA + 0x1800 if user else VA(DATA, 0xD00))
        assert live.domain.engine.run() == ExitKind.SOFTINT
        thread.join()
        assert live.upcall_made()
        assert live.domain.events.is_pending(MASKED)
        assert live.domain.events.is_pending(THEIRS)
        assert live.count("looks") > tries
        assert not select.select([inbox.eventfd], [], [], 0)[0]
        assert live.machine.get(DATA, 8, (0xE00 if user else 0xD00) - 5 * 8) == struct.pack("<Q", where)
        # on a machine with other things to do, the watcher may take it for one that does not look
        if live.count("kicks") == kicks:
            assert live.domain.engine.statistics()["runs"] == runs + 1
            return
        if user:
            live.machine.user_mode(ROUND_AND_ROUND)
        live.domain.events.opened(THEIRS, live.domain.events.ports[THEIRS])
        live.machine.memory.bytes[live.vcpu.info_offset : live.vcpu.info_offset + 16] = bytes(16)
    pytest.fail("the guest was made to look each time")


def test_a_guest_that_jumps_sees_its_timer(live: Live) -> None:
    live.machine.put(CODE, ROUND_AND_ROUND, 0x40)
    live.domain.space.written_from_outside(CODE)
    when = time.monotonic_ns() + 15_000_000
    live.machine.put(DATA, struct.pack("<QI", when, 1))
    assert live.call(Hypercall.VCPU_OP, SET_SINGLESHOT, 0, VA(DATA)) == ExitKind.SOFTINT
    assert live.go(VA(CODE, 0x40), rax=VA(CODE, 0x40)) == ExitKind.SOFTINT
    assert time.monotonic_ns() >= when
    assert live.domain.events.is_pending(TIMER)
    assert live.count("looks") >= 1


def test_a_guest_that_jumps_is_left_for_the_link(live: Live) -> None:
    live.machine.put(CODE, ROUND_AND_ROUND, 0x40)
    live.domain.space.written_from_outside(CODE)
    thread = soon(lambda: (live.host.send(b"x"), live.doorbell.inbox.poke()))
    assert live.go(VA(CODE, 0x40), rax=VA(CODE, 0x40)) == ExitKind.KICKED
    thread.join()
    assert live.machine.regs[R.RIP] == VA(CODE, 0x40)
    assert live.count("looks") >= 1


def test_marks_made_while_a_guest_looks_are_not_slept_over(live: Live) -> None:
    """The guest leaves for Python; what was marked until then wakes who sleeps on the eventfd."""
    live.machine.put(CODE, b"\xff\xc9\x75\xfc" + END, 0x40)  # dec %ecx ; jnz
    live.domain.space.written_from_outside(CODE)
    inbox = live.doorbell.inbox
    thread = threading.Timer(0.02, inbox.ring, [MASKED])
    thread.start()
    live.machine.regs[R.RCX] = 500_000_000
    live.vcpu.traps[0x82] = TrapGate(0, 0, 0)
    while live.go(VA(CODE, 0x40)) == ExitKind.KICKED:
        pass
    thread.join()
    assert live.domain.events.is_pending(MASKED) or select.select([inbox.eventfd], [], [], 0)[0]


def test_a_running_guest_is_found_after_it_has_slept_long(live: Live) -> None:
    """The watcher rests by then, and has to be roused: this guest does not look."""
    for pause in (0.05, 0.0):
        thread = meanwhile(live, lambda: (time.sleep(0.05), live.doorbell.inbox.ring(THEIRS)))
        assert live.call(Hypercall.SCHED_OP, BLOCK) == ExitKind.SOFTINT
        thread.join()
        time.sleep(pause)
        info = live.vcpu.info_offset
        live.domain.events.opened(THEIRS, live.domain.events.ports[THEIRS])
        live.machine.memory.bytes[info : info + 16] = bytes(16)
        live.doorbell.publish_state(RunState.RUNNING)
        thread = soon(lambda: live.doorbell.inbox.ring(THEIRS))
        assert live.go(VA(CODE, 0x40)) == ExitKind.SOFTINT
        thread.join()
        live.domain.events.opened(THEIRS, live.domain.events.ports[THEIRS])
        live.machine.memory.bytes[info : info + 16] = bytes(16)


@pytest.mark.parametrize("asleep", [True, False])
def test_the_timer(live: Live, asleep: bool) -> None:
    when = time.monotonic_ns() + 15_000_000
    live.machine.put(DATA, struct.pack("<QI", when, 1))
    assert live.call(Hypercall.VCPU_OP, SET_SINGLESHOT, 0, VA(DATA)) == ExitKind.SOFTINT
    assert live.vcpu.singleshot == when
    if asleep:
        assert live.call(Hypercall.SCHED_OP, BLOCK) == ExitKind.SOFTINT
    else:
        assert live.go(VA(CODE, 0x40)) == ExitKind.SOFTINT
    assert time.monotonic_ns() >= when
    assert live.upcall_made()
    assert live.domain.events.is_pending(TIMER)
    assert live.vcpu.singleshot == 0
    assert live.domain.engine.statistics()["syscalls"] == 0


def test_timers_that_are_past_and_those_taken_back(live: Live) -> None:
    live.machine.put(DATA, struct.pack("<QI", time.monotonic_ns() + 10**12, 1))
    assert live.call(Hypercall.VCPU_OP, SET_SINGLESHOT, 0, VA(DATA)) == ExitKind.SOFTINT
    assert live.call(Hypercall.VCPU_OP, STOP_SINGLESHOT, 0, 0) == ExitKind.SOFTINT
    assert live.vcpu.singleshot == 0
    assert not live.upcall_made()
    live.machine.put(DATA, bytes(12))
    assert live.call(Hypercall.VCPU_OP, SET_SINGLESHOT, 0, VA(DATA)) == ExitKind.SOFTINT
    assert live.upcall_made()
    assert live.call(Hypercall.VCPU_OP, SET_SINGLESHOT, 0, VA(3000)) == ExitKind.SYSCALL  # EFAULT is Python's
    assert live.call(Hypercall.VCPU_OP, SET_SINGLESHOT, 1, VA(DATA)) == ExitKind.SYSCALL


@pytest.mark.parametrize("what", ["link", "kick"])
def test_python_is_called_back_from_sleep(live: Live, what: str) -> None:
    thread = meanwhile(live, (lambda: live.host.send(b"x")) if what == "link" else live.domain.kick)
    assert live.call(Hypercall.SCHED_OP, BLOCK) == ExitKind.KICKED
    thread.join()
    assert live.machine.regs[R.RIP] == VA(CODE, len(SYSCALL))
    assert live.machine.regs[R.RAX] == 0
    assert live.vcpu.blocked
    assert live.vcpu.runstate == Runstate.BLOCKED


def test_a_kick_that_asks_for_python_is_not_attended_to(live: Live) -> None:
    live.domain.kick()
    assert live.go(VA(CODE, 0x40)) == ExitKind.KICKED
    live.domain.engine.clear_kick()
    live.host.send(b"x")
    live.doorbell.inbox.poke()
    assert live.go(VA(CODE, 0x40)) == ExitKind.KICKED


@pytest.mark.parametrize("user", [False, True])
def test_a_running_guest_is_interrupted_as_by_python(live: Live, user: bool) -> None:
    with ExitStack() as stack:
        reference = Live(stack)
        for each in (live, reference):
            if user:
                each.machine.user_mode(FOREVER)
                rip, rsp = USER_VA, USER_VA + 0x1800
            else:
                rip, rsp = VA(CODE, 0x40), VA(DATA, 0xD00)
            r = each.machine.regs
            for n in range(16):
                r[n] = 0x1111 * n
            r[R.RIP], r[R.RSP], r[R.RFLAGS] = rip, rsp, 0xAD7  # all arithmetic flags and the direction
        timer = threading.Timer(0.02, live.doorbell.inbox.ring, [THEIRS])
        timer.start()
        assert live.domain.engine.run() == ExitKind.SOFTINT
        timer.join()
        reference.domain.deliver(THEIRS)
        assert traps.deliver_events(reference.domain, reference.vcpu)
        assert reference.domain.engine.run() == ExitKind.SOFTINT
        base = live.machine.regs[: R.CR3].tolist(), reference.machine.regs[: R.CR3].tolist()
        assert base[0] == base[1]
        for pfn in (DATA, *range(FREE, FREE + 4)):
            assert live.machine.get(pfn, 4096) == reference.machine.get(pfn, 4096)
        assert live.domain.shared_info[:32] == reference.domain.shared_info[:32]
        assert live.domain.shared_info[2048:3072] == reference.domain.shared_info[2048:3072]
        assert live.vcpu.kernel_mode
        assert live.count("kicks") >= 1
        assert live.count("upcalls") == 1


def test_a_single_step_is_not_attended_to(live: Live) -> None:
    live.doorbell.inbox.ring(THEIRS)
    r = live.machine.regs
    live.go(VA(CODE, EVENT_TARGET))
    live.doorbell.inbox.ring(IPI)
    time.sleep(0.02)  # the watcher has seen it
    r[R.RIP], r[R.RFLAGS] = VA(CODE, 0x40), 0x302
    assert live.domain.engine.run() == ExitKind.KICKED
    assert r[R.RIP] == VA(CODE, 0x40)


def test_sending(live: Live) -> None:
    def send(port: int) -> int:
        live.machine.put(DATA, struct.pack("<I", port))
        return live.call(Hypercall.EVENT_CHANNEL_OP, SEND, VA(DATA))

    outbox = live.doorbell.outbox
    assert send(THEIRS) == ExitKind.SOFTINT
    assert live.machine.regs[R.RAX] == 0
    assert select.select([outbox.eventfd], [], [], 0)[0]
    assert send(THEIRS) == ExitKind.SOFTINT
    assert outbox.take() == [THEIRS]
    elsewhere = os.eventfd(0, os.EFD_NONBLOCK)
    live.routes[THEIRS] = elsewhere
    assert send(THEIRS) == ExitKind.SOFTINT
    assert os.eventfd_read(elsewhere) == 1
    os.eventfd_write(elsewhere, (1 << 64) - 2)  # nobody reads, and its count is full
    assert send(THEIRS) == ExitKind.SOFTINT
    os.close(elsewhere)
    for port in (IPI, TIMER, 5, MAX_PORTS, 1 << 31):
        assert send(port) == ExitKind.SYSCALL
    assert outbox.take() == []
    live.domain.events.closed(THEIRS)
    assert send(THEIRS) == ExitKind.SYSCALL


def test_areas_are_written_through_the_kernels_tables(live: Live) -> None:
    live.vcpu.runstate_area, live.vcpu.time_area = VA(FREE, 0x100), VA(FREE, 0x200)
    thread = meanwhile(live, lambda: live.doorbell.inbox.ring(THEIRS))
    assert live.call(Hypercall.SCHED_OP, BLOCK) == ExitKind.SOFTINT
    thread.join()
    assert live.machine.get(FREE, 48, 0x100) == live.domain.runstates.record(live.vcpu)
    version, _, tsc, now, mul, shift, _ = struct.unpack("<IIQQIbBxx", live.machine.get(FREE, 32, 0x200))
    at = live.vcpu.info_offset
    assert live.machine.get(FREE, 32, 0x200) == live.machine.memory.bytes[at + 32 : at + 64]
    assert version == live.vcpu.time_version
    assert 0 <= time.monotonic_ns() - now < 10**9
    assert (mul, shift) == pvclock.scale(live.machine.clock.tsc_khz())
    assert 0 < tsc <= live.machine.clock.tsc()


@pytest.mark.parametrize("area", ["runstate_area", "time_area"])
@pytest.mark.parametrize("where", [VA(L1), VA(3000), VA(FREE, 4096 - 16)])
def test_areas_that_cannot_be_written_are_left_to_python(live: Live, area: str, where: int) -> None:
    setattr(live.vcpu, area, where)
    assert live.call(Hypercall.SCHED_OP, BLOCK) == ExitKind.KICKED
    assert live.vcpu.blocked


def test_several_vcpus_are_pythons() -> None:
    with ExitStack() as stack:
        live = Live(stack, vcpus=2)
        assert live.call(Hypercall.SCHED_OP, BLOCK) == ExitKind.SYSCALL
        assert live.call(Hypercall.VCPU_OP, STOP_SINGLESHOT, 0, 0) == ExitKind.SYSCALL
        live.machine.put(DATA, struct.pack("<I", THEIRS))
        assert live.call(Hypercall.EVENT_CHANNEL_OP, SEND, VA(DATA)) == ExitKind.SOFTINT  # needs nobody


def test_block_that_need_not_sleep_takes_the_mask_away(live: Live) -> None:
    info = live.vcpu.info_offset
    live.domain.deliver(THEIRS)
    live.machine.memory.bytes[info + 1] = 1
    assert live.call(Hypercall.SCHED_OP, BLOCK) == ExitKind.SOFTINT
    assert live.upcall_made()
    assert live.count("sleeps") == 0


def test_nothing_is_lost_between_two_threads(live: Live) -> None:
    """Each event is answered by the guest with one of its own before the next is sent."""
    d, rounds = live.domain, 2000
    loop = b"".join((
        b"\xb8\x20\0\0\0\xbf\x04\0\0\0\x48\xc7\xc6" + (VA(DATA) & 0xFFFFFFFF).to_bytes(4, "little") + SYSCALL,
        b"\xb8\x1d\0\0\0\xbf\x01\0\0\0" + SYSCALL,  # send, block, and again
        FOREVER,
    ))
    # the handler: pending and selector off, then back to the start of the loop with events on
    live.machine.put(CODE, loop, 0x100)
    live.machine.put(DATA, struct.pack("<I", THEIRS))
    d.space.written_from_outside(CODE)
    answered = 0

    def play() -> None:
        nonlocal answered
        for _ in range(rounds):
            if not select.select([live.doorbell.outbox.eventfd], [], [], 20)[0]:
                return
            assert live.doorbell.outbox.take() == [THEIRS]
            answered += 1
            live.doorbell.inbox.ring(THEIRS)

    thread = threading.Thread(target=play)
    thread.start()
    info = live.vcpu.info_offset
    for _ in range(rounds):
        assert live.go(VA(CODE, 0x100)) == ExitKind.SOFTINT
        assert live.upcall_made()
        d.events.opened(THEIRS, d.events.ports[THEIRS])
        live.machine.memory.bytes[info : info + 16] = bytes(16)
    thread.join()
    assert answered == rounds


def test_who_has_been_woken_soon_waits_awake(live: Live) -> None:
    """And is found awake then, and otherwise as if it slept."""
    inbox, info = live.doorbell.inbox, live.vcpu.info_offset
    over = threading.Event()

    def ring_when_it_sleeps() -> None:
        while not over.is_set():
            if live.doorbell.state == RunState.BLOCKED:
                inbox.ring(THEIRS)

    thread = threading.Thread(target=ring_when_it_sleeps)
    thread.start()
    try:
        until = time.monotonic() + 60
        while not live.count("lingered") and time.monotonic() < until:
            assert live.call(Hypercall.SCHED_OP, BLOCK) == ExitKind.SOFTINT
            assert live.upcall_made()
            assert live.vcpu.runstate == Runstate.RUNNING
            live.domain.events.opened(THEIRS, live.domain.events.ports[THEIRS])
            live.machine.memory.bytes[info : info + 16] = bytes(16)
    finally:
        over.set()
        thread.join()
    assert live.count("lingered")
    assert live.vcpu.runstate_times[Runstate.BLOCKED] > 0
