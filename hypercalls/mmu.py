# SPDX-License-Identifier: GPL-2.0-only
"""mmu_update, mmuext_op and update_va_mapping: what a guest does to its page tables (xen.h).

The checking is in `xen_py.mmu`; here requests are decoded. All requests before a bad one have been carried out, and
their number is written where the guest asked for it.
"""

from __future__ import annotations

from contextlib import suppress
from struct import Struct

from xen_py.abi.xen import (
    DOMID_SELF,
    HYPERVISOR_VIRT_END,
    HYPERVISOR_VIRT_START,
    MMU_MACHPHYS_UPDATE,
    MMU_NORMAL_PT_UPDATE,
    MMU_PT_UPDATE_NO_TRANSLATE,
    MMU_PT_UPDATE_PRESERVE_AD,
    MMU_UPDATE_PREEMPTED,
    UVMF_FLUSHTYPE_MASK,
    UVMF_INVLPG,
    UVMF_TLB_FLUSH,
    Hypercall,
)
from xen_py.domain import Domain
from xen_py.frames import FrameType
from xen_py.types import Errno, Mfn, XenError, is_canonical
from xen_py.vcpu import Vcpu

_u32 = Struct("<I")
_request = Struct("<QQ")
_ext = Struct("<IxxxxQQ")
_EXT_SIZE = 24
_M64 = (1 << 64) - 1
_GUEST_FRAMES = (1 << 52) - 1

PIN_L1, PIN_L4, UNPIN, NEW_BASEPTR, TLB_FLUSH_LOCAL, INVLPG_LOCAL = 0, 3, 4, 5, 6, 7
TLB_FLUSH_MULTI, INVLPG_MULTI, TLB_FLUSH_ALL, INVLPG_ALL, FLUSH_CACHE, SET_LDT = 8, 9, 10, 11, 12, 13
NEW_USER_BASEPTR, CLEAR_PAGE, COPY_PAGE, FLUSH_CACHE_GLOBAL, MARK_SUPER, UNMARK_SUPER = 15, 16, 17, 18, 19, 20


def _check_owner(d: Domain, foreigndom: int) -> None:
    """Only the domain's own tables and pages: we know of no others."""
    if foreigndom & 0xFFFF != DOMID_SELF:
        other = foreigndom & 0xFFFF
        if other == d.domid:
            raise XenError(Errno.ESRCH, "a domain cannot name itself as foreign domain")
        raise XenError(Errno.EPERM if other == 0 else Errno.ESRCH, f"domain {other} is not this one's to map")
    table_owner = foreigndom >> 16 & 0xFFFF
    if table_owner and table_owner - 1 != d.domid:
        raise XenError(Errno.ESRCH, f"page tables of domain {table_owner - 1} are not this one's")


def mmu_update(d: Domain, v: Vcpu, requests: int, count: int, done_at: int, foreigndom: int, *_: int) -> int:
    count &= 0xFFFFFFFF
    count, before = _resume(d, count, done_at)
    _check_owner(d, foreigndom & 0xFFFFFFFF)
    done = 0
    try:
        for done in range(count):
            at = requests + 16 * done
            if done & 31 == 31 and d.must_yield():
                rest = count - done | MMU_UPDATE_PREEMPTED
                return d.continue_with(Hypercall.MMU_UPDATE, at & _M64, rest, done_at, foreigndom)
            if at & 0xFFF <= 4080:
                word = d.access.translate(at, False)
                target, value = _request.unpack_from(d.memory.bytes, word)
            else:
                target, value = _request.unpack(d.access.read(at, 16))
            command = target & 7
            if command == MMU_NORMAL_PT_UPDATE:
                d.pages.update(target, value, False)
            elif command == MMU_PT_UPDATE_PRESERVE_AD:
                d.pages.update(target - command, value, True)
            elif command == MMU_PT_UPDATE_NO_TRANSLATE:
                d.pages.update(target - command, value, False)
            elif command == MMU_MACHPHYS_UPDATE:
                d.space.m2p[d.frames.index(target >> 12)] = value
            else:
                raise XenError(Errno.ENOSYS, f"mmu_update command {command}")
        done = count
    finally:
        if done_at:
            _report(d, done_at, before + done)
    return 0


def _resume(d: Domain, count: int, done_at: int) -> tuple[int, int]:
    """(requests to do, requests done by the earlier part of a call that was interrupted)."""
    if not count & MMU_UPDATE_PREEMPTED:
        return count, 0
    before = 0
    if done_at:
        with suppress(XenError):
            before = _u32.unpack(d.access.read(done_at, 4))[0]
    return count & ~MMU_UPDATE_PREEMPTED, before


def _report(d: Domain, at: int, done: int) -> None:
    """Xen, too, ignores a bad address here: the work is done."""
    try:
        d.access.write(at, _u32.pack(done & 0xFFFFFFFF))
    except XenError:
        d.log_once("pdone", f"count of done requests cannot be written at {at:#x}")


def update_va_mapping(d: Domain, v: Vcpu, va: int, value: int, flags: int, *_: int) -> int:
    at = d.pages.l1_address(Mfn(d.access.root_index + d.frames.base), va)
    if at is None or d.frames.types[at >> 9] != FrameType.L1 or not d.frames.type_counts[at >> 9]:
        raise XenError(Errno.EINVAL, f"no L1 table for {va:#x}")
    d.pages.set_l1(at, value)
    if flags & UVMF_FLUSHTYPE_MASK == UVMF_INVLPG:
        d.engine.flush_page(va)
    elif flags & UVMF_FLUSHTYPE_MASK == UVMF_TLB_FLUSH:
        d.engine.flush_tlb()
    return 0


def update_va_mapping_otherdomain(
    d: Domain, v: Vcpu, va: int, value: int, flags: int, foreigndom: int, *_: int
) -> int:
    """The mapping may be of another domain's page, but we know of no others."""
    _check_owner(d, foreigndom & 0xFFFF)
    return update_va_mapping(d, v, va, value, flags)


def mmuext_op(d: Domain, v: Vcpu, ops: int, count: int, done_at: int, foreigndom: int, *_: int) -> int:
    count &= 0xFFFFFFFF
    count, before = _resume(d, count, done_at)
    _check_owner(d, foreigndom & 0xFFFF)
    done = 0
    try:
        for done in range(count):
            if done and d.must_yield():
                rest, at = count - done | MMU_UPDATE_PREEMPTED, ops + _EXT_SIZE * done & _M64
                return d.continue_with(Hypercall.MMUEXT_OP, at, rest, done_at, foreigndom)
            command, arg1, arg2 = _ext.unpack(d.access.read(ops + _EXT_SIZE * done, _EXT_SIZE))
            _one_ext(d, v, command, arg1, arg2)
        done = count
    finally:
        if done_at:
            _report(d, done_at, before + done)
    return 0


def _one_ext(d: Domain, v: Vcpu, command: int, arg1: int, arg2: int) -> None:
    if command == NEW_BASEPTR:
        d.new_root(v, Mfn(arg1 & _GUEST_FRAMES))
    elif command == NEW_USER_BASEPTR:
        d.new_user_root(v, Mfn(arg1 & _GUEST_FRAMES))
    elif PIN_L1 <= command <= PIN_L4:
        d.pages.pin(arg1 & _GUEST_FRAMES, command + 1)
    elif command == UNPIN:
        d.pages.unpin(arg1 & _GUEST_FRAMES)
    elif command in (TLB_FLUSH_LOCAL, TLB_FLUSH_ALL):
        d.engine.flush_tlb()
    elif command in (INVLPG_LOCAL, INVLPG_ALL):
        d.engine.flush_page(arg1)
    elif command in (TLB_FLUSH_MULTI, INVLPG_MULTI):
        try:
            d.access.read(arg2, -(-len(d.vcpus) // 8))
        except XenError:
            raise XenError(Errno.EINVAL, f"vCPU mask at {arg2:#x} cannot be read") from None
        if command == INVLPG_MULTI:
            d.engine.flush_page(arg1)
        else:
            d.engine.flush_tlb()
    elif command == SET_LDT:
        entries = arg2 & 0xFFFFFFFF
        base = arg1 if entries else 0
        bad = base & 0xFFF or not is_canonical(base) or HYPERVISOR_VIRT_START <= base < HYPERVISOR_VIRT_END
        if entries > 8192 or (entries and bad):
            raise XenError(Errno.EINVAL, f"LDT of {entries} entries at {base:#x}")
        d.set_ldt(v, base, entries)
    elif command in (CLEAR_PAGE, COPY_PAGE):
        _page_contents(d, command, arg1, arg2)
    elif command in (FLUSH_CACHE, FLUSH_CACHE_GLOBAL):
        raise XenError(Errno.EACCES, "a domain without devices may not flush caches")
    elif command in (MARK_SUPER, UNMARK_SUPER):
        raise XenError(Errno.EOPNOTSUPP, "superpages")
    else:
        raise XenError(Errno.ENOSYS, f"mmuext_op {command}")


def _page_contents(d: Domain, command: int, arg1: int, arg2: int) -> None:
    source = d.frames.index(arg2 & _GUEST_FRAMES) if command == COPY_PAGE else None
    target = d.pages.get_page_and_type(arg1 & _GUEST_FRAMES, FrameType.WRITABLE)
    page = d.memory.bytes[target << 12 : (target + 1) << 12]
    page[:] = bytes(4096) if source is None else d.memory.bytes[source << 12 : (source + 1) << 12]
    d.space.written_from_outside(target)
    d.pages.put_page_and_type(target)
