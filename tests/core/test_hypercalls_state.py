# SPDX-License-Identifier: GPL-2.0-only
"""Calls that set up a vCPU or ask about the hypervisor: the good case, bad pointers, bad values, with Xen's errno."""

from __future__ import annotations

import struct

import pytest

from tests.core import reference
from tests.core.machine import CODE, DATA, FREE, L1, PAGES, SYSCALL, VA, Machine
from xen_py import exits
from xen_py.abi.xen import DOMID_SELF, Hypercall, ShutdownReason
from xen_py.engine import R
from xen_py.spec import Blocked, Kicked, Shutdown
from xen_py.types import Errno, Port

BAD_POINTERS = (0, VA(PAGES + 4), 0xFFFF800000000000, 0xFFFF87FFFFFFFFF8, 0x8000000000000000, (1 << 64) - 1)
NOT_CANONICAL = 1 << 62
EINVAL, EFAULT, EPERM, ENOSYS, ENOENT, ENODEV = (
    *(-Errno.EINVAL, -Errno.EFAULT, -Errno.EPERM, -Errno.ENOSYS, -Errno.ENOENT, -Errno.ENODEV),
)
H = Hypercall


@pytest.mark.parametrize("pointer", BAD_POINTERS)
@pytest.mark.parametrize(
    ("number", "args"),
    [
        (H.MMU_UPDATE, ("pointer", 1, 0, DOMID_SELF)),
        (H.MMUEXT_OP, ("pointer", 1, 0, DOMID_SELF)),
        (H.SET_GDT, ("pointer", 1)),
        (H.MULTICALL, ("pointer", 1)),
        (H.CONSOLE_IO, (0, 4, "pointer")),
        (H.XEN_VERSION, (1, "pointer")),
        (H.XEN_VERSION, (2, "pointer")),
        (H.XEN_VERSION, (3, "pointer")),
        (H.XEN_VERSION, (5, "pointer")),
        (H.XEN_VERSION, (6, "pointer")),
        (H.XEN_VERSION, (8, "pointer")),
        (H.CALLBACK_OP, (0, "pointer")),
        (H.CALLBACK_OP, (1, "pointer")),
        (H.NMI_OP, (0, "pointer")),
        (H.SCHED_OP, (2, "pointer")),
        (H.SCHED_OP, (3, "pointer")),
        (H.PHYSDEV_OP, (6, "pointer")),
        (H.PHYSDEV_OP, (7, "pointer")),
        (H.GRANT_TABLE_OP, (2, "pointer", 1)),
        (H.GRANT_TABLE_OP, (6, "pointer", 1)),
        (H.GRANT_TABLE_OP, (8, "pointer", 1)),
        (H.GRANT_TABLE_OP, (10, "pointer", 1)),
        (H.MEMORY_OP, (3, "pointer")),
        (H.MEMORY_OP, (4, "pointer")),
        (H.MEMORY_OP, (9, "pointer")),
        (H.MEMORY_OP, (12, "pointer")),
        (H.VCPU_OP, (4, 0, "pointer")),
        (H.VCPU_OP, (5, 0, "pointer")),
        (H.VCPU_OP, (6, 0, "pointer")),
        (H.VCPU_OP, (8, 0, "pointer")),
        (H.VCPU_OP, (10, 0, "pointer")),
        (H.VCPU_OP, (13, 0, "pointer")),
    ],
)
def test_bad_pointer(machine: Machine, number: int, args: tuple[int | str, ...], pointer: int) -> None:
    assert machine.call(number, *(pointer if a == "pointer" else int(a) for a in args)) == EFAULT
    reference.check(machine.domain)


def test_trap_table(machine: Machine) -> None:
    v = machine.domain.vcpus[0]
    entry = struct.Struct("<BBHxxxxQ")
    machine.put(DATA, entry.pack(14, 4, 0xE030, 0x5000) + entry.pack(3, 3, 0xE033, 0x6000) + bytes(16))
    assert machine.call(H.SET_TRAP_TABLE, VA(DATA)) == 0
    assert (v.traps[14].address, v.traps[14].cs, v.traps[14].flags) == (0x5000, 0xE033, 4)
    assert v.traps[3].address == 0x6000
    machine.put(DATA, entry.pack(5, 0, 0xE033, 0x7000) + entry.pack(6, 0, 0xE033, NOT_CANONICAL))
    assert machine.call(H.SET_TRAP_TABLE, VA(DATA)) == EINVAL
    assert v.traps[5].address == 0x7000  # those before the bad one stand
    assert machine.call(H.SET_TRAP_TABLE, VA(PAGES + 2)) == EFAULT
    assert machine.call(H.SET_TRAP_TABLE, 0) == 0
    assert all(v.traps[n].address == 0 for n in range(256))


def test_callbacks(machine: Machine) -> None:
    v = machine.domain.vcpus[0]

    def register(kind: int, flags: int, address: int) -> int:
        machine.put(DATA, struct.pack("<HHxxxxQ", kind, flags, address))
        return machine.call(H.CALLBACK_OP, 0, VA(DATA))

    for kind, address, masks in ((0, "event_callback", ""), (1, "failsafe_callback", "failsafe_masks_events"),
                                 (2, "syscall_callback", "syscall_masks_events"),
                                 (5, "sysenter_callback", "sysenter_masks_events"),
                                 (7, "syscall32_callback", "syscall32_masks_events")):  # fmt: skip
        assert register(kind, 1, 0x1000 + kind) == 0
        assert getattr(v, address) == 0x1000 + kind
        assert not masks or getattr(v, masks)
        assert register(kind, 0, NOT_CANONICAL) == EINVAL
        assert machine.call(H.CALLBACK_OP, 1, VA(DATA)) == EINVAL  # none of these can be taken back
    assert register(4, 0, 0x4000) == 0
    assert v.traps[2].address == 0x4000
    assert machine.call(H.CALLBACK_OP, 1, VA(DATA)) == 0
    assert v.traps[2].address == 0
    assert register(3, 0, 0) == ENOSYS
    assert machine.call(H.CALLBACK_OP, 2, VA(DATA)) == ENOSYS
    assert machine.call(H.SET_CALLBACKS, 0x11, NOT_CANONICAL, 0x33) == 0
    assert (v.event_callback, v.failsafe_callback, v.syscall_callback) == (0x11, 0x1001, 0x33)


def test_gdt(machine: Machine) -> None:
    d, v = machine.domain, machine.domain.vcpus[0]
    machine.words(FREE)[:] = memoryview(bytes(4096)).cast("Q")
    machine.words(FREE)[3] = 0x00AF9B000000FFFF  # ring 0, which becomes ring 3
    machine.put(DATA, struct.pack("<2Q", machine.mfn(FREE), machine.mfn(FREE + 1)))
    assert machine.call(H.SET_GDT, VA(DATA), 512) == EINVAL  # mapped writable
    machine.read_only(FREE)
    assert machine.call(H.SET_GDT, VA(DATA), 513) == EINVAL  # the second is
    assert d.frames.type_counts[FREE] == 0
    assert machine.call(H.SET_GDT, VA(DATA), 512) == 0
    assert machine.words(FREE)[3] == 0x00AFFB000000FFFF
    assert d.descriptor(v, 3 << 3) == 0x00AFFB000000FFFF
    reference.check(d)
    assert machine.call(H.UPDATE_VA_MAPPING, VA(FREE), machine.entry(FREE, 0x63), 2) == -Errno.EBUSY
    address = machine.mfn(FREE) << 12
    assert machine.call(H.UPDATE_DESCRIPTOR, address + 32, 0x00CF93000000FFFF) == 0
    assert machine.words(FREE)[4] == 0x00CFF3000000FFFF
    assert machine.call(H.UPDATE_DESCRIPTOR, address + 33, 0) == EINVAL
    assert machine.call(H.UPDATE_DESCRIPTOR, address + 40, 0x0000890000000067) == EINVAL  # a TSS
    assert machine.call(H.UPDATE_DESCRIPTOR, machine.mfn(L1) << 12, 0) == EINVAL
    assert machine.call(H.UPDATE_DESCRIPTOR, 0x123000, 0) == EINVAL
    assert machine.call(H.UPDATE_DESCRIPTOR, machine.mfn(FREE + 5) << 12, 0) == 0
    assert machine.call(H.SET_GDT, VA(DATA), 14 * 512 + 1) == EINVAL
    assert machine.call(H.SET_GDT, VA(DATA), 0) == 0
    assert d.frames.type_counts[FREE] == 0
    reference.check(d)


def test_ldt(machine: Machine) -> None:
    d, v = machine.domain, machine.domain.vcpus[0]
    machine.words(FREE)[1] = 0x00CFF3000000FFFF
    machine.read_only(FREE)
    for base, entries in ((VA(FREE, 8), 4), (VA(FREE), 8193), (NOT_CANONICAL << 1, 4), (0xFFFF800000000000, 4)):
        assert machine.mmuext(13, base, entries) == EINVAL
    assert machine.mmuext(13, VA(FREE), 4) == 0
    assert d.descriptor(v, 1 << 3 | 4) == 0x00CFF3000000FFFF
    assert d.descriptor(v, 4 << 3 | 4) == 0
    reference.check(d)
    assert machine.mmuext(13, 1234567, 0) == 0
    assert (v.ldt_base, v.ldt_entries, v.ldt_frames) == (0, 0, {})
    reference.check(d)


@pytest.mark.parametrize(
    ("n", "value", "result", "shown"),
    [
        (0, 0x1234, 0, 0x1234),
        (3, 0xFFFFFFFF81000000, 0, 0xFFFFFFFF81000000),
        (1, NOT_CANONICAL, EPERM, 0),
        (1, 0xFFFF800000000000, EPERM, 0),
        (6, 0, 0, 0xFFFF0FF0),
        (6, 1 << 32, EINVAL, 0xFFFF0FF0),
        (7, 0x2000, EPERM, 0x400),
        (7, 1 << 40, EINVAL, 0x400),
        (7, 0x20003, EPERM, 0x400),  # an I/O breakpoint without CR4.DE
        (8, 0, ENODEV, ENODEV),
        (0xFFFFFFFF, 0, ENODEV, ENODEV),
    ],
)
def test_debug_registers(machine: Machine, n: int, value: int, result: int, shown: int) -> None:
    assert machine.call(H.SET_DEBUGREG, n, value) == result
    assert machine.call(H.GET_DEBUGREG, n) == shown


def test_segment_bases(machine: Machine) -> None:
    r, v = machine.regs, machine.domain.vcpus[0]
    assert [machine.call(H.SET_SEGMENT_BASE, which, 0x1000 + which) for which in range(3)] == [0, 0, 0]
    assert (r[R.FS_BASE], v.gs_base_user, r[R.GS_BASE]) == (0x1000, 0x1001, 0x1002)
    for which in range(3):
        assert machine.call(H.SET_SEGMENT_BASE, which, NOT_CANONICAL) == EINVAL
    assert machine.call(H.SET_SEGMENT_BASE, 4, 0) == EINVAL
    assert machine.call(H.SET_SEGMENT_BASE, 3, 0xE02B) == 0
    assert (r[R.GS], v.gs_base_user, r[R.GS_BASE]) == (0xE02B, 0, 0x1002)
    assert machine.call(H.SET_SEGMENT_BASE, 3, 0x1230) == 0
    assert r[R.GS] == 0


def test_small_state(machine: Machine) -> None:
    d, v = machine.domain, machine.domain.vcpus[0]
    assert machine.call(H.STACK_SWITCH, 0xE028, 0x12345678) == 0
    assert (v.kernel_ss, v.kernel_sp) == (0xE02B, 0x12345678)
    assert machine.call(H.FPU_TASKSWITCH, 1) == 0
    assert v.cr0_ts
    assert machine.call(H.FPU_TASKSWITCH, 1 << 32) == 0
    assert not v.cr0_ts
    for kind in (0, 1, 2, 3, 4, 5, 32):
        assert machine.call(H.VM_ASSIST, 0, kind) == 0
        assert d.vm_assist >> kind & 1
        assert machine.call(H.VM_ASSIST, 1, kind) == 0
        assert not d.vm_assist >> kind & 1
    assert machine.call(H.VM_ASSIST, 0, 6) == EINVAL
    assert machine.call(H.VM_ASSIST, 0, 64) == EINVAL
    assert machine.call(H.VM_ASSIST, 2, 0) == ENOSYS


def test_version(machine: Machine) -> None:
    assert machine.call(H.XEN_VERSION, 0) == 4 << 16 | 17
    assert machine.call(H.XEN_VERSION, 7) == 4096
    for command, expected in ((1, b".0-xenpy\0"), (3, b"xen-3.0-x86_64 \0"), (8, bytes(range(16)))):
        assert machine.call(H.XEN_VERSION, command, VA(DATA)) == 0
        assert machine.get(DATA, len(expected)) == expected
    machine.put(DATA, struct.pack("<II", 0, 0))
    assert machine.call(H.XEN_VERSION, 6, VA(DATA)) == 0
    without = machine.get(DATA, 8)[4]
    assert without & 1 << 5
    assert machine.call(H.VM_ASSIST, 0, 3) == 0
    assert machine.call(H.XEN_VERSION, 6, VA(DATA)) == 0
    assert machine.get(DATA, 8)[4] == without | 1 << 4
    machine.put(DATA, struct.pack("<II", 1, 0))
    assert machine.call(H.XEN_VERSION, 6, VA(DATA)) == EINVAL
    assert machine.call(H.XEN_VERSION, 10, VA(DATA)) == -Errno.ENODATA
    assert machine.call(H.XEN_VERSION, 99, VA(DATA)) == ENOSYS


def test_console(machine: Machine) -> None:
    machine.put(DATA, b"hello\n")
    assert machine.call(H.CONSOLE_IO, 0, 6, VA(DATA)) == 0
    assert machine.console == b"hello\n"
    assert machine.call(H.CONSOLE_IO, 1, 6, VA(DATA)) == 0
    assert machine.call(H.CONSOLE_IO, 9, 6, VA(DATA)) == ENOSYS
    assert machine.call(H.CONSOLE_IO, 0, 0xFFFFFFFF, VA(DATA)) == EINVAL


def test_grant_table(machine: Machine) -> None:
    geometry = machine.domain.spec.memory

    def setup(owner: int, frames: int, at: int = VA(DATA, 0x100), count: int = 1) -> tuple[int, int]:
        machine.put(DATA, struct.pack("<HxxIhxxxxxxQ", owner, frames, 99, at))
        result = machine.call(H.GRANT_TABLE_OP, 2, VA(DATA), count)
        return result, struct.unpack_from("<h", machine.get(DATA, 24), 8)[0]

    assert setup(DOMID_SELF, 2) == (0, 0)
    assert machine.get(DATA, 16, 0x100) == struct.pack("<2Q", geometry.grant_mfn(0), geometry.grant_mfn(1))
    assert setup(DOMID_SELF, 65) == (0, -1)
    assert setup(0, 1) == (0, -8)
    assert setup(2, 1) == (0, -8)
    assert setup(5, 1) == (0, -2)
    assert setup(DOMID_SELF, 1, count=2)[0] == EINVAL
    machine.put(DATA, struct.pack("<HxxIIhxx", DOMID_SELF, 0, 0, 99))
    assert machine.call(H.GRANT_TABLE_OP, 6, VA(DATA), 1) == 0
    assert struct.unpack("<HxxIIhxx", machine.get(DATA, 16))[1:] == (2, 64, 0)
    machine.put(DATA, struct.pack("<I", 1))
    assert machine.call(H.GRANT_TABLE_OP, 8, VA(DATA), 1) == 0
    machine.put(DATA, struct.pack("<I", 3))
    assert machine.call(H.GRANT_TABLE_OP, 8, VA(DATA), 1) == EINVAL
    assert machine.call(H.GRANT_TABLE_OP, 99, VA(DATA), 1) == ENOSYS


def test_shutdown(machine: Machine) -> None:
    for reason in ShutdownReason:
        machine.put(DATA, struct.pack("<I", reason))
        assert machine.call(H.SCHED_OP, 2, VA(DATA)) == 0
        step = machine.domain.step()
        assert isinstance(step, Shutdown)
        assert step.reason == reason
        machine.domain.shutdown = None
    assert machine.call(H.SCHED_OP, 99, VA(DATA)) == ENOSYS


def test_poll(machine: Machine) -> None:
    d, v = machine.domain, machine.domain.vcpus[0]
    port = Port(min(d.events.ports))
    machine.put(DATA, struct.pack("<I", port), 0x100)

    def poll(count: int, timeout: int) -> int:
        v.blocked = False
        machine.put(DATA, struct.pack("<QIxxxxQ", VA(DATA, 0x100), count, timeout))
        return machine.call(H.SCHED_OP, 3, VA(DATA))

    assert poll(129, 0) == EINVAL
    assert poll(1, machine.clock.now() - 1) == 0
    assert not v.blocked
    assert poll(1, machine.clock.now() + 1000) == 0
    assert v.blocked
    step = d.step()
    assert isinstance(step, Blocked)
    assert step.deadline_ns == machine.clock.now() + 1000
    machine.clock.advance(1000)
    d.run_timers()
    assert not v.blocked
    assert poll(1, 0) == 0
    assert v.blocked
    d.deliver(port)
    assert not v.blocked
    assert poll(1, 0) == 0
    assert not v.blocked  # it is pending
    machine.put(DATA, struct.pack("<I", 4096), 0x100)
    assert poll(1, 0) == EINVAL


def test_block_opens_the_mask(machine: Machine) -> None:
    d, v = machine.domain, machine.domain.vcpus[0]
    assert machine.call(H.SCHED_OP, 1) == 0
    assert machine.memory.bytes[v.info_offset + 1] == 0
    assert v.blocked
    d.deliver(Port(min(d.events.ports)))
    assert not v.blocked
    assert machine.call(H.SCHED_OP, 1) == 0
    assert not v.blocked  # an upcall is due


def test_yield_comes_back_to_the_caller(machine: Machine) -> None:
    machine.set_code(b"\x31\xff\xb8\x1d\0\0\0" + SYSCALL)
    assert isinstance(machine.domain.step(), Kicked)
    assert machine.regs[R.RAX] == 0
    assert machine.regs[R.RIP] == VA(CODE, 9)


def test_io_privilege(machine: Machine) -> None:
    v = machine.domain.vcpus[0]
    machine.put(DATA, struct.pack("<I", 1))
    assert machine.call(H.PHYSDEV_OP, 6, VA(DATA)) == 0
    assert v.iopl == 0x1000
    machine.put(DATA, struct.pack("<I", 4))
    assert machine.call(H.PHYSDEV_OP, 6, VA(DATA)) == EINVAL
    machine.put(DATA, struct.pack("<QI", VA(DATA, 64), 65537))
    assert machine.call(H.PHYSDEV_OP, 7, VA(DATA)) == EINVAL
    assert machine.call(H.PHYSDEV_OP, 13, VA(DATA)) == ENOSYS


def test_unknown_calls_are_logged_once(machine: Machine) -> None:
    for _ in range(3):
        for number in (H.HVM_OP, H.SYSCTL, H.DOMCTL, 48, 63, 1 << 40, (1 << 64) - 1):
            assert machine.call(number) == ENOSYS
    assert len(machine.messages) == len(set(machine.messages)) == 7


def test_a_guest_cannot_flood_the_log(machine: Machine) -> None:
    for number in range(1000, 3000):
        machine.call(number)
    assert len(machine.messages) < 300


def multicall(machine: Machine, *calls: tuple[int, ...]) -> tuple[int, list[int]]:
    entries = [(number, 99, *args, *[0] * (6 - len(args))) for number, *args in calls]
    data = b"".join(n.to_bytes(8, "little") for entry in entries for n in entry)
    machine.put(DATA, data)
    result = machine.call(H.MULTICALL, VA(DATA), len(calls))
    return result, [struct.unpack_from("<q", machine.get(DATA, len(data)), 64 * n + 8)[0] for n in range(len(calls))]


def test_multicall(machine: Machine) -> None:
    result, results = multicall(
        machine, (H.XEN_VERSION, 0), (H.STACK_SWITCH, 0, 0x77), (H.MULTICALL, VA(DATA), 1), (77,), (H.SET_GDT, 0, 1)
    )
    assert result == 0
    assert results == [4 << 16 | 17, 0, EINVAL, ENOSYS, EFAULT]
    assert machine.domain.vcpus[0].kernel_sp == 0x77


def test_long_calls_give_way_and_go_on(machine: Machine) -> None:
    """A kick ends a long call between two requests; the guest finds itself before the call for the rest."""
    r = machine.regs
    request = struct.pack("<2Q", machine.l1_pointer(FREE), machine.entry(FREE, 0x63 | 1 << 63))
    machine.put(FREE + 1, request * 256)
    machine.put(DATA, struct.pack("<8Q", H.MMU_UPDATE, 0, VA(FREE + 1), 256, VA(DATA, 0x100), DOMID_SELF, 0, 0))
    for number, first, second in ((H.MMU_UPDATE, VA(FREE + 1), 256), (H.MULTICALL, VA(DATA), 1)):
        machine.set_code(SYSCALL + b"\x90")
        machine.domain.engine.set_vcpu(None)
        r[R.RAX], r[R.RDI], r[R.RSI], r[R.RDX], r[R.R10] = number, first, second, VA(DATA, 0x100), DOMID_SELF
        machine.domain.engine.clear_kick()
        assert machine.domain.engine.run() == 1
        machine.domain.engine.kick()
        assert exits.on_syscall(machine.domain, machine.domain.vcpus[0]) is None
        machine.domain.engine.clear_kick()
        assert r[R.RIP] == VA(CODE)
        assert r[R.RAX] == number
        assert struct.unpack("<I", machine.get(DATA, 4, 0x100)) == (31,)
        machine.domain.engine.run()
        exits.on_syscall(machine.domain, machine.domain.vcpus[0])
        assert (r[R.RIP], r[R.RAX]) == (VA(CODE, 2), 0)
        assert struct.unpack("<I", machine.get(DATA, 4, 0x100)) == (256,)
