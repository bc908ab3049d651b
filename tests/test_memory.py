# SPDX-License-Identifier: GPL-2.0-only
"""Guest memory: geometry, sparseness, sharing between mappings, and closing with views about."""

from __future__ import annotations

import fcntl
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_py.memory import GRANT_FRAMES, MFN_LIMIT, SPARE_FRAMES, GuestMemory, MemoryGeometry
from xen_py.types import PAGE_SIZE, Mfn


@pytest.mark.parametrize(
    ("max_pages", "mfn_base"),
    [(1, 0x10000), (0x8000, 0x10000), (0xFFFF, 0x10000), (0x10000, 0x20000), (0x20001, 0x30000)],
)
def test_geometry(max_pages: int, mfn_base: int) -> None:
    geometry = MemoryGeometry.for_domain(max_pages)
    assert geometry.mfn_base == mfn_base
    assert geometry.shared_info_mfn == mfn_base + max_pages
    assert geometry.grant_mfn(0) == mfn_base + max_pages + 1
    assert geometry.spare_mfn(SPARE_FRAMES - 1) == mfn_base + geometry.nr_frames - 1
    assert geometry.grant_mfn(GRANT_FRAMES - 1) + 1 == geometry.spare_mfn(0)
    assert MemoryGeometry.from_plain(geometry.to_plain()) == geometry


@given(st.integers(1, MFN_LIMIT))
def test_geometry_keeps_its_promises(max_pages: int) -> None:
    try:
        geometry = MemoryGeometry.for_domain(max_pages)
    except ValueError:
        assert 2 * max_pages + 0x20000 > MFN_LIMIT
        return
    assert geometry.mfn_base > max_pages
    assert geometry.mfn_base + geometry.nr_frames <= MFN_LIMIT


@pytest.mark.parametrize("max_pages", [0, -1, MFN_LIMIT])
def test_impossible_geometry(max_pages: int) -> None:
    with pytest.raises(ValueError, match="pages of RAM"):
        MemoryGeometry.for_domain(max_pages)


def test_frames_outside_the_domain() -> None:
    geometry = MemoryGeometry.for_domain(16)
    memory = GuestMemory.create(geometry)
    for mfn in (0, geometry.mfn_base - 1, geometry.mfn_base + geometry.nr_frames, 1 << 60):
        with pytest.raises(IndexError):
            memory.frame(Mfn(mfn))
        with pytest.raises(IndexError):
            memory.punch(Mfn(mfn))
    for n in (-1, GRANT_FRAMES):
        with pytest.raises(IndexError):
            geometry.grant_mfn(n)
    memory.close()


def test_views_are_one_memory_and_two_mappings_share_it() -> None:
    geometry = MemoryGeometry.for_domain(64)
    memory = GuestMemory.create(geometry)
    other = GuestMemory.from_fd(os.dup(memory.fd), geometry)
    mfn = Mfn(geometry.mfn_base + 7)
    memory.frame(mfn)[8:16] = bytes(range(8))
    assert memory.words[7 * 512 + 1] == int.from_bytes(bytes(range(8)), "little")
    assert bytes(other.frame(mfn)[8:16]) == bytes(range(8))
    other.words[7 * 512] = 0x1122
    assert memory.bytes[7 * PAGE_SIZE] == 0x22
    other.close()
    memory.close()


def test_sparse_and_punched() -> None:
    geometry = MemoryGeometry.for_domain(1 << 20)
    memory = GuestMemory.create(geometry)
    assert memory.touched_bytes() == 0
    first, last = Mfn(geometry.mfn_base), Mfn(geometry.mfn_base + geometry.max_pages - 1)
    memory.frame(first)[0] = 1
    memory.frame(last)[0] = 1
    assert memory.statistics().touched_bytes == memory.touched_bytes() == 2 * PAGE_SIZE
    memory.punch(first)
    assert memory.touched_bytes() == PAGE_SIZE
    assert memory.frame(first)[0] == 0
    memory.close()


def test_sealed() -> None:
    memory = GuestMemory.create(MemoryGeometry.for_domain(1))
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fd, 0)
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fd, memory.geometry.file_size + PAGE_SIZE)
    assert fcntl.fcntl(memory.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    memory.close()


def test_wrong_size_is_refused() -> None:
    memory = GuestMemory.create(MemoryGeometry.for_domain(1))
    with pytest.raises(ValueError, match="geometry"):
        GuestMemory.from_fd(memory.fd, MemoryGeometry.for_domain(2))
    memory.close()


def test_close_with_views_held() -> None:
    memory = GuestMemory.create(MemoryGeometry.for_domain(16))
    frame = memory.frame(Mfn(memory.geometry.mfn_base))
    derived = memoryview(memory.bytes)
    memory.close()
    memory.close()
    frame[0] = 7
    assert derived[0] == 7
