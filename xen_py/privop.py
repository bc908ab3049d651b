# SPDX-License-Identifier: GPL-2.0-only
"""Privileged instructions of a guest kernel, which fault at CPL 3 and are carried out here.

What Xen emulates for a PV guest (xen/arch/x86/pv/emul-priv-op.c): port I/O (no port is there: all ones, writes are
lost), interrupt flag instructions with enough IOPL (ignored: events are masked in vcpu_info), clts, control and debug
registers, MSRs, rdtsc, cache flushes, cpuid behind the forced-emulation prefix. Owned by the domain's thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xen_py import cpuid, traps
from xen_py.engine import R
from xen_py.types import Errno, Mfn, XenError, is_canonical

if TYPE_CHECKING:
    from xen_py.domain import Domain
    from xen_py.vcpu import Vcpu

FORCED_EMULATION = bytes.fromhex("0f0b78656e")
"""ud2a; .ascii "xen" """
CR0_GUEST = 0x80050033
EFER_GUEST = 0xD01
XEN_PAT = 0x050100070406
_GPR = (R.RAX, R.RCX, R.RDX, R.RBX, R.RSP, R.RBP, R.RSI, R.RDI, R.R8, R.R9, R.R10, R.R11, R.R12, R.R13, R.R14, R.R15)
_M64 = (1 << 64) - 1
_MSR_TSC, _MSR_APIC_BASE, _MSR_SPEC_CTRL, _MSR_PRED_CMD = 0x10, 0x1B, 0x48, 0x49
_MSR_UCODE_REV, _MSR_ARCH_CAPABILITIES, _MSR_MISC_ENABLE, _MSR_PAT = 0x8B, 0x10A, 0x1A0, 0x277
_MSR_EFER, _MSR_FS_BASE, _MSR_GS_BASE, _MSR_KERNEL_GS_BASE = (
    0xC0000080,
    0xC0000100,
    0xC0000101,
    0xC0000102,
)
_MSR_PLATFORM_INFO, _MSR_MISC_FEATURES = 0xCE, 0x140


class _Fault(Exception):
    """The instruction is not one we carry out: the guest gets its #GP."""


def forced_cpuid(d: Domain, v: Vcpu) -> bool:
    """#UD on the forced-emulation prefix with cpuid behind it: answer it. True when it was that."""
    r = d.engine.regs
    rip = r[R.RIP]
    for at, wanted in ((rip, FORCED_EMULATION), (rip + len(FORCED_EMULATION) & _M64, b"\x0f\xa2")):
        try:
            if d.access.read(at, len(wanted)) != wanted:
                return False
        except XenError:
            # What is missing is the guest's page fault, even if what is there does not look like the prefix.
            traps.inject_exception(d, v, traps.PF, 0, (at | 0xFFF) + 1 & _M64 if d.access.readable(at) else at)
            return True
    leaf, sub = r[R.RAX] & 0xFFFFFFFF, r[R.RCX] & 0xFFFFFFFF
    r[R.RAX], r[R.RBX], r[R.RCX], r[R.RDX] = d.cpuid(leaf, sub)
    r[R.RIP] = rip + 7 & _M64
    return True


def emulate(d: Domain, v: Vcpu) -> bool:
    """A #GP with error code 0 at an instruction: carry it out if it is one of those, True when done."""
    r = d.engine.regs
    rip = r[R.RIP]
    try:
        code = d.access.read(rip, min(15, 4096 - (rip & 0xFFF)))
        if len(code) < 15:
            code += _next_page(d, rip, 15 - len(code))
    except XenError:
        return False
    at, wide, repeat, rex = 0, False, False, 0
    while at < len(code) and code[at] in b"\x66\xf2\xf3\x2e\x36\x3e\x26\x64\x65":
        wide |= code[at] == 0x66
        repeat |= code[at] in b"\xf2\xf3"
        at += 1
    if at < len(code) and code[at] & 0xF0 == 0x40:
        rex = code[at]
        at += 1
    body = code[at:].ljust(4, b"\0")
    try:
        length = _two_byte(d, v, body, rex) if body[0] == 0x0F else _one_byte(d, v, body, wide, repeat)
    except _Fault:
        return False
    if length:
        r[R.RIP] = rip + at + length & _M64
    return True


def _next_page(d: Domain, rip: int, n: int) -> bytes:
    try:
        return d.access.read((rip | 0xFFF) + 1, n)
    except XenError:
        return b""


def _iopl_allows(d: Domain, v: Vcpu) -> bool:
    level = (0 if d.architectural_iopl else 1) if v.kernel_mode else 3
    return v.iopl >> 12 >= level


def _io_allowed(d: Domain, v: Vcpu, port: int, size: int) -> bool:
    """guest_io_okay: by the guest's I/O privilege level, or by its permission bitmap."""
    if _iopl_allows(d, v):
        return True
    if port + size > v.io_bitmap_ports:
        return False
    try:
        bits = int.from_bytes(d.read_kernel(v, v.io_bitmap + (port >> 3), 2), "little")
    except XenError:
        return False
    return not bits >> (port & 7) & ((1 << size) - 1)


def _one_byte(d: Domain, v: Vcpu, body: bytes, wide: bool, repeat: bool) -> int:
    op = body[0]
    r = d.engine.regs
    if op in (0xFA, 0xFB):  # cli, sti
        if not _iopl_allows(d, v):
            raise _Fault
        return 1
    size = 1 if not op & 1 else 2 if wide else 4
    if op in (0xE4, 0xE5, 0xEC, 0xED, 0xE6, 0xE7, 0xEE, 0xEF):  # in, out
        if not _io_allowed(d, v, body[1] if op < 0xEC else r[R.RDX] & 0xFFFF, size):
            raise _Fault
        if not op & 2:
            ones = (1 << 8 * size) - 1
            r[R.RAX] = ones if size == 4 else r[R.RAX] & ~ones | ones
        return 2 if op < 0xEC else 1
    if op in (0x6C, 0x6D, 0x6E, 0x6F):  # ins, outs
        if not _io_allowed(d, v, r[R.RDX] & 0xFFFF, size):
            raise _Fault
        return _string_io(d, v, size, repeat, write=op < 0x6E)
    raise _Fault


def _string_io(d: Domain, v: Vcpu, size: int, repeat: bool, write: bool) -> int:
    """As many elements as lie in this page; the instruction is met again for the rest."""
    r = d.engine.regs
    index = R.RDI if write else R.RSI
    step = -size if r[R.RFLAGS] & 0x400 else size
    count = min(r[R.RCX], 4096 // size) if repeat else 1
    for _ in range(count):
        address = r[index]
        try:
            if write:
                d.access.write(address, b"\xff" * size)
            else:
                d.access.read(address, size)
        except XenError:
            traps.inject_exception(d, v, traps.PF, 2 if write else 0, address)
            return 0
        r[index] = address + step & _M64
        if repeat:
            r[R.RCX] -= 1
    return 0 if repeat and r[R.RCX] else 1


def _two_byte(d: Domain, v: Vcpu, body: bytes, rex: int) -> int:
    op = body[1]
    r = d.engine.regs
    if op == 0x31 or (op == 0x01 and body[2] == 0xF9):  # rdtsc, rdtscp
        tsc = d.clock.tsc()
        r[R.RAX], r[R.RDX] = tsc & 0xFFFFFFFF, tsc >> 32 & 0xFFFFFFFF
        if op == 0x01:
            r[R.RCX] = 0
            return 3
        return 2
    if op == 0x34:  # sysenter
        if v.kernel_mode or not v.sysenter_callback:
            raise _Fault
        traps.bounce(d, v, v.sysenter_callback, v.sysenter_masks_events, None)
        return 0
    if not v.kernel_mode:
        raise _Fault
    if op == 0x06:  # clts
        d.set_task_switched(v, False)
        return 2
    if op == 0x09:  # wbinvd
        return 2
    if op in (0x20, 0x22):
        _control_register(d, v, body[2], rex, write=op == 0x22)
        return 3
    if op in (0x21, 0x23):
        _debug_register(d, v, body[2], rex, write=op == 0x23)
        return 3
    if op == 0x32:
        value = read_msr(d, v, r[R.RCX] & 0xFFFFFFFF)
        r[R.RAX], r[R.RDX] = value & 0xFFFFFFFF, value >> 32
        return 2
    if op == 0x30:
        write_msr(d, v, r[R.RCX] & 0xFFFFFFFF, r[R.RAX] & 0xFFFFFFFF | (r[R.RDX] & 0xFFFFFFFF) << 32)
        return 2
    raise _Fault


def _control_register(d: Domain, v: Vcpu, modrm: int, rex: int, write: bool) -> None:
    r = d.engine.regs
    n = modrm >> 3 & 7 | (rex & 4) << 1
    gpr = _GPR[modrm & 7 | (rex & 1) << 3]
    if not write:
        if n == 0:
            r[gpr] = CR0_GUEST | (8 if v.cr0_ts else 0)
        elif n == 2:
            r[gpr] = d.memory.words[v.info_offset + 16 >> 3]
        elif n == 3:
            r[gpr] = v.root << 12
        elif n == 4:
            r[gpr] = v.cr4 | 0x6A0
        else:
            raise _Fault
        return
    value = r[gpr]
    if n == 0:
        if (value ^ CR0_GUEST) & ~8:
            raise _Fault
        d.set_task_switched(v, bool(value & 8))
    elif n == 2:
        d.memory.words[v.info_offset + 16 >> 3] = value
    elif n == 3:
        try:
            d.new_root(v, Mfn(value >> 12 & 0xFFFFFFFFFF))
        except XenError:
            raise _Fault from None
    elif n == 4:
        v.cr4 = value & 0xC  # TSD and DE are the guest's; the rest stays as it is
    else:
        raise _Fault


def _debug_register(d: Domain, v: Vcpu, modrm: int, rex: int, write: bool) -> None:
    r = d.engine.regs
    n = modrm >> 3 & 7 | (rex & 4) << 1
    gpr = _GPR[modrm & 7 | (rex & 1) << 3]
    try:
        if write:
            set_debugreg(v, n, r[gpr])
        else:
            r[gpr] = get_debugreg(v, n)
    except XenError:
        raise _Fault from None


def set_debugreg(v: Vcpu, n: int, value: int) -> None:
    """set_debugreg of xen/arch/x86/pv/misc-hypercalls.c."""
    if n in (4, 5):
        if v.cr4 & 8:
            raise XenError(Errno.ENODEV, "DR4 and DR5 are not there with CR4.DE")
        n += 2
    if n in (0, 1, 2, 3):
        if not is_canonical(value) or 0xFFFF800000000000 <= value < 0xFFFF880000000000:
            raise XenError(Errno.EPERM, f"breakpoint address {value:#x} is not the guest's")
        v.debugregs[n] = value
    elif n == 6:
        if value >> 32:
            raise XenError(Errno.EINVAL, "upper half of DR6 is reserved")
        v.debugregs[6] = value & 0xE00F | 0xFFFF0FF0
    elif n == 7:
        if value >> 32:
            raise XenError(Errno.EINVAL, "upper half of DR7 is reserved")
        if value & 0x2000:
            raise XenError(Errno.EPERM, "DR7.GD is not for guests")
        if value & 0xFF and any(value >> shift & 3 == 2 for shift in range(16, 32, 4)) and not v.cr4 & 8:
            raise XenError(Errno.EPERM, "I/O breakpoints need CR4.DE")
        v.debugregs[7] = value & ~0xD800 | 0x400
    else:
        raise XenError(Errno.ENODEV, f"no DR{n}")


def get_debugreg(v: Vcpu, n: int) -> int:
    if n in (4, 5):
        if v.cr4 & 8:
            raise XenError(Errno.ENODEV, "DR4 and DR5 are not there with CR4.DE")
        n += 2
    if not 0 <= n <= 7:
        raise XenError(Errno.ENODEV, f"no DR{n}")
    return v.debugregs[n]


def read_msr(d: Domain, v: Vcpu, n: int) -> int:
    r = d.engine.regs
    if n == _MSR_TSC:
        return d.clock.tsc() & _M64
    if n == _MSR_APIC_BASE:
        return 0xFEE00800 | (0x100 if v.id == 0 else 0)
    if n == _MSR_FS_BASE:
        return r[R.FS_BASE]
    if n == _MSR_GS_BASE:
        return r[R.GS_BASE]
    if n == _MSR_KERNEL_GS_BASE:
        return v.gs_base_user
    constants = {
        _MSR_EFER: EFER_GUEST,
        _MSR_PAT: XEN_PAT,
        _MSR_UCODE_REV: 0xFFFFFFFF << 32,  # the highest revision: there is nothing to update
        _MSR_ARCH_CAPABILITIES: cpuid.ARCH_CAPABILITIES,
        _MSR_MISC_ENABLE: cpuid.MISC_ENABLE,
        _MSR_SPEC_CTRL: v.spec_ctrl,
        _MSR_PLATFORM_INFO: 0,
        _MSR_MISC_FEATURES: 0,
    }
    if n not in constants:
        d.log_once(f"rdmsr {n:#x}", f"RDMSR {n:#010x} unimplemented")
        raise _Fault
    return constants[n]


def write_msr(d: Domain, v: Vcpu, n: int, value: int) -> None:
    r = d.engine.regs
    if n in (_MSR_FS_BASE, _MSR_GS_BASE, _MSR_KERNEL_GS_BASE):
        if not is_canonical(value):
            raise _Fault
        if n == _MSR_FS_BASE:
            r[R.FS_BASE] = value
        elif n == _MSR_GS_BASE:
            r[R.GS_BASE] = value
        else:
            v.gs_base_user = value
    elif n == _MSR_SPEC_CTRL:
        if value & ~7:
            raise _Fault
        v.spec_ctrl = value
    elif n == _MSR_EFER:
        if value != EFER_GUEST:
            raise _Fault
    elif n in (_MSR_PRED_CMD, _MSR_MISC_ENABLE, _MSR_UCODE_REV):
        pass  # nothing to flush; Xen, too, ignores writes to the other two
    else:
        d.log_once(f"wrmsr {n:#x}", f"WRMSR {n:#010x} unimplemented")
        raise _Fault
