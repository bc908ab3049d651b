# SPDX-License-Identifier: GPL-2.0-only
"""Disks of guests: added, listed and taken away, in libxl's order and with its words.

What a disk is asked to be is `dom0.toolstack.diskspec`; how any device comes and goes, `dom0.toolstack.devices`. A disk
that is attached to a running guest is there again when it restarts. Owner: the trio thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import attrs

from dom0.toolstack import vdev
from dom0.toolstack.devices import Device, DeviceError, Devices
from dom0.toolstack.diskspec import KIND, DiskConfig
from dom0.toolstack.domain import GuestDomain, ToolstackError
from dom0.toolstack.hotplug import in_words_of, number_node, plug
from xen_py.io.xenbus_toolstack import Happening
from xen_py.types import DomId
from xenstore.local import LocalClient


async def add_all(devices: Devices, domid: DomId, disks: Iterable[DiskConfig]) -> None:
    """The disks of a new guest. DeviceError."""
    for disk in disks:
        await _add(devices, domid, disk)


async def _add(devices: Devices, domid: DomId, disk: DiskConfig) -> None:
    if (reason := disk.refusal()) is not None:
        raise DeviceError(f"Disk vdev={disk.vdev}: {reason}")
    if disk.format != "empty":
        try:
            os.stat(disk.target or "")
        except OSError as error:
            raise DeviceError(f"Disk vdev={disk.vdev} failed to stat: {disk.target}: {error.strerror}") from error
    await plug(devices, domid, disk.device())


async def attach(devices: Devices, guest: GuestDomain, disk: DiskConfig) -> None:
    """`xl block-attach`. ToolstackError."""
    with in_words_of(guest):
        await _add(devices, guest.domid, disk)
    guest.config = attrs.evolve(guest.config, disks=(*guest.config.disks, disk))


async def detach(devices: Devices, guest: GuestDomain, name: str, *, force: bool) -> None:
    """`xl block-detach`: the guest is asked, or not. ToolstackError."""
    device = find(devices, guest.domid, name)
    with in_words_of(guest):
        await devices.remove(device, Happening.DESTROY if force else Happening.ASK)
    kept = tuple(disk for disk in guest.config.disks if disk.devid != device.devid)
    guest.config = attrs.evolve(guest.config, disks=kept)


def find(devices: Devices, domid: DomId, name: str) -> Device:
    """The disk of that name or number. ToolstackError."""
    devid = vdev.number(name)
    device = None if devid is None else devices.find(domid, KIND, devid)
    if device is None:
        raise ToolstackError(f"Error: Device {name} not connected.")
    return device


def rows(client: LocalClient, devices: Devices, domid: DomId) -> list[dict[str, Any]]:
    """What `xl block-list` prints of each: as the frontend's nodes have it, -1 where they are missing."""

    def number(path: str) -> int:
        return number_node(client, path)

    return [
        {
            "devid": device.devid,
            "backend_id": number(f"{device.front}/backend-id"),
            "frontend_id": device.domid,
            "state": number(f"{device.front}/state"),
            "evtch": number(f"{device.front}/event-channel"),
            "rref": number(f"{device.front}/ring-ref"),
            "backend": device.back,
        }
        for device in devices.of(domid, KIND)
    ]
