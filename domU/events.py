# SPDX-License-Identifier: GPL-2.0-only
"""A Python guest's event channels: ports, their handlers, and the upcall that finds out which are pending.

As in any PV kernel: the hypervisor sets a pending bit and calls up, the guest looks at the selector word, takes the
bits, and calls the handler of each port. Handlers are plain functions and short: they wake tasks. `Bell` is what a
task waits on.

Owned by the domain's thread. Source: public/event_channel.h, public/xen.h (shared_info).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from domU.kernel import Kernel
from xen_py.abi.xen import (
    DOMID_SELF,
    SHARED_INFO_EVTCHN_MASK,
    SHARED_INFO_EVTCHN_PENDING,
    VCPU_INFO_PENDING_SEL,
    VCPU_INFO_UPCALL_MASK,
    VCPU_INFO_UPCALL_PENDING,
    Hypercall,
)
from xen_py.types import DomId, Port

_BIND_INTERDOMAIN, _BIND_VIRQ, _CLOSE, _ALLOC_UNBOUND, _UNMASK = 0, 1, 3, 6, 9
_WORDS = 64
_u32 = struct.Struct("<I")


class GuestPort:
    """One open port of the guest."""

    def __init__(self, events: Events, port: Port) -> None:
        self._events = events
        self.port = port

    def notify(self) -> None:
        """EVTCHNOP_send. A port that is closed, or whose other end is gone, takes no notice."""
        self._events.send(self.port)

    def close(self) -> None:
        """Idempotent."""
        self._events.close(self.port)


class Events:
    """All ports of one guest."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._info = kernel.shared_info()
        words = self._info.cast("Q")
        self._pending = words[SHARED_INFO_EVTCHN_PENDING >> 3 : (SHARED_INFO_EVTCHN_PENDING >> 3) + _WORDS]
        self._mask = words[SHARED_INFO_EVTCHN_MASK >> 3 : (SHARED_INFO_EVTCHN_MASK >> 3) + _WORDS]
        self._selector = words[VCPU_INFO_PENDING_SEL >> 3 : (VCPU_INFO_PENDING_SEL >> 3) + 1]
        self._handlers: dict[int, Callable[[], None]] = {}
        self._taken = 0
        for word in range(_WORDS):
            self._mask[word] = (1 << 64) - 1
        self._info[VCPU_INFO_UPCALL_MASK] = 0
        kernel.upcall = self.upcall

    # ---- ports ----

    def offer(self, remote: DomId, handler: Callable[[], None]) -> GuestPort:
        """EVTCHNOP_alloc_unbound: a port that `remote` may bind to."""
        answer = self._op(_ALLOC_UNBOUND, struct.pack("<HHI", DOMID_SELF, remote, 0))
        return self._open(Port(struct.unpack("<HHI", answer)[2]), handler)

    def bind(self, remote: DomId, remote_port: Port, handler: Callable[[], None]) -> GuestPort:
        """EVTCHNOP_bind_interdomain: connect to a port that another domain offers us."""
        answer = self._op(_BIND_INTERDOMAIN, struct.pack("<HxxII", remote, remote_port, 0))
        return self._open(Port(struct.unpack("<HxxII", answer)[2]), handler)

    def bind_virq(self, virq: int, handler: Callable[[], None]) -> GuestPort:
        """EVTCHNOP_bind_virq, for vCPU 0."""
        answer = self._op(_BIND_VIRQ, struct.pack("<III", virq, 0, 0))
        return self._open(Port(struct.unpack("<III", answer)[2]), handler)

    def adopt(self, port: Port, handler: Callable[[], None]) -> GuestPort:
        """A port that was there at the start: the console's or the store's."""
        return self._open(port, handler)

    def _open(self, port: Port, handler: Callable[[], None]) -> GuestPort:
        self._handlers[port] = handler
        self._op(_UNMASK, _u32.pack(port))
        return GuestPort(self, port)

    def send(self, port: Port) -> None:
        self._kernel.send_event(port)

    def close(self, port: Port) -> None:
        if self._handlers.pop(port, None) is not None:
            self._mask[port >> 6] |= 1 << (port & 63)
            if not self._kernel.is_dead():
                self._op(_CLOSE, _u32.pack(port))

    def _op(self, command: int, structure: bytes) -> bytes:
        return self._kernel.call_with(Hypercall.EVENT_CHANNEL_OP, command, structure)

    # ---- the upcall ----

    def upcall(self) -> None:
        """Call the handlers of all ports that are pending and not masked. Does nothing while it is at work already."""
        info = self._info
        while info[VCPU_INFO_UPCALL_PENDING] and not info[VCPU_INFO_UPCALL_MASK]:
            info[VCPU_INFO_UPCALL_MASK] = 1
            info[VCPU_INFO_UPCALL_PENDING] = 0
            selected, self._selector[0] = self._selector[0], 0
            try:
                while selected:
                    lowest = selected & -selected
                    selected ^= lowest
                    self._serve_word(lowest.bit_length() - 1)
            finally:
                info[VCPU_INFO_UPCALL_MASK] = 0

    def _serve_word(self, word: int) -> None:
        pending = self._pending[word] & ~self._mask[word]
        self._pending[word] &= ~pending
        while pending:
            lowest = pending & -pending
            pending ^= lowest
            self._taken += 1
            handler = self._handlers.get((word << 6) + lowest.bit_length() - 1)
            if handler is not None:
                handler()

    def statistics(self) -> dict[str, Any]:
        return {"ports_open": len(self._handlers), "events_taken": self._taken}

    def release(self) -> None:
        """The guest is over: let go of its memory."""
        self._kernel.upcall = lambda: None
        self._handlers.clear()
        for view in (self._pending, self._mask, self._selector, self._info):
            view.release()
