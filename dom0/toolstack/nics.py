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
from dom0.toolstack.hotplug import in_words_of, number_node, plug, text_node
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
    await plug(devices, domid, nic.device())


async def attach(devices: Devices, guest: GuestDomain, nic: NicConfig) -> None:
    """`xl network-attach`. ToolstackError."""
    taken = {device.devid for device in devices.of(guest.domid, KIND)}
    nic = nic.settled(guest.config.uuid, next(n for n in range(len(taken) + 1) if n not in taken))
    with in_words_of(guest):
        await _add(devices, guest.domid, nic)
    guest.config = attrs.evolve(guest.config, nics=(*guest.config.nics, nic))


async def detach(devices: Devices, guest: GuestDomain, name: str) -> None:
    """`xl network-detach`: the guest is asked, and has it taken away if it does not heed. ToolstackError."""
    device = find(devices, guest, name)
    with in_words_of(guest):
        await devices.remove(device, Happening.REMOVE)
    kept = tuple(nic for nic in guest.config.nics if nic.devid != device.devid)
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

    def number(path: str) -> int:
        return number_node(client, path)

    return [
        {
            "devid": device.devid,
            "backend_id": number(f"{device.front}/backend-id"),
            "mac": text_node(client, f"{device.libxl}/mac"),
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
