# SPDX-License-Identifier: GPL-2.0-only
"""Copies of the echo device with one classic driver bug each, and the sound one, as pairs for the battery."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio
from echo_device.backend import EchoBackend
from echo_device.frontend import EchoFrontend
from echo_device.protocol import ROOM, Request

from dom0.kit.battery import Pair
from xen_py.drive.bus import Nodes
from xen_py.drive.queue import BackQueue


async def use(echo: Any) -> None:
    """Say things of one and of several requests, alone and beside each other."""

    async def say(number: int) -> None:
        data = bytes([65 + number]) * (ROOM * number + 5)
        assert await echo.say(data) == data, f"{len(data)} bytes came back as others"

    for number in range(3):
        await say(number)
    async with trio.open_nursery() as nursery:
        for number in range(1, 4):
            nursery.start_soon(say, number)


SOUND = Pair(EchoBackend, EchoFrontend, use)


class SleepsTooSoon(EchoBackend):
    """Missed final check: it asks to be told of the next request and sleeps, without looking once more."""

    async def serve(self, queue: BackQueue) -> None:
        ring, header = queue.ring, queue.ring._header
        while not queue._closing:
            for request in ring.take():
                ring.put(self.handle(request))
            if ring.push():
                queue._notify()
            await trio.lowlevel.checkpoint()  # the moment between the last look and the wish
            header[1] = (ring._consumed + 1) & 0xFFFFFFFF
            await queue._bell.wait()


class NotifiesTooSoon(EchoFrontend):
    """Notify before write: the event is sent before the index that it announces."""

    async def publish(self, nodes: Nodes) -> Mapping[str, str]:
        published = await super().publish(nodes)
        queue = self._queue
        assert queue is not None

        def push() -> None:
            queue._notify()
            queue.ring.push()

        queue._push = push  # type: ignore[method-assign]
        return published


class AnswersInTheWrongSlot(EchoBackend):
    """A response written over a request that nobody has taken: it takes one request at a time, and answers ahead."""

    async def serve(self, queue: BackQueue) -> None:
        ring = queue.ring
        while not queue._closing:
            for data in ring.take_requests(1):
                request = ring.kind.decode_request(data)
                ring._produced += 1
                ring.put(self.handle(request))
                ring._produced -= 1
                if ring.push():
                    queue._notify()
            if not ring.final_check():
                await queue._bell.wait()


class BelievesTheIndex(EchoBackend):
    """Index trusted: as many requests as the frontend says, whatever it says."""

    async def serve(self, queue: BackQueue) -> None:
        ring = queue.ring
        while not queue._closing:
            ahead = (ring._header[0] - ring._consumed) & 0xFFFFFFFF
            for _ in range(min(ahead, 1000)):  # as far as it comes before somebody notices
                at = 64 + ring._consumed % ring.slots * ring.kind.slot_size
                ring._consumed = (ring._consumed + 1) & 0xFFFFFFFF
                ring.put(self.handle(Request(*ring.kind.decode_request(bytes(ring._pages[0][at : at + 64])))))
            if ahead > 1000:  # the rest would take minutes, and show no more
                ring._consumed = ring._header[0]
            if ring.push():
                queue._notify()
            ring._header[1] = (ring._consumed + 1) & 0xFFFFFFFF
            if ring._header[0] == ring._consumed:
                await queue._bell.wait()
            else:
                await trio.lowlevel.checkpoint()


PLANTED = {
    "missed final check": Pair(SleepsTooSoon, EchoFrontend, use),
    "notify before write": Pair(EchoBackend, NotifiesTooSoon, use),
    "response over an unconsumed request": Pair(AnswersInTheWrongSlot, EchoFrontend, use),
    "index trusted": Pair(BelievesTheIndex, EchoFrontend, use),
}
