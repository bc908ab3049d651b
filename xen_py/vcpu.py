# SPDX-License-Identifier: GPL-2.0-only
"""A virtual CPU: everything about it that is not in guest memory. Plain data, owned by the domain's thread.

While a vCPU is the current one its registers are in the engine's register block; otherwise in `regs`. What an engine
may need to deal with an exit by itself lies in `words` (struct xpy_vcpu of engine.h), which both may change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Generic, TypeVar

from xen_py.engine import R
from xen_py.types import Mfn, VcpuId

T = TypeVar("T")


class Runstate(IntEnum):
    """`RUNSTATE_*` of vcpu.h."""

    RUNNING = 0
    RUNNABLE = 1
    BLOCKED = 2
    OFFLINE = 3


@dataclass(frozen=True)
class TrapGate:
    """One entry of the guest's trap table."""

    address: int = 0
    cs: int = 0
    flags: int = 0


PERIOD_NS = 10_000_000
"""Of the periodic timer, until the guest sets it."""
_TRAPS = 32
WORDS = _TRAPS + 2 * 256
"""64-bit words of a vCPU that are shared with the engine."""
_RUNSTATE_TIMES = 20


class _Word(Generic[T]):
    """An attribute of a Vcpu that lies in its shared words."""

    def __init__(self, index: int, kind: Callable[[int], T]) -> None:
        self._index = index
        self._kind = kind

    def __get__(self, v: Vcpu, owner: type[Vcpu]) -> T:
        return self._kind(v.words[self._index])

    def __set__(self, v: Vcpu, value: T) -> None:
        v.words[self._index] = value  # type: ignore[call-overload]


class TrapTable:
    """The guest's 256 trap gates."""

    def __init__(self, words: memoryview) -> None:
        self._words = words

    def __getitem__(self, vector: int) -> TrapGate:
        address, flags = self._words[_TRAPS + 2 * vector], self._words[_TRAPS + 2 * vector + 1]
        return TrapGate(address, flags >> 16, flags & 0xFFFF)

    def __setitem__(self, vector: int, gate: TrapGate) -> None:
        self._words[_TRAPS + 2 * vector] = gate.address
        self._words[_TRAPS + 2 * vector + 1] = gate.flags | gate.cs << 16

    def clear(self) -> None:
        for n in range(_TRAPS, WORDS):
            self._words[n] = 0


def _fresh_words() -> memoryview:
    return memoryview(bytearray(8 * WORDS)).cast("Q")


@dataclass
class Vcpu:
    id: VcpuId
    words: memoryview = field(default_factory=_fresh_words)
    online: bool = False
    initialised: bool = False
    regs: list[int] = field(default_factory=lambda: [0] * R.COUNT)
    fpu: bytes = b""
    failsafe_callback: int = 0
    failsafe_masks_events: bool = False
    syscall32_callback: int = 0
    syscall32_masks_events: bool = False
    sysenter_callback: int = 0
    sysenter_masks_events: bool = False
    debugregs: list[int] = field(default_factory=lambda: [0, 0, 0, 0, 0, 0, 0xFFFF0FF0, 0x400])
    cr0_ts: bool = False
    cr4: int = 0
    spec_ctrl: int = 0
    io_bitmap: int = 0
    """Guest address of the I/O permission bitmap, of `io_bitmap_ports` bits; a set bit forbids."""
    io_bitmap_ports: int = 0
    gdt_frames: list[Mfn] = field(default_factory=list)
    gdt_entries: int = 0
    ldt_base: int = 0
    ldt_entries: int = 0
    ldt_frames: dict[int, Mfn] = field(default_factory=dict)
    info_registered: bool = False
    polling: tuple[int, ...] = ()
    poll_deadline: int = 0

    kernel_mode = _Word(0, bool)
    root = _Word(1, Mfn)
    """The kernel's L4 table."""
    user_root = _Word(2, Mfn)
    """The user's, 0 for none."""
    gs_base_kernel = _Word(3, int)
    """The kernel's GS base while in user mode."""
    gs_base_user = _Word(4, int)
    """The user's while in kernel mode."""
    kernel_sp = _Word(5, int)
    kernel_ss = _Word(6, int)
    iopl = _Word(7, int)
    info_offset = _Word(8, int)
    """vcpu_info: byte offset in the domain's memory."""
    event_callback = _Word(9, int)
    syscall_callback = _Word(10, int)
    syscall_masks_events = _Word(11, bool)
    ldt_pages = _Word(12, int)
    """How many pages of the LDT are mapped: len(ldt_frames)."""
    user_selectors_known = _Word(13, bool)
    """CS 0x33 and SS 0x2b have been found good for 64-bit user mode since the GDT last changed."""
    blocked = _Word(14, bool)
    # timers: absolute system time in ns, 0 for none
    singleshot = _Word(15, int)
    periodic_period = _Word(16, int)
    periodic_next = _Word(17, int)
    runstate = _Word(18, Runstate)
    runstate_since = _Word(19, int)
    runstate_area = _Word(24, int)
    time_area = _Word(25, int)
    time_version = _Word(26, int)

    @property
    def runstate_times(self) -> memoryview:
        """ns spent in each state up to `runstate_since`."""
        return self.words[_RUNSTATE_TIMES : _RUNSTATE_TIMES + 4]

    def __post_init__(self) -> None:
        self.traps = TrapTable(self.words)
        if not self.initialised:
            self.kernel_mode = True
            self.periodic_period = self.periodic_period or PERIOD_NS
            self.runstate = Runstate.OFFLINE

    def save(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name != "traps"}
        state["words"] = bytes(self.words)
        state["polling"] = list(self.polling)
        state["ldt_frames"] = list(self.ldt_frames.items())
        return state

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Vcpu:
        state = dict(state)
        state["words"] = memoryview(bytearray(state["words"])).cast("Q")
        state["polling"] = tuple(state["polling"])
        state["ldt_frames"] = dict(state["ldt_frames"])
        return cls(**state)
