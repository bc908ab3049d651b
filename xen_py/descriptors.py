# SPDX-License-Identifier: GPL-2.0-only
"""Which segment descriptors a guest may have (xen/arch/x86/pv/descriptor-tables.c). Pure functions.

Everything a guest can put in its GDT or LDT must not be more privileged than ring 3; system descriptors are refused
but for call gates, which are neutralised so that using one faults.
"""

from __future__ import annotations

from xen_py.abi.xen import FIRST_RESERVED_GDT_ENTRY, FLAT_KERNEL_CS
from xen_py.types import Errno, XenError

_PRESENT = 1 << 47
_SEGMENT = 1 << 44
_DPL_SHIFT = 45


def check_descriptor(raw: int) -> int:
    """The descriptor as it may stand in a table, its privilege fixed; EINVAL for one that may not."""
    if not raw & _PRESENT:
        return raw
    fixed = raw | 3 << _DPL_SHIFT
    if raw & _SEGMENT:
        return fixed
    kind = raw >> 40 & 0xF
    if kind == 0:  # the second half of a call gate
        return raw
    selector = raw >> 16 & 0xFFFF
    if kind != 0xC or not _gate_selector_okay(selector) or raw >> 32 & 0xFF:
        raise XenError(Errno.EINVAL, f"descriptor {raw:#018x} is of a kind a guest may not have")
    # DPL 0 makes every use of the gate fault; the guest's own DPL is kept in the selector.
    return (fixed & ~(3 << _DPL_SHIFT) & ~(0xFFFF << 16)) | ((selector & ~3) | 3) << 16


def _gate_selector_okay(selector: int) -> bool:
    return bool(selector >> 3 < FIRST_RESERVED_GDT_ENTRY or selector == FLAT_KERNEL_CS or selector & 4)


def check_page(words: memoryview) -> None:
    """Check and fix all 512 descriptors of a frame that becomes a descriptor table."""
    for n, raw in enumerate(words.tolist()):
        if raw:
            fixed = check_descriptor(raw)
            if fixed != raw:
                words[n] = fixed
