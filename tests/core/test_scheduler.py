# SPDX-License-Identifier: GPL-2.0-only
"""Several vCPUs on one engine: VCPUOP_initialise, up and down, taking turns, IPIs, and what each keeps to itself."""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack

import pytest

from tests.core.machine import CODE, DATA, FREE, L1, L4, SYSCALL, VA, Machine, build_machine
from xen_py.abi.xen import Hypercall, ShutdownReason
from xen_py.engine import R
from xen_py.spec import Shutdown
from xen_py.types import Errno

INITIALISE, UP, DOWN, IS_UP = range(4)
CONTEXT = VA(FREE)
SECOND = 0x800
"""Where in CODE the second vCPU starts."""


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = build_machine(vcpus=2)
    yield machine
    machine.close()


def context(m: Machine, **changes: int) -> bytes:
    """A struct vcpu_guest_context that starts at SECOND in kernel mode."""
    values = {"flags": 4, "rip": VA(CODE, SECOND), "rsp": VA(FREE + 2, 4096), "cr3": m.mfn(L4) << 12, "cr1": 0}
    values |= {"kernel_sp": VA(FREE + 3, 4096), "gs": 0x1234000, "fs": 0x5678000, "event": VA(CODE, 0xF00)}
    values |= {"gdt_entries": 0, "cs": 0xE030, "rdi": 0, "rsi": 0, "rbx": 0} | changes
    user = pack("<15Q", 0, 0, 0, 0, 0, values["rbx"], 0, 0, 0, 0, 0, 0, 0, values["rsi"], values["rdi"])
    user += pack("<IIQHHBxxxQQHxxxxxx", 0, 0, values["rip"], values["cs"], 0, 0, 0x200, values["rsp"], 0xE02B)
    user += bytes(32)
    traps = bytes(16 * 256)
    tail = [0, 0, *(0 for _ in range(16)), values["gdt_entries"], 0xE02B, values["kernel_sp"]]
    tail += [0, values["cr1"], 0, values["cr3"], 0, 0, 0, 0]
    tail += [0, 0, 0, 0, 0, 0, 0xFFFF0FF0, 0x400]
    tail += [values["event"], 0, 0, 0, values["fs"], values["gs"], 0]
    return bytes(512) + pack("<Q", values["flags"]) + user + traps + pack(f"<{len(tail)}Q", *tail)


def put_context(m: Machine, **changes: int) -> None:
    raw = context(m, **changes)
    assert len(raw) == 5168
    m.memory.bytes[FREE << 12 : (FREE << 12) + len(raw)] = raw


def start_second(m: Machine, code: bytes, **changes: int) -> None:
    put_context(m, **changes)
    m.put(CODE, code, SECOND)
    m.domain.space.written_from_outside(CODE)
    assert m.call(Hypercall.VCPU_OP, INITIALISE, 1, CONTEXT) == 0
    assert m.call(Hypercall.VCPU_OP, UP, 1, 0) == 0


def call_code(number: int, *args: int) -> bytes:
    """mov $..., registers ; syscall"""
    registers = (b"\x48\xbf", b"\x48\xbe", b"\x48\xba")
    code = b"".join(r + (a & (1 << 64) - 1).to_bytes(8, "little") for r, a in zip(registers, args, strict=False))
    return code + b"\xb8" + number.to_bytes(4, "little") + SYSCALL


BLOCK = call_code(Hypercall.SCHED_OP, 1, 0)
FOR_EVER = b"\xeb\xfe"


def store_code(register_bytes: bytes, address: int) -> bytes:
    """movabs $address,%rcx ; mov register,(%rcx) -- the second instruction given as its bytes"""
    return b"\x48\xb9" + address.to_bytes(8, "little") + register_bytes


def shutdown_code(m: Machine) -> bytes:
    m.put(DATA, (0).to_bytes(4, "little"), 0x40)
    return call_code(Hypercall.SCHED_OP, 2, VA(DATA, 0x40))


def test_life(machine: Machine) -> None:
    assert machine.call(Hypercall.VCPU_OP, IS_UP, 1, 0) == 0
    assert machine.call(Hypercall.VCPU_OP, UP, 1, 0) == -Errno.EINVAL
    assert machine.call(Hypercall.VCPU_OP, UP, 2, 0) == -Errno.ENOENT
    start_second(machine, BLOCK + FOR_EVER)
    assert machine.call(Hypercall.VCPU_OP, IS_UP, 1, 0) == 1
    assert machine.call(Hypercall.VCPU_OP, INITIALISE, 1, CONTEXT) == -Errno.EEXIST
    assert machine.call(Hypercall.VCPU_OP, UP, 1, 0) == 0
    assert machine.call(Hypercall.VCPU_OP, DOWN, 1, 0) == 0
    assert machine.call(Hypercall.VCPU_OP, IS_UP, 1, 0) == 0


@pytest.mark.parametrize(
    ("changes", "errno"),
    [
        ({"rip": 1 << 60}, Errno.EINVAL),
        ({"event": 1 << 60}, Errno.EINVAL),
        ({"gdt_entries": 7169}, Errno.EINVAL),
        ({"gdt_entries": 1}, Errno.EINVAL),
        ({"cr3": 0x1000}, Errno.EINVAL),
        ({"cr3": -1}, Errno.EINVAL),
        ({"cr1": 0x1000}, Errno.EINVAL),
        ({"flags": 0}, Errno.EINVAL),
    ],
)
def test_a_bad_context_changes_nothing(machine: Machine, changes: dict[str, int], errno: Errno) -> None:
    if changes.get("cr3") == -1:
        changes = {"cr3": machine.mfn(L1) << 12}
    before = machine.domain.frames.save()
    put_context(machine, **changes)
    assert machine.call(Hypercall.VCPU_OP, INITIALISE, 1, CONTEXT) == -errno
    assert machine.domain.frames.save() == before
    assert not machine.domain.vcpus[1].initialised
    assert machine.call(Hypercall.VCPU_OP, INITIALISE, 1, 0xDEAD000) == -Errno.EFAULT


def test_it_starts_with_its_context(machine: Machine) -> None:
    code = store_code(b"\x48\x89\x19", VA(DATA, 0x100))  # mov %rbx,(%rcx)
    code += b"\x64\x48\x8b\x04\x25\0\0\0\0" + BLOCK  # mov %fs:0,%rax
    start_second(machine, code + FOR_EVER, rbx=0xABCDEF, fs=VA(DATA, 0x200))
    machine.put(DATA, (77).to_bytes(8, "little"), 0x200)
    machine.run(BLOCK + FOR_EVER)
    assert int.from_bytes(machine.get(DATA, 8, 0x100), "little") == 0xABCDEF
    second = machine.domain.vcpus[1]
    saved = second.regs if machine.domain.current is not second else machine.regs.tolist()
    assert saved[R.FS_BASE] == VA(DATA, 0x200)
    assert machine.domain.scheduler.statistics()["switches"] >= 1


def test_registers_and_fpu_are_each_vcpus_own(machine: Machine) -> None:
    # each: put a number into %rbx and %xmm0, yield a few times, store both
    def body(number: int, at: int) -> bytes:
        code = b"\x48\xbb" + number.to_bytes(8, "little") + b"\x66\x48\x0f\x6e\xc3"  # mov $,%rbx ; movq %rbx,%xmm0
        code += call_code(Hypercall.SCHED_OP, 0, 0) * 5
        code += store_code(b"\x48\x89\x19", VA(DATA, at))
        return code + store_code(b"\x66\x0f\xd6\x01", VA(DATA, at + 8)) + BLOCK + FOR_EVER  # movq %xmm0,(%rcx)

    start_second(machine, body(0x2222, 0x120))
    machine.run(body(0x1111, 0x100))
    words = memoryview(machine.get(DATA, 0x30, 0x100)).cast("Q").tolist()
    assert (words[0], words[1]) == (0x1111, 0x1111)
    assert (words[4], words[5]) == (0x2222, 0x2222)
    assert machine.domain.scheduler.statistics()["switches"] >= 6


def test_an_ipi_wakes_the_other(machine: Machine) -> None:
    machine.put(DATA, (1).to_bytes(4, "little") + bytes(4), 0x300)
    assert machine.call(Hypercall.EVENT_CHANNEL_OP, 7, VA(DATA, 0x300)) == 0  # bind_ipi to vCPU 1
    port = int.from_bytes(machine.get(DATA, 4, 0x304), "little")
    machine.put(DATA, port.to_bytes(4, "little"), 0x310)
    handler = store_code(b"\xc6\x01\x07", VA(DATA, 0x140)) + shutdown_code(machine)  # movb $7,(%rcx)
    machine.put(CODE, handler, 0xF00)
    start_second(machine, BLOCK + FOR_EVER)
    send = call_code(Hypercall.EVENT_CHANNEL_OP, 4, VA(DATA, 0x310))
    yields = call_code(Hypercall.SCHED_OP, 0, 0) * 2  # the other goes to sleep first
    end = machine.run(yields + send + FOR_EVER)
    assert isinstance(end, Shutdown) and end.reason == ShutdownReason.POWEROFF
    assert machine.get(DATA, 1, 0x140) == b"\x07"


def test_a_vcpu_that_spins_is_made_to_share(machine: Machine) -> None:
    """The first spins until the second has written; only the end of its slice lets the second run."""
    start_second(machine, store_code(b"\xc6\x01\x09", VA(DATA, 0x150)) + BLOCK + FOR_EVER)
    spin = b"\x48\xb9" + VA(DATA, 0x150).to_bytes(8, "little") + b"\x80\x39\x09\x75\xfb" + shutdown_code(machine)
    machine.set_code(spin)
    machine.domain.scheduler.pick(give_way=False)
    for _ in range(20):
        machine.domain.engine.set_block_budget(500)
        step = machine.domain.step()
        if isinstance(step, Shutdown):
            assert step.reason == ShutdownReason.POWEROFF
            return
        machine.clock.advance(3_000_000)
    raise AssertionError("the second vCPU never ran")


def test_the_last_one_down_ends_the_domain(machine: Machine) -> None:
    end = machine.run(call_code(Hypercall.VCPU_OP, DOWN, 0) + FOR_EVER)
    assert isinstance(end, Shutdown) and end.reason == ShutdownReason.POWEROFF
