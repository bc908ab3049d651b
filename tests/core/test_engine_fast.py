# SPDX-License-Identifier: GPL-2.0-only
"""The compiled fast path against its Python reference: the same guest on both, compared after every instruction.

Two machines get the same memory, registers and instruction. On one the engine deals with exits by itself where it can,
on the other every exit comes back to Python. Afterwards registers, memory, frame table and vCPU must be equal.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.core.machine import (
    CODE,
    DATA,
    FREE,
    L1,
    L4,
    NX,
    RW,
    SYSCALL,
    USER_CODE,
    USER_L1,
    USER_L4,
    USER_VA,
    VA,
    Machine,
    P,
    build_machine,
)
from xen_py import exits, traps
from xen_py.abi.xen import DOMID_SELF, Hypercall, VmAssist
from xen_py.engine import ExitKind, R
from xen_py.spec import Step
from xen_py.types import GuestCrash
from xen_py.vcpu import TrapGate

END = b"\xcd\x82"
"""int $0x82: where every instruction under test ends up."""
SYSCALL_TARGET, FAULT_TARGET, EVENT_TARGET, IRET_TARGET = 0x100, 0x200, 0x300, 0x400
AD = 0x60
SPARE = range(FREE, FREE + 8)


class Pair:
    """The two machines, always driven alike."""

    def __init__(self) -> None:
        self.fast, self.slow = build_machine(), build_machine()
        self.both = (self.fast, self.slow)
        self.slow.domain.engine.set_vcpu(None)
        for m in self.both:
            v = m.domain.vcpus[0]
            m.put(CODE, SYSCALL + END)
            m.put(CODE, b"\x48\x8b\x07" + END, 0x40)  # mov (%rdi),%rax
            m.put(CODE, b"\x48\x89\x07" + END, 0x60)  # mov %rax,(%rdi)
            for target in (SYSCALL_TARGET, FAULT_TARGET, EVENT_TARGET, IRET_TARGET):
                m.put(CODE, END, target)
            m.put(USER_CODE, SYSCALL + END)
            m.put(USER_CODE, b"\x48\x8b\x07" + END, 0x40)
            m.put(USER_CODE, END, 0x400)
            m.domain.space.written_from_outside(CODE)
            assert m.mmuext(15, m.mfn(USER_L4)) == 0
            assert m.mmuext(3, m.mfn(USER_L4)) == 0  # pinned, so that it can be left and entered
            v.syscall_callback = VA(CODE, SYSCALL_TARGET)
            v.event_callback = VA(CODE, EVENT_TARGET)
            v.traps[traps.PF] = TrapGate(VA(CODE, FAULT_TARGET), 0xE033, 0)
            v.traps[0x82] = TrapGate(VA(CODE, FAULT_TARGET), 0xE033, 3)
            v.kernel_sp = VA(DATA, 0xE00)
            m.call(Hypercall.VM_ASSIST, 0, VmAssist.WRITABLE_PAGETABLES)

    def go(self, setup: dict[int, int]) -> None:
        """Set registers on both, run to END, compare."""
        ends = [self._run(m, setup) for m in self.both]
        assert ends[0] == ends[1]
        self.compare()

    def _run(self, m: Machine, setup: dict[int, int]) -> str:
        r, d, v = m.regs, m.domain, m.domain.vcpus[0]
        for register, value in setup.items():
            r[register] = value & 0xFFFFFFFFFFFFFFFF
        d.engine.clear_kick()
        try:
            for _ in range(20):
                traps.deliver_events(d, v)
                kind = d.engine.run()
                d.access.root_index = (r[R.CR3] >> 12) - d.frames.base
                if kind == ExitKind.SOFTINT and r[R.VECTOR] == 0x82:
                    return "end"
                step: Step | None = exits.HANDLERS[kind](d, v)
                if d.shutdown is not None:
                    return str(step)
        except GuestCrash as crash:
            return str(crash)
        raise AssertionError(f"still running at {r[R.RIP]:#x}")

    def compare(self) -> None:
        f, s = self.both
        assert [hex(x) for x in f.regs[: R.KIND]] == [hex(x) for x in s.regs[: R.KIND]]
        assert f.domain.vcpus[0].words == s.domain.vcpus[0].words
        for name in ("refs", "type_counts", "code_maps", "types", "flags"):
            assert getattr(f.domain.frames, name) == getattr(s.domain.frames, name), name
        tables = {L1, USER_L1, L4, USER_L4}
        for pfn in range(FREE + 16):
            a, b = f.words(pfn).tolist(), s.words(pfn).tolist()
            if pfn in tables:  # which entries the CPU has used depends on what its TLB holds
                a, b = [x & ~AD for x in a], [x & ~AD for x in b]
            assert a == b, f"PFN {pfn}"
        assert f.domain.shared_info == s.domain.shared_info

    def close(self) -> None:
        for m in self.both:
            m.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def kernel(**more: int) -> dict[int, int]:
    """Registers for guest kernel code."""
    names = {name: getattr(R, name.upper()) for name in more}
    return {R.RSP: VA(DATA, 0xD00), R.RFLAGS: 0x202} | {names[name]: value for name, value in more.items()}


def syscall(pair: Pair, number: int, *args: int) -> None:
    registers = dict(zip((R.RDI, R.RSI, R.RDX, R.R10), (*args, 0, 0, 0, 0), strict=False))
    pair.go(kernel(rip=VA(CODE), rax=number) | registers)


def both_kernel(pair: Pair) -> None:
    for m in pair.both:
        v = m.domain.vcpus[0]
        if not v.kernel_mode:
            traps.toggle_mode(m.domain, v)
        m.regs[R.CS], m.regs[R.SS], m.regs[R.COMPAT] = 0xE033, 0xE02B, 0


def random_entry(rng: random.Random, m: Machine) -> int:
    if rng.random() < 0.2:
        return rng.choice((0, 0x123000, m.mfn(rng.choice(SPARE)) << 12))
    pfn = rng.choice((*SPARE, *SPARE, L1, CODE, DATA, USER_L1, 79, 1000))
    flags = rng.choice((P, P | RW, P | 4, P | RW | 4, P | AD, P | RW | AD, P | RW | 0x18, P | 1 << 62, P | 0x100))
    return (m.domain.frames.base + pfn) << 12 | flags | rng.choice((NX, NX, NX, 0))


def test_the_fast_path_is_taken(pair: Pair) -> None:
    m = pair.fast
    pair.go(kernel(rip=VA(CODE), rax=Hypercall.STACK_SWITCH, rdi=0xE02B, rsi=VA(DATA, 0xE00)))
    assert m.domain.engine.accelerated()[str(int(Hypercall.STACK_SWITCH))] == 1
    assert not any(pair.slow.domain.engine.accelerated().values())


def test_the_version_which_is_asked_for_events(pair: Pair) -> None:
    for command in (0, 1 << 32, 7, 99):
        pair.go(kernel(rip=VA(CODE), rax=Hypercall.XEN_VERSION, rdi=command))
    assert pair.fast.domain.engine.accelerated()[str(int(Hypercall.XEN_VERSION))] == 2


@pytest.mark.parametrize("seed", range(30))
def test_page_table_calls(pair: Pair, seed: int) -> None:
    rng = random.Random(seed)
    base = pair.fast.domain.frames.base
    for _ in range(40):
        both_kernel(pair)
        entry = random_entry(rng, pair.fast)
        at = (base + rng.choice((L1, L1, L1, USER_L1, *SPARE[:2]))) << 12 | rng.choice(SPARE) * 8
        operation = rng.randrange(6)
        if operation < 2:
            count = rng.choice((1, 1, 3))
            data = b""
            for n in range(count):
                command = rng.choice((0, 0, 0, 2, 3, 5))
                data += (at + 8 * n | command).to_bytes(8, "little") + entry.to_bytes(8, "little")
                entry = random_entry(rng, pair.fast)
            for m in pair.both:
                m.put(DATA, data, 0x800)
            done = rng.choice((0, 0, VA(DATA, 0xC00)))
            syscall(pair, Hypercall.MMU_UPDATE, VA(DATA, 0x800), count, done, rng.choice((DOMID_SELF, DOMID_SELF, 1)))
        elif operation < 4:
            va = VA(rng.choice((*SPARE, 3000, 1 << 30)))
            syscall(pair, Hypercall.UPDATE_VA_MAPPING, va, entry, rng.choice((0, 1, 2)))
        elif operation == 4:
            command = rng.choice((5, 5, 6, 7, 10, 11, 15, 15, 0, 4))
            target = base + rng.choice((L4, L4, USER_L4, L1, 2000)) if command in (0, 4, 5) else VA(rng.choice(SPARE))
            if command == 15:
                target = rng.choice((0, base + USER_L4, base + L4))
            if command == 5:
                target = base + L4  # the only one with the code in it
            data = command.to_bytes(8, "little") + target.to_bytes(8, "little") + bytes(8)
            for m in pair.both:
                m.put(DATA, data, 0x800)
            syscall(pair, Hypercall.MMUEXT_OP, VA(DATA, 0x800), 1, 0, DOMID_SELF)
        else:
            calls = b""
            for _n in range(rng.randrange(1, 4)):
                op, args = rng.choice(
                    (
                        (Hypercall.UPDATE_VA_MAPPING, (VA(rng.choice(SPARE)), random_entry(rng, pair.fast), 2)),
                        (Hypercall.STACK_SWITCH, (0xE02B, VA(DATA, 0xE00))),
                        (Hypercall.SET_SEGMENT_BASE, (rng.randrange(5), rng.choice((0x1000, 1 << 60)))),
                        (Hypercall.XEN_VERSION, (0, 0)),
                        (Hypercall.MULTICALL, (0, 0)),
                    )
                )
                words = (op, 99, *args, 0, 0, 0, 0, 0, 0)
                calls += b"".join(word.to_bytes(8, "little") for word in words[:8])
            for m in pair.both:
                m.put(DATA, calls, 0x800)
            syscall(pair, Hypercall.MULTICALL, VA(DATA, 0x800), len(calls) // 64)


@pytest.mark.parametrize("seed", range(20))
def test_traps_and_returns(pair: Pair, seed: int) -> None:
    rng = random.Random(1000 + seed)
    for _ in range(40):
        both_kernel(pair)
        flags = 0x202 | rng.choice((0, 0x400, 0x8D5, 0x40000))
        mask, pending, masks = rng.randrange(2), rng.randrange(2), rng.randrange(2)
        stack = rng.choice((VA(DATA, 0xD00), VA(DATA, 0xCF8), VA(FREE + 12, 16), VA(FREE + 12, 0x30), VA(5000)))
        for m in pair.both:
            v = m.domain.vcpus[0]
            info = m.memory.bytes[v.info_offset : v.info_offset + 2]
            info[0], info[1] = pending, mask
            v.syscall_masks_events = bool(masks)
            v.kernel_sp = VA(DATA, 0xE00) if mask else stack
        operation = rng.randrange(4)
        if operation == 0:  # iret
            cs, ss = rng.choice(((0xE030, 0xE02B), (0xE033, 0xE02B), (0xE033, 0xE02B), (0x33, 0x2B), (0, 0)))
            rip = VA(CODE, IRET_TARGET) if cs & 3 == 0 else USER_VA + 0x400
            frame = (7, 8, 9, rng.choice((0, 0x100)), rip, cs, flags, VA(DATA, 0xC00), ss)
            for m in pair.both:
                m.put(DATA, b"".join(x.to_bytes(8, "little") for x in frame), 0x800)
            pair.go(kernel(rip=VA(CODE), rax=Hypercall.IRET) | {R.RSP: VA(DATA, 0x800)})
        elif operation == 1:  # a fault of the kernel
            address = rng.choice((VA(5000), 0x1234, VA(L1, 8), 0xFFFF800000000000 + (1 << 45), VA(DATA, 0x10)))
            code = rng.choice((0x40, 0x60))
            pair.go({R.RIP: VA(CODE, code), R.RDI: address, R.RSP: stack, R.RFLAGS: flags, R.RAX: 0})
        else:  # a syscall or a fault of the user
            for m in pair.both:
                traps.toggle_mode(m.domain, m.domain.vcpus[0])
            code = 0 if operation == 2 else 0x40
            pair.go({R.RIP: USER_VA + code, R.RDI: 0x9999000, R.RSP: USER_VA + 0x1800, R.RFLAGS: flags, R.RAX: 1})
        if pair.fast.domain.shutdown is not None:
            return


@pytest.mark.parametrize("code", ["fa", "fb", "e442", "66e542", "e542", "ec", "66ed", "ed", "ee", "f4", "6c", "0f06"])
@pytest.mark.parametrize("iopl", [0, 1, 3])
@pytest.mark.parametrize("user", [False, True])
def test_privileged_instructions(pair: Pair, code: str, iopl: int, user: bool) -> None:
    for m in pair.both:
        v = m.domain.vcpus[0]
        v.iopl = iopl << 12
        v.traps[traps.GP] = TrapGate(VA(CODE, FAULT_TARGET), 0xE033, 0)
        v.event_callback = 0
        m.put(CODE, bytes.fromhex(code) + END, 0x80)
        m.put(USER_CODE, bytes.fromhex(code) + END, 0x80)
        m.domain.space.written_from_outside(CODE)
        m.domain.space.written_from_outside(USER_CODE)
        if user:
            traps.toggle_mode(m.domain, v)
    registers = {R.RAX: 0x1122334455667788, R.RDX: 0x1234, R.RFLAGS: 0x202, R.RDI: VA(DATA, 0x900)}
    stack = USER_VA + 0x1800 if user else VA(DATA, 0xD00)
    pair.go(registers | {R.RIP: USER_VA + 0x80 if user else VA(CODE, 0x80), R.RSP: stack})
