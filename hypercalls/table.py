# SPDX-License-Identifier: GPL-2.0-only
"""Hypercall numbers and their handlers, and the boundary between exceptions and -errno."""

from __future__ import annotations

from collections.abc import Callable

from hypercalls import (
    console_io,
    cpu_state,
    event_channel_op,
    grant_table_op,
    memory_op,
    mmu,
    physdev_op,
    sched_op,
    trap_op,
    vcpu_op,
    version_op,
)
from xen_py.abi.xen import Hypercall
from xen_py.domain import Domain
from xen_py.types import Errno, XenError
from xen_py.vcpu import Vcpu

Handler = Callable[[Domain, Vcpu, int, int, int, int, int, int], int]

_TABLE: dict[int, Handler] = {
    Hypercall.SET_TRAP_TABLE: trap_op.set_trap_table,
    Hypercall.MMU_UPDATE: mmu.mmu_update,
    Hypercall.SET_GDT: cpu_state.set_gdt,
    Hypercall.STACK_SWITCH: cpu_state.stack_switch,
    Hypercall.SET_CALLBACKS: trap_op.set_callbacks,
    Hypercall.FPU_TASKSWITCH: cpu_state.fpu_taskswitch,
    Hypercall.SET_DEBUGREG: cpu_state.set_debugreg,
    Hypercall.GET_DEBUGREG: cpu_state.get_debugreg,
    Hypercall.UPDATE_DESCRIPTOR: cpu_state.update_descriptor,
    Hypercall.MEMORY_OP: memory_op.memory_op,
    Hypercall.UPDATE_VA_MAPPING: mmu.update_va_mapping,
    Hypercall.UPDATE_VA_MAPPING_OTHERDOMAIN: mmu.update_va_mapping_otherdomain,
    Hypercall.SET_TIMER_OP: vcpu_op.set_timer_op,
    Hypercall.XEN_VERSION: version_op.xen_version,
    Hypercall.CONSOLE_IO: console_io.console_io,
    Hypercall.GRANT_TABLE_OP: grant_table_op.grant_table_op,
    Hypercall.VM_ASSIST: cpu_state.vm_assist,
    Hypercall.VCPU_OP: vcpu_op.vcpu_op,
    Hypercall.SET_SEGMENT_BASE: cpu_state.set_segment_base,
    Hypercall.MMUEXT_OP: mmu.mmuext_op,
    Hypercall.NMI_OP: trap_op.nmi_op,
    Hypercall.SCHED_OP: sched_op.sched_op,
    Hypercall.CALLBACK_OP: trap_op.callback_op,
    Hypercall.EVENT_CHANNEL_OP: event_channel_op.event_channel_op,
    Hypercall.PHYSDEV_OP: physdev_op.physdev_op,
}

_MULTICALL_ENTRY = 64
_MOST_CALLS = 1 << 20


def dispatch(d: Domain, v: Vcpu, number: int, a1: int, a2: int, a3: int, a4: int, a5: int, a6: int) -> int:
    """Carry out one hypercall; its result, negative for -errno."""
    try:
        handler = _TABLE.get(number)
        if handler is not None:
            return handler(d, v, a1, a2, a3, a4, a5, a6)
        if number == Hypercall.MULTICALL:
            return _multicall(d, v, a1, a2)
        name = Hypercall(number).name.lower() if number in Hypercall._value2member_map_ else str(number)
        d.log_once(f"hypercall {number}", f"hypercall {name} is not implemented: -ENOSYS")
        return -Errno.ENOSYS
    except XenError as e:
        if e.errno == Errno.ENOSYS and e.why:
            d.log_once(e.why, f"{e.why} is not implemented: -ENOSYS")
        return -e.errno


def _multicall(d: Domain, v: Vcpu, calls: int, count: int) -> int:
    """Several calls in one; a multicall within it is refused, as are calls that change the flow of control."""
    count &= 0xFFFFFFFF
    if count > _MOST_CALLS:
        raise XenError(Errno.EFAULT, f"multicall of {count} entries")
    access, words = d.access, d.memory.words
    end = calls + count * _MULTICALL_ENTRY
    for at in range(calls, end, _MULTICALL_ENTRY):
        if at != calls and d.must_yield():
            return d.continue_with(Hypercall.MULTICALL, at, (end - at) // _MULTICALL_ENTRY)
        if at & 7 or at & 0xFFF > 4096 - _MULTICALL_ENTRY:
            raw = access.read(at, _MULTICALL_ENTRY)
            op, _, a1, a2, a3, a4, a5, a6 = memoryview(raw).cast("Q").tolist()
        else:
            word = access.translate(at, False) >> 3
            op, _, a1, a2, a3, a4, a5, a6 = words[word : word + 8].tolist()
        d.count_hypercall(op)
        if op == Hypercall.MULTICALL:
            result = -Errno.EINVAL
        else:
            result = dispatch(d, v, op, a1, a2, a3, a4, a5, a6)
        rest = d.take_continuation()
        if rest is not None:
            access.write(at + 16, b"".join((a & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little") for a in rest[1:]))
            return d.continue_with(Hypercall.MULTICALL, at, (end - at) // _MULTICALL_ENTRY)
        access.write_u64(at + 8, result & 0xFFFFFFFFFFFFFFFF)
        if d.shutdown is not None:
            break
    return 0
