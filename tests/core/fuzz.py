# SPDX-License-Identifier: GPL-2.0-only
"""Random but plausible hypercalls: numbers, pointers and structures out of a pool of values that matter."""

from __future__ import annotations

import random

from tests.core.machine import (
    CODE,
    DATA,
    FREE,
    L1,
    L2,
    L3,
    L4,
    MAX_PAGES,
    PAGES,
    USER_L1,
    USER_L2,
    USER_L3,
    USER_L4,
    VA,
    Machine,
)
from xen_py.abi.xen import DOMID_SELF, Hypercall

TABLES = (L4, L3, L2, L1, USER_L4, USER_L3, USER_L2, USER_L1)
SCRATCH = range(FREE, FREE + 12)
"""PFNs whose contents and use the fuzzer plays with most."""
EDGES = (0, 1, 2, 3, 7, 8, 63, 64, 127, 128, 255, 256, 4095, 4096, 8191, 8192, 8193, 1 << 16, (1 << 31) - 1, 1 << 31)
HUGE = ((1 << 32) - 1, 1 << 32, 1 << 47, (1 << 47) - 8, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 8)
FLAGS = (0, 0x1, 0x3, 0x5, 0x7, 0x61, 0x63, 0x65, 0x67, 0x25, 0x27, 0x87, 0xE7, 0x167, 0x18, 0x1F, 0xFFF)
NO_FRAME = (1 << 52) - 1
COMMANDS: dict[int, int] = {
    Hypercall.FPU_TASKSWITCH: 2,
    Hypercall.SET_DEBUGREG: 9,
    Hypercall.GET_DEBUGREG: 9,
    Hypercall.MEMORY_OP: 30,
    Hypercall.XEN_VERSION: 14,
    Hypercall.CONSOLE_IO: 3,
    Hypercall.GRANT_TABLE_OP: 12,
    Hypercall.VM_ASSIST: 3,
    Hypercall.VCPU_OP: 16,
    Hypercall.SET_SEGMENT_BASE: 5,
    Hypercall.NMI_OP: 3,
    Hypercall.SCHED_OP: 8,
    Hypercall.CALLBACK_OP: 3,
    Hypercall.EVENT_CHANNEL_OP: 16,
    Hypercall.PHYSDEV_OP: 26,
}
WEIGHTED = (
    *(Hypercall.MMU_UPDATE,) * 8,
    *(Hypercall.MMUEXT_OP,) * 6,
    *(Hypercall.UPDATE_VA_MAPPING,) * 4,
    *(Hypercall.EVENT_CHANNEL_OP,) * 4,
    *(Hypercall.VCPU_OP,) * 3,
    *(Hypercall.MEMORY_OP,) * 3,
    *(Hypercall.GRANT_TABLE_OP,) * 2,
    *(Hypercall.SET_GDT, Hypercall.UPDATE_DESCRIPTOR) * 2,
    *range(49),
)


class Fuzzer:
    """One seeded stream of calls against one machine."""

    def __init__(self, machine: Machine, seed: int) -> None:
        self.m = machine
        self.r = random.Random(seed)

    def pfn(self) -> int:
        r = self.r
        return r.choice((r.choice(SCRATCH), r.choice(SCRATCH), r.choice(TABLES), r.randrange(MAX_PAGES + 4)))

    def mfn(self) -> int:
        r = self.r
        if r.random() < 0.9:
            return self.m.mfn(self.pfn())
        return r.choice((0, 5, self.m.mfn(0) - 1, self.m.mfn(MAX_PAGES + 90), 0xFE0000000, (1 << 40) - 1, NO_FRAME))

    def entry(self) -> int:
        r = self.r
        flags = r.choice(FLAGS[:12]) if r.random() < 0.9 else r.choice(FLAGS)
        high = r.choice((0, 1 << 63, 1 << 63, 1 << 52, 1 << 62)) if r.random() < 0.5 else 1 << 63
        return self.mfn() << 12 & (1 << 52) - 1 | flags | high

    def pointer(self) -> int:
        """An address a guest might pass: mostly good."""
        r = self.r
        kind = r.random()
        if kind < 0.7:
            return VA(DATA, r.randrange(0, 4096, 8))
        if kind < 0.8:
            return VA(r.choice((DATA, CODE, L1, PAGES - 1, PAGES, PAGES + 3)), r.choice((0, 1, 4064, 4088, 4095)))
        if kind < 0.9:
            return VA(r.choice(SCRATCH), r.randrange(4096))
        return r.choice((*HUGE, 0, 8, 0xFFFF800000000000, 0xFFFF808000000000, 0xFFFF87FFFFFFFFF8, 0xFFFF7FFFFFFFFFFF))

    def number(self) -> int:
        r = self.r
        kind = r.random()
        if kind < 0.5:
            return r.randrange(12)
        if kind < 0.7:
            return r.choice(EDGES)
        if kind < 0.8:
            return r.choice(HUGE)
        return r.getrandbits(r.choice((8, 16, 32, 64)))

    def word(self) -> int:
        """One 64-bit word of a structure."""
        r = self.r
        kind = r.randrange(8)
        if kind == 0:
            return self.entry()
        if kind == 1:
            return self.mfn()
        if kind == 2:
            return self.mfn() << 12 | r.choice((0, 1, 2, 3, 4, 8, 16, 0x800, 0xFF8)) | r.randrange(512) * 8 & 0xFF8
        if kind == 3:
            return self.pointer()
        if kind == 4:
            return self.number()
        if kind == 5:
            return r.choice((DOMID_SELF, 0, 1, 2)) | self.number() << 32 & (1 << 64) - 1
        if kind == 6:
            return r.randrange(16) | r.randrange(16) << 32
        return r.choice((0, 0, DOMID_SELF, 1 << 32, self.m.domain.clock.now() + r.randrange(-1000, 1000)))

    def scramble(self) -> None:
        """New contents for the argument page and sometimes for a scratch page."""
        r = self.r
        words = self.m.words(DATA)
        for _ in range(r.randrange(2, 12)):
            at = r.randrange(512)
            for k in range(min(r.randrange(1, 9), 512 - at)):
                words[at + k] = self.word()
        if r.random() < 0.3:
            pfn = r.choice(SCRATCH)
            if not self.m.domain.frames.type_counts[pfn] or self.m.domain.frames.types[pfn] == 7:
                page = self.m.words(pfn)
                style = r.randrange(4)
                if style == 0:
                    page[:] = memoryview(bytes(4096)).cast("Q")
                for _ in range(r.randrange(1, 20)):
                    page[r.randrange(512)] = 0 if style == 1 else self.entry() if style < 3 else r.getrandbits(64)

    def multicall(self) -> tuple[int, ...]:
        words = self.m.words(DATA)
        count = self.r.randrange(1, 5)
        for k in range(count):
            number, *args = self.call(nested=True)
            words[k * 8 : k * 8 + 8] = memoryview(
                b"".join((n & (1 << 64) - 1).to_bytes(8, "little") for n in (number, 0, *args))
            ).cast("Q")
        return (Hypercall.MULTICALL, VA(DATA), count, 0, 0, 0, 0)

    def call(self, nested: bool = False) -> tuple[int, ...]:
        """(number, a1..a6)."""
        r = self.r
        if r.random() < 0.02:
            return (self.number(), *(self.word() for _ in range(6)))
        number = r.choice(WEIGHTED)
        if number == Hypercall.MULTICALL and not nested:
            return self.multicall()
        count = r.choice((0, 1, 1, 1, 1, 2, 3, self.number()))
        if number in (Hypercall.MMU_UPDATE, Hypercall.MMUEXT_OP):
            self.prepare(number)
            done = r.choice((0, 0, self.pointer()))
            return (number, VA(DATA, 0x800), count, done, r.choice((DOMID_SELF,) * 9 + (self.number(),)), 0, 0)
        if number == Hypercall.UPDATE_VA_MAPPING:
            va = VA(r.randrange(80)) if r.random() < 0.9 else self.pointer()
            return (number, va, self.entry(), r.randrange(8), 0, 0, 0)
        if number == Hypercall.UPDATE_DESCRIPTOR:
            return (number, self.mfn() << 12 | r.randrange(0, 4096, 8), r.getrandbits(64), 0, 0, 0, 0)
        if number == Hypercall.SET_GDT:
            return (number, self.pointer(), r.choice((0, 1, 512, 513, 1024, self.number())), 0, 0, 0, 0)
        if number in COMMANDS:
            command = r.randrange(COMMANDS[number]) if r.random() < 0.95 else self.number()
            if number == Hypercall.VCPU_OP:
                return (number, command, r.choice((0, 0, 0, 1, 2, self.number())), self.pointer(), 0, 0, 0)
            if number == Hypercall.CONSOLE_IO:
                return (number, command, self.number(), self.pointer(), 0, 0, 0)
            if number == Hypercall.MEMORY_OP and r.random() < 0.6:
                self.reservation(command % 7)
                return (number, command, VA(DATA, 0x400), 0, 0, 0, 0)
            return (number, command, self.pointer(), count, 0, 0, 0)
        return (number, *(r.choice((self.pointer, self.number, self.word))() for _ in range(6)))

    def prepare(self, number: int) -> None:
        """Requests worth a try at DATA + 0x800."""
        r = self.r
        words = self.m.words(DATA)
        for k in range(3):
            if number == Hypercall.MMU_UPDATE:
                pfn = r.choice((r.choice(TABLES), r.choice(SCRATCH), L1))
                slot = pfn if pfn == L1 and r.random() < 0.1 else r.choice((r.randrange(80), r.randrange(512)))
                command = r.choice((0, 0, 0, 2, 2, 3, 1, r.randrange(8)))
                words[256 + 2 * k] = self.m.mfn(pfn) << 12 | slot * 8 | command
                words[257 + 2 * k] = 0 if r.random() < 0.2 else self.entry()
            else:
                words[256 + 3 * k] = r.choice((*range(21), 0, 1, 2, 3, 4, 4, 4, 5, 15, self.number() & 0xFFFFFFFF))
                words[257 + 3 * k] = self.mfn() if r.random() < 0.8 else self.pointer()
                words[258 + 3 * k] = self.mfn() if r.random() < 0.5 else self.number()

    def reservation(self, command: int) -> None:
        r = self.r
        words = self.m.words(DATA)
        words[128] = r.choice((VA(DATA, 0x500), VA(DATA, 0x500), self.pointer(), 0))
        words[129] = r.choice((1, 1, 2, 3, self.number()))
        words[130] = r.choice((0, 0, 0, 1, 2, self.number() & 0xFFFFFFFF))
        words[131] = r.choice((DOMID_SELF, DOMID_SELF, DOMID_SELF, 1, self.number() & 0xFFFF))
        for k in range(4):
            words[160 + k] = self.mfn() if command == 1 else r.randrange(MAX_PAGES)
