# SPDX-License-Identifier: GPL-2.0-only
"""Time as a guest computes it, its timers, and how its running is accounted for."""

from __future__ import annotations

import struct

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.machine import DATA, FREE, L1, PAGES, VA, Machine
from xen_py import pvclock
from xen_py.abi.xen import Hypercall, Virq
from xen_py.clock import RealClock, VirtualClock
from xen_py.engine import R
from xen_py.evtchn import ChannelState, LocalPort
from xen_py.types import Errno, Port, VcpuId
from xen_py.vcpu import Runstate, TrapGate, Vcpu

SET_PERIODIC, STOP_PERIODIC, SET_SINGLESHOT, STOP_SINGLESHOT, REGISTER_INFO, REGISTER_TIME = 6, 7, 8, 9, 10, 13
PORT = Port(9)


@given(st.integers(1_000, 20_000_000), st.integers(0, 1 << 40))
def test_guests_compute_the_right_time(khz: int, ticks: int) -> None:
    mul, shift = pvclock.scale(khz)
    assert 0 < mul < 1 << 32
    assert -128 <= shift < 128
    shifted = ticks << shift if shift >= 0 else ticks >> -shift
    computed = shifted * mul >> 32
    exact = ticks * 1_000_000 // khz
    assert abs(computed - exact) <= 2 + exact // 1_000_000


def test_time_record_and_wall_clock() -> None:
    record = pvclock.time_record(6, 1 << 64 | 5, 77, 0x80000000, -1)
    assert struct.unpack("<IIQQIbBxx", record) == (6, 0, 5, 77, 0x80000000, -1, 0)
    page = memoryview(bytearray(4096))
    pvclock.write_wall_clock(page, VirtualClock(5, (1 << 33) * 1_000_000_000 + 17))
    assert struct.unpack_from("<IIII", page, 3072) == (2, 0, 12, 2)


def test_real_clock_and_tsc_agree() -> None:
    clock = RealClock()
    mul, shift = pvclock.scale(clock.tsc_khz())
    before, tsc, after = clock.now(), clock.tsc(), clock.now()
    later = clock.now() + 3_000_000
    while clock.now() < later:
        pass
    low, tsc2, high = clock.now(), clock.tsc(), clock.now()
    passed = (tsc2 - tsc << shift if shift >= 0 else tsc2 - tsc >> -shift) * mul >> 32
    assert (low - after) * 0.99 <= passed <= (high - before) * 1.01


@pytest.fixture
def timed(machine: Machine) -> Machine:
    machine.domain.events.opened(PORT, LocalPort(ChannelState.VIRQ, VcpuId(0), Virq.TIMER))
    return machine


def fired(machine: Machine) -> bool:
    """Whether the timer's event came; forgets it."""
    was = machine.domain.events.is_pending(PORT)
    machine.domain.events.opened(PORT, machine.domain.events.ports[PORT])
    return was


def vcpu_op(machine: Machine, command: int, *words: int) -> int:
    machine.put(DATA, struct.pack(f"<{len(words)}Q", *words))
    return machine.call(Hypercall.VCPU_OP, command, 0, VA(DATA))


def test_singleshot(timed: Machine) -> None:
    now = timed.clock.now()
    assert vcpu_op(timed, SET_SINGLESHOT, now + 1000, 0) == 0
    assert not fired(timed)
    timed.clock.advance(999)
    timed.domain.run_timers()
    assert not fired(timed)
    timed.clock.advance(1)
    timed.domain.run_timers()
    assert fired(timed)
    timed.clock.advance(10**9)
    timed.domain.run_timers()
    assert not fired(timed)
    for past in (now, 1, 0):
        for flags in (0, 1):  # VCPU_SSHOTTMR_future is ignored
            assert vcpu_op(timed, SET_SINGLESHOT, past, flags) == 0
            assert fired(timed)
    assert vcpu_op(timed, SET_SINGLESHOT, timed.clock.now() + 50, 0) == 0
    assert vcpu_op(timed, STOP_SINGLESHOT) == 0
    timed.clock.advance(100)
    timed.domain.run_timers()
    assert not fired(timed)
    assert vcpu_op(timed, SET_SINGLESHOT, (1 << 64) - 1, 0) == 0
    assert timed.domain.next_deadline() == (1 << 64) - 1


def test_periodic(timed: Machine) -> None:
    d, v = timed.domain, timed.domain.vcpus[0]
    for period in (0, 999_999, (1 << 64) - 1):
        assert vcpu_op(timed, SET_PERIODIC, period) == -Errno.EINVAL
    assert vcpu_op(timed, SET_PERIODIC, 1_000_000) == 0
    for _ in range(3):
        timed.clock.advance(1_000_000)
        d.run_timers()
        assert fired(timed)
    timed.clock.advance(5_500_000)
    d.run_timers()
    assert fired(timed)  # once for all that were missed
    assert v.periodic_next == timed.clock.now() + 500_000
    v.blocked = True
    timed.clock.advance(10_000_000)
    d.run_timers()
    assert not fired(timed)
    assert d.next_deadline() == 0
    v.blocked = False
    d.run_timers()
    assert fired(timed)
    assert vcpu_op(timed, STOP_PERIODIC) == 0
    timed.clock.advance(10_000_000)
    d.run_timers()
    assert not fired(timed)


@pytest.mark.parametrize("far", [(1 << 64) - 1, 1 << 63, 1 << 62])
def test_set_timer_op(timed: Machine, far: int) -> None:
    v = timed.domain.vcpus[0]
    assert timed.call(Hypercall.SET_TIMER_OP, timed.clock.now() + 10) == 0
    assert v.singleshot == timed.clock.now() + 10
    assert timed.call(Hypercall.SET_TIMER_OP, 0) == 0
    assert v.singleshot == 0
    assert timed.call(Hypercall.SET_TIMER_OP, far) == 0
    assert v.singleshot == timed.clock.now() + 100_000_000
    assert timed.call(Hypercall.SET_TIMER_OP, timed.clock.now() - 1) == 0
    assert fired(timed)


def test_vcpu_info_moves(machine: Machine) -> None:
    d, v = machine.domain, machine.domain.vcpus[0]
    old = v.info_offset
    machine.memory.words[old + 16 >> 3] = 0x4242  # cr2
    for mfn, offset, result in (
        (machine.mfn(FREE), 4096, Errno.EINVAL),
        (machine.mfn(FREE), 4096 - 32, Errno.ENXIO),
        (machine.mfn(FREE), 4, Errno.ENXIO),
        (machine.mfn(L1), 0, Errno.EACCES),
        (0x123, 0, Errno.EINVAL),
    ):
        assert vcpu_op(machine, REGISTER_INFO, mfn, offset) == -result
    assert vcpu_op(machine, REGISTER_INFO, machine.mfn(FREE), 128) == 0
    assert v.info_offset == (FREE << 12) + 128
    assert machine.get(FREE, 24, 128)[8:] == b"\xff" * 8 + (0x4242).to_bytes(8, "little")
    assert machine.get(FREE, 1, 128) == b"\1"
    assert vcpu_op(machine, REGISTER_INFO, machine.mfn(FREE + 1), 0) == -Errno.EBUSY
    assert d.frames.type_counts[FREE] == 2


def test_time_area(machine: Machine) -> None:
    v = machine.domain.vcpus[0]
    assert vcpu_op(machine, REGISTER_TIME, VA(FREE, 8)) == 0
    info = v.info_offset + 32
    assert machine.get(FREE, 32, 8) == bytes(machine.memory.bytes[info : info + 32])
    version = int.from_bytes(machine.get(FREE, 4, 8), "little")
    machine.clock.advance(77)
    machine.domain.update_time(v)
    now = struct.unpack("<IIQQ", machine.get(FREE, 24, 8))
    assert now == (version + 2, 0, machine.clock.tsc(), machine.clock.now())
    assert vcpu_op(machine, REGISTER_TIME, 0xFFFF800000000000) == -Errno.EFAULT
    assert vcpu_op(machine, REGISTER_TIME, VA(PAGES + 1)) == 0  # not mapped now: never written


def test_runstates(machine: Machine) -> None:
    d, v = machine.domain, machine.domain.vcpus[0]
    d.runstates.change(v, Runstate.RUNNING)
    machine.clock.advance(100)
    d.runstates.change(v, Runstate.BLOCKED)
    machine.clock.advance(50)
    assert vcpu_op(machine, 5, VA(FREE)) == 0
    d.runstates.change(v, Runstate.RUNNING)
    state, _since, running, runnable, blocked, _offline = struct.unpack("<ixxxxQ4Q", machine.get(FREE, 48))
    assert (state, running, runnable, blocked) == (0, 100, 0, 50)
    machine.clock.advance(5)
    assert machine.call(Hypercall.VCPU_OP, 4, 0, VA(DATA)) == 0
    assert struct.unpack("<ixxxxQ4Q", machine.get(DATA, 48))[2] == 105
    assert d.info().cpu_time_ns == 105
    assert machine.call(Hypercall.VCPU_OP, 4, 1, VA(DATA)) == -Errno.ENOENT


def test_a_vcpu_survives_saving(machine: Machine) -> None:
    v = machine.domain.vcpus[0]
    v.traps[14] = TrapGate(0x5000, 0xE033, 4)
    v.gdt_frames, v.gdt_entries, v.ldt_frames, v.polling = [machine.mfn(FREE)], 5, {3: machine.mfn(FREE)}, (1, 2)
    v.debugregs[0], v.runstate, v.singleshot = (1 << 64) - 1, Runstate.BLOCKED, 1 << 63
    v.regs = machine.regs.tolist()
    again = Vcpu.restore(msgpack.unpackb(msgpack.packb(v.save())))
    assert again.save() == v.save()
    assert again.traps[14] == TrapGate(0x5000, 0xE033, 4)
    assert again.ldt_frames == {3: machine.mfn(FREE)}
    assert again.runstate is Runstate.BLOCKED
    assert len(again.regs) == R.COUNT
