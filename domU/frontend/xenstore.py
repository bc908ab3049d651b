# SPDX-License-Identifier: GPL-2.0-only
"""The store's frontend: a Python guest's client of the store, over the ring that the builder made.

Owned by the guest's thread. Protocol: docs/misc/xenstore-ring.txt, public/io/xs_wire.h.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from domU.events import Events
from domU.kernel import Kernel
from xen_py.types import Mfn, Port
from xenstore.aclient import AsyncClient
from xenstore.ring_stream import RingStream


@asynccontextmanager
async def open_store(kernel: Kernel, events: Events) -> AsyncIterator[AsyncClient]:
    """The client, for as long as the block lasts."""
    info = kernel.start_info
    port = events.adopt(Port(info.store_evtchn), lambda: stream.rung())
    stream = RingStream(kernel.domain.memory.frame(Mfn(info.store_mfn)), lambda: port.notify())
    async with AsyncClient.over(stream) as client:
        yield client
