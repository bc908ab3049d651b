# SPDX-License-Identifier: GPL-2.0-only
"""Page-table entries that a guest writes by ordinary stores: done when they are right, and never more than that."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.core import reference
from tests.core.machine import CODE, DATA, FREE, L1, L4, RO_FLAGS, RW_FLAGS, SYSCALL, VA, Machine, build_machine
from xen_py.abi.xen import Hypercall, ShutdownReason
from xen_py.engine import R
from xen_py.spec import Shutdown
from xen_py.vcpu import TrapGate

REASON = (VA(DATA, 0x800) & 0xFFFFFFFF).to_bytes(4, "little")
STOP = b"\xbf\x02\0\0\0\x48\xc7\xc6" + REASON + b"\xb8\x1d\0\0\0" + SYSCALL
FAULT, STEP = VA(CODE, 0x400), VA(CODE, 0x500)
PLACE = FREE + 8
"""The page whose entry is written."""


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = build_machine()
    made.put(CODE, STOP, 0x400)
    made.put(CODE, b"\x90" + STOP, 0x500)
    made.domain.vcpus[0].traps[14] = TrapGate(FAULT, 0xE033, 0)
    made.domain.vcpus[0].traps[1] = TrapGate(STEP, 0xE033, 0)
    assert made.call(Hypercall.VM_ASSIST, 0, 2) == 0
    yield made
    made.close()


def run(machine: Machine, code: bytes, rdi: int, rax: int = 0, rflags: int = 0x202) -> bool:
    """Whether the store went through without a fault for the guest."""
    r = machine.regs
    r[R.RDI], r[R.RAX], r[R.RFLAGS], r[R.RSP] = rdi, rax, rflags, VA(5, 0x1000)
    step = machine.run(code + STOP)
    assert isinstance(step, Shutdown)
    assert step.reason == ShutdownReason.POWEROFF
    machine.domain.shutdown = None
    reference.check(machine.domain)
    return r[R.RIP] < FAULT


STORE = b"\x48\x89\x07"


def entry_address(pfn: int) -> int:
    return VA(L1, pfn * 8)


def test_good_entries(machine: Machine) -> None:
    for value in (machine.entry(FREE, RW_FLAGS), 0, machine.entry(L4, RO_FLAGS), 0x1234000):
        assert run(machine, STORE, entry_address(PLACE), value)
        assert machine.words(L1)[PLACE] & ~0x160 == value & ~0x160
    assert machine.domain.counters["trapped_writes"] == 4


def test_without_the_assist_it_is_a_fault(machine: Machine) -> None:
    assert machine.call(Hypercall.VM_ASSIST, 1, 2) == 0
    assert not run(machine, STORE, entry_address(PLACE))


def test_bad_entries(machine: Machine) -> None:
    before = machine.words(L1)[PLACE]
    for value in (machine.entry(L4, RW_FLAGS), 0xFE0000000067, machine.entry(FREE, RW_FLAGS | 0x80)):
        assert not run(machine, STORE, entry_address(PLACE), value)
        assert machine.words(L1)[PLACE] == before


def test_stores_to_other_tables_are_faults(machine: Machine) -> None:
    for pfn in (L4, 2, 3):
        before = machine.get(pfn, 4096)
        assert not run(machine, STORE, VA(pfn, 8), 0)
        assert machine.get(pfn, 4096) == before


@pytest.mark.parametrize(
    ("code", "offset"),
    [
        (STORE, 4092),  # half of it in the next page
        (b"\x0f\xae\x07", 3840),  # fxsave
        (b"\x66\x0f\x7f\x07", 4080),  # movdqa, two entries
        (b"\xf3\x48\xab", 4088),  # rep stos, into the next page
        (b"\xf3\x48\xab", 4092),
    ],
)
def test_what_lies_behind_a_table_is_safe(machine: Machine, code: bytes, offset: int) -> None:
    """The next page is the root table, mapped read-only: nothing of the instruction may reach it."""
    for pfn, frame in ((FREE, L1), (FREE + 1, L4)):
        assert machine.call(Hypercall.UPDATE_VA_MAPPING, VA(pfn), machine.entry(frame, RO_FLAGS), 2) == 0
    root, table = machine.get(L4, 4096), machine.words(L1).tolist()
    machine.regs[R.RCX] = 3
    run(machine, code, VA(FREE, offset), machine.entry(DATA, RO_FLAGS))
    assert machine.get(L4, 4096) == root
    changed = [n for n in range(512) if machine.words(L1)[n] & ~0x160 != table[n] & ~0x160]
    assert changed in ([], [511])


def test_a_stale_translation_does_not_lead_the_store_elsewhere(machine: Machine) -> None:
    for pfn in (FREE + 4, FREE + 5):
        machine.read_only(pfn)
        assert machine.mmuext(0, machine.mfn(pfn)) == 0
    for frame in (FREE + 4, FREE + 5, FREE + 4):
        other = FREE + 4 + FREE + 5 - frame
        # Mapped without a flush; a load then and now keeps the old translation in the TLB.
        assert machine.call(Hypercall.UPDATE_VA_MAPPING, VA(FREE), machine.entry(frame, RO_FLAGS), 0) == 0
        before = machine.get(other, 4096)
        value = machine.entry(DATA, RW_FLAGS)
        assert run(machine, b"\x48\x8b\x17" + STORE, VA(FREE, 80), value)
        assert machine.words(frame)[10] & ~0x160 == value & ~0x160
        assert machine.get(other, 4096) == before
        assert run(machine, b"\x48\x8b\x17" + STORE, VA(FREE, 80), 0)


def test_a_guest_that_steps_through_its_code_gets_its_trap(machine: Machine) -> None:
    assert not run(machine, STORE, entry_address(PLACE), 0, rflags=0x302)
    assert machine.words(L1)[PLACE] == 0
    assert machine.regs[R.RIP] > STEP
    frame = machine.domain.access.read(machine.regs[R.RSP], 56)
    assert int.from_bytes(frame[16:24], "little") == VA(CODE, 3)
    assert frame[33] & 1  # TF of the interrupted code
