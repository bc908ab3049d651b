# SPDX-License-Identifier: GPL-2.0-only
"""The engine of a guest whose instructions are Python: the guest's code runs on the domain's own thread.

There is nothing to emulate: such a guest makes its hypercalls by calling them and reads its memory through a view of
it. So nothing is translated and nothing cached, and what keeps an emulator informed does nothing here. The register
block is there because hypercalls look at it. `run` is never called: the guest is not stepped, it runs.

Owned by the domain's thread; see `domU.runtime` for the guest's side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xen_py.engine import EngineError, EventPaths, R

if TYPE_CHECKING:
    from xen_py.evtchn import PendingEvents
    from xen_py.frames import FrameTable


class HostedEngine:
    """See `xen_py.engine.Engine`."""

    def __init__(self) -> None:
        self.regs = memoryview(bytearray(8 * R.COUNT)).cast("Q")
        self._kicked = False
        self._regions: dict[int, memoryview] = {}

    def run(self) -> int:
        raise EngineError("a guest written in Python runs by itself and cannot be stepped")

    def map(self, machine_address: int, host: memoryview) -> None:
        self._regions[machine_address] = host

    def unmap(self, machine_address: int, size: int) -> None:
        del self._regions[machine_address]

    def region(self, machine_address: int) -> memoryview:
        """The memory mapped at that very address; KeyError when there is none."""
        return self._regions[machine_address]

    def flush_tlb(self) -> None: ...

    def flush_page(self, va: int) -> None: ...

    def drop_code(self, va: int, size: int) -> None: ...

    def set_gdt(self, base: int, limit: int) -> None: ...

    def set_ldt(self, base: int, limit: int) -> None: ...

    def set_task_switched(self, flag: bool) -> None: ...

    def set_debugreg(self, n: int, value: int) -> None: ...

    def set_cpuid(self, table: list[tuple[int, int | None, int, int, int, int]]) -> None: ...

    def set_tsc(self, offset: int, trap: bool) -> None: ...

    def save_state(self) -> bytes:
        return b""

    def restore_state(self, blob: bytes) -> None: ...

    def kick(self) -> None:
        self._kicked = True

    def kick_pending(self) -> bool:
        return self._kicked

    def clear_kick(self) -> None:
        self._kicked = False

    def set_deadline(self, monotonic_ns: int) -> None: ...

    def set_block_budget(self, blocks: int) -> None: ...

    def accelerate(self, memory: memoryview, frames: FrameTable, m2p_entry: int, version: int) -> None: ...

    def see_to_events(
        self, events: PendingEvents, shared_info: int, tsc_scale: tuple[int, int], alone: bool
    ) -> None: ...

    def connect(self, paths: EventPaths) -> None: ...

    def set_vcpu(self, words: memoryview | None) -> None: ...

    def set_assists(self, writable_pagetables: bool, architectural_iopl: bool, m2p_strict: bool) -> None: ...

    def accelerated(self) -> dict[str, int]:
        return {}

    def statistics(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        self._regions.clear()
        self.regs.release()
