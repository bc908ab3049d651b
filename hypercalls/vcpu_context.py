# SPDX-License-Identifier: GPL-2.0-only
"""VCPUOP_initialise, up and down: the life of a secondary vCPU (vcpu.h; struct vcpu_guest_context of arch-x86/xen.h).

The context is copied once and checked before anything of it is used; a vCPU whose context is refused is as it was.
Checks: arch_set_info_guest of xen/arch/x86/domain.c.
"""

from __future__ import annotations

from struct import Struct

from xen_py import traps
from xen_py.abi.xen import FIRST_RESERVED_GDT_ENTRY, ShutdownReason, VmAssist
from xen_py.domain import Domain
from xen_py.engine import R
from xen_py.frames import FrameType
from xen_py.privop import set_debugreg
from xen_py.spec import Shutdown
from xen_py.types import Errno, Mfn, XenError, is_canonical
from xen_py.vcpu import Runstate, TrapGate, Vcpu

CONTEXT_SIZE = 5168
_user_regs = Struct("<15Q II Q HHBxxx Q Q Hxxxxxx Hxxxxxx Hxxxxxx Hxxxxxx Hxxxxxx")
_trap = Struct("<BBHxxxxQ")
_USER_REGS, _TRAPS, _TAIL = 520, 720, 4816
_IN_KERNEL, _FAILSAFE_MASKS, _SYSCALL_MASKS = 1 << 2, 1 << 3, 1 << 4
_ORDER = (15, 14, 13, 12, 5, 3, 11, 10, 9, 8, 0, 1, 2, 6, 7)
"""Where the first words of cpu_user_regs (r15 .. rdi) go in the register block."""


def initialise(d: Domain, v: Vcpu, arg: int) -> int:
    if v.initialised:
        raise XenError(Errno.EEXIST, f"vCPU {v.id} is initialised")
    raw = d.access.read(arg, CONTEXT_SIZE)
    flags = int.from_bytes(raw[512:520], "little")
    tail = memoryview(raw)[_TAIL:].cast("Q").tolist()
    ldt_base, ldt_entries = tail[0], tail[1]
    gdt_frames, gdt_entries = tail[2:18], tail[18]
    kernel_ss, kernel_sp = tail[19], tail[20]
    cr, dr = tail[21:29], tail[29:37]
    event, failsafe, syscall = tail[37:40]
    fs_base, gs_kernel, gs_user = tail[41:44]
    gates = [_trap.unpack_from(raw, _TRAPS + 16 * n) for n in range(256)]
    user = _user_regs.unpack_from(raw, _USER_REGS)
    rip = user[17]
    addresses = (rip, kernel_sp, event, failsafe, syscall, fs_base, gs_kernel, gs_user, *(g[3] for g in gates))
    if not all(is_canonical(address) for address in addresses):
        raise XenError(Errno.EINVAL, "an address of the vCPU's context is not canonical")
    if gdt_entries > FIRST_RESERVED_GDT_ENTRY or ldt_entries > 8192 or (ldt_entries and ldt_base & 0xFFF):
        raise XenError(Errno.EINVAL, "a descriptor table of the vCPU's context is too long or not aligned")
    if not flags & _IN_KERNEL and not cr[1]:
        raise XenError(Errno.EINVAL, "a context in user mode without user page tables")

    root = Mfn(cr[3] >> 12 & 0xFFFFFFFFFF)
    i = d.pages.get_page_and_type(root, FrameType.L4)
    user_root = Mfn(cr[1] >> 12 & 0xFFFFFFFFFF) if cr[1] else Mfn(0)
    try:
        if user_root:
            d.pages.get_page_and_type(user_root, FrameType.L4)
        try:
            d.set_gdt(v, [Mfn(f) for f in gdt_frames[: -(-gdt_entries // 512)]], gdt_entries)
        except XenError:
            if user_root:
                d.pages.put_page_and_type(d.frames.index(user_root))
            raise
    except XenError:
        d.pages.put_page_and_type(i)
        raise
    d.space.fill_l4(d.memory.words, i * 512)
    if user_root and d.vm_assist >> VmAssist.M2P_STRICT & 1:
        d.space.hide_m2p(d.memory.words, d.frames.index(user_root) * 512)

    v.root, v.user_root = root, user_root
    v.kernel_mode = bool(flags & _IN_KERNEL)
    v.failsafe_masks_events = bool(flags & _FAILSAFE_MASKS)
    v.syscall_masks_events = bool(flags & _SYSCALL_MASKS)
    v.ldt_base, v.ldt_entries = (ldt_base, ldt_entries) if ldt_entries else (0, 0)
    v.kernel_ss, v.kernel_sp = (kernel_ss | 3) & 0xFFFF, kernel_sp
    v.event_callback, v.failsafe_callback, v.syscall_callback = event, failsafe, syscall
    for n, (_vector, gate_flags, cs, address) in enumerate(gates):
        v.traps[n] = TrapGate(address, cs | 3 if address else cs, gate_flags)
    for n in (0, 1, 2, 3, 6, 7):
        try:
            set_debugreg(v, n, dr[n])
        except XenError:
            d.log_once(f"dr{n}", f"DR{n} = {dr[n]:#x} of a vCPU's context is ignored")
    v.cr4 = cr[4] & 0xC
    v.cr0_ts = bool(cr[0] & 8)
    r = [0] * R.COUNT
    for n, register in enumerate(_ORDER):
        r[register] = user[n]
    r[R.RIP], r[R.CS] = rip, (user[18] | 3) & 0xFFFF
    r[R.RFLAGS] = user[21] & traps.EFLAGS_ALL & ~(traps.IOPL | traps.VM) | traps.IF | 2
    r[R.RSP], r[R.SS] = user[22], (user[23] | 3) & 0xFFFF
    r[R.ES], r[R.DS], r[R.FS], r[R.GS] = user[24:28]
    r[R.FS_BASE] = fs_base
    v.gs_base_kernel, v.gs_base_user = gs_kernel, gs_user
    r[R.GS_BASE] = gs_kernel if v.kernel_mode else gs_user
    r[R.USER] = int(not v.kernel_mode)
    r[R.CR3] = (root if v.kernel_mode else user_root) << 12
    r[R.COMPAT] = int(not d.is_long_mode_selector(v, r[R.CS]))
    v.regs = r
    v.initialised = True
    return 0


def up(d: Domain, v: Vcpu) -> int:
    if not v.initialised:
        raise XenError(Errno.EINVAL, f"vCPU {v.id} is not initialised")
    if not v.online:
        v.online = True
        v.blocked = False
        v.periodic_next = d.clock.now() + v.periodic_period if v.periodic_period else 0
        d.runstates.change(v, Runstate.RUNNABLE)
        d.update_time(v)
        d.scheduler.woken(v)
    return 0


def down(d: Domain, v: Vcpu) -> int:
    if v.online:
        v.online = False
        if not any(other.online for other in d.vcpus):
            d.shutdown = Shutdown(ShutdownReason.POWEROFF, "the last vCPU went down")
        d.runstates.change(v, Runstate.OFFLINE)
    return 0
