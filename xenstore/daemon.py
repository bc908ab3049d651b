# SPDX-License-Identifier: GPL-2.0-only
"""The store inside a trio program: the host process serves sockets, guests' pages and itself from one store.

Everything runs in the trio thread. A guest's doorbell is `RingConnection.on_event`; the toolstack and the
backends use `client()`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from xenstore.errors import NotFound
from xenstore.local import LocalClient
from xenstore.migration import ConnectionState, dump, restore
from xenstore.page import CONNECTION, INDICES, RECONNECT, check_page
from xenstore.ring import RingConnection
from xenstore.server import Server
from xenstore.socket_server import SocketServer
from xenstore.types import DOM0, DomId

Store = Server
"""What a Daemon serves."""


class Daemon:
    """One store served inside a trio nursery."""

    def __init__(self, store: Store | None = None) -> None:
        self.store = store if store is not None else Server()
        self._rings: dict[DomId, RingConnection] = {}
        self.store.domains.on_introduce = self._introduced_again
        self.store.domains.on_release = self.release

    async def serve_unix(self, path: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve privileged clients (root and our own user, with dom0's rights) at `path` until cancelled."""
        sockets = SocketServer(self.store)
        try:
            sockets.listen(path)
            task_status.started()
            await sockets.serve()
        finally:
            sockets.close()

    def client(self) -> LocalClient:
        """A client in this process with dom0's rights."""
        return LocalClient(self.store)

    # -- domains

    def introduce(
        self, domid: int, page: memoryview, notify: Callable[[], None], state: ConnectionState | None = None
    ) -> RingConnection:
        """Serve this domain through its page from now on, and announce it (@introduceDomain).

        `page`: 4096 writable bytes shared with the guest; `notify`: ring the guest's doorbell. A domain that is
        introduced again, with the same or another page, starts with a fresh connection. `state` (of
        `migration.restore`) makes a domain that was moved go on with its watches and half-read rings.
        """
        key = DomId(domid)
        if key == DOM0:
            raise ValueError("dom0 is not introduced: it uses client() or the socket")
        check_page(page)
        domains = self.store.domains
        old = self._rings.pop(key, None)
        if old is not None:
            old.close()
        waiting = page.cast("B")[INDICES : INDICES + 32].cast("I")[CONNECTION] == RECONNECT
        ring = RingConnection(self.store, key, page, notify, _later, domains.get(key).features, state)
        self._rings[key] = ring
        domains.introduced(key, ring.connection)
        if waiting:
            notify()
        if state is not None:
            ring.on_event()
        self.store.settle()
        return ring

    def _introduced_again(self, domid: DomId, gfn: int, port: int) -> None:
        """INTRODUCE from a client: the page and the doorbell are the host's, so only a known domain starts anew."""
        ring = self._rings.get(domid)
        if ring is None:
            raise NotFound(f"the host has not connected domain {domid}")
        ring.reconnect()

    def release(self, domid: int) -> None:
        """The domain is gone: its connection, watches, transactions, nodes and rights go too (@releaseDomain)."""
        ring = self._rings.pop(DomId(domid), None)
        if ring is not None:
            ring.close()
        self.store.domains.gone(DomId(domid))
        self.store.settle()

    def restart(self) -> None:
        """Have the store forget all but what it would hand to its successor at a live update, and go on from that.

        Domains see their transactions end in conflicts, and nothing else. Clients of this process stay connected.
        """
        store = self.store
        state = restore(store, dump(store))
        for domid, ring in self._rings.items():
            if domid in state.connections:
                ring.restart(state.connections[domid])
                store.domains.get(domid).connection = ring.connection
                ring.on_event()
        store.settle()

    def domain_shutdown(self, domid: int) -> None:
        """The domain has stopped but still exists (@releaseDomain, once until RESUME)."""
        self.store.domains.shut_down(DomId(domid))
        self.store.settle()

    def statistics(self) -> dict[str, Any]:
        return self.store.statistics()


def _later(function: Callable[[], None], delay: float) -> None:
    """Call `function` in the trio thread after `delay` seconds."""

    async def wait() -> None:
        await trio.sleep(delay)
        function()

    trio.lowlevel.spawn_system_task(wait)
