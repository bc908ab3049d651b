# SPDX-License-Identifier: GPL-2.0-only
"""A domain's memory: one sparse memfd with RAM, shared_info and the grant frames in it.

The frame numbers are private to the domain (docs/architecture.md): frame index i of the file is machine
frame `mfn_base + i`, and every machine frame lies above the largest PFN, so a guest (or we) that takes one
for the other shows at once. All of it ends below 2**28, because the emulator faults past 40 physical bits.

Owner: the domain's process; the host maps the same file. Reads and writes through `bytes`, `words` and
`frame()` are plain memory accesses and may be made by any thread, but nobody read-modify-writes a word that
the guest also changes while that guest runs. A write from outside does not drop code the engine has
translated from the frame: whoever writes frames that were mapped executable must say so to the engine.

Behind its own frames a domain's process may keep *room* for those of others (`xen_py.foreign`): other memory files
appear there, so that one base and one index find every frame, whoever it belongs to. Nothing is at the empty places:
to touch them is to crash, and nothing does, because no page-table entry names them. Where something has been, there is
memory that nobody else sees: a guest written in Python may have kept a view of it.

Only `create`, `from_fd`, `place`, `clear` and `close` change the object itself; its owner's thread calls them.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import cffi

from xen_py.types import PAGE_SHIFT, PAGE_SIZE, Mfn

GRANT_FRAMES = 64
"""Grant table frames a domain may have (Xen's default `gnttab_max_frames`)."""
SPARE_FRAMES = 15
"""Frames after the grant table that belong to no table: room for pages the hypervisor gives out later."""
SPECIAL_FRAMES = 1 + GRANT_FRAMES + SPARE_FRAMES

MFN_BASE_STEP = 0x10000
"""`mfn_base` is a multiple of this (256 MiB), so that MFNs are easily told from PFNs by eye."""
MFN_LIMIT = 1 << 28
_MARKS = 6
"""Bytes of marks for each frame."""

_ffi = cffi.FFI()
_ffi.cdef(
    """
void *mmap(void *addr, size_t length, int prot, int flags, int fd, int64_t offset);
int munmap(void *addr, size_t length);
int madvise(void *addr, size_t length, int advice);
"""
)
_libc: Any = _ffi.dlopen(None)
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_NOTHING = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


@dataclass(frozen=True)
class MemoryGeometry:
    """Where a domain's frames are. Plain data, goes over the link.

    The frame index of an MFN is `mfn - mfn_base`, its file offset `index * 4096`. RAM comes first, then the
    special frames: one shared_info, GRANT_FRAMES grant table frames, SPARE_FRAMES spare ones.
    """

    max_pages: int
    """RAM frames the domain may ever own (maxmem)."""
    mfn_base: int
    nr_frames: int

    def __post_init__(self) -> None:
        if self.max_pages <= 0 or self.nr_frames < self.max_pages + SPECIAL_FRAMES:
            raise ValueError(f"memory of {self.nr_frames} frames has no room for {self.max_pages} pages of RAM")
        if self.mfn_base <= self.max_pages or self.mfn_base + self.nr_frames > MFN_LIMIT:
            raise ValueError(f"{self.max_pages} pages of RAM do not fit below machine frame {MFN_LIMIT:#x}")

    @classmethod
    def for_domain(cls, max_pages: int) -> MemoryGeometry:
        """The geometry of a domain with at most `max_pages` of RAM; ValueError if there can be no such domain."""
        mfn_base = (max_pages // MFN_BASE_STEP + 1) * MFN_BASE_STEP
        return cls(max_pages, mfn_base, max_pages + SPECIAL_FRAMES)

    @property
    def size(self) -> int:
        """Bytes of all frames."""
        return self.nr_frames << PAGE_SHIFT

    @property
    def file_size(self) -> int:
        """The length of the memory file: the frames, then marks of six bytes for each of them (`xen_py.outside`)."""
        return self.size + (-(-_MARKS * self.nr_frames >> PAGE_SHIFT) << PAGE_SHIFT)

    @property
    def shared_info_mfn(self) -> Mfn:
        return Mfn(self.mfn_base + self.max_pages)

    def grant_mfn(self, n: int) -> Mfn:
        """Frame n of the grant table."""
        if not 0 <= n < GRANT_FRAMES:
            raise IndexError(f"grant table frame {n} of {GRANT_FRAMES}")
        return Mfn(self.mfn_base + self.max_pages + 1 + n)

    def spare_mfn(self, n: int) -> Mfn:
        """Spare special frame n."""
        if not 0 <= n < SPARE_FRAMES:
            raise IndexError(f"spare frame {n} of {SPARE_FRAMES}")
        return Mfn(self.mfn_base + self.max_pages + 1 + GRANT_FRAMES + n)

    def index(self, mfn: Mfn) -> int:
        """The frame index of `mfn`; IndexError outside the domain."""
        index = mfn - self.mfn_base
        if not 0 <= index < self.nr_frames:
            raise IndexError(f"MFN {mfn:#x} is not one of this domain's")
        return index

    def to_plain(self) -> dict[str, int]:
        return {"max_pages": self.max_pages, "mfn_base": self.mfn_base, "nr_frames": self.nr_frames}

    @classmethod
    def from_plain(cls, plain: dict[str, int]) -> MemoryGeometry:
        return cls(plain["max_pages"], plain["mfn_base"], plain["nr_frames"])


@dataclass(frozen=True)
class MemoryStatistics:
    frames: int
    touched_bytes: int


class GuestMemory:
    """All memory of one domain, mapped. See the module for who may touch it."""

    geometry: MemoryGeometry
    fd: int
    """The memfd; this object closes it."""
    bytes: memoryview
    """All of it, format 'B', writable, with the room behind it."""
    words: memoryview
    """The same memory, format 'Q'."""
    code_seen: memoryview
    """A byte for each frame, not 0 where translated code may exist of it: who writes the frame from outside and finds
    0 afterwards need not say so. Only the domain's process writes here."""
    barred: memoryview
    """A byte for each frame, not 0 where nobody outside may write without asking. Only the domain's process does."""
    writers: memoryview
    """For each frame, how many outside are writing there now; format 'I'. Only the host writes here."""
    room: int
    """Frames of room there are behind the domain's own."""

    def __init__(self, fd: int, geometry: MemoryGeometry, room: int = 0) -> None:
        size = os.fstat(fd).st_size
        if size != geometry.file_size:
            raise ValueError(f"memory file of {size} bytes, but the domain's geometry has {geometry.file_size}")
        self.geometry = geometry
        self.room = room
        whole = geometry.size + (room << PAGE_SHIFT)
        address = _mapped(_libc.mmap(_far_away() if room else _ffi.NULL, whole, 0, _NOTHING, -1, 0))
        # unmapped when the last view has gone, whoever holds it
        self._start: Any = _ffi.gc(_ffi.cast("char *", address), lambda start: _libc.munmap(start, whole))
        _mapped(_libc.mmap(self._start, geometry.size, _READ_WRITE, mmap.MAP_SHARED | _MAP_FIXED, fd, 0))
        self._marks = mmap.mmap(fd, geometry.file_size - geometry.size, offset=geometry.size)
        frames = geometry.nr_frames
        with memoryview(self._marks) as marks:
            self.writers = marks[: 4 * frames].cast("I")
            self.code_seen = marks[4 * frames : 5 * frames]
            self.barred = marks[5 * frames : 6 * frames]
        self.fd = fd
        self.bytes = memoryview(_ffi.buffer(self._start, whole))
        self.words = self.bytes.cast("Q")

    @classmethod
    def create(cls, geometry: MemoryGeometry, name: str = "xen-py guest", room: int = 0) -> Self:
        """New sparse memory, all zero; it can be neither shrunk nor grown behind anyone's back."""
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, geometry.file_size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            return cls(fd, geometry, room)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def from_fd(cls, fd: int, geometry: MemoryGeometry, room: int = 0) -> Self:
        """Map memory that another process created; takes over `fd` (not on failure)."""
        return cls(fd, geometry, room)

    @property
    def own(self) -> memoryview:
        """The domain's own memory, without the room."""
        return self.bytes[: self.geometry.size]

    def place(self, first: int, fd: int, frames: int) -> memoryview:
        """Have another memory file's first frames in the room, from frame index `first` on; the bytes there.

        `fd` stays the caller's. OSError when the kernel cannot.
        """
        at, size = self._place(first, frames)
        _mapped(_libc.mmap(self._start + at, size, _READ_WRITE, mmap.MAP_SHARED | _MAP_FIXED, fd, 0))
        return self.bytes[at : at + size]

    def clear(self, first: int, frames: int) -> None:
        """Take that away again; who still looks there sees zeros."""
        at, size = self._place(first, frames)
        _mapped(_libc.mmap(self._start + at, size, _READ_WRITE, _NOTHING | _MAP_FIXED, -1, 0))

    def _place(self, first: int, frames: int) -> tuple[int, int]:
        """Offset and bytes of a piece of the room."""
        own = self.geometry.nr_frames
        if frames <= 0 or first < own or first + frames > own + self.room:
            raise IndexError(f"frames {first}+{frames} are not in the room of {self.room} frames behind {own}")
        return first << PAGE_SHIFT, frames << PAGE_SHIFT

    def frame(self, mfn: Mfn) -> memoryview:
        """The 4096 bytes of a frame, writable; IndexError outside the domain."""
        offset = self.geometry.index(mfn) << PAGE_SHIFT
        return self.bytes[offset : offset + PAGE_SIZE]

    def punch(self, mfn: Mfn) -> None:
        """Give a frame's memory back to the host; it reads as zero from now on, in every process."""
        _libc.madvise(self._start + (self.geometry.index(mfn) << PAGE_SHIFT), PAGE_SIZE, mmap.MADV_REMOVE)

    def touched_bytes(self) -> int:
        """Host memory that the file really holds."""
        return os.fstat(self.fd).st_blocks * 512

    def statistics(self) -> MemoryStatistics:
        return MemoryStatistics(self.geometry.nr_frames, self.touched_bytes())

    def close(self) -> None:
        """Close the file and unmap it; idempotent.

        Views that others still hold stay valid: the mapping then goes with the last of them.
        """
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        self._start = None
        for held in (self.words, self.bytes, self.writers, self.code_seen, self.barred):
            with suppress(BufferError):
                held.release()
        with suppress(BufferError):
            self._marks.close()


def _far_away() -> Any:
    """A random place for a mapping of 64 GiB: not between the libraries and what is mapped later.

    The translator's code comes to lie there, and calls functions of the libraries by the short form if they are within
    2 GiB.
    """
    return _ffi.cast("void *", (1 << 44) + (int.from_bytes(os.urandom(4), "little") << PAGE_SHIFT))


def _mapped(address: Any) -> Any:
    """What mmap gave, if it did."""
    if int(_ffi.cast("intptr_t", address)) == -1:
        raise OSError(_ffi.errno, os.strerror(_ffi.errno), "mmap of guest memory")
    return address
