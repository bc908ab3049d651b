# SPDX-License-Identifier: GPL-2.0-only
"""The payload of a Linux bzImage: the (usually compressed) vmlinux ELF inside it.

Pure. Source: Linux Documentation/arch/x86/boot.rst; every offset in the file is checked, it may say anything.
"""

from __future__ import annotations

import struct

from dom0.builder.errors import BuildError

_HEADER_END = 0x250
_MIN_VERSION = 0x0208
"""The boot protocol that brought payload_offset and payload_length (Linux 2.6.26)."""


def is_bzimage(data: bytes) -> bool:
    return data[0x202:0x206] == b"HdrS"


def payload(data: bytes, name: str) -> memoryview:
    """The payload of the bzImage `data`, as it lies in the file."""
    if len(data) < _HEADER_END:
        raise BuildError(f"{name}: bzImage of {len(data)} bytes is cut off in its header")
    (version,) = struct.unpack_from("<H", data, 0x206)
    if version < _MIN_VERSION:
        raise BuildError(f"{name}: boot protocol {version >> 8}.{version & 0xFF:02} is too old (2.08 is needed)")
    setup_sectors = data[0x1F1] or 4
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    if length == 0 or start + length > len(data):
        raise BuildError(f"{name}: bzImage is cut off: its kernel is at {start:#x}+{length:#x} of {len(data):#x} bytes")
    return memoryview(data)[start : start + length]
