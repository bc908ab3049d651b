# SPDX-License-Identifier: GPL-2.0-only
"""The half in the guest: bytes of any length, in as many requests as they need."""

from __future__ import annotations

from domU.frontend.driver import Frontend
from echo_device.protocol import ECHO, OKAY, ROOM, Request, Response
from xen_py.drive import bus
from xen_py.drive.bus import Nodes
from xen_py.drive.half import DeviceFailed


class EchoFrontend(Frontend):
    type = "echo"
    ring = ECHO
    loud = False

    async def connect(self, nodes: Nodes) -> None:
        self.loud = bus.flag(nodes, "feature-loud")

    async def say(self, data: bytes) -> bytes:
        pieces = [data[at : at + ROOM] for at in range(0, len(data), ROOM)]
        responses = await self.queue.calls([Request(0, len(piece), piece) for piece in pieces])
        return b"".join(self.heard(response) for response in responses)

    def heard(self, response: Response) -> bytes:
        if response.status != OKAY or response.length > ROOM:
            raise DeviceFailed(f"the backend answered {response.status} with {response.length} bytes")
        return response.data[: response.length]
