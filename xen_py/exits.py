# SPDX-License-Identifier: GPL-2.0-only
"""What becomes of each exit of the engine: the one way from a guest's instruction into the hypervisor.

Each function takes the domain and the vCPU that ran, whose registers are in the engine's block, and answers None when
the guest can go on, or a `Step` when the outside is needed. Called by the loop of `xen_py.domain` on its thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from xen_py import privop, traps
from xen_py.abi.xen import TI_DPL_MASK, Hypercall
from xen_py.engine import ExitKind, R
from xen_py.frames import FrameFlag, FrameType
from xen_py.hvspace import LDT_OFFSET, PRIVATE_VA, VCPU_SPAN
from xen_py.mmu import PRESENT, RW
from xen_py.spec import Kicked, Step
from xen_py.types import GuestCrash, Mfn, XenError, is_canonical
from xen_py.vcpu import Vcpu

if TYPE_CHECKING:
    from xen_py.domain import Domain

_M64 = (1 << 64) - 1
_PF_PRESENT, _PF_WRITE, _PF_RESERVED, _PF_FETCH = 1, 2, 8, 16


def on_kick(d: Domain, v: Vcpu) -> Step | None:
    d.engine.clear_kick()
    d.run_timers()
    d.update_time(v)
    d.counters["kicks"] += 1
    return Kicked()


def on_syscall(d: Domain, v: Vcpu) -> Step | None:
    if not v.kernel_mode:
        d.counters["guest_syscalls"] += 1
        traps.guest_syscall(d, v)
        return None
    r = d.engine.regs
    number = r[R.RAX]
    d.count_hypercall(number)
    if number == Hypercall.IRET:
        traps.iret(d, v)
        return None
    result = d.hypercall(d, v, number, r[R.RDI], r[R.RSI], r[R.RDX], r[R.R10], r[R.R8], r[R.R9])
    r[R.RAX] = result & _M64
    if d.continuation is not None:
        # The guest finds itself before the call again, with the arguments for the rest of it.
        r[R.RIP] = r[R.RIP] - 2 & _M64
        for register, value in zip((R.RAX, R.RDI, R.RSI, R.RDX, R.R10, R.R8), d.continuation, strict=False):
            r[register] = value
        d.continuation = None
        return d.shutdown
    if d.yielded:
        d.yielded = False
        d.give_way = True
        return d.shutdown or Kicked()
    return d.shutdown


def on_exception(d: Domain, v: Vcpu) -> Step | None:
    r = d.engine.regs
    vector = r[R.VECTOR]
    if vector == traps.PF:
        return _on_page_fault(d, v)
    error = r[R.ERROR]
    if (vector == traps.GP and not error and privop.emulate(d, v)) or (
        vector == traps.UD and privop.forced_cpuid(d, v)
    ):
        d.counters["emulated"] += 1
        return d.shutdown
    if vector == traps.NM:
        d.set_task_switched(v, False)
    elif vector == traps.DB:
        v.debugregs[6] |= 0x4000
    elif vector in (8, 18):
        raise GuestCrash(f"exception {vector} at RIP {r[R.RIP]:#x}")
    traps.inject_exception(d, v, vector, error)
    return None


def _on_page_fault(d: Domain, v: Vcpu) -> Step | None:
    r = d.engine.regs
    address, error = r[R.CR2], r[R.ERROR]
    private = address - PRIVATE_VA - v.id * VCPU_SPAN - LDT_OFFSET
    if 0 <= private < 16 * 4096 and not error & _PF_PRESENT:
        if d.map_ldt_page(v, private >> 12):
            return None
        address = v.ldt_base + private & _M64  # where the guest believes it is
        if not is_canonical(address):
            traps.inject_exception(d, v, traps.GP, private & 0xFFF8 | 4)
            return None
    if (
        error & (_PF_PRESENT | _PF_WRITE | _PF_RESERVED | _PF_FETCH) == _PF_PRESENT | _PF_WRITE
        and v.kernel_mode
        and d.writable_pagetables
        and _trapped_write(d, v, address)
    ):
        d.counters["trapped_writes"] += 1
        return None
    d.counters["page_faults"] += 1
    traps.inject_exception(d, v, traps.PF, error, address)
    return None


def _trapped_write(d: Domain, v: Vcpu, address: int) -> bool:
    """A write to a read-only mapping of an L1 table: carry it out and check what it wrote.

    The instruction is executed once more, by itself, with nothing but that one mapping made writable; then the
    changed word is taken back, checked, and done properly. Anything but one store inside one entry, or an entry
    that the guest may not have, is undone and left to the guest as its page fault.
    """
    at = d.pages.l1_address(Mfn(d.access.root_index + d.frames.base), address)
    if at is None:
        return False
    words = d.memory.words
    entry = words[at]
    if entry & (PRESENT | RW) != PRESENT:
        return False
    i = ((entry & 0x000FFFFFFFFFF000) >> 12) - d.frames.base
    frames = d.frames
    if i >= frames.count or frames.types[i] != FrameType.L1 or not frames.type_counts[i]:
        return False
    if frames.flags[i] & FrameFlag.SPECIAL:
        return False
    table = d.memory.bytes[i << 12 : (i + 1) << 12]
    before = bytes(table)
    word = i * 512 + ((address & 0xFFF) >> 3)
    r = d.engine.regs
    saved = r.tolist()
    words[at] = entry | RW
    r[R.RFLAGS] |= traps.TF
    kind = d.engine.run()
    words[at] = entry if at != word else words[at]
    d.engine.flush_page(address)
    new = words[word]
    words[word] = int.from_bytes(before[address & 0xFF8 : (address & 0xFF8) + 8], "little")
    done = kind == ExitKind.EXCEPTION and r[R.VECTOR] == traps.DB
    if bytes(table) != before:  # more than that one word
        table[:] = before
        done = False
    if done:
        try:
            d.pages.set_l1(word, new)
        except XenError as e:
            d.log_once("ptwr", f"refused page-table write at {saved[R.RIP]:#x}: {e}")
            done = False
    if not done:
        for n, value in enumerate(saved):
            r[n] = value
        return kind == ExitKind.KICKED  # nothing was executed: it will fault again
    if saved[R.RFLAGS] & traps.TF:
        on_exception(d, v)  # the guest steps through its own code
    else:
        r[R.RFLAGS] &= ~traps.TF
    return True


def on_software_interrupt(d: Domain, v: Vcpu) -> Step | None:
    r = d.engine.regs
    vector = r[R.VECTOR]
    gate = v.traps[vector]
    if vector not in (traps.BP, traps.OF) and gate.flags & TI_DPL_MASK < (1 if v.kernel_mode else 3):
        r[R.RIP] = r[R.RIP] - 2 & _M64
        traps.inject_exception(d, v, traps.GP, vector << 3 | 2)
        return None
    if not gate.address:
        raise GuestCrash(f"unhandled interrupt {vector} at RIP {r[R.RIP]:#x}")
    traps.inject_software(d, v, vector)
    return None


def on_broken(d: Domain, v: Vcpu) -> Step | None:
    r = d.engine.regs
    raise GuestCrash(f"the CPU stopped at RIP {r[R.RIP]:#x} (emulator error {r[R.ERROR]})")


def on_event(d: Domain, v: Vcpu) -> Step | None:
    """The engine left an upcall to the loop, which makes it before the guest goes on."""
    return None


HANDLERS: dict[int, Callable[[Domain, Vcpu], Step | None]] = {
    ExitKind.KICKED: on_kick,
    ExitKind.SYSCALL: on_syscall,
    ExitKind.EXCEPTION: on_exception,
    ExitKind.SOFTINT: on_software_interrupt,
    ExitKind.BROKEN: on_broken,
    ExitKind.EVENT: on_event,
}
