# SPDX-License-Identifier: GPL-2.0-only
"""The network drivers through the driver kit's battery: after any faults the card works, or says why not."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import trio

from dom0.backend.net.backend import NetBackend
from dom0.kit.battery import Pair, shrink, try_seed
from domU.frontend.net import NetFrontend
from xen_py.drive.bus import Nodes
from xen_py.drive.half import DeviceFailed
from xen_py.io.packet import Packet


class TestedBackend(NetBackend):
    """Its switch sends every frame back."""

    type = "nettest"

    async def open(self, settings: Nodes) -> Mapping[str, str]:
        return await super().open({**settings, "mac": b"00:16:3e:00:00:01"})

    async def connect(self, nodes: Nodes) -> Mapping[str, str]:
        shown = await super().connect(nodes)
        assert self.port is not None

        def back(packet: Packet) -> bool:
            echo.send(packet._replace(data=packet.data[6:12] + packet.data[:6] + packet.data[12:]))
            return True

        switch = self.port.switch
        echo = switch.plug("echo", back)
        self._echo = echo
        return shown

    async def do_disconnect(self) -> None:
        if hasattr(self, "_echo"):
            self._echo.unplug()
        await super().do_disconnect()


class TestedFrontend(NetFrontend):
    type = "nettest"
    queues = 2

    async def connect(self, nodes: Nodes) -> None:
        await self.bus.write(f"{self.own}/mac", "00:16:3e:00:00:01")
        await super().connect(nodes)


TestedBackend.__test__ = TestedFrontend.__test__ = False  # type: ignore[attr-defined]


async def use(card: NetFrontend) -> None:
    for number in range(8):
        body = b"\x88\xb5" + bytes([number + 1]) * 400
        await card.send(b"\2\0\0\0\0\2" + card.mac + body)
        with trio.move_on_after(30) as waiting:
            while (await card.receive()).data[12:] != body:
                pass
        if waiting.cancelled_caught:
            raise DeviceFailed("a frame was lost")  # as frames may be


@pytest.mark.parametrize("seed", range(12))
def test_faults_of_that_seed(seed: int) -> None:
    pair = Pair(TestedBackend, TestedFrontend, use)
    failure = try_seed(pair, seed)
    if failure is not None:
        raise AssertionError(shrink(pair, failure).report())
