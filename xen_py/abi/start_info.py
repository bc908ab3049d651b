# SPDX-License-Identifier: GPL-2.0-only
"""`struct start_info`: the page a 64-bit PV kernel finds in RSI. Source: public/xen.h.

Pure: packs and unpacks bytes; anyone may use it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag

MAGIC = "xen-3.0-x86_64"
MAX_GUEST_CMDLINE = 1024
"""Room for the command line with its final NUL."""

_FORMAT = struct.Struct("<32sQQI4xQI4xQI4xQQQQQ1024sQQ")
SIZE = _FORMAT.size


class StartFlags(IntFlag):
    """`SIF_*`."""

    NONE = 0
    PRIVILEGED = 1 << 0
    INITDOMAIN = 1 << 1
    MULTIBOOT_MOD = 1 << 2
    MOD_START_PFN = 1 << 3
    """mod_start is a PFN, and the ramdisk is not mapped."""
    VIRT_P2M_4TOOLS = 1 << 4
    """The tools can follow a virtually mapped p2m list when they save the domain."""


@dataclass(frozen=True)
class StartInfo:
    """The fields in their order. `shared_info` is a machine address, `*_mfn` are machine frame numbers."""

    magic: bytes
    nr_pages: int
    shared_info: int
    flags: int
    store_mfn: int
    store_evtchn: int
    console_mfn: int
    console_evtchn: int
    pt_base: int
    nr_pt_frames: int
    mfn_list: int
    mod_start: int
    mod_len: int
    cmd_line: bytes
    first_p2m_pfn: int
    nr_p2m_frames: int

    def pack(self) -> bytes:
        if len(self.cmd_line) >= MAX_GUEST_CMDLINE:
            raise ValueError(f"command line of {len(self.cmd_line)} bytes, at most {MAX_GUEST_CMDLINE - 1} fit")
        return _FORMAT.pack(
            self.magic,
            self.nr_pages,
            self.shared_info,
            self.flags,
            self.store_mfn,
            self.store_evtchn,
            self.console_mfn,
            self.console_evtchn,
            self.pt_base,
            self.nr_pt_frames,
            self.mfn_list,
            self.mod_start,
            self.mod_len,
            self.cmd_line,
            self.first_p2m_pfn,
            self.nr_p2m_frames,
        )

    @classmethod
    def unpack(cls, page: bytes | memoryview) -> StartInfo:
        fields = list(_FORMAT.unpack_from(page))
        fields[0] = fields[0].split(b"\0", 1)[0]
        fields[13] = fields[13].split(b"\0", 1)[0]
        return cls(*fields)
