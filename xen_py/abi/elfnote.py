# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel image says about itself: ELF notes named "Xen". Source: public/elfnote.h.

Constants only; anyone may use them.
"""

from __future__ import annotations

from enum import IntEnum

NOTE_NAME = "Xen"
GUEST_SECTION = "__xen_guest"
"""Section of images older than the notes: one string of NAME=value pairs."""


class ElfNote(IntEnum):
    """Note types (`XEN_ELFNOTE_*`)."""

    INFO = 0
    ENTRY = 1
    HYPERCALL_PAGE = 2
    VIRT_BASE = 3
    PADDR_OFFSET = 4
    XEN_VERSION = 5
    GUEST_OS = 6
    GUEST_VERSION = 7
    LOADER = 8
    PAE_MODE = 9
    FEATURES = 10
    BSD_SYMTAB = 11
    HV_START_LOW = 12
    L1_MFN_VALID = 13
    SUSPEND_CANCEL = 14
    INIT_P2M = 15
    MOD_START_PFN = 16
    SUPPORTED_FEATURES = 17
    PHYS32_ENTRY = 18
    PHYS32_RELOC = 19


NUMERIC_NOTES = frozenset(
    {
        ElfNote.ENTRY,
        ElfNote.HYPERCALL_PAGE,
        ElfNote.VIRT_BASE,
        ElfNote.PADDR_OFFSET,
        ElfNote.HV_START_LOW,
        ElfNote.SUSPEND_CANCEL,
        ElfNote.INIT_P2M,
        ElfNote.MOD_START_PFN,
        ElfNote.SUPPORTED_FEATURES,
        ElfNote.PHYS32_ENTRY,
    }
)
STRING_NOTES = frozenset(
    {
        ElfNote.XEN_VERSION,
        ElfNote.GUEST_OS,
        ElfNote.GUEST_VERSION,
        ElfNote.LOADER,
        ElfNote.PAE_MODE,
        ElfNote.FEATURES,
        ElfNote.BSD_SYMTAB,
    }
)

FEATURE_NAMES = {
    "writable_page_tables": 0,
    "writable_descriptor_tables": 1,
    "auto_translated_physmap": 2,
    "supervisor_mode_kernel": 3,
    "pae_pgdir_above_4gb": 4,
    "hvm_callback_vector": 8,
    "dom0": 11,
}
"""Names a FEATURES note may hold, with their `XENFEAT_*` numbers (public/features.h)."""
