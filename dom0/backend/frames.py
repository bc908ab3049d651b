# SPDX-License-Identifier: GPL-2.0-only
"""A guest's frames as native code of the host reaches them: struct xenpy_frames of engine/native/outside.h.

What may be done with them is said in `xen_py.outside`. Owner: the trio thread; what was made from it may be used by a
native thread for as long as the caller holds the views.
"""

from __future__ import annotations

from typing import Any

import cffi

from dom0.backend.grants import MOST_ENTRIES
from xen_py.memory import GuestMemory
from xen_py.types import PAGE_SIZE

FRAMES = """
    struct xenpy_frames {
        uint8_t *memory;
        uint32_t *writers;
        const uint8_t *code_seen, *barred;
        const uint64_t *grants;
        uint32_t grant_count, mfn_base, count;
    };
"""
"""For `open_native`."""


def native_frames(ffi: cffi.FFI, memory: GuestMemory, held: list[Any]) -> Any:
    """The structure; the views it needs go into `held`, for the caller to release."""
    geometry = memory.geometry
    views = (memory.own, memory.writers.cast("B"), memory.code_seen, memory.barred)
    bytes_, writers, code_seen, barred = found = [ffi.from_buffer("uint8_t[]", view) for view in views]
    held += found
    grants = bytes_ + geometry.index(geometry.grant_mfn(0)) * PAGE_SIZE
    frames = (bytes_, ffi.cast("uint32_t *", writers), code_seen, barred, ffi.cast("uint64_t *", grants))
    return ffi.new("struct xenpy_frames *", (*frames, MOST_ENTRIES, geometry.mfn_base, geometry.max_pages))
