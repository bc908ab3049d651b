# SPDX-License-Identifier: GPL-2.0-only
"""Proof, on the emulator that is installed, that a stop leaves the guest between two instructions.

Unicorn as it comes takes a stop after any memory access and then does the access again (docs/engine.md), which breaks a
guest's locks without a trace. The engine prevents that by knowledge of Unicorn's inside, so each host asks once, before
its first guest runs, whether it still holds: a loop counts in memory with `lock inc` and in a register, another thread
stops it over and over, and at each stop both counts must agree. And no stop may be lost, wherever it comes.

Called by the process that VM processes are forked from; it owns the engine it makes for this.
"""

from __future__ import annotations

import mmap
import time

from xen_py.engine import EngineError, ExitKind, R
from xen_py.engine.unicorn import UnicornEngine

_MOST_STOPS, _FEWEST_STOPS = 1000, 50
"""Stops that came while the loop ran; those that found it not yet entered are not counted. An emulator that is
imprecise fails at nearly every one."""
_TIME_NS = 50_000_000
"""No more than the fewest stops when this much time has gone."""
_ITERATIONS = 1 << 31
"""Of one run, many seconds of them: the loop ends by itself only when a stop is lost."""
_LOOP = b"\xf0\x48\xff\x07\x48\xff\xc9\x75\xf7\x0f\x05"
"""lock incq (%rdi); dec %rcx; jnz to the start; syscall"""
_CODE_VA, _COUNT_VA = 0x400000, 0x401000
_PAGE = 4096
_TABLE, _NX = 7, 1 << 63


def verify_precise_stops() -> None:
    """Raise EngineError when stops are imprecise or lost with the emulator that is installed."""
    memory = mmap.mmap(-1, 6 * _PAGE)
    engine = UnicornEngine(1 << 20)
    try:
        _check(engine, memory)
    finally:
        engine.close()


def _check(engine: UnicornEngine, memory: mmap.mmap) -> None:
    view = memoryview(memory)
    words = view.cast("Q")
    for table in range(3):  # L4, L3, L2, each with its first entry; the L2's third is for 0x400000
        words[table * 512 + (2 if table == 2 else 0)] = (table + 1) * _PAGE | _TABLE
    words[3 * 512] = 4 * _PAGE | _TABLE
    words[3 * 512 + 1] = 5 * _PAGE | _TABLE | _NX
    view[4 * _PAGE : 4 * _PAGE + len(_LOOP)] = _LOOP
    engine.map(0, view)
    count = words[5 * 512 :]
    r = engine.regs
    r[R.RIP], r[R.RDI], r[R.RCX], r[R.RFLAGS] = _CODE_VA, _COUNT_VA, _ITERATIONS, 0x202
    r[R.CS], r[R.SS], r[R.CR3] = 0xE033, 0xE02B, 0

    engine.kick()
    if engine.run() != ExitKind.KICKED or count[0]:
        raise EngineError("a stop asked for just before the guest ran was lost: this emulator cannot be used")
    engine.clear_kick()

    stops, tries = 0, 0
    until = time.monotonic_ns() + _TIME_NS
    while stops < _MOST_STOPS and (stops < _FEWEST_STOPS or time.monotonic_ns() < until):
        before = count[0]
        r[R.RCX] = _ITERATIONS
        # Another thread stops the loop at about the moment it is entered, or a little later.
        engine.set_deadline(time.monotonic_ns() + tries % 32 * 1000)
        tries += 1
        if engine.run() != ExitKind.KICKED:
            raise EngineError("stops asked for by another thread are lost: this emulator cannot be used")
        engine.clear_kick()
        twice = count[0] - before - (_ITERATIONS - r[R.RCX])
        if twice:
            raise EngineError(
                f"stops are imprecise: {twice} instructions executed twice at stop {stops}. This version of Unicorn"
                " would corrupt guests; xen-py needs the unicorn 2.1.4 wheel for x86-64"
            )
        stops += count[0] != before
    count.release()
    words.release()
