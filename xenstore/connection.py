# SPDX-License-Identifier: GPL-2.0-only
"""One client as the server sees it: who it is, its watches and transactions, and what waits to be sent to it.

No I/O: a transport (`xenstore.ring`, `xenstore.socket_server`, `xenstore.local`) feeds requests to the server and
takes what is in `out`. What waits for a client that does not read is bounded: no requests are served while
replies wait, equal events are merged, and when too many wait they are merged into one per watch.
Owned by the server, in whose task everything runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from xenstore.perms import FULL, Perms
from xenstore.quota import Account
from xenstore.transactions import Transaction
from xenstore.types import DOM0, DomId, TxId
from xenstore.watches import Watch
from xenstore.wire import FEATURES, HEADER_SIZE, PAYLOAD_MAX, event

EVENTS_MAX: Final = 4096
"""Events that may wait for a client; beyond it an event says only which watch it is for."""


class Connection:
    """A client's state. `flush` is the transport's: send what is in `out`, which an event has just been put into."""

    __slots__ = (
        "_dirty", "_held", "_next_tx", "_overflow", "account", "backlog", "base", "domid", "features", "flush",
        "held_until", "id", "more", "out", "privileged", "rest", "room", "stalled", "target", "transactions", "watches",
    )  # fmt: skip

    def __init__(
        self, number: int, domid: DomId, account: Account, dirty: list[Connection], flush: Callable[[], None], room: int
    ) -> None:
        self.id: Final = number
        self.domid: Final = domid
        self.privileged: Final = domid == DOM0
        self.account: Final = account
        self.base: Final = b"/local/domain/%d" % domid
        self.features = FEATURES
        self.target: DomId | None = None
        """The domain it acts for (SET_TARGET)."""
        self.watches: dict[tuple[bytes, bytes], Watch] = {}
        self.transactions: dict[TxId, Transaction] = {}
        self.rest = b""
        """Bytes received and not served yet: part of a message, or requests behind a full `out`."""
        self.more = False
        """`rest` holds whole requests: serve them when `out` has been sent."""
        self.room: Final = room
        """Bytes of replies that may be made before they must be sent."""
        self.out: list[bytes] = []
        """What the transport shall send next."""
        self.backlog = b""
        """What the transport has taken and could not send yet."""
        self.stalled = False
        """The transport could not send all it took: events wait in `_held`, requests are not served."""
        self.held_until = 0.0
        """Not served before this time: it has made others' transactions fail too often."""
        self.flush: Final = flush
        self._dirty: Final = dirty
        self._held: dict[bytes, None] = {}
        self._overflow = False
        """Too many events waited: one for each watch is in `_held`, which says it all."""
        self._next_tx = 1

    def rights(self, perms: Perms) -> int:
        return FULL if self.privileged else perms.rights(self.domid, self.target)

    def new_txid(self) -> TxId:
        while True:
            txid = TxId(self._next_tx)
            self._next_tx = self._next_tx % 0xFFFFFFFF + 1
            if txid not in self.transactions:
                return txid

    # -- events

    def send_event(self, path: bytes, token: bytes) -> None:
        message = event(path, token)
        if len(message) > PAYLOAD_MAX + HEADER_SIZE:
            return
        if self.stalled:
            self._hold(message)
            return
        out = self.out
        out.append(message)
        if len(out) == 1:
            self._dirty.append(self)
        elif len(out) > EVENTS_MAX:
            self.stalled = True

    def _hold(self, message: bytes) -> None:
        """Keep an event for later. Watches may fire spuriously, so too many become one per watch."""
        held = self._held
        if self._overflow or message in held:
            return
        if len(held) < EVENTS_MAX:
            held[message] = None
            return
        self._overflow = True
        held.clear()
        for watch in self.watches.values():
            held[event(watch.wire_path, watch.token)] = None

    def take(self) -> bytes:
        """All that shall be sent now; the transport must send it before it takes more."""
        out = self.out
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return data

    def resume(self) -> None:
        """The transport has sent everything: what was held comes next."""
        self.stalled = self._overflow = False
        if self._held:
            self.out.extend(self._held)
            self._held.clear()

    def unsent(self) -> bytes:
        """All that waits to be sent."""
        return b"".join((self.backlog, *self.out, *self._held))

    def forget_output(self) -> None:
        """The client has started anew: nothing of what waits concerns it."""
        self.rest = self.backlog = b""
        self.out.clear()
        self._held.clear()
        self.more = self.stalled = self._overflow = False
