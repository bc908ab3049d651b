# SPDX-License-Identifier: GPL-2.0-only
"""Domain-0 as the lists show it: the machine this host runs on, with the host process as its busiest part.

Functions only; nothing is kept but the time we started.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from dom0.toolstack import hostinfo

_STARTED = time.time()


def row(memory_kb: int) -> dict[str, Any]:
    """Its line of `domain.list`."""
    cpus = hostinfo.processors().count
    return {
        "domid": 0,
        "name": "Domain-0",
        "uuid": str(uuid.UUID(int=0)),
        "mem_kb": memory_kb,
        "max_kb": memory_kb,
        "vcpus_online": cpus,
        "vcpus_max": cpus,
        "running": True,
        "blocked": False,
        "paused": False,
        "shutdown": False,
        "dying": False,
        "shutdown_reason": None,
        "reason_text": None,
        "cpu_time_ns": time.process_time_ns(),
        "start_time": _STARTED,
    }


def vcpus() -> list[dict[str, Any]]:
    """Its lines of `domain.vcpus`."""
    cpus = hostinfo.processors().count
    share = time.process_time_ns() // cpus
    return [
        {"vcpu": n, "cpu": n, "online": True, "running": True, "blocked": False, "cpu_time_ns": share}
        for n in range(cpus)
    ]
