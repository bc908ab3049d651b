# SPDX-License-Identifier: GPL-2.0-only
"""Writes to a domain's frames from outside, without asking its thread: the one place where the rules are.

A backend that has pinned a frame may write it, for the domain's thread has counted it as writable. Asking for a pin
costs a message and a turn of that thread, so native threads of the host (engine/native/blocks.c) write granted frames
without one. All that a guest's frames hold is its own, but three things are not to be written behind the back of the
domain's thread: frames it believes it has checked (page tables, descriptor tables), frames of the hypervisor's or of
nobody, and frames of which the engine has translated code. Three marks for each frame, in the domain's memory file
behind its frames (`GuestMemory`), settle that between the two; H is the host, D the domain's thread:

    barred      D   not 0: a table, a descriptor page, special, or not the domain's
    writers     H   how many are writing the frame now
    code_seen   D   not 0: translated code of it may exist

    H, to write                                    D, to make a table                D, to map as code
      writers += 1, a full fence                     barred = 1, a full fence          code_seen = 1, a full fence
      barred? then writers -= 1: no                  writers? wait until there is      translate
      write                                            none, or barred = 0: no
      a full fence, writers -= 1                     look at the frame, believe it
      code_seen? then tell D, before the guest       ...
        is told that the data is there               barred = 0, when it is none

Of H's mark and D's bar one is later, and who comes later sees the other's: either H does not write, or D waits for it.
So nothing of H's lands in a frame between D's look at it and the end of its life as a table. D's wait ends by itself:
H holds a mark only during one call of the kernel that moves data, and never while it waits for D. It is bounded all
the same, by PATIENCE, because a file may be slow; the guest then gets EBUSY. A guest that takes no frame back before
it has its response never waits at all.

For code, either H's data was there before D marked the frame, and is what gets translated, or H sees the mark, and
`HypervisorSpace.written_from_outside` drops what was translated before the guest can know of the data.

A frame that the guest gives up (balloon) is barred and not waited for: what a late write leaves there is the guest's
own data in memory that it may have, and is gone when the frame is given up again. What a guest that broke out of the
emulator does to the marks, it does to its own frames.

The host's half is engine/native/outside.h; this is the domain's, owned by its thread. tests/models/outside.pml is the
protocol for the spin checker.
"""

from __future__ import annotations

import time

from xen_py.doorbell import fence
from xen_py.memory import GuestMemory
from xen_py.types import Errno, XenError

PATIENCE = 1.0
"""Seconds that a table is waited for."""
_LOOK_EVERY = 50e-6


class OutsideWrites:
    """Which frames may be written from outside. See the module; all are barred at first."""

    def __init__(self, memory: GuestMemory) -> None:
        self._barred = memory.barred
        self._writers = memory.writers
        self.waits = 0
        """How often a writer was found where a table was to be."""
        self._barred[:] = b"\1" * len(self._barred)

    def turn_away(self, index: int) -> None:
        """Nobody is to begin any more."""
        self._barred[index] = 1

    def bar(self, index: int) -> None:
        """Return when nobody writes the frame and nobody will; EBUSY where one does for too long."""
        self._barred[index] = 1
        fence()
        if self._writers[index]:
            self._wait(index)

    def _wait(self, index: int) -> None:
        self.waits += 1
        deadline = time.monotonic() + PATIENCE
        while self._writers[index]:
            if time.monotonic() > deadline:
                self.admit(index)
                raise XenError(Errno.EBUSY, f"frame {index:#x} is being written by a backend")
            time.sleep(_LOOK_EVERY)
        fence()  # before we look at what was written

    def admit(self, index: int) -> None:
        """The frame is an ordinary one of the domain's."""
        fence()  # after the last look that relied on it
        self._barred[index] = 0
