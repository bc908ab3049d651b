# SPDX-License-Identifier: GPL-2.0-only
"""What disks and network cards have in common when they come and go: libxl's words, and what their lists show.

Owner: the trio thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dom0.toolstack.devices import DeviceError, Devices, NewDevice
from dom0.toolstack.domain import GuestDomain, ToolstackError
from xen_py.io.xenbus_toolstack import Happening
from xen_py.types import DomId
from xenstore.local import LocalClient


async def plug(devices: Devices, domid: DomId, new: NewDevice) -> None:
    """Add a device, or leave nothing of it. DeviceError."""
    if devices.find(domid, new.kind, new.devid) is not None:
        raise DeviceError("device already exists in xenstore")
    try:
        await devices.add(domid, new)
    except DeviceError:
        device = devices.find(domid, new.kind, new.devid)
        if device is not None:
            await devices.remove(device, Happening.DESTROY)
        raise


@contextmanager
def in_words_of(guest: GuestDomain) -> Iterator[None]:
    """A DeviceError in the block becomes the ToolstackError that a user is told."""
    try:
        yield
    except DeviceError as error:
        raise ToolstackError(f"Domain {guest.domid}:{error}") from error


def text_node(client: LocalClient, path: str) -> str:
    """What a node has, which may be anything; nothing where it is missing."""
    return (client.read_or_none(path) or b"").decode(errors="replace")


def number_node(client: LocalClient, path: str) -> int:
    """The number a node has; -1 where it is missing or is none."""
    value = text_node(client, path)
    return int(value) if value.isdecimal() and len(value) < 20 else -1
