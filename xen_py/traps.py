# SPDX-License-Identifier: GPL-2.0-only
"""Taking a guest into its kernel: exceptions, events, syscalls, and the way back by iret.

A PV guest has no IDT of its own. What a CPU would push on the kernel's stack the hypervisor pushes (a *bounce frame*):
from the top [SS, RSP, RFLAGS, CS and saved upcall mask, RIP, (error code), R11, RCX]. A guest whose frame cannot be
pushed cannot go on and is crashed. Source: create_bounce_frame of xen/arch/x86/x86_64/entry.S, pv/traps.c, pv/iret.c.

These functions work on the engine's registers of the current vCPU; owned by the domain's thread.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from xen_py.abi.xen import (
    FLAT_KERNEL_CS,
    FLAT_KERNEL_SS,
    HYPERVISOR_VIRT_END,
    HYPERVISOR_VIRT_START,
    TI_GET_IF,
    VCPU_INFO_UPCALL_MASK,
    VCPU_INFO_UPCALL_PENDING,
    VGCF_IN_SYSCALL,
)
from xen_py.engine import R
from xen_py.types import GuestCrash, XenError, is_canonical

if TYPE_CHECKING:
    from xen_py.domain import Domain
    from xen_py.vcpu import Vcpu

CF, TF, IF, DF, IOPL, NT, RF, VM, AC = 1, 0x100, 0x200, 0x400, 0x3000, 0x4000, 0x10000, 0x20000, 0x40000
EFLAGS_ALL = 0x3F7FD5
"""Every flag that exists (X86_EFLAGS_ALL): CF PF AF ZF SF TF IF DF OF IOPL NT RF VM AC VIF VIP ID."""

DE, DB, NMI, BP, OF, UD, NM, TS, NP, SS, GP, PF, MF, AC_VECTOR, XM = 0, 1, 2, 3, 4, 6, 7, 10, 11, 12, 13, 14, 16, 17, 19
_HAS_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17})
_PF_USER = 4

_frame7 = Struct("<7Q")
_frame8 = Struct("<8Q")
_iret = Struct("<9Q")


def toggle_mode(d: Domain, v: Vcpu) -> None:
    """Switch between guest kernel and guest user mode: the GS base and the page tables change."""
    r = d.engine.regs
    if v.kernel_mode:
        v.gs_base_kernel = r[R.GS_BASE]
        r[R.GS_BASE] = v.gs_base_user
        v.kernel_mode = False
        r[R.USER] = 1
        d.set_root(v, v.user_root)
    else:
        v.gs_base_user = r[R.GS_BASE]
        r[R.GS_BASE] = v.gs_base_kernel
        v.kernel_mode = True
        r[R.USER] = 0
        d.set_root(v, v.root)


def bounce(d: Domain, v: Vcpu, target: int, mask_events: bool, error: int | None) -> None:
    """Push a frame for what is in the registers now and go to `target`."""
    r = d.engine.regs
    if not target:
        raise GuestCrash(f"no handler: unhandled trap at {r[R.RIP]:#x}")
    cs = r[R.CS]
    if v.kernel_mode:
        rsp = r[R.RSP]
        cs &= ~3
    else:
        toggle_mode(d, v)
        rsp = v.kernel_sp
    rsp &= ~0xF
    if HYPERVISOR_VIRT_START < rsp < HYPERVISOR_VIRT_END + 64:
        raise GuestCrash(f"kernel stack {rsp:#x} lies in the hypervisor's space")
    info = v.info_offset
    memory = d.memory.bytes
    mask = memory[info + VCPU_INFO_UPCALL_MASK]
    if mask_events:
        memory[info + VCPU_INFO_UPCALL_MASK] = mask | 1
    flags = r[R.RFLAGS] & ~(IF | IOPL) | (v.iopl if d.architectural_iopl else 0)
    if not mask:
        flags |= IF
    tail = (r[R.RIP], cs | mask << 32, flags, r[R.RSP], r[R.SS])
    if error is None:
        frame = _frame7.pack(r[R.RCX], r[R.R11], *tail)
    else:
        frame = _frame8.pack(r[R.RCX], r[R.R11], error, *tail)
    rsp = rsp - len(frame) & 0xFFFFFFFFFFFFFFFF
    try:
        d.access.write(rsp, frame)
    except XenError as e:
        raise GuestCrash(f"trap frame cannot be pushed at {rsp:#x} ({e.why}); RIP {r[R.RIP]:#x}") from None
    r[R.RFLAGS] = r[R.RFLAGS] & ~(AC | VM | RF | NT | TF | IOPL) | IF
    r[R.SS] = FLAT_KERNEL_SS
    r[R.RSP] = rsp
    r[R.CS] = FLAT_KERNEL_CS
    r[R.COMPAT] = 0
    r[R.RIP] = target


def inject_exception(d: Domain, v: Vcpu, vector: int, error: int = 0, cr2: int = 0) -> None:
    """Deliver a hardware exception to the guest's trap handler."""
    gate = v.traps[vector]
    if not gate.address:
        r = d.engine.regs
        detail = f", address {cr2:#x}, error {error:#x}" if vector == PF else f", error {error:#x}"
        raise GuestCrash(f"unhandled exception {vector} at RIP {r[R.RIP]:#x}{detail}")
    if vector == PF:
        d.memory.words[v.info_offset + 16 >> 3] = cr2
        error &= ~_PF_USER
        if not v.kernel_mode:
            error |= _PF_USER
    bounce(d, v, gate.address, bool(gate.flags & TI_GET_IF), error if vector in _HAS_ERROR_CODE else None)


def inject_software(d: Domain, v: Vcpu, vector: int) -> None:
    """Deliver `int n`; RIP is behind the instruction already."""
    gate = v.traps[vector]
    bounce(d, v, gate.address, bool(gate.flags & TI_GET_IF), None)


def deliver_events(d: Domain, v: Vcpu) -> bool:
    """Make the event upcall when one is due; True when it was made."""
    info = v.info_offset
    memory = d.memory.bytes
    if not memory[info + VCPU_INFO_UPCALL_PENDING] or memory[info + VCPU_INFO_UPCALL_MASK]:
        return False
    bounce(d, v, v.event_callback, True, None)
    d.counters["upcalls"] += 1
    return True


def guest_syscall(d: Domain, v: Vcpu) -> None:
    """`syscall` in guest user mode. RIP is behind it; RCX and R11 hold what the instruction put there."""
    r = d.engine.regs
    if r[R.COMPAT]:
        target, masks = v.syscall32_callback, v.syscall32_masks_events
    else:
        target, masks = v.syscall_callback, v.syscall_masks_events
    if not target:
        r[R.RIP] = r[R.RIP] - 2 & 0xFFFFFFFFFFFFFFFF
        inject_exception(d, v, UD)
        return
    if r[R.COMPAT]:
        r[R.CS], r[R.SS] = 0xE023, 0xE02B
    else:
        r[R.CS], r[R.SS] = 0xE033, 0xE02B
    # What the CPU clears on `syscall` shows in the flags the kernel runs with, not in those it finds in the frame.
    bounce(d, v, target, masks, None)
    r[R.RFLAGS] &= ~DF


def iret(d: Domain, v: Vcpu) -> None:
    """The iret hypercall: go where the frame on the kernel stack says."""
    r = d.engine.regs
    rsp = r[R.RSP]
    try:
        rax, r11, rcx, flags, rip, cs, rflags, new_rsp, ss = _iret.unpack(d.access.read(rsp, 72))
    except XenError:
        raise GuestCrash(f"iret frame at {rsp:#x} cannot be read") from None
    if cs & 3 == 3:
        if not v.user_root:
            raise GuestCrash("return to user mode without user page tables")
        toggle_mode(d, v)
    if d.architectural_iopl:
        v.iopl = rflags & IOPL
    r[R.RIP] = rip
    r[R.CS] = (cs | 3) & 0xFFFF
    r[R.RFLAGS] = rflags & EFLAGS_ALL & ~(IOPL | VM) | IF | 2
    r[R.RSP] = new_rsp
    r[R.SS] = (ss | 3) & 0xFFFF
    # A frame that came by `syscall` is left by `sysret`, which has RIP and RFLAGS in the two registers it took.
    r[R.RCX], r[R.R11] = (rip, r[R.RFLAGS]) if flags & VGCF_IN_SYSCALL else (rcx, r11)
    d.memory.bytes[v.info_offset + VCPU_INFO_UPCALL_MASK] = 0 if rflags & IF else 1
    r[R.RAX] = rax
    if r[R.CS] == FLAT_KERNEL_CS and r[R.SS] == FLAT_KERNEL_SS and is_canonical(rip):
        r[R.COMPAT] = 0
        return
    r[R.COMPAT] = int(not d.is_long_mode_selector(v, r[R.CS]))
    fault = _return_fault(d, v)
    if fault is None:
        v.user_selectors_known = r[R.CS] == 0x33 and r[R.SS] == 0x2B and not r[R.COMPAT]
    else:
        # The guest finds the target's registers in the frame, the bad ones included.
        inject_exception(d, v, *fault)


def _return_fault(d: Domain, v: Vcpu) -> tuple[int, int] | None:
    """The exception (vector, error code) of an iretq to ring 3 with the CS, SS and RIP in the registers."""
    r = d.engine.regs
    cs, ss, rip = r[R.CS] & ~3, r[R.SS] & ~3, r[R.RIP]
    if not cs:
        return GP, 0
    code = d.descriptor(v, r[R.CS])
    dpl_fits = code >> 42 & 1 or code >> 45 & 3 == 3  # conforming, or of ring 3
    if not (code >> 44 & 1 and code >> 43 & 1 and dpl_fits) or code >> 53 & 3 == 3:
        return GP, cs
    if not code >> 47 & 1:
        return NP, cs
    if not ss:
        return GP, 0
    stack = d.descriptor(v, r[R.SS])
    if not (stack >> 44 & 1 and not stack >> 43 & 1 and stack >> 41 & 1 and stack >> 45 & 3 == 3):
        return GP, ss
    if not stack >> 47 & 1:
        return SS, ss
    if rip >> 32 if r[R.COMPAT] else not is_canonical(rip):
        return GP, 0
    return None
