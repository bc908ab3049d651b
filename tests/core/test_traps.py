# SPDX-License-Identifier: GPL-2.0-only
"""Into the guest's kernel and back: bounce frames to the byte, iret, and what costs a guest its life.

Each test is made twice: with the engine's own handling of frequent exits, and with everything done in Python.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.core.machine import (
    CODE,
    DATA,
    FREE,
    L1,
    MAX_PAGES,
    STACK,
    SYSCALL,
    USER_STACK,
    USER_VA,
    VA,
    Machine,
    build_machine,
)
from xen_py.abi.xen import Hypercall, ShutdownReason
from xen_py.engine import R
from xen_py.spec import Shutdown
from xen_py.vcpu import TrapGate

HANDLER = VA(CODE, 0x400)
KERNEL_SP = VA(FREE, 0x1000)
UNMAPPED = VA(MAX_PAGES + 3)
MASK = 1
REASON = (VA(DATA, 0x800) & 0xFFFFFFFF).to_bytes(4, "little")
STOP = b"\xbf\x02\0\0\0\x48\xc7\xc6" + REASON + b"\xb8\x1d\0\0\0" + SYSCALL
"""sched_op(shutdown, &{poweroff})"""
IRET = b"\xb8\x17\0\0\0" + SYSCALL


@pytest.fixture(params=[True, False], ids=["fast", "plain"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    made = build_machine()
    if not request.param:
        made.domain.engine.set_vcpu(None)
    made.put(CODE, STOP, 0x400)
    made.domain.vcpus[0].kernel_sp = KERNEL_SP
    made.regs[R.RSP] = VA(STACK, 0xF08)
    yield made
    made.close()


def gate(machine: Machine, vector: int, flags: int = 0, address: int = HANDLER) -> None:
    machine.domain.vcpus[0].traps[vector] = TrapGate(address, 0xE033, flags)


def mask(machine: Machine) -> int:
    return machine.memory.bytes[machine.domain.vcpus[0].info_offset + MASK]


def set_mask(machine: Machine, value: int) -> None:
    machine.memory.bytes[machine.domain.vcpus[0].info_offset + MASK] = value


def ends(machine: Machine, code: bytes | None = None) -> str:
    """Run to the handler's end; "" for that, else why the domain crashed."""
    step = machine.run(code)
    assert isinstance(step, Shutdown)
    if step.reason == ShutdownReason.POWEROFF:
        return ""
    assert step.reason == ShutdownReason.CRASH
    return step.why


def frame(machine: Machine, words: int) -> tuple[int, ...]:
    return struct.unpack(f"<{words}Q", machine.domain.access.read(machine.regs[R.RSP], 8 * words))


@pytest.mark.parametrize("flags", [0, 4])
@pytest.mark.parametrize("masked", [0, 1])
def test_exception_in_the_kernel(machine: Machine, flags: int, masked: int) -> None:
    r = machine.regs
    gate(machine, 6, flags)
    set_mask(machine, masked)
    r[R.RCX], r[R.R11], r[R.RFLAGS] = 0x1111, 0x2222, 0x202 | 0x401
    assert ends(machine, b"\x0f\x0b") == ""
    assert r[R.RSP] == VA(STACK, 0xF00) - 56
    rflags = 0x2 | 0x401 | (0 if masked else 0x200)
    assert frame(machine, 7) == (
        *(0x1111, 0x2222, VA(CODE), 0xE030 | masked << 32, rflags, VA(STACK, 0xF08), 0xE02B),
    )
    assert mask(machine) == (1 if flags else masked)
    assert (r[R.CS], r[R.SS]) == (0xE033, 0xE02B)
    assert r[R.RFLAGS] & 0x200


def test_page_fault_in_the_kernel(machine: Machine) -> None:
    r = machine.regs
    gate(machine, 14)
    r[R.RDI] = UNMAPPED + 24
    assert ends(machine, b"\x48\x89\x07") == ""
    assert r[R.RSP] == VA(STACK, 0xF00) - 64
    assert frame(machine, 4)[2:] == (2, VA(CODE))  # write, not the user's
    info = machine.domain.vcpus[0].info_offset
    assert machine.memory.words[info + 16 >> 3] == UNMAPPED + 24


def test_page_fault_in_user_mode(machine: Machine) -> None:
    r = machine.regs
    gate(machine, 14, 4)
    set_mask(machine, 0)
    machine.user_mode(b"\x48\x8b\x07")
    r[R.RDI], r[R.GS_BASE], r[R.RFLAGS], r[R.RCX], r[R.R11] = 0x7000, 0x1234, 0x246, 0x1111, 0x2222
    v = machine.domain.vcpus[0]
    v.gs_base_kernel = 0x5678
    assert ends(machine) == ""
    assert r[R.RSP] == KERNEL_SP - 64
    assert frame(machine, 8) == (0x1111, 0x2222, 4, USER_VA, 0xE033, 0x246, USER_VA + 0x1800, 0xE02B)
    assert v.kernel_mode
    assert (r[R.GS_BASE], v.gs_base_user) == (0x5678, 0x1234)
    assert r[R.CR3] == v.root << 12
    assert mask(machine) == 1


@pytest.mark.parametrize("masks", [False, True])
def test_system_call(machine: Machine, masks: bool) -> None:
    r, v = machine.regs, machine.domain.vcpus[0]
    v.syscall_callback, v.syscall_masks_events = HANDLER, masks
    set_mask(machine, 0)
    machine.user_mode(SYSCALL)
    r[R.RFLAGS], r[R.RAX] = 0x202 | 0x400 | 0x1, 77
    r[R.CS] = 0xE033
    assert ends(machine) == ""
    assert frame(machine, 7) == (USER_VA + 2, 0x603, USER_VA + 2, 0xE033, 0x603, USER_VA + 0x1800, 0xE02B)
    assert not r[R.RFLAGS] & 0x400
    assert mask(machine) == masks


def test_system_call_without_a_callback_is_an_invalid_instruction(machine: Machine) -> None:
    gate(machine, 6)
    machine.user_mode(SYSCALL)
    assert ends(machine) == ""
    assert frame(machine, 3)[2] == USER_VA


@pytest.mark.parametrize(
    ("user", "dpl", "vector", "allowed"),
    [
        (False, 0, 0x80, False),
        (False, 1, 0x80, True),
        (True, 1, 0x80, False),
        (True, 3, 0x80, True),
        (True, 0, 3, True),
        (True, 0, 4, True),
        (True, 0, 13, False),
    ],
)
def test_who_may_raise_software_interrupts(machine: Machine, user: bool, dpl: int, vector: int, allowed: bool) -> None:
    gate(machine, 13)
    gate(machine, vector, dpl)
    code = b"\x90\xcd" + bytes([vector])
    if user:
        machine.user_mode(code)
    else:
        machine.set_code(code)
    start = USER_VA if user else VA(CODE)
    assert ends(machine) == ""
    if allowed:
        assert frame(machine, 3)[2] == start + 3
    else:
        assert frame(machine, 4)[2:] == (vector << 3 | 2, start + 1)


def upcall(machine: Machine) -> None:
    v = machine.domain.vcpus[0]
    v.event_callback = HANDLER
    machine.memory.bytes[v.info_offset] = 1
    set_mask(machine, 0)


def test_event_upcall(machine: Machine) -> None:
    upcall(machine)
    assert ends(machine, b"\x0f\x0b") == ""
    assert frame(machine, 7)[2:5] == (VA(CODE), 0xE030, 0x202)
    assert mask(machine) == 1


def test_masked_event_waits_for_the_end_of_a_hypercall(machine: Machine) -> None:
    v = machine.domain.vcpus[0]
    v.event_callback = HANDLER
    machine.memory.bytes[v.info_offset] = 1
    set_mask(machine, 1)
    # movb $0, the mask; xen_version(0); ud2
    machine.regs[R.RBX] = VA(DATA)
    assert machine.update(machine.l1_pointer(40), machine.domain.spec.memory.shared_info_mfn << 12 | 0x67) == 0
    store = b"\xc6\x04\x25" + (VA(40, MASK) & 0xFFFFFFFF).to_bytes(4, "little") + b"\0"
    code = store + b"\x31\xff\xb8\x11\0\0\0" + SYSCALL + b"\x0f\x0b"
    assert ends(machine, code) == ""
    assert frame(machine, 3)[2] == VA(CODE) + len(code) - 2


CRASHES = [
    # what, stack pointer, handler, needle
    ("no handler", VA(STACK, 0xF00), 0, "unhandled"),
    ("unmapped stack", UNMAPPED + 0x800, HANDLER, "cannot be pushed"),
    ("read-only stack", VA(L1, 0x800), HANDLER, "cannot be pushed"),
    ("not canonical", 1 << 62, HANDLER, "cannot be pushed"),
    ("the hypervisor's", 0xFFFF800000001000, HANDLER, "hypervisor"),
    ("the hypervisor's last", 0xFFFF880000000000, HANDLER, "hypervisor"),
    ("none", 0, HANDLER, "cannot be pushed"),
]


@pytest.mark.parametrize(("what", "rsp", "handler", "needle"), CRASHES)
def test_what_a_guest_does_not_survive(machine: Machine, what: str, rsp: int, handler: int, needle: str) -> None:
    gate(machine, 6, address=handler)
    machine.regs[R.RSP] = rsp
    assert needle in ends(machine, b"\x0f\x0b")


def test_more_that_a_guest_does_not_survive(machine: Machine) -> None:
    machine.regs[R.RSP] = UNMAPPED
    assert "iret frame" in ends(machine, IRET)


def test_event_without_a_callback(machine: Machine) -> None:
    upcall(machine)
    machine.domain.vcpus[0].event_callback = 0
    assert "no handler" in ends(machine, b"\x90")


def iret(
    machine: Machine, rip: int, cs: int = 0xE030, rflags: int = 0x202, rsp: int = VA(STACK, 0x800), ss: int = 0xE02B,
    flags: int = 0,
) -> None:  # fmt: skip
    """Have the guest make the iret hypercall with that frame."""
    at = VA(DATA, 0x200)
    machine.put(DATA, struct.pack("<9Q", 0xA, 0xB, 0xC, flags, rip, cs, rflags, rsp, ss), 0x200)
    machine.regs[R.RSP] = at
    machine.regs[R.RCX], machine.regs[R.R11] = 0x51, 0x52
    machine.set_code(IRET)


def test_iret_to_the_kernel(machine: Machine) -> None:
    r = machine.regs
    gate(machine, 6)
    machine.put(CODE, b"\x0f\x0b", 0x300)
    iret(machine, VA(CODE, 0x300), rflags=0x3000 | 0x20000 | 0x601)
    assert ends(machine) == ""
    assert frame(machine, 7) == (0xC, 0xB, VA(CODE, 0x300), 0xE030, 0x603, VA(STACK, 0x800), 0xE02B)
    assert mask(machine) == 0
    assert machine.domain.vcpus[0].kernel_mode
    assert r[R.RSP] == VA(STACK, 0x800) - 56


def test_iret_to_user_mode_and_back(machine: Machine) -> None:
    r, v = machine.regs, machine.domain.vcpus[0]
    assert machine.mmuext(15, machine.mfn(10)) == 0
    machine.put(14, b"\x0f\x0b")
    gate(machine, 6)
    v.gs_base_user, r[R.GS_BASE] = 0x77, 0x88
    iret(machine, USER_VA, cs=0xE033, rflags=0x2, rsp=USER_VA + 0x1700)
    assert ends(machine) == ""
    assert frame(machine, 7) == (0xC, 0xB, USER_VA, 0xE033 | 1 << 32, 0x2, USER_VA + 0x1700, 0xE02B)
    assert (v.gs_base_user, r[R.GS_BASE]) == (0x77, 0x88)


def test_iret_of_a_system_call_returns_like_sysret(machine: Machine) -> None:
    gate(machine, 6)
    machine.put(CODE, b"\x0f\x0b", 0x300)
    iret(machine, VA(CODE, 0x300), flags=0x100)
    assert ends(machine) == ""
    assert frame(machine, 2) == (VA(CODE, 0x300), 0x202)


def test_iret_to_user_mode_without_user_tables(machine: Machine) -> None:
    iret(machine, USER_VA, cs=0xE033)
    assert "without user page tables" in ends(machine)


@pytest.mark.parametrize(
    ("cs", "ss", "rip", "vector", "error"),
    [
        (0x1230, 0xE02B, HANDLER, 13, 0x1230),
        (0x1234, 0xE02B, HANDLER, 13, 0x1234),
        (0, 0xE02B, HANDLER, 13, 0),
        (0xE028, 0xE02B, HANDLER, 13, 0xE028),
        (0xE008, 0xE02B, HANDLER, 13, 0xE008),  # ring 0
        (0xE030, 0x1230, HANDLER, 13, 0x1230),
        (0xE030, 0, HANDLER, 13, 0),
        (0xE030, 0xE033, HANDLER, 13, 0xE030),
        (0xE030, 0xE010, HANDLER, 13, 0xE010),
        (0xE030, 0xE02B, 1 << 63, 13, 0),
        (0xE020, 0xE02B, 1 << 32, 13, 0),  # 32-bit code
        (0x8, 0xE02B, HANDLER, 11, 0x8),  # not present
        (0xE030, 0x10, HANDLER, 12, 0x10),
        (0x18, 0xE02B, HANDLER, 13, 0x18),  # both 64 and 32 bit
    ],
)
def test_iret_with_bad_selectors(machine: Machine, cs: int, ss: int, rip: int, vector: int, error: int) -> None:
    table = machine.words(FREE + 1)
    table[1] = 0x00AF7B000000FFFF
    table[2] = 0x00CF73000000FFFF
    table[3] = 0x00EFFB000000FFFF
    machine.read_only(FREE + 1)
    machine.put(DATA, machine.mfn(FREE + 1).to_bytes(8, "little"))
    assert machine.call(Hypercall.SET_GDT, VA(DATA), 512) == 0
    gate(machine, vector)
    iret(machine, rip, cs=cs, ss=ss)
    assert ends(machine) == ""
    assert frame(machine, 8) == (0xC, 0xB, error, rip, cs, 0x202, VA(STACK, 0x800), ss | 3)


def test_stack_of_user_mode_is_not_used(machine: Machine) -> None:
    gate(machine, 6)
    machine.user_mode(b"\x0f\x0b")
    machine.regs[R.RSP] = 0x10
    before = machine.get(USER_STACK, 4096)
    assert ends(machine) == ""
    assert frame(machine, 7)[5] == 0x10
    assert machine.get(USER_STACK, 4096) == before
