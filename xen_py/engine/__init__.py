# SPDX-License-Identifier: GPL-2.0-only
"""The seam between the hypervisor and what executes guest instructions.

Nothing above this package knows which emulator or accelerator runs the guest. An engine belongs to one domain and to
that domain's thread; only `Engine.kick` may be called from others.

Registers live in one block of 64-bit words, `Engine.regs`, indexed by the constants of `R`; the engine reads them when
it enters the guest and writes them when it comes back. That makes a trap handler plain integer work.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from xen_py.doorbell import Doorbell
    from xen_py.evtchn import PendingEvents
    from xen_py.frames import FrameTable


class R:
    """Word indices into `Engine.regs` (struct xpy_regs of engine.h)."""

    RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 = range(16)
    RIP = 16
    RFLAGS = 17
    ES, CS, SS, DS, FS, GS = range(18, 24)
    FS_BASE = 24
    GS_BASE = 25
    CR3 = 26
    COMPAT = 27
    USER = 28
    KIND = 29
    VECTOR = 30
    ERROR = 31
    CR2 = 32
    COUNT = 33


class ExitKind(IntEnum):
    """Why the guest was left (engine.h)."""

    KICKED = 0
    SYSCALL = 1
    EXCEPTION = 2
    BROKEN = 3
    SOFTINT = 4
    EVENT = 5
    """An event is due that the engine left to be delivered."""


class EngineError(Exception):
    """The engine cannot be used on this machine; the message says what was tried and what to do."""


@dataclass(frozen=True)
class EventPaths:
    """How events get in and out of a domain's process, for an engine that sees to them by itself."""

    doorbell: Doorbell
    link_fd: int
    """Readable when the host wants something that only the loop can do."""
    routes: memoryview
    """For each port (4096 of format 'i') the eventfd that events sent through it go to; -1: the doorbell's outbox."""


class Engine(Protocol):
    """What runs one domain's instructions, always at CPL 3."""

    regs: memoryview
    """`R.COUNT` words, format 'Q', see `R`."""

    def run(self) -> int:
        """Enter the guest with `regs` and come back with an `ExitKind`; vector, error and CR2 are in `regs`."""

    def map(self, machine_address: int, host: memoryview) -> None:
        """Let machine memory at that address be this buffer (page-aligned, kept alive by the caller)."""

    def unmap(self, machine_address: int, size: int) -> None: ...

    def flush_tlb(self) -> None:
        """Forget every cached translation before the next instruction."""

    def flush_page(self, va: int) -> None:
        """Forget the translation of one page."""

    def drop_code(self, va: int, size: int) -> None:
        """Forget translated code of the frames mapped at this address of the current address space."""

    def set_gdt(self, base: int, limit: int) -> None: ...

    def set_ldt(self, base: int, limit: int) -> None: ...

    def set_task_switched(self, flag: bool) -> None:
        """CR0.TS: with it set, the next FPU instruction raises #NM."""

    def set_debugreg(self, n: int, value: int) -> None: ...

    def set_cpuid(self, table: list[tuple[int, int | None, int, int, int, int]]) -> None:
        """What `cpuid` answers: (leaf, subleaf or None for any, eax, ebx, ecx, edx); all other leaves are zero."""

    def set_tsc(self, offset: int, trap: bool) -> None:
        """Guest TSC = host TSC + offset; with `trap`, RDTSC raises #GP instead."""

    def save_state(self) -> bytes:
        """The whole CPU (FPU included) as an opaque blob for `restore_state` of the same engine type."""

    def restore_state(self, blob: bytes) -> None: ...

    def kick(self) -> None:
        """Any thread: make `run` come back soon, or at once when it is entered next. Sticky until `clear_kick`."""

    def kick_pending(self) -> bool: ...

    def clear_kick(self) -> None: ...

    def set_deadline(self, monotonic_ns: int) -> None:
        """Kick at this CLOCK_MONOTONIC time; 0 for never."""

    def set_block_budget(self, blocks: int) -> None:
        """Come back after this many translated blocks (deterministic preemption); 0 for no limit."""

    def accelerate(self, memory: memoryview, frames: FrameTable, m2p_entry: int, version: int) -> None:
        """Let the engine deal with frequent exits by itself, on the domain's memory and frame table.

        It does what `xen_py.traps`, `xen_py.mmu` and `hypercalls.mmu` would do, for the vCPU named by `set_vcpu`.
        `version` is what XENVER_version answers. An engine may do nothing here.
        """

    def see_to_events(self, events: PendingEvents, shared_info: int, tsc_scale: tuple[int, int], alone: bool) -> None:
        """With `accelerate`: where the domain's events are pending, and how its time is told.

        `shared_info` is an offset in the memory. `alone`: the domain has one vCPU, whose sleep and timers may then be
        the engine's business too. That begins with `connect`, and needs a real clock.
        """

    def connect(self, paths: EventPaths) -> None:
        """Where events come from and go to; kick for those that are the loop's business. All of it outlives us."""

    def set_vcpu(self, words: memoryview | None) -> None:
        """The shared words of the vCPU that runs (`xen_py.vcpu.Vcpu.words`); None: every exit comes back."""

    def set_assists(self, writable_pagetables: bool, architectural_iopl: bool, m2p_strict: bool) -> None:
        """Which VM assists are on."""

    def accelerated(self) -> dict[str, int]:
        """How often which exit was dealt with by the engine: hypercall numbers as "0".."63", and named counters."""

    def statistics(self) -> dict[str, int]: ...

    def close(self) -> None: ...
