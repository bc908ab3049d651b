# SPDX-License-Identifier: GPL-2.0-only
"""Whatever instructions a guest executes, a step is answered with a step, and the counts add up."""

from __future__ import annotations

import pytest

from tests.core import reference
from tests.core.fuzz import Fuzzer
from tests.core.machine import CODE, DATA, FREE, L1, NX, RW_FLAGS, STACK, USER_L4, VA, Machine, build_machine
from xen_py import traps
from xen_py.abi.xen import Hypercall
from xen_py.engine import R
from xen_py.spec import Blocked, Kicked, Shutdown
from xen_py.vcpu import TrapGate

INSTRUCTIONS = """
0f0b78656e0fa2 0f0b cc cd80 f4 fa fb 0f06 0f09 0f20c0 0f22c0 0f20d8 0f22d8 0f22e0 0f23f8 0f21c0 0f30 0f32 0f31
0f01f9 ec ee e410 6c 0f34 8edf 8ee7 8eef 8ed7 ff2f 48cf cf 48cb 0f01f8 488907 488b07 488707 f0480fc107 f3aa
f348ab ffe7 0fae07 dd37 9bd9e8 f3a4 8f07 ff37 c810001f 660f7f07 9d 9c 50 58 c3 ebfe 48ffc7 48c7c0170000000f05
"""
"""Privileged instructions, loads, stores, jumps, stack and segment operations, in hexadecimal."""
PIECES = [b"\x0f\x05"] * 6 + [bytes.fromhex(code) for code in INSTRUCTIONS.split()]


def scatter(machine: Machine, fuzzer: Fuzzer) -> None:
    """Random registers, handlers and code; RDI often at a page table, RAX often a hypercall."""
    r, regs, v = fuzzer.r, machine.regs, machine.domain.vcpus[0]
    code = b""
    for _ in range(r.randrange(1, 10)):
        if r.random() < 0.5:
            code += b"\xb8" + r.choice((r.randrange(45), r.getrandbits(32))).to_bytes(4, "little")
        code += r.choice(PIECES) if r.random() < 0.85 else r.randbytes(r.randrange(1, 6))
    machine.set_code(code, r.choice((0, 0x200, 0xFFA - len(code) // 2)) if len(code) < 200 else 0)
    for n in range(16):
        regs[n] = fuzzer.word()
    edge = VA(r.choice((FREE, L1)), 4090)
    regs[R.RDI] = r.choice((VA(L1, r.randrange(4096)), VA(L1, 4089), VA(DATA), edge, fuzzer.word()))
    regs[R.RSP] = r.choice((VA(STACK, r.randrange(4096)), VA(STACK, 2048), VA(L1, r.randrange(4096)), fuzzer.word()))
    regs[R.RCX] = r.choice((0, 1, 0x1B, 0xC0000080, 0xC0000101, 0x10, fuzzer.word()))
    regs[R.RFLAGS] = 0x202 | r.choice((0, 0x100, 0x400, 0x40000, r.getrandbits(22) & ~0x20000))
    for vector in range(20):
        address = r.choice((VA(CODE), VA(CODE, 0x200), VA(CODE, 0x300), VA(DATA), fuzzer.pointer(), 0))
        v.traps[vector] = TrapGate(address, 0xE033, r.randrange(8))
    v.traps[0x80] = TrapGate(VA(CODE), 0xE033, 3)
    v.kernel_sp = r.choice((VA(STACK, 4096), VA(STACK, 64), fuzzer.pointer()))
    v.event_callback = r.choice((VA(CODE), VA(CODE, 0x200), fuzzer.pointer()))
    v.syscall_callback = r.choice((VA(CODE, 0x200), 0))
    machine.memory.bytes[v.info_offset] = r.randrange(2)
    machine.memory.bytes[v.info_offset + 1] = r.randrange(2)


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize("seed", range(6))
def test_steps_are_answered(seed: int, fast: bool) -> None:
    machine = build_machine()
    fuzzer = Fuzzer(machine, seed)
    domain = machine.domain
    try:
        for n in range(150):
            fuzzer.scramble()
            if n == 0 or domain.shutdown is not None:
                machine.close()
                machine = build_machine()
                domain, fuzzer.m = machine.domain, machine
                if not fast:
                    domain.engine.set_vcpu(None)
                assert machine.call(Hypercall.VM_ASSIST, 0, 2) == 0
                assert machine.mmuext(15, machine.mfn(USER_L4)) == 0
                if fuzzer.r.random() < 0.3:
                    machine.call(Hypercall.UPDATE_VA_MAPPING, VA(FREE), machine.entry(FREE, RW_FLAGS & ~NX), 2)
            scatter(machine, fuzzer)
            if fuzzer.r.random() < 0.2 and domain.vcpus[0].kernel_mode and domain.vcpus[0].user_root:
                traps.toggle_mode(domain, domain.vcpus[0])
            for _ in range(4):
                domain.engine.set_block_budget(200)
                try:
                    step = domain.step()
                except Exception as error:
                    error.add_note(f"program {n} of seed {seed}")
                    raise
                assert isinstance(step, Kicked | Blocked | Shutdown)
                if isinstance(step, Shutdown):
                    break
            domain.vcpus[0].blocked = False
            try:
                reference.check(domain)
            except AssertionError as error:
                error.add_note(f"after program {n} of seed {seed}")
                raise
    finally:
        machine.close()

