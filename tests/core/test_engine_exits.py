# SPDX-License-Identifier: GPL-2.0-only
"""Every way out of the guest: what the engine reports, to the bit, and what it leaves in the registers."""

from __future__ import annotations

import os
import random
import time
from array import array
from contextlib import closing

import pytest

from tests.core.machine import (
    CODE,
    DATA,
    FREE,
    L1,
    MAX_PAGES,
    NX,
    RW_FLAGS,
    SYSCALL,
    USER_VA,
    VA,
    Machine,
    build_machine,
)
from xen_py.abi.xen import Hypercall
from xen_py.doorbell import MAX_PORTS, Doorbell
from xen_py.engine import EventPaths, ExitKind, R
from xen_py.frames import FrameFlag

UNMAPPED = VA(MAX_PAGES + 7)
LOAD, STORE, JUMP = b"\x48\x8b\x07", b"\x48\x89\x07", b"\xff\xe7"  # through %rdi
P, W, U, F = 1, 2, 4, 16

EXCEPTIONS = [
    # name, code, %rdi, vector, error, CR2 or None, RIP behind the start
    ("ud2", b"\x0f\x0b", 0, 6, 0, None, 0),
    ("division by zero", b"\x31\xc9\xf7\xf1", 0, 0, 0, None, 2),
    ("hlt", b"\xf4", 0, 13, 0, None, 0),
    ("cli", b"\xfa", 0, 13, 0, None, 0),
    ("wrmsr", b"\x0f\x30", 0, 13, 0, None, 0),
    ("mov to cr3", b"\x0f\x22\xd8", 0, 13, 0, None, 0),
    ("mov from cr0", b"\x0f\x20\xc0", 0, 13, 0, None, 0),
    ("lgdt", b"\x0f\x01\x17", VA(DATA), 13, 0, None, 0),
    ("invlpg", b"\x0f\x01\x3f", VA(DATA), 13, 0, None, 0),
    ("load, not mapped", LOAD, UNMAPPED + 8, 14, U, UNMAPPED + 8, 0),
    ("store, not mapped", STORE, UNMAPPED, 14, U | W, UNMAPPED, 0),
    ("store, read-only", STORE, VA(L1, 16), 14, U | W | P, VA(L1, 16), 0),
    ("store over the end", STORE, VA(63, 4093), 14, U | W, VA(64), 0),
    ("jump, not mapped", JUMP, UNMAPPED, 14, U | F, UNMAPPED, None),
    ("jump, no execute", JUMP, VA(DATA, 64), 14, U | F | P, VA(DATA, 64), None),
    ("load from the hypervisor", LOAD, 0xFFFF808000000000, 14, U | P, 0xFFFF808000000000, 0),
    ("store to the m2p table", STORE, 0xFFFF800000000000, 14, U | W | P, 0xFFFF800000000000, 0),
    ("not canonical", LOAD, 1 << 62, 13, 0, None, 0),
    ("ds, beyond the GDT", b"\x8e\xdf", 0xFFFB, 13, 0xFFF8, None, 0),
    ("ds, not in the GDT", b"\x8e\xdf", 0x1233, 13, 0x1230, None, 0),
    ("ds, no LDT", b"\x8e\xdf", 0x1237, 13, 0x1234, None, 0),
    ("ss, null", b"\x8e\xd7", 0, 13, 0, None, 0),
    ("ss, code", b"\x8e\xd7", 0xE033, 13, 0xE030, None, 0),
    ("far jump to ring 0", b"\xff\x2f", VA(DATA, 0x100), 13, 0xE008, None, 0),
]


@pytest.mark.parametrize(("name", "code", "rdi", "vector", "error", "cr2", "behind"), EXCEPTIONS)
def test_exception(
    machine: Machine, name: str, code: bytes, rdi: int, vector: int, error: int, cr2: int | None, behind: int | None
) -> None:
    machine.put(DATA, (0x1000).to_bytes(4, "little") + (0xE00B).to_bytes(2, "little"), 0x100)
    r = machine.regs
    for _ in range(4):  # the emulator must not take the second for a double fault, or the third for a triple one
        r[R.RDI] = rdi
        assert machine.exit(code) == ExitKind.EXCEPTION
        assert (r[R.VECTOR], r[R.ERROR]) == (vector, error)
        assert cr2 is None or r[R.CR2] == cr2
        assert r[R.RIP] == (rdi if behind is None else VA(CODE) + behind)
        assert r[R.RDI] == rdi


@pytest.mark.parametrize(("code", "vector"), [(b"\xcc", 3), (b"\xcd\x03", 3), (b"\xcd\x0e", 14), (b"\xcd\x80", 128)])
def test_software_interrupts_are_not_exceptions(machine: Machine, code: bytes, vector: int) -> None:
    assert machine.exit(code) == ExitKind.SOFTINT
    assert machine.regs[R.VECTOR] == vector
    assert machine.regs[R.RIP] == VA(CODE) + len(code)


def test_syscall_keeps_every_other_register(machine: Machine) -> None:
    r = machine.regs
    for n in range(16):
        r[n] = 0x1111111111111111 * n & (1 << 64) - 1
    r[R.RFLAGS] = 0x202 | 0xCD5
    before = r.tolist()[:16]
    assert machine.exit(SYSCALL) == ExitKind.SYSCALL
    before[R.RCX], before[R.R11] = VA(CODE) + 2, r[R.RFLAGS]  # where the instruction puts them
    assert r.tolist()[:16] == before
    assert r[R.RIP] == VA(CODE) + 2
    assert r[R.RFLAGS] & 0xCD5 == 0xCD5


def test_single_step(machine: Machine) -> None:
    machine.regs[R.RFLAGS] = 0x302
    for n in range(3):
        assert machine.exit(b"\x90\xf8\x90" if n == 0 else None) == ExitKind.EXCEPTION
        assert machine.regs[R.VECTOR] == 1
        assert machine.regs[R.RIP] == VA(CODE) + n + 1


def test_repeated_string_instructions_are_stepped_one_by_one(machine: Machine) -> None:
    """A trapped page-table write relies on it."""
    r = machine.regs
    r[R.RFLAGS] = 0x302
    r[R.RDI], r[R.RCX], r[R.RAX] = VA(DATA), 3, 0xAB
    assert machine.exit(b"\xf3\xaa") == ExitKind.EXCEPTION
    assert r[R.VECTOR] == 1
    assert r[R.RIP] == VA(CODE)
    assert r[R.RCX] == 2
    assert machine.get(DATA, 2) == b"\xab\0"


def test_fpu_not_available(machine: Machine) -> None:
    machine.domain.engine.set_task_switched(True)
    assert machine.exit(b"\xd9\xe8") == ExitKind.EXCEPTION
    assert machine.regs[R.VECTOR] == 7
    machine.domain.engine.set_task_switched(False)
    assert machine.exit(b"\xd9\xe8" + SYSCALL) == ExitKind.SYSCALL


def test_cpuid_answers_from_the_table(machine: Machine) -> None:
    r = machine.regs
    table = [(7, 0, 1, 2, 3, 4), (7, 5, 11, 12, 13, 14), (9, None, 21, 22, 23, 24)]
    machine.domain.engine.set_cpuid([(leaf, sub, a, b, c, d) for leaf, sub, a, b, c, d in table])
    asked = {(7, 0): (1, 2, 3, 4), (7, 5): (11, 12, 13, 14), (7, 1): (0, 0, 0, 0), (9, 77): (21, 22, 23, 24)}
    for (leaf, sub), answer in asked.items():
        r[R.RAX], r[R.RCX] = 0xFFFFFFFF00000000 | leaf, sub
        assert machine.exit(b"\x0f\xa2\xcd\x82") == ExitKind.SOFTINT
        assert (r[R.RAX], r[R.RBX], r[R.RCX], r[R.RDX]) == answer


def test_tsc_offset_and_trap(machine: Machine) -> None:
    r, engine = machine.regs, machine.domain.engine
    engine.set_tsc(0, trap=True)
    assert machine.exit(b"\x0f\x31" + SYSCALL) == ExitKind.EXCEPTION
    assert (r[R.VECTOR], r[R.ERROR], r[R.RIP]) == (13, 0, VA(CODE))
    read = []
    for offset in (0, 1 << 60):
        engine.set_tsc(offset, trap=False)
        assert machine.exit(b"\x0f\x31" + SYSCALL) == ExitKind.SYSCALL
        read.append(r[R.RAX] | r[R.RDX] << 32)
    assert 1 << 60 <= read[1] - read[0] < (1 << 60) + (1 << 45)


def test_segment_bases(machine: Machine) -> None:
    r = machine.regs
    machine.put(DATA, (0x1234).to_bytes(8, "little") + (0x5678).to_bytes(8, "little"))
    r[R.FS_BASE], r[R.GS_BASE] = VA(DATA), VA(DATA, 8)
    code = b"\x64\x48\x8b\x04\x25\0\0\0\0" + b"\x65\x48\x8b\x1c\x25\0\0\0\0" + SYSCALL
    assert machine.exit(code) == ExitKind.SYSCALL
    assert (r[R.RAX], r[R.RBX]) == (0x1234, 0x5678)
    assert (r[R.FS_BASE], r[R.GS_BASE]) == (VA(DATA), VA(DATA, 8))


def test_flat_selectors_can_be_loaded_and_are_reported(machine: Machine) -> None:
    r = machine.regs
    r[R.RDI] = 0xE02B
    assert machine.exit(b"\x8e\xdf\x8e\xc7\x8e\xe7" + SYSCALL) == ExitKind.SYSCALL
    assert (r[R.DS], r[R.ES], r[R.FS], r[R.CS], r[R.SS]) == (0xE02B, 0xE02B, 0xE02B, 0xE033, 0xE02B)


def test_guest_gdt_is_what_the_cpu_uses(machine: Machine) -> None:
    r = machine.regs
    descriptor = 0x00CFF2000000FFFF | 0x5000 << 16  # base 0x5000
    machine.words(FREE)[1] = descriptor
    machine.read_only(FREE)
    machine.put(DATA, machine.mfn(FREE).to_bytes(8, "little"))
    assert machine.call(Hypercall.SET_GDT, VA(DATA), 2) == 0
    r[R.RDI] = 8 | 3
    assert machine.exit(b"\x8e\xe7" + SYSCALL) == ExitKind.SYSCALL
    assert r[R.FS] == 11
    assert r[R.FS_BASE] == 0x5000


def test_compatibility_mode(machine: Machine) -> None:
    r = machine.regs
    machine.user_mode(b"\xb8\x78\x56\x34\x12\x40\x0f\x0b")  # mov $0x12345678,%eax; inc %eax (REX in 64-bit code); ud2
    r[R.COMPAT], r[R.CS] = 1, 0xE023
    assert machine.exit() == ExitKind.EXCEPTION
    assert r[R.VECTOR] == 6
    assert r[R.RAX] == 0x12345679
    assert r[R.RIP] == USER_VA + 6
    assert r[R.COMPAT] == 1


def test_jumps_are_relative_to_the_base_of_the_code_segment(machine: Machine) -> None:
    """A block at that very address, but of the flat segment, is not where such a jump goes."""
    r = machine.regs
    machine.words(FREE)[2] = 0x00CFFA000010FFFF  # 32-bit code from address 0x10 on
    machine.read_only(FREE)
    machine.put(DATA, machine.mfn(FREE).to_bytes(8, "little"))
    assert machine.call(Hypercall.SET_GDT, VA(DATA), 3) == 0
    target, start = 0x40, 0x80
    code = bytearray(b"\xff\xe0".ljust(256, b"\x90"))  # jmp *%eax
    for at, number in ((target, 1), (target + 0x10, 2)):
        code[at : at + 7] = b"\xb9" + number.to_bytes(4, "little") + b"\x0f\x0b"  # mov $number,%ecx ; ud2
    code[start : start + 2] = b"\xff\x2f"  # ljmp *(%rdi)
    code[start + 0x30 : start + 0x32] = b"\xff\xe0"
    code[start + 0x60 : start + 0x66] = (USER_VA + start + 0x20).to_bytes(4, "little") + b"\x13\0"
    machine.user_mode(bytes(code))
    for _ in range(3):
        r[R.RIP], r[R.RAX], r[R.RDI] = USER_VA, USER_VA + target, USER_VA + start + 0x60
        r[R.COMPAT], r[R.CS] = 1, 0xE023
        assert machine.exit() == ExitKind.EXCEPTION
        assert (r[R.VECTOR], r[R.RCX], r[R.RIP]) == (6, 1, USER_VA + target + 5)
        r[R.RIP], r[R.COMPAT], r[R.CS] = USER_VA + start, 0, 0xE033
        assert machine.exit() == ExitKind.EXCEPTION
        assert (r[R.VECTOR], r[R.RCX], r[R.RIP], r[R.CS]) == (6, 2, USER_VA + target + 5, 0x13)


def test_page_tables_are_the_ones_in_cr3(machine: Machine) -> None:
    machine.user_mode(SYSCALL)
    assert machine.exit() == ExitKind.SYSCALL
    assert machine.regs[R.RIP] == USER_VA + 2
    machine.regs[R.RIP] = VA(CODE)  # the kernel's, not mapped here
    assert machine.exit() == ExitKind.EXCEPTION
    assert (machine.regs[R.VECTOR], machine.regs[R.ERROR]) == (14, U | F)


def test_kick_before_a_run_is_not_lost_and_stays_until_cleared(machine: Machine) -> None:
    engine = machine.domain.engine
    machine.set_code(b"\xeb\xfe")
    for _ in range(2):
        engine.kick()
        assert engine.kick_pending()
        assert engine.run() == ExitKind.KICKED
        assert engine.run() == ExitKind.KICKED
        engine.clear_kick()
        assert not engine.kick_pending()
    assert machine.regs[R.RIP] == VA(CODE)


def test_a_deadline_ends_an_endless_loop(machine: Machine) -> None:
    engine = machine.domain.engine
    engine.set_deadline(time.monotonic_ns() + 2_000_000)
    assert machine.exit(b"\xeb\xfe") == ExitKind.KICKED
    engine.clear_kick()
    engine.set_deadline(0)


def test_the_inbox_ends_an_endless_loop() -> None:
    with closing(Doorbell.create()) as doorbell, closing(build_machine()) as machine:
        engine = machine.domain.engine
        engine.connect(EventPaths(doorbell, -1, memoryview(array("i", [-1] * MAX_PORTS))))
        fd = doorbell.inbox.eventfd
        machine.set_code(b"\xeb\xfe")
        for _ in range(3):
            os.eventfd_write(fd, 1)
            assert engine.run() == ExitKind.KICKED
            engine.clear_kick()
            assert os.eventfd_read(fd) == 1  # left to its reader


def test_block_budget(machine: Machine) -> None:
    engine = machine.domain.engine
    engine.set_block_budget(1000)
    assert machine.exit(b"\xeb\xfe") == ExitKind.KICKED
    assert engine.statistics()["blocks"] == 1000
    assert engine.run() == ExitKind.KICKED  # used up
    engine.set_block_budget(10)
    assert engine.run() == ExitKind.KICKED
    assert engine.statistics()["blocks"] == 1010


def test_state_survives_saving(machine: Machine) -> None:
    engine, r = machine.domain.engine, machine.regs
    assert machine.exit(b"\xd9\xe8\xd9\xeb" + SYSCALL) == ExitKind.SYSCALL  # fld1; fldpi
    blob = engine.save_state()
    assert machine.exit(b"\x0f\x77\xdb\xe3" + SYSCALL) == ExitKind.SYSCALL  # emms; fninit
    engine.restore_state(blob)
    r[R.RDI] = VA(DATA)
    assert machine.exit(b"\xdd\x1f\xdd\x5f\x08" + SYSCALL) == ExitKind.SYSCALL  # fstpl (%rdi); fstpl 8(%rdi)
    assert machine.get(DATA, 16) == bytes.fromhex("182d4454fb210940000000000000f03f")


def returns(n: int) -> bytes:
    return b"\xb8" + n.to_bytes(4, "little") + SYSCALL


def run_at(machine: Machine, va: int) -> int:
    machine.regs[R.RIP] = va
    assert machine.exit() == ExitKind.SYSCALL
    return machine.regs[R.RAX]


def guest_store(machine: Machine, va: int, data: bytes) -> None:
    """The guest itself stores 8 bytes."""
    machine.regs[R.RDI], machine.regs[R.RAX] = va, int.from_bytes(data.ljust(8, b"\0"), "little")
    assert machine.exit(STORE + SYSCALL) == ExitKind.SYSCALL


def remap(machine: Machine, pfn: int, frame: int, flags: int) -> None:
    assert machine.call(Hypercall.UPDATE_VA_MAPPING, VA(pfn), machine.entry(frame, flags), 2) == 0


def test_code_rewritten_while_it_is_mapped_without_execute(machine: Machine) -> None:
    guest_store(machine, VA(FREE), returns(1))
    for n in range(2, 6):
        remap(machine, FREE, FREE, RW_FLAGS & ~NX)
        assert run_at(machine, VA(FREE)) == n - 1
        remap(machine, FREE, FREE, RW_FLAGS)
        guest_store(machine, VA(FREE), returns(n))


def test_code_rewritten_through_an_alias_without_execute(machine: Machine) -> None:
    guest_store(machine, VA(FREE), returns(1))
    remap(machine, FREE, FREE, RW_FLAGS & ~NX)
    remap(machine, FREE + 1, FREE, RW_FLAGS)
    for n in range(2, 6):
        assert run_at(machine, VA(FREE)) == n - 1
        guest_store(machine, VA(FREE + 1), returns(n))
        remap(machine, FREE, FREE, RW_FLAGS)
        remap(machine, FREE, FREE, RW_FLAGS & ~NX)


def test_another_frame_at_the_place_of_executed_code(machine: Machine) -> None:
    guest_store(machine, VA(FREE), returns(1))
    guest_store(machine, VA(FREE + 1), returns(2))
    for _ in range(3):
        for n in range(2):
            remap(machine, FREE + 2, FREE + n, RW_FLAGS & ~NX)
            assert run_at(machine, VA(FREE + 2)) == n + 1


def test_code_that_rewrites_itself(machine: Machine) -> None:
    # incl 1(%rip's page): the immediate of the mov that follows is one more each time round
    machine.put(CODE, b"\xff\x07" + returns(10))
    machine.domain.space.written_from_outside(CODE)
    for n in range(11, 15):
        machine.regs[R.RDI] = VA(CODE, 3)
        assert run_at(machine, VA(CODE)) == n


def call(machine: Machine, pfn: int, times: int, before: bytes = b"") -> int:
    """The guest calls what is there through %rdi, always from the same place; what the last call has answered."""
    loop = before + b"\xff\xd7\xff\xc9"  # call *%rdi ; dec %ecx
    code = loop + b"\x75" + bytes([254 - len(loop)]) + SYSCALL
    if machine.get(CODE, len(code)) != code:
        machine.set_code(code)
    machine.regs[R.RDI], machine.regs[R.RCX] = VA(pfn), times
    return run_at(machine, VA(CODE))


def answers(n: int) -> bytes:
    return b"\xb8" + n.to_bytes(4, "little") + b"\xc3"  # mov $n,%eax ; ret


def test_calls_reach_what_is_mapped_now(machine: Machine) -> None:
    """Jumps are remembered where they are made (engine/native/sites.c), and forgotten in time."""
    for n in range(2):
        machine.put(FREE + n, answers(n))
    for turn in range(6):
        remap(machine, FREE + 2, FREE + turn % 2, RW_FLAGS & ~NX)
        assert call(machine, FREE + 2, 5) == turn % 2
        machine.domain.engine.flush_tlb()
        assert call(machine, FREE + 2, 1) == turn % 2
    remap(machine, FREE + 3, FREE + 1, RW_FLAGS & ~NX)
    for turn in range(6):
        assert call(machine, FREE + 2 + turn % 2, 1 + turn) == 1


def walk(machine: Machine, path: list[int], words: list[int]) -> tuple[int, int]:
    """One jump of the guest's goes to the blocks of `path` in turn, each of which has a word; what comes of these."""
    end = len(words)
    blocks = b"".join(
        # rol $5,%rbx ; add $word,%rbx ; jmp *%rbp
        (b"\x48\xc1\xc3\x05\x48\x83\xc3" + bytes([word]) + b"\xff\xe5").ljust(32)
        for word in words
    )
    machine.put(FREE, blocks + SYSCALL)
    machine.domain.space.written_from_outside(FREE)
    machine.put(FREE + 1, b"".join(VA(FREE, 32 * n).to_bytes(8, "little") for n in (*path, end)))
    machine.regs[R.RBX], machine.regs[R.RSI], machine.regs[R.RBP] = 0, VA(FREE + 1), VA(CODE)
    run_at(machine, VA(CODE))
    expected = 0
    for n in path:
        expected = (((expected << 5 | expected >> 59) & (1 << 64) - 1) + words[n]) & (1 << 64) - 1
    return machine.regs[R.RBX], expected


@pytest.mark.parametrize("seed", range(40))
def test_a_jump_that_goes_to_many_places(machine: Machine, seed: int) -> None:
    """Where it goes is expected from where it went (engine/native/sites.c): in circles, at random, over changes."""
    draw = random.Random(seed)
    machine.set_code(b"\x48\xad\xff\xe0")  # lodsq ; jmp *%rax
    remap(machine, FREE, FREE, RW_FLAGS & ~NX)
    words = [draw.randrange(128) for _ in range(draw.choice((2, 3, 7, 8, 12)))]
    for _ in range(12):
        path: list[int] = []
        while len(path) < 200:
            circle = [draw.randrange(len(words)) for _ in range(draw.choice((1, 2, 3, 4, 9)))]
            path += circle * draw.randrange(1, 30)
        found, expected = walk(machine, path[:500], words)
        assert found == expected
        change = draw.randrange(3)
        if change == 1:
            machine.domain.engine.flush_tlb()
        elif change == 2:
            words[draw.randrange(len(words))] = draw.randrange(128)


def test_calls_reach_what_has_just_been_written(machine: Machine) -> None:
    machine.put(FREE, answers(10))
    remap(machine, FREE, FREE, RW_FLAGS & ~NX)
    assert call(machine, FREE, 5) == 10
    assert call(machine, FREE, 7, b"\xff\x47\x01") == 17  # each time before: incl 1(%rdi)
    assert call(machine, FREE, 5) == 17
    machine.put(FREE, answers(3))
    machine.domain.space.written_from_outside(FREE)
    assert call(machine, FREE, 5) == 3


def test_stores_to_a_page_that_may_hold_code_are_unwatched_until_it_does(machine: Machine) -> None:
    flags = machine.domain.frames.flags
    remap(machine, FREE, FREE, RW_FLAGS & ~NX)
    for n in range(1, 5):
        guest_store(machine, VA(FREE), returns(n))
        guest_store(machine, VA(FREE), returns(n))
        assert flags[FREE] & FrameFlag.UNWATCHED
        assert run_at(machine, VA(FREE)) == n


def test_code_at_a_second_executable_mapping_of_an_unwatched_page(machine: Machine) -> None:
    flags = machine.domain.frames.flags
    remap(machine, FREE, FREE, RW_FLAGS & ~NX)
    for _ in range(2):
        guest_store(machine, VA(FREE), returns(1))
    assert flags[FREE] & FrameFlag.UNWATCHED
    remap(machine, FREE + 1, FREE, RW_FLAGS & ~NX)
    assert not flags[FREE] & FrameFlag.UNWATCHED
    for n in range(2, 6):
        assert run_at(machine, VA(FREE + 1)) == n - 1
        guest_store(machine, VA(FREE), returns(n))
    remap(machine, FREE + 1, FREE + 1, RW_FLAGS)
    for n in range(6, 10):
        for _ in range(2):
            guest_store(machine, VA(FREE), returns(n))
        assert run_at(machine, VA(FREE)) == n


def test_a_frame_that_is_code_no_more_is_forgotten_when_it_is_written_from_outside(machine: Machine) -> None:
    space, seen = machine.domain.space, machine.memory.code_seen
    guest_store(machine, VA(FREE), returns(1))
    for n in range(2, 6):
        assert not seen[FREE]
        remap(machine, FREE, FREE, RW_FLAGS & ~NX)
        assert run_at(machine, VA(FREE)) == n - 1
        space.written_from_outside(FREE)
        assert seen[FREE], "it is mapped executable"
        remap(machine, FREE, FREE, RW_FLAGS)
        assert seen[FREE], "translations are kept"
        machine.put(FREE, returns(n))
        space.written_from_outside(FREE)
