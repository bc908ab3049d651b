# SPDX-License-Identifier: GPL-2.0-only
"""Network cards of guests: added, listed and taken away, in libxl's order and with its words.

What a card is asked to be is `dom0.toolstack.vifspec`; how any device comes and goes, `dom0.toolstack.devices`. A card
that is attached to a running guest is there again when it restarts. Owner: the trio thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from dom0.toolstack.devices import Device, DeviceError, Devices
from dom0.toolstack.domain import GuestDomain, ToolstackError
from dom0.toolstack.vifspec import KIND, NicConfig
from xen_py.io.xenbus_toolstack import Happening
from xen_py.types import DomId
from xenstore.local import LocalClient


async def add_all(devices: Devices, domid: DomId, nics: Iterable[NicConfig]) -> None:
    """The cards of a new guest. DeviceError."""
    for nic in nics:
        await _add(devices, domid, nic)


async def _add(devices: Devices, domid: DomId, nic: NicConfig) -> None:
    if (reason := nic.refusal()) is not None:
        raise DeviceError(reason)
    if nic.devid is not None and devices.find(domid, KIND, nic.devid) is not None:
        raise DeviceError("device already exists in xenstore")
    new = nic.device()
    try:
        await devices.add(domid, new)
    except DeviceError:
        device = devices.find(domid, KIND, new.devid)
        if device is not None:
            await devices.remove(device, Happening.DESTROY)
        raise


async def attach(devices: Devices, guest: GuestDomain, nic: NicConfig) -> None:
    """`xl network-attach`. ToolstackError."""
    taken = {device.devid for device in devices.of(guest.domid, KIND)}
    nic = nic.settled(guest.config.uuid, next(n for n in range(len(taken) + 1) if n not in taken))
    try:
        await _add(devices, guest.domid, nic)
    except DeviceError as error:
        raise ToolstackError(f"Domain {guest.domid}:{error}") from error
    guest.config = attrs.evolve(guest.config, nics=(*guest.config.nics, nic))


async def detach(devices: Devices, guest: GuestDomain, name: str) -> None:
    """`xl network-detach`: the guest is asked, and has it taken away if it does not heed. ToolstackError."""
    device = find(devices, guest, name)
    kept = tuple(nic for nic in guest.config.nics if nic.devid != device.devid)
    try:
        await devices.remove(device, Happening.REMOVE)
    except DeviceError as error:
        raise ToolstackError(f"Domain {guest.domid}:{error}") from error
    guest.config = attrs.evolve(guest.config, nics=kept)


def find(devices: Devices, guest: GuestDomain, name: str) -> Device:
    """The card of that number or address. ToolstackError."""
    if ":" in name:
        numbers = [nic.devid for nic in guest.config.nics if nic.mac == name.lower()]
    else:
        numbers = [int(name)] if name.isdecimal() and len(name) < 10 else []
    device = devices.find(guest.domid, KIND, numbers[0]) if numbers and numbers[0] is not None else None
    if device is None:
        raise ToolstackError(f"Unknown device {name}.")
    return device


def rows(client: LocalClient, devices: Devices, domid: DomId) -> list[dict[str, Any]]:
    """What `xl network-list` prints of each: as the frontend's nodes have it, -1 where they are missing."""

    def text(path: str) -> str:
        return (client.read_or_none(path) or b"").decode(errors="replace")

    def number(path: str) -> int:
        value = text(path)
        return int(value) if value.isdecimal() and len(value) < 20 else -1

    return [
        {
            "devid": device.devid,
            "backend_id": number(f"{device.front}/backend-id"),
            "mac": text(f"{device.libxl}/mac"),
            "frontend_id": device.domid,
            "handle": number(f"{device.libxl}/handle"),
            "state": number(f"{device.front}/state"),
            "evtch": number(f"{device.front}/event-channel"),
            "rref_tx": number(f"{device.front}/tx-ring-ref"),
            "rref_rx": number(f"{device.front}/rx-ring-ref"),
            "backend": device.back,
        }
        for device in devices.of(domid, KIND)
    ]
