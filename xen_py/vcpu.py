# SPDX-License-Identifier: GPL-2.0-only
"""A virtual CPU: everything about it that is not in guest memory. Plain data, owned by the domain's thread.

While a vCPU is the current one its registers are in the engine's register block; otherwise in `regs`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from xen_py.engine import R
from xen_py.types import Mfn, VcpuId


class Runstate(IntEnum):
    """`RUNSTATE_*` of vcpu.h."""

    RUNNING = 0
    RUNNABLE = 1
    BLOCKED = 2
    OFFLINE = 3


@dataclass
class TrapGate:
    """One entry of the guest's trap table."""

    address: int = 0
    cs: int = 0
    flags: int = 0


@dataclass
class Vcpu:
    id: VcpuId
    online: bool = False
    initialised: bool = False
    regs: list[int] = field(default_factory=lambda: [0] * R.COUNT)
    fpu: bytes = b""
    kernel_mode: bool = True
    # page tables: the kernel's root and the user's (0 for none), as MFNs
    root: Mfn = Mfn(0)
    user_root: Mfn = Mfn(0)
    # what is not in force now: the kernel's GS base while in user mode, the user's while in kernel mode
    gs_base_kernel: int = 0
    gs_base_user: int = 0
    kernel_sp: int = 0
    kernel_ss: int = 0
    traps: list[TrapGate] = field(default_factory=lambda: [TrapGate() for _ in range(256)])
    event_callback: int = 0
    failsafe_callback: int = 0
    failsafe_masks_events: bool = False
    syscall_callback: int = 0
    syscall_masks_events: bool = False
    syscall32_callback: int = 0
    syscall32_masks_events: bool = False
    sysenter_callback: int = 0
    sysenter_masks_events: bool = False
    iopl: int = 0
    debugregs: list[int] = field(default_factory=lambda: [0, 0, 0, 0, 0, 0, 0xFFFF0FF0, 0x400])
    cr0_ts: bool = False
    cr4: int = 0
    spec_ctrl: int = 0
    gdt_frames: list[Mfn] = field(default_factory=list)
    gdt_entries: int = 0
    ldt_base: int = 0
    ldt_entries: int = 0
    ldt_frames: dict[int, Mfn] = field(default_factory=dict)
    # vcpu_info: byte offset in the domain's memory
    info_offset: int = 0
    info_registered: bool = False
    runstate_area: int = 0
    time_area: int = 0
    # blocking
    blocked: bool = False
    polling: tuple[int, ...] = ()
    poll_deadline: int = 0
    # timers, absolute system time in ns; 0 for none
    periodic_period: int = 10_000_000
    periodic_next: int = 0
    singleshot: int = 0
    # runstate accounting
    runstate: Runstate = Runstate.OFFLINE
    runstate_since: int = 0
    runstate_times: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    time_version: int = 0

    def save(self) -> dict[str, Any]:
        state = dict(vars(self))
        state["traps"] = [[t.address, t.cs, t.flags] for t in self.traps]
        state["polling"] = list(self.polling)
        state["runstate"] = int(self.runstate)
        state["ldt_frames"] = list(self.ldt_frames.items())
        return state

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Vcpu:
        state = dict(state)
        state["traps"] = [TrapGate(*t) for t in state["traps"]]
        state["polling"] = tuple(state["polling"])
        state["runstate"] = Runstate(state["runstate"])
        state["ldt_frames"] = dict(state["ldt_frames"])
        return cls(**state)
