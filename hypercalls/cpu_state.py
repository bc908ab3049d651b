# SPDX-License-Identifier: GPL-2.0-only
"""Calls that change the state of the calling vCPU: descriptor tables, stacks, segment bases, FPU, debug registers."""

from __future__ import annotations

from xen_py import privop
from xen_py.abi.xen import FIRST_RESERVED_GDT_ENTRY, VmAssist
from xen_py.descriptors import check_descriptor
from xen_py.domain import Domain
from xen_py.engine import R
from xen_py.frames import FrameType
from xen_py.types import Errno, Mfn, XenError, is_canonical
from xen_py.vcpu import Vcpu

_SEGBASE_FS, _SEGBASE_GS_USER, _SEGBASE_GS_KERNEL, _SEGBASE_GS_USER_SEL = range(4)
_VALID_ASSISTS = frozenset(VmAssist)


def set_gdt(d: Domain, v: Vcpu, frame_list: int, entries: int, *_: int) -> int:
    entries &= 0xFFFFFFFF
    if entries > FIRST_RESERVED_GDT_ENTRY:
        raise XenError(Errno.EINVAL, f"GDT of {entries} entries")
    pages = -(-entries // 512)
    frames = memoryview(d.access.read(frame_list, 8 * pages)).cast("Q").tolist() if pages else []
    d.set_gdt(v, [Mfn(f) for f in frames], entries)
    return 0


def update_descriptor(d: Domain, v: Vcpu, address: int, raw: int, *_: int) -> int:
    if address & 7:
        raise XenError(Errno.EINVAL, f"descriptor address {address:#x} is not aligned")
    fixed = check_descriptor(raw)
    i = d.frames.index(address >> 12)
    kind = FrameType.SEGDESC if d.frames.types[i] == FrameType.SEGDESC else FrameType.WRITABLE
    d.pages.get_type(i, kind)
    d.memory.words[i * 512 + ((address & 0xFFF) >> 3)] = fixed
    d.pages.put_type(i)
    d.descriptors_changed()
    return 0


def stack_switch(d: Domain, v: Vcpu, ss: int, sp: int, *_: int) -> int:
    v.kernel_ss = (ss | 3) & 0xFFFF
    v.kernel_sp = sp
    return 0


def fpu_taskswitch(d: Domain, v: Vcpu, flag: int, *_: int) -> int:
    d.set_task_switched(v, bool(flag & 0xFFFFFFFF))
    return 0


def set_debugreg(d: Domain, v: Vcpu, n: int, value: int, *_: int) -> int:
    privop.set_debugreg(v, n & 0xFFFFFFFF, value)
    return 0


def get_debugreg(d: Domain, v: Vcpu, n: int, *_: int) -> int:
    return privop.get_debugreg(v, n & 0xFFFFFFFF)


def set_segment_base(d: Domain, v: Vcpu, which: int, base: int, *_: int) -> int:
    which &= 0xFFFFFFFF
    r = d.engine.regs
    if which == _SEGBASE_GS_USER_SEL:
        _set_user_gs_selector(d, v, base & 0xFFFF)
        return 0
    if which > _SEGBASE_GS_USER_SEL or not is_canonical(base):
        raise XenError(Errno.EINVAL, f"segment base {which} = {base:#x}")
    if which == _SEGBASE_FS:
        r[R.FS_BASE] = base
    elif which == _SEGBASE_GS_USER:
        v.gs_base_user = base
    else:
        r[R.GS_BASE] = base
    return 0


def _set_user_gs_selector(d: Domain, v: Vcpu, selector: int) -> None:
    """Load the user's %gs from the descriptor tables; one that cannot be loaded becomes the null selector."""
    if selector > 3:
        selector |= 3
    raw = d.descriptor(v, selector) if selector > 3 else 0
    # A present data segment, or readable code, of ring 3.
    usable = raw >> 47 & 1 and raw >> 44 & 1 and raw >> 45 & 3 == 3 and not (raw >> 43 & 1 and not raw >> 41 & 1)
    if not usable:
        selector, raw = 0, 0
    d.engine.regs[R.GS] = selector
    v.gs_base_user = raw >> 16 & 0xFFFFFF | raw >> 32 & 0xFF000000


def vm_assist(d: Domain, v: Vcpu, command: int, kind: int, *_: int) -> int:
    command &= 0xFFFFFFFF
    kind &= 0xFFFFFFFF
    if kind not in _VALID_ASSISTS:
        raise XenError(Errno.EINVAL, f"VM assist {kind}")
    if command == 0:
        d.vm_assist |= 1 << kind
    elif command == 1:
        d.vm_assist &= ~(1 << kind)
    else:
        raise XenError(Errno.ENOSYS, f"vm_assist command {command}")
    d.assists_changed()
    return 0
