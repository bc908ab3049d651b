# SPDX-License-Identifier: GPL-2.0-only
"""The doorbell page between a domain's loop and its host: an inbox and an outbox of ports, and the domain's state.

The page is shared memory of two processes (or of two threads, where a domain runs inside the host). The bitmaps are
changed by C atomics only (engine/native/link.c, which also says why no notification is lost); everything else in the
page has one writer, the domain's loop, and is read by the host without asking, so that `xl list` never waits for a
guest. Nothing in the page is trusted by the host: it checks every port and number it finds.

    0     inbox: summary word, 64 words of 64 ports      host rings, domain takes
    1024  outbox: the same                               domain rings, host takes
    2048  state: run state, pages, number of vCPUs, then 16 bytes for each of 64 vCPUs

Each bell goes with an eventfd, which its user holds: `Bell.ring` writes it, `Bell.take` empties it first. An inbox has
another word for whether the domain looks at the summary by itself, as a running guest does (engine/native/look.c):
nothing is written then.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Any, cast

import cffi

from xen_py.types import PAGE_SIZE, Port

NATIVE_LIBRARY = Path(__file__).parent / "engine" / "native" / "libxenpy.so"
MAX_PORTS = 4096
PUBLISHED_VCPUS = 64
"""vCPUs whose state fits into the page; more than that are simply not shown one by one."""

_OUTBOX = 1024
_STATE = 2048
_VCPUS = _STATE + 24
_FIRST_VCPU = 3
"""Its first word of two, in the words of the state."""


def open_native(declarations: str) -> tuple[cffi.FFI, Any]:
    """The project's C library with these declarations: what every Python module with a C half starts from."""
    ffi = cffi.FFI()
    ffi.cdef(declarations)
    try:
        return ffi, ffi.dlopen(str(NATIVE_LIBRARY))
    except OSError as error:
        raise ImportError(f"xen-py's native library is missing ({error}); build it with `make native`") from error


_ffi, _native = open_native("""
    int xenpy_bell_ring(void *bell, uint32_t port);
    int xenpy_bell_take(void *bell, uint32_t *ports);
    int xenpy_bell_waiting(const void *bell);
    int xenpy_bell_called(void *bell);
    void xenpy_bell_call(void *bell);
    void xenpy_fence(void);
    void xenpy_fence_all(void);
    int xenpy_join_fences(void);
""")

fence = _native.xenpy_fence
"""A full memory fence."""
fence_all = _native.xenpy_fence_all
"""One for emulated guests too, whose own are none: before a decision by what such a guest has stored."""
join_fences = _native.xenpy_join_fences
"""Have `fence_all` of any process be one for the threads of this one, from now on. 0, or -1 where the kernel cannot."""


class RunState(IntEnum):
    """What the domain's loop is doing."""

    STARTING = 0
    RUNNING = 1
    BLOCKED = 2
    PAUSED = 3
    OVER = 4


class Bell:
    """One direction. `ring` may be called by any thread, `take` by the receiver's one thread."""

    def __init__(self, words: memoryview, eventfd: int) -> None:
        self._buffer = _ffi.from_buffer("char[]", words, require_writable=True)
        self._bell = _ffi.cast("void *", self._buffer)
        self._ports = _ffi.new("uint32_t[]", MAX_PORTS)
        self.words = words
        """Its part of the page, for native code."""
        self.eventfd = eventfd
        self.address = self._bell
        """For native code that rings it."""

    def ring(self, port: Port) -> None:
        """Mark `port` and wake the other side, unless it is still to come for an earlier mark, or looks by itself."""
        if _native.xenpy_bell_ring(self._bell, port):
            os.eventfd_write(self.eventfd, 1)

    def take(self) -> list[Port]:
        """Every marked port, after emptying the eventfd: marks made later will make it readable again."""
        self.quiet()
        if not _native.xenpy_bell_waiting(self._bell):
            return []
        return cast(list[Port], _ffi.unpack(self._ports, _native.xenpy_bell_take(self._bell, self._ports)))

    def quiet(self) -> None:
        """Empty the eventfd without looking at the marks."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.eventfd)

    def poke(self) -> None:
        """Wake the other side without a mark: there is something for it elsewhere."""
        _native.xenpy_bell_call(self._bell)
        os.eventfd_write(self.eventfd, 1)

    def called(self) -> bool:
        """Whether there has been a `poke` since this was last asked. To be asked after `take`, which may have emptied
        the eventfd that told of it."""
        return bool(_native.xenpy_bell_called(self._bell))

    def waiting(self) -> bool:
        return bool(_native.xenpy_bell_waiting(self._bell))

    def close(self) -> None:
        _ffi.release(self._buffer)
        self.words.release()


class Doorbell:
    """The mapped page with its two bells. Takes over the descriptors, `close` closes them."""

    def __init__(self, page_fd: int, inbox_fd: int, outbox_fd: int) -> None:
        self.fds = (page_fd, inbox_fd, outbox_fd)
        self._map = mmap.mmap(page_fd, PAGE_SIZE)
        view = memoryview(self._map)
        self.inbox = Bell(view[:_OUTBOX], inbox_fd)
        self.outbox = Bell(view[_OUTBOX:_STATE], outbox_fd)
        self.published = view[_STATE : _VCPUS + 16 * PUBLISHED_VCPUS].cast("Q")
        """The state, in words; written by the domain's loop and, while it sleeps in native code, there (events.c)."""
        view.release()

    @classmethod
    def create(cls) -> Doorbell:
        fds: list[int] = []
        try:
            fds.append(os.memfd_create("xen-py doorbell", os.MFD_CLOEXEC))
            os.ftruncate(fds[0], PAGE_SIZE)
            fds.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            fds.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            return cls(*fds)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise

    # the domain's loop writes

    def publish_state(self, state: RunState) -> None:
        self.published[0] = state

    def publish(self, pages: int, vcpus: list[tuple[bool, bool, int]]) -> None:
        """What `xl list` and `xl vcpu-list` show: pages owned; for each vCPU online, blocked, nanoseconds run."""
        words = self.published
        words[1] = pages
        shown = vcpus[:PUBLISHED_VCPUS]
        for n, (online, blocked, cpu_time_ns) in enumerate(shown):
            words[_FIRST_VCPU + 2 * n] = online | blocked << 1
            words[_FIRST_VCPU + 2 * n + 1] = cpu_time_ns
        words[2] = len(shown)

    # the host reads

    @property
    def state(self) -> RunState:
        number = self.published[0]
        return RunState(number) if number in RunState._value2member_map_ else RunState.RUNNING

    @property
    def pages(self) -> int:
        return self.published[1]

    def vcpus(self) -> list[tuple[bool, bool, int]]:
        """For each vCPU published: online, blocked, nanoseconds run."""
        count = min(self.published[2], PUBLISHED_VCPUS)
        pairs = self.published[_FIRST_VCPU : _FIRST_VCPU + 2 * count].tolist()
        return [(bool(flags & 1), bool(flags & 2), ns) for flags, ns in zip(pairs[::2], pairs[1::2], strict=True)]

    def close(self) -> None:
        """Idempotent."""
        if not self.fds:
            return
        self.inbox.close()
        self.outbox.close()
        self.published.release()
        self._map.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = ()  # type: ignore[assignment]
