# SPDX-License-Identifier: GPL-2.0-only
"""Which devices there are for dom0's backends, and the task of each: what xenbus's probing is in a kernel.

The store says what devices there are: a directory with a `state` below /local/domain/0/backend/<type>/<domid>/<id>.
Each gets an instance of the backend for its type, which ends when the directory is deleted. Backends are found by entry
points of the group "xen_py.backends" (the name is the type), or given by `register`.

Owner: the trio thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any

import trio

from dom0.backend.bus import LocalBus
from dom0.backend.driver import Backend, Frontend
from xen_py.drive.half import parse_own_state
from xen_py.io.xenbus import State
from xen_py.types import DomId
from xenstore.errors import NotFound
from xenstore.local import LocalClient

GROUP = "xen_py.backends"
ROOT = "/local/domain/0/backend"

_log = logging.getLogger("xen-py.backend")

_FRESH = (b"1", b"6")
"""States in which a device has no backend: Initialising and Closed."""

Key = tuple[str, int, int]
"""Type, domain and number of a device."""


class BackendManager:
    """All backends of one host. `frontend` finds the domain at a device's other end, None when it is gone."""

    def __init__(self, client: LocalClient, frontend: Callable[[DomId], Frontend | None]) -> None:
        self._client = client
        self._frontend = frontend
        self._types: dict[str, type[Backend] | None] = {}
        self._devices: dict[Key, Backend] = {}
        self._scopes: dict[Key, trio.CancelScope] = {}
        self._started = 0
        self.observe: Callable[[Backend], None] | None = None
        """Told of each device that comes."""

    # ---- types ----

    def register(self, driver: type[Backend]) -> None:
        """Serve devices of that type with this driver from now on."""
        self._types[driver.type] = driver
        for key in list(self._present()):
            self._consider(key)

    def driver(self, kind: str) -> type[Backend] | None:
        """The driver for a type of device; None when none is installed."""
        if kind not in self._types:
            self._types[kind] = _installed(kind)
        return self._types[kind]

    # ---- devices ----

    def device(self, kind: str, domid: int, devid: int) -> Backend | None:
        """The backend half of a device that runs."""
        return self._devices.get((kind, domid, devid))

    def all(self) -> list[Backend]:
        return list(self._devices.values())

    def domain_gone(self, domid: DomId) -> None:
        """A domain has ended: its devices have nobody at the other end."""
        for (_, owner, _), backend in list(self._devices.items()):
            if owner == domid:
                backend.peer_gone()

    def restart(self, kind: str, domid: int, devid: int) -> None:
        """End a device's backend where it stands and start another, as after a crash of it."""
        scope = self._scopes.get((kind, domid, devid))
        if scope is not None:
            scope.cancel()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve devices until cancelled."""
        async with self._client.watch(ROOT) as changes, trio.open_nursery() as self._nursery:
            task_status.started()
            async for path, _ in changes:
                key = _key(path)
                for each in [key] if key else list(self._present()):
                    self._consider(each)

    def _present(self) -> Iterator[Key]:
        """Every device that the store has."""
        for kind in self._names(ROOT):
            for domid in self._names(f"{ROOT}/{kind}"):
                for devid in self._names(f"{ROOT}/{kind}/{domid}"):
                    if key := _key(f"{ROOT}/{kind}/{domid}/{devid}"):
                        yield key

    def _names(self, path: str) -> list[str]:
        try:
            return self._client.directory(path)
        except NotFound:
            return []

    def _consider(self, key: Key) -> None:
        """Start what is there and not served."""
        kind, domid, devid = key
        path = f"{ROOT}/{kind}/{domid}/{devid}"
        state = self._client.read_or_none(f"{path}/state")
        if key in self._devices or parse_own_state(state) is State.UNKNOWN:
            return  # a state that is no state is to a backend as one that is missing: it would end at once, and again
        driver = self.driver(kind)
        frontend = self._frontend(DomId(domid))
        front_path = self._client.read_or_none(f"{path}/frontend")
        if driver is None or frontend is None or front_path is None:
            return
        backend = driver(frontend, LocalBus(self._client), path, front_path.decode(), devid)
        if state not in _FRESH:
            backend.fail("a backend served this device before, and is gone")
        self._devices[key] = backend
        self._started += 1
        if self.observe is not None:
            self.observe(backend)
        self._nursery.start_soon(self._run, key, backend)

    async def _run(self, key: Key, backend: Backend) -> None:
        try:
            with trio.CancelScope() as self._scopes[key]:
                await backend.run()
        except Exception:
            _log.exception("%s: the backend failed", backend.name)
        finally:
            del self._devices[key], self._scopes[key]
        self._consider(key)

    def statistics(self) -> dict[str, Any]:
        return {
            "started": self._started,
            "devices": {f"{kind}/{domid}/{devid}": b.statistics() for (kind, domid, devid), b in self._devices.items()},
        }


def _key(path: str) -> Key | None:
    """The device that a path at or below its directory belongs to."""
    parts = path.removeprefix(ROOT + "/").split("/")
    if path.startswith(ROOT + "/") and len(parts) >= 3 and parts[1].isdecimal() and parts[2].isdecimal():
        return parts[0], int(parts[1]), int(parts[2])
    return None


def _installed(kind: str) -> type[Backend] | None:
    for entry in entry_points(group=GROUP, name=kind):
        driver = entry.load()
        if isinstance(driver, type) and issubclass(driver, Backend):
            return driver
        _log.error("entry point %s of %s is no backend: %r", entry.name, GROUP, driver)
    return None
