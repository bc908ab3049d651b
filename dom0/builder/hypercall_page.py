# SPDX-License-Identifier: GPL-2.0-only
"""The page of hypercall stubs that a kernel with a HYPERCALL_PAGE note calls into (32 bytes a call number).

Pure. A stub keeps RCX and R11, which `syscall` overwrites; the one for iret never returns and leaves the three
registers on the stack that are the first part of the iret frame (public/arch-x86/xen-x86_64.h).
"""

from __future__ import annotations

import struct

from xen_py.types import PAGE_SIZE

SLOT_SIZE = 32
HYPERVISOR_IRET = 23

_PUSH_RCX, _PUSH_R11, _PUSH_RAX = b"\x51", b"\x41\x53", b"\x50"
_POP_R11, _POP_RCX = b"\x41\x5b", b"\x59"
_SYSCALL, _RET, _INT3 = b"\x0f\x05", b"\xc3", b"\xcc"


def _stub(number: int) -> bytes:
    load = b"\xb8" + struct.pack("<I", number)
    if number == HYPERVISOR_IRET:
        code = _PUSH_RCX + _PUSH_R11 + _PUSH_RAX + load + _SYSCALL
    else:
        code = _PUSH_RCX + _PUSH_R11 + load + _SYSCALL + _POP_R11 + _POP_RCX + _RET
    return code.ljust(SLOT_SIZE, _INT3)


HYPERCALL_PAGE = b"".join(_stub(number) for number in range(PAGE_SIZE // SLOT_SIZE))
