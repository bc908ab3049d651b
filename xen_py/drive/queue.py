# SPDX-License-Identifier: GPL-2.0-only
"""A ring with its event channel, for tasks: a frontend calls, a backend takes requests in batches and answers.

    response = await queue.call(request)              # frontend: one request
    responses = await queue.calls(requests)           # many at once, one notification

    await queue.answer(handle)                        # backend: each by handle(request), at once

    async for requests in queue.batches():            # or in a task: all that came since the last look
        for request in requests:
            queue.respond(answer(request))            # in any order; the frontend sees them when the batch is done
        queue.flush()                                 # or earlier

Notifications are sent after what they announce, and only when the other end wants one; a queue sleeps only after the
ring's final check. What a ring finds wrong (`RingBroken`) goes to `failed`, which ends the device with that reason.

A frontend's requests carry an `id`, which the queue chooses and by which it finds who waits for a response. Owned by
the thread of the trio loop; `on_event` is the handler of the ring's event channel.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import trio

from xen_py.drive.bell import Bell
from xen_py.io.ring import BackRing, FrontRing, RingBroken, RingStatistics

GIVE_WAY_EVERY = 8
"""A task whose calls are all answered at once lets others run after so many."""


class QueueClosed(Exception):
    """The device is not connected (any more): nobody will answer."""


class _Call:
    """Who waits for how many responses."""

    __slots__ = ("error", "left", "responses", "task")

    def __init__(self, count: int) -> None:
        self.left = count
        self.responses: list[Any] = [None] * count
        self.task: trio.lowlevel.Task | None = None
        self.error: Exception | None = None


class FrontQueue:
    """A frontend's ring. `notify` sends the event; `failed` is told what was wrong with the ring."""

    def __init__(self, ring: FrontRing, notify: Callable[[], None], failed: Callable[[str], None]) -> None:
        self.ring = ring
        self._notify = notify
        self._failed = failed
        self._free_ids = list(range(ring.slots - 1, -1, -1))
        self._calls: dict[int, tuple[_Call, int]] = {}
        self._room = trio.lowlevel.ParkingLot()
        self._closed = False
        self._at_once = 0
        self.ring.final_check()

    async def call(self, request: Any) -> Any:
        """Send one request (its `id` is the queue's to choose) and wait for its response.

        QueueClosed when the device goes meanwhile: whether the request was carried out is then not known.
        Cancelled while it waits, the request is still on the ring and its response is dropped when it comes.
        """
        return (await self.calls((request,)))[0]

    async def calls(self, requests: Sequence[Any]) -> list[Any]:
        """Send many and wait for all responses, in the order of the requests."""
        call = _Call(len(requests))
        if not requests:
            await trio.lowlevel.checkpoint()
            return []
        ids, put = self._free_ids, self.ring.put
        for number, request in enumerate(requests):
            while not ids:
                self._push()
                if self._closed:
                    break
                await self._room.park()
            if self._closed:
                raise QueueClosed("the device is not connected")
            identifier = ids.pop()
            self._calls[identifier] = call, number
            put(request._replace(id=identifier))
        self._push()
        if call.left and call.error is None:
            call.task = trio.lowlevel.current_task()

            def give_up(_raise_cancel: object) -> trio.lowlevel.Abort:
                call.task = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(give_up)
        else:
            await self._give_way()
        if call.error is not None:
            raise call.error
        return call.responses

    async def _give_way(self) -> None:
        """For calls that were answered at once: others get their turn now and then, which is dear."""
        self._at_once += 1
        if self._at_once % GIVE_WAY_EVERY:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()

    def _push(self) -> None:
        if self.ring.push():
            self._notify()

    def on_event(self) -> None:
        """The backend has put responses: hand them to who waits."""
        if self._closed:
            return
        ring = self.ring
        try:
            while True:
                for response in ring.take():
                    self._hand_over(response)
                if not ring.final_check():
                    break
        except RingBroken as error:
            self._failed(str(error))
        if self._room:
            self._room.unpark_all()

    def _hand_over(self, response: Any) -> None:
        identifier = response.id
        waiting = self._calls.pop(identifier, None)
        if waiting is None:
            raise RingBroken(f"{self.ring.kind.name}: a response to request {identifier}, which is not under way")
        self._free_ids.append(identifier)
        call, number = waiting
        call.responses[number] = response
        call.left -= 1
        if not call.left and call.task is not None:
            task, call.task = call.task, None
            trio.lowlevel.reschedule(task)

    def in_flight(self) -> int:
        return len(self._calls)

    def close(self) -> None:
        """Nothing more is sent or taken; who waits gets QueueClosed. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for call, _ in self._calls.values():
            if call.error is None:
                call.error = QueueClosed("the device was disconnected before the response came")
                if call.task is not None:
                    task, call.task = call.task, None
                    trio.lowlevel.reschedule(task)
        self._calls.clear()
        self._room.unpark_all()
        self.ring.close()

    def statistics(self) -> RingStatistics:
        return self.ring.statistics()


class BackQueue:
    """A backend's ring. `notify` sends the event."""

    def __init__(self, ring: BackRing, notify: Callable[[], None]) -> None:
        self.ring = ring
        self._notify = notify
        self._bell = Bell()
        self._observe: Callable[[str, str, Any], None] | None = None
        self._lent = False
        self._lendings = 0
        self.recall: Callable[[], None] = lambda: None
        """Asks for it."""
        self.wake: Callable[[], None] = lambda: None
        """Tells whoever it is lent to of an event."""
        self.peer_port = 0
        """The frontend's end of the event channel."""
        self._answer: Callable[[Any], Any] | None = None
        self._error: Exception | None = None
        self._closing = False
        self._closed = False
        self._bell.ring()  # what was put before we were bound

    @property
    def observe(self) -> Callable[[str, str, Any], None] | None:
        """Told of each slot that passes: what it is, the ring's kind, its values."""
        return self._observe

    @observe.setter
    def observe(self, observer: Callable[[str, str, Any], None] | None) -> None:
        self._observe = observer
        self.recall()

    @property
    def lent(self) -> bool:
        """Another serves the ring for now; `batch` waits for its return, which is an event."""
        return self._lent

    @lent.setter
    def lent(self, lent: bool) -> None:
        self._lent = lent
        self._lendings += lent

    def on_event(self) -> None:
        if self._lent:
            self.wake()
        elif self._answer is not None and not self._closing:
            self._answer_all(self._answer)
        else:
            self._bell.ring()

    async def answer(self, handle: Callable[[Any], Any]) -> None:
        """Answer every request by `handle(request)` as soon as its event comes, until the queue closes.

        For requests that need no waiting; no task has to wake for one. Raises what `handle` raises.
        """
        self._answer = handle
        self._answer_all(handle)
        try:
            while not self._closing and self._error is None:
                await self._bell.wait()
            if self._error is not None:
                raise self._error
        finally:
            self._answer = None

    def _answer_all(self, handle: Callable[[Any], Any]) -> None:
        ring = self.ring
        try:
            while True:
                if self._observe is None:  # the shortest way, for who is not looked at
                    for request in ring.take():
                        ring.put(handle(request))
                else:
                    for request in self._take():
                        self._put(handle(request))
                if ring.push():
                    self._notify()
                if self._closing or not ring.final_check():
                    break
        except Exception as error:
            self._error = error
            self._answer = None
            self._bell.ring()

    async def batches(self) -> AsyncIterator[list[Any]]:
        """All requests there are, again and again, until the queue closes. RingBroken where the ring makes no sense.

        What was answered is flushed before it waits.
        """
        while (batch := await self.batch()) is not None:
            yield batch

    async def batch(self) -> list[Any] | None:
        """At least one request; None when the queue closes."""
        ring = self.ring
        self.flush()
        await trio.lowlevel.checkpoint_if_cancelled()
        waited = False
        while not self._closing:
            if self.lent:
                await self._bell.wait()
                waited = True
                continue
            if taken := self._take():
                lendings = self._lendings
                if not waited:  # a frontend that never lets the ring run dry must not keep the others waiting
                    await trio.lowlevel.cancel_shielded_checkpoint()
                if lendings == self._lendings:
                    return taken
                continue  # they went with the ring
            if not ring.final_check():
                await self._bell.wait()
                waited = True
        return None

    def respond(self, response: Any) -> None:
        """Put the response to one of the requests taken; `flush` shows it. After `close` it goes nowhere."""
        if not self._closed:
            self._put(response)

    def _take(self) -> list[Any]:
        taken = self.ring.take()
        if self._observe is not None:
            for request in taken:
                self._observe("request", self.ring.kind.name, request)
        return taken

    def _put(self, response: Any) -> None:
        self.ring.put(response)
        if self._observe is not None:
            self._observe("response", self.ring.kind.name, response)

    def flush(self) -> None:
        """Show the frontend all responses, and tell it if it waits for them."""
        if not self._closed and self.ring.push():
            self._notify()

    def tell(self) -> None:
        """Send the frontend an event: another, to whom the ring is lent, has answered."""
        self._notify()

    @property
    def stopped(self) -> bool:
        return self._closing

    def stop(self) -> None:
        """No more requests are taken; those taken are still answered."""
        self._closing = True
        self.recall()
        self._bell.ring()

    def close(self) -> None:
        """Let go of the ring's pages. Idempotent."""
        self.stop()
        if not self._closed:
            self._closed = True
            self.ring.close()

    def statistics(self) -> RingStatistics:
        return self.ring.statistics()
