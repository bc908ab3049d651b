# SPDX-License-Identifier: GPL-2.0-only
"""Plugging devices in and taking them away: the toolstack's table (`xen_py.io.xenbus_toolstack`) carried out.

What is written, in which order and with which permissions is libxl's (libxl__device_generic_add and the removals in
libxl_device.c), so that other toolstacks, tools and drivers find what they know. What kind of device it is does not
matter here: `NewDevice` brings the nodes.

Owner: the trio thread. Operations on one device are made one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import trio

from dom0.backend.manager import BackendManager
from dom0.toolstack import storetree
from dom0.toolstack.storetree import Mkdir, Operation, Prune, Remove, Write
from xen_py.io.xenbus import State
from xen_py.io.xenbus_toolstack import TOOLSTACK, Doing, Happening, Phase
from xen_py.types import DomId
from xenstore.local import LocalClient

_READY = {str(int(s)).encode() for s in (State.INIT_WAIT, State.INITIALISED, State.CONNECTED, State.RECONFIGURED)}
_CLOSED = str(int(State.CLOSED)).encode()


class DeviceError(Exception):
    """A device cannot be had, or cannot be taken away; one line."""


@attrs.frozen
class NewDevice:
    """A device to add: nodes of the two directories beside those that every device has."""

    kind: str
    devid: int
    back: tuple[tuple[str, str], ...] = ()
    front: tuple[tuple[str, str], ...] = ()
    front_readonly: tuple[tuple[str, str], ...] = ()
    """Nodes of the frontend's directory that the guest cannot change."""


@attrs.define(eq=False)
class Device:
    """A device that there is."""

    domid: DomId
    kind: str
    devid: int
    new: NewDevice
    phase: Phase = Phase.ABSENT
    trouble: str = ""
    """What went wrong last."""
    turn: trio.Lock = attrs.field(factory=trio.Lock)

    @property
    def front(self) -> str:
        return f"/local/domain/{self.domid}/device/{self.kind}/{self.devid}"

    @property
    def back(self) -> str:
        return f"/local/domain/0/backend/{self.kind}/{self.domid}/{self.devid}"

    @property
    def libxl(self) -> str:
        return f"/libxl/{self.domid}/device/{self.kind}/{self.devid}"

    def __str__(self) -> str:
        return f"{self.kind} {self.devid} of domain {self.domid}"


class Devices:
    """The devices of all guests of one host."""

    def __init__(self, client: LocalClient, manager: BackendManager) -> None:
        self._client = client
        self._manager = manager
        self._devices: dict[tuple[DomId, str, int], Device] = {}

    def of(self, domid: DomId, kind: str | None = None) -> list[Device]:
        """A guest's devices, those of one type or all, by number."""
        found = [d for d in self._devices.values() if d.domid == domid and kind in (None, d.kind)]
        return sorted(found, key=lambda device: (device.kind, device.devid))

    def find(self, domid: DomId, kind: str, devid: int) -> Device | None:
        return self._devices.get((domid, kind, devid))

    async def add(self, domid: DomId, new: NewDevice) -> Device:
        """Plug a device in and wait until its backend is ready. DeviceError, and what there is of it stays."""
        if self._manager.driver(new.kind) is None:
            raise DeviceError(f"no backend for devices of type {new.kind!r} is installed")
        key = domid, new.kind, new.devid
        if key in self._devices:
            raise DeviceError(f"domain {domid} has a {new.kind} {new.devid} already")
        device = self._devices[key] = Device(domid, new.kind, new.devid, new)
        await self._drive(device, Happening.ADD)
        if device.trouble:
            raise DeviceError(f"{device}: {device.trouble}")
        return device

    async def remove(self, device: Device, how: Happening) -> None:
        """Take a device away: ASK, REMOVE or DESTROY. DeviceError when it is still there, or was taken by force."""
        device.trouble = ""
        await self._drive(device, how)
        if device.trouble:
            raise DeviceError(f"{device}: {device.trouble}")

    async def destroy_all(self, domid: DomId) -> None:
        """All of a guest's devices, at once: the guest is gone."""
        self._manager.domain_gone(domid)
        async with trio.open_nursery() as nursery:
            for device in self.of(domid):
                nursery.start_soon(self._drive, device, Happening.DESTROY)

    def statistics(self) -> dict[str, Any]:
        return {"devices": len(self._devices)}

    # ---- the table ----

    async def _drive(self, device: Device, happening: Happening | None) -> None:
        async with device.turn:
            while happening is not None:
                step = TOOLSTACK.get((device.phase, happening))
                if step is None:
                    return
                self._do(device, step.do)
                device.phase = step.next
                happening = None
                if step.timeout is not None:
                    happening = await self._wait(device, step.timeout)
        if device.phase is Phase.ABSENT:
            self._devices.pop((device.domid, device.kind, device.devid), None)

    def _do(self, device: Device, doing: Doing) -> None:
        match doing:
            case Doing.MAKE:
                self._write(_made(device))
            case Doing.CLOSE | Doing.TAKE:
                self._client.run_transaction(lambda store: _close(store, device, take=doing is Doing.TAKE))
            case Doing.CLEAR | Doing.KILL_AND_CLEAR | Doing.CLEAR_ANYWAY:
                self._write(_cleared(device))
                if doing is Doing.CLEAR_ANYWAY:
                    device.trouble = "its backend has not closed, it was taken away all the same"
            case Doing.NOT_READY:
                device.trouble = self._reason(device) or "its backend is not ready"
            case Doing.STILL_USED:
                device.trouble = "the guest still uses it"
            case Doing.RUN_ADD | Doing.RUN_REMOVE | Doing.NOTHING:
                pass  # no device here has a hotplug script: that step has always ended well
            case Doing.SCRIPT_ERROR | Doing.KILL_SCRIPT:
                raise AssertionError("there are no scripts")

    async def _wait(self, device: Device, seconds: float) -> Happening:
        """What happens next."""
        if device.phase in (Phase.PLUGGING, Phase.UNPLUGGING):
            return Happening.SCRIPT_DONE
        path = f"{device.back}/state"
        with trio.move_on_after(seconds):
            async with self._client.watch(path) as changes:
                async for _ in changes:
                    state = self._client.read_or_none(path)
                    if device.phase is Phase.ADDING:
                        if state in _READY:
                            return Happening.READY
                        if state in (_CLOSED, None):
                            return Happening.TIMEOUT  # it has failed, and will not become ready
                    elif state is None:
                        return Happening.VANISHED
                    elif state == _CLOSED:
                        return Happening.CLOSED
        return Happening.TIMEOUT

    def _reason(self, device: Device) -> str:
        """Why the backend has closed."""
        path = f"/local/domain/0/error/backend/{device.kind}/{device.domid}/{device.devid}/error"
        return (self._client.read_or_none(path) or b"").decode(errors="replace")

    def _write(self, operations: Iterator[Operation]) -> None:
        todo = list(operations)
        self._client.run_transaction(lambda store: storetree.apply(store, todo))


def _made(device: Device) -> Iterator[Operation]:
    """The three directories, as libxl__device_generic_add makes them."""
    domid, front, back, libxl = device.domid, device.front, device.back, device.libxl
    in_front = (("backend", back), ("backend-id", "0"), ("state", "1"), *device.new.front)
    in_back = (("frontend-id", str(domid)), ("online", "1"), ("state", "1"), *device.new.back)
    yield Remove(libxl)
    yield Mkdir(libxl, storetree.DOM0_ONLY)
    yield Write(f"{libxl}/frontend", front)
    yield Write(f"{libxl}/backend", back)
    yield Remove(front)
    yield Mkdir(front, (f"n{domid}", "r0"))
    for name, value in in_front:
        yield Write(f"{front}/{name}", value)
    for name, value in device.new.front_readonly:
        yield Write(f"{front}/{name}", value, ("n0", f"r{domid}"))
    yield Remove(back)
    yield Mkdir(back, ("n0", f"r{domid}"))
    yield Write(f"{back}/frontend", front)
    for name, value in in_back:
        yield Write(f"{back}/{name}", value)
        yield Write(f"{libxl}/{name}", value)


def _close(store: Any, device: Device, *, take: bool) -> None:
    if take:
        storetree.apply(store, [Remove(device.front)])
    state = store.read_or_none(f"{device.back}/state")
    if state is None:
        return
    store.write(f"{device.back}/online", "0")
    if state != _CLOSED:
        store.write(f"{device.back}/state", str(int(State.CLOSING)))


def _cleared(device: Device) -> Iterator[Operation]:
    yield Prune(device.front)
    yield Prune(device.libxl)
    yield Prune(device.back)
    yield Prune(f"/local/domain/0/error/backend/{device.kind}/{device.domid}/{device.devid}")
