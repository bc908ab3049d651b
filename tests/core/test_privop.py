# SPDX-License-Identifier: GPL-2.0-only
"""Privileged instructions carried out for a guest kernel, and refused to its users."""

from __future__ import annotations

import pytest

from tests.core.machine import CODE, DATA, USER_VA, VA, Machine
from xen_py import privop
from xen_py.engine import ExitKind, R
from xen_py.types import Errno, XenError
from xen_py.vcpu import TrapGate


def carried_out(machine: Machine, code: bytes) -> bool:
    """Run one instruction to its fault and emulate it."""
    assert machine.exit(code) == ExitKind.EXCEPTION
    assert (machine.regs[R.VECTOR], machine.regs[R.ERROR]) == (13, 0)
    before = machine.regs[R.RIP]
    done = privop.emulate(machine.domain, machine.domain.vcpus[0])
    assert machine.regs[R.RIP] == before + (len(code) if done else 0)
    return done


def test_control_registers(machine: Machine) -> None:
    r, d, v = machine.regs, machine.domain, machine.domain.vcpus[0]
    assert carried_out(machine, b"\x0f\x20\xc0")
    assert r[R.RAX] == 0x80050033
    r[R.RAX] |= 8
    assert carried_out(machine, b"\x0f\x22\xc0")
    assert v.cr0_ts
    assert carried_out(machine, b"\x0f\x06")
    assert not v.cr0_ts
    r[R.RAX] = 0x33
    assert not carried_out(machine, b"\x0f\x22\xc0")
    r[R.RBX] = 0x123456
    assert carried_out(machine, b"\x0f\x22\xd3")
    assert carried_out(machine, b"\x41\x0f\x20\xd7")
    assert r[R.R15] == 0x123456 == d.memory.words[v.info_offset + 16 >> 3]
    assert carried_out(machine, b"\x0f\x20\xd8")
    assert r[R.RAX] == v.root << 12
    assert carried_out(machine, b"\x0f\x22\xd8")
    r[R.RAX] = machine.mfn(DATA) << 12
    assert not carried_out(machine, b"\x0f\x22\xd8")
    r[R.RAX] = 0xFFFFFFFF
    assert carried_out(machine, b"\x0f\x22\xe0")
    assert carried_out(machine, b"\x0f\x20\xe0")
    assert r[R.RAX] == 0x6AC


def test_debug_registers(machine: Machine) -> None:
    r = machine.regs
    r[R.RCX] = 0x5678
    assert carried_out(machine, b"\x0f\x23\xd1")
    assert carried_out(machine, b"\x0f\x21\xd0")
    assert r[R.RAX] == 0x5678
    r[R.RCX] = 1 << 62
    assert not carried_out(machine, b"\x0f\x23\xd1")


@pytest.mark.parametrize(
    ("msr", "value", "allowed"),
    [
        (0xC0000100, 0x1234, True),
        (0xC0000101, 0xFFFFFFFF80000000, True),
        (0xC0000102, 0x77, True),
        (0xC0000100, 1 << 62, False),
        (0xC0000080, 0xD01, True),
        (0xC0000080, 0x100, False),
        (0x48, 3, True),
        (0x48, 8, False),
        (0x277, 0, False),
        (0xDEAD, 0, False),
    ],
)
def test_msrs(machine: Machine, msr: int, value: int, allowed: bool) -> None:
    r = machine.regs
    r[R.RCX], r[R.RAX], r[R.RDX] = msr, value & 0xFFFFFFFF, value >> 32
    assert carried_out(machine, b"\x0f\x30") == allowed
    if allowed:
        assert carried_out(machine, b"\x0f\x32")
        assert r[R.RAX] | r[R.RDX] << 32 == value


def test_time_stamp_counter(machine: Machine) -> None:
    machine.clock.advance(0x1_2345_6789)
    assert carried_out(machine, b"\x0f\x31")
    assert machine.regs[R.RAX] | machine.regs[R.RDX] << 32 == machine.clock.tsc()


def test_interrupt_flag_needs_io_privilege(machine: Machine) -> None:
    v = machine.domain.vcpus[0]
    assert not carried_out(machine, b"\xfa")
    v.iopl = 0x1000
    assert carried_out(machine, b"\xfa")
    assert carried_out(machine, b"\xfb")


def test_prefixes_and_page_ends(machine: Machine) -> None:
    assert carried_out(machine, b"\x66\x2e\x0f\x20\xc0")
    machine.set_code(b"\x0f", 0xFFF)
    assert machine.exit() == ExitKind.EXCEPTION  # the rest is in the next page, which is not code
    assert machine.regs[R.VECTOR] == 14


def test_users_get_their_fault(machine: Machine) -> None:
    for code in (b"\x0f\x20\xc0", b"\x0f\x06", b"\x0f\x32", b"\x0f\x09"):
        machine.user_mode(code)
        assert machine.exit() == ExitKind.EXCEPTION
        assert not privop.emulate(machine.domain, machine.domain.vcpus[0])
        assert machine.regs[R.RIP] == USER_VA


def test_forced_emulation_of_cpuid(machine: Machine) -> None:
    d, r, v = machine.domain, machine.regs, machine.domain.vcpus[0]
    r[R.RAX] = 0x40000000
    assert machine.exit(b"\x0f\x0bxen\x0f\xa2") == ExitKind.EXCEPTION
    assert privop.forced_cpuid(d, v)
    assert r[R.RIP] == VA(CODE, 7)
    assert r[R.RBX].to_bytes(4, "little") == b"XenV"
    for other in (b"\x0f\x0bxem\x0f\xa2", b"\x0f\x0bxen\x0f\xa3"):
        machine.exit(other)
        assert not privop.forced_cpuid(d, v)
    v.traps[14] = TrapGate(VA(CODE, 0x800), 0xE033, 0)
    machine.put(CODE, b"\x0f\x0bx", 0xFFD)
    r[R.RIP] = VA(CODE, 0xFFD)
    machine.call(14, VA(CODE + 1), 0, 2)  # nothing is mapped behind
    assert privop.forced_cpuid(d, v)
    assert r[R.RIP] == VA(CODE, 0x800)
    assert d.memory.words[v.info_offset + 16 >> 3] == VA(CODE + 1)


def test_dr4_and_dr5_are_others_unless_debug_extensions_are_on(machine: Machine) -> None:
    v = machine.domain.vcpus[0]
    privop.set_debugreg(v, 5, 0x401)
    assert privop.get_debugreg(v, 7) == privop.get_debugreg(v, 5) == 0x401
    v.cr4 = 8
    for n in (4, 5):
        with pytest.raises(XenError) as caught:
            privop.set_debugreg(v, n, 0)
        assert caught.value.errno == Errno.ENODEV
