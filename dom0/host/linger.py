# SPDX-License-Identifier: GPL-2.0-only
"""The host's loop stays awake for a moment before it sleeps, where what it waits for has lately come soon.

The rule and the reasons are those of engine/native/linger.h. While the loop lingers, guests that ring its bells write
no eventfd, and nobody who sends it something has a CPU to wake. What comes is then found by the loop's own epoll, as
ever.

Owner: the trio thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio

from xen_py.doorbell import Bell, open_native

_ffi, _native = open_native("""
    struct xenpy_linger { uint64_t limit, began; };
    int xenpy_linger_for(struct xenpy_linger *l, uint64_t most, int epoll_fd, void *const *bells, const int *eventfds,
        int count);
    void xenpy_linger_woke(struct xenpy_linger *l);
""")

MOST_BELLS = 64
"""With more guests than that the loop just sleeps."""


class Lingering(trio.abc.Instrument):
    """Of one loop; guests' outboxes come and go."""

    def __init__(self) -> None:
        self._linger: Any = _ffi.new("struct xenpy_linger *")
        self._bells: Any = _ffi.new("void *[]", MOST_BELLS)
        self._eventfds: Any = _ffi.new("int[]", MOST_BELLS)
        self._watched: list[Bell] = []
        self._epoll = _epoll_of_this_loop()
        self._sleeps = False
        self._lingered = 0

    def watch(self, bell: Bell) -> None:
        self._watched.append(bell)
        self._lay_out()

    def forget(self, bell: Bell) -> None:
        """Before it is closed."""
        self._watched.remove(bell)
        self._lay_out()

    def _lay_out(self) -> None:
        for number, bell in enumerate(self._watched[:MOST_BELLS]):
            self._bells[number], self._eventfds[number] = bell.address, bell.eventfd

    def statistics(self) -> dict[str, int]:
        """How often something came while the loop lingered, and how long it would now (nanoseconds)."""
        return {"lingered": self._lingered, "linger_ns": int(self._linger.limit)}

    # trio's hooks

    def before_io_wait(self, timeout: float) -> None:
        self._sleeps = False
        count = len(self._watched)
        if timeout <= 0 or self._epoll < 0 or not 0 < count <= MOST_BELLS:
            return
        most = int(min(timeout, 1) * 1e9)
        if _native.xenpy_linger_for(self._linger, most, self._epoll, self._bells, self._eventfds, count):
            self._lingered += 1
        else:
            self._sleeps = True

    def after_io_wait(self, timeout: float) -> None:
        if self._sleeps:
            _native.xenpy_linger_woke(self._linger)


_of_this_loop: trio.lowlevel.RunVar[Lingering | None] = trio.lowlevel.RunVar("lingering", None)


@contextmanager
def lingering_loop() -> Iterator[Lingering]:
    """Have this trio loop linger, for as long as the block lasts, over the bells that are `watched` meanwhile."""
    lingering = Lingering()
    token = _of_this_loop.set(lingering)
    trio.lowlevel.add_instrument(lingering)
    try:
        yield lingering
    finally:
        trio.lowlevel.remove_instrument(lingering)
        _of_this_loop.reset(token)


@contextmanager
def watched(bell: Bell) -> Iterator[None]:
    """The taker of a bell waits for it in this block, on its eventfd."""
    lingering = _of_this_loop.get()
    if lingering is None:
        yield
        return
    lingering.watch(bell)
    try:
        yield
    finally:
        lingering.forget(bell)


def _epoll_of_this_loop() -> int:
    """The descriptor that the loop sleeps on; -1 with a trio that keeps it elsewhere: the loop sleeps at once, then."""
    try:
        return int(trio._core._run.GLOBAL_RUN_CONTEXT.runner.io_manager._epoll.fileno())
    except AttributeError:
        return -1
