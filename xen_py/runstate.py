# SPDX-License-Identifier: GPL-2.0-only
"""How long each vCPU has been running, runnable, blocked and offline (vcpu.h, struct vcpu_runstate_info).

`xl list` shows the running time; a guest that registered an area sees all of it, written at each change of state.
Owned by the domain's thread.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from xen_py.vcpu import Runstate, Vcpu

if TYPE_CHECKING:
    from xen_py.domain import Domain

_runstate = Struct("<ixxxxQ4Q")


class RunstateClock:
    def __init__(self, domain: Domain) -> None:
        self._domain = domain

    def change(self, v: Vcpu, state: Runstate) -> None:
        """The vCPU enters another state now."""
        now = self._domain.clock.now()
        v.runstate_times[v.runstate] += now - v.runstate_since
        v.runstate = state
        v.runstate_since = now
        if v.runstate_area and state == Runstate.RUNNING:
            self.publish(v)

    def publish(self, v: Vcpu) -> None:
        self._domain.write_kernel(v, v.runstate_area, self.record(v))

    def record(self, v: Vcpu) -> bytes:
        """struct vcpu_runstate_info, 48 bytes: times up to the entry of the present state."""
        return _runstate.pack(v.runstate, v.runstate_since, *v.runstate_times)

    def current_record(self, v: Vcpu) -> bytes:
        """The same with the present state's time counted up to now (VCPUOP_get_runstate_info)."""
        times = list(v.runstate_times)
        times[v.runstate] += self._domain.clock.now() - v.runstate_since
        return _runstate.pack(v.runstate, v.runstate_since, *times)

    def time_in(self, v: Vcpu, state: Runstate, now: int) -> int:
        return v.runstate_times[state] + (now - v.runstate_since if v.runstate == state else 0)
