# SPDX-License-Identifier: GPL-2.0-only
"""The half in dom0: answers each request, and says it louder where the configuration wants that."""

from __future__ import annotations

from collections.abc import Mapping

from dom0.backend.driver import Backend
from echo_device.protocol import ECHO, OKAY, ROOM, TOO_LONG, Request, Response
from xen_py.drive import bus
from xen_py.drive.bus import Nodes


class EchoBackend(Backend):
    type = "echo"
    ring = ECHO
    loud = False

    async def open(self, settings: Nodes) -> Mapping[str, str]:
        self.loud = bus.flag(settings, "loud")
        return {"feature-loud": str(int(self.loud))}

    def handle(self, request: Request) -> Response:
        if request.length > ROOM:  # the guest is not believed
            return Response(request.id, TOO_LONG, 0, b"")
        data = request.data[: request.length]
        return Response(request.id, OKAY, len(data), data.upper() if self.loud else data)
