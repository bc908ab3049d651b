# SPDX-License-Identifier: GPL-2.0-only
"""The kernel image of a guest that has none: a program runs in place of instructions (`xen_py.spec.Program`).

Its domain is built like any other, with start_info, page tables and the pages of store and console; only the kernel's
segment is a single empty page. Pure.
"""

from __future__ import annotations

from dom0.builder.kernel import KernelImage
from dom0.builder.notes import XenNotes
from xen_py.spec import Program
from xen_py.types import PAGE_SIZE

VIRT_BASE = 0xFFFFFFFF80000000
"""Where a program's domain is mapped; Linux and small kernels have the same."""


def program_image(program: Program) -> KernelImage:
    """What `build` puts into the domain of a program."""
    return KernelImage(
        name=f"{program.language}:{program.target}",
        packing=f"{program.language} program",
        data=b"",
        segments=(),
        code=(),
        start=0,
        end=PAGE_SIZE,
        virt_base=VIRT_BASE,
        entry=VIRT_BASE,
        notes=XenNotes(entry=VIRT_BASE, virt_base=VIRT_BASE, guest_os=program.language, loader="generic"),
    )
