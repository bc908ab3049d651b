# SPDX-License-Identifier: GPL-2.0-only
"""The host's loop that stays awake for a moment before it sleeps."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
import trio

from dom0.host.linger import MOST_BELLS, lingering_loop, watched
from xen_py.doorbell import Doorbell
from xen_py.types import Port

PATIENCE = 60
PORT = Port(5)


@pytest.fixture
def doorbell() -> Iterator[Doorbell]:
    with closing(Doorbell.create()) as made:
        yield made


async def take(doorbell: Doorbell) -> list[Port]:
    await trio.lowlevel.wait_readable(doorbell.outbox.eventfd)
    return doorbell.outbox.take()


async def test_no_ring_is_lost(doorbell: Doorbell) -> None:
    """A thread that waits for an answer to each ring gets it, and as it rings soon, the loop comes to wait awake."""
    rounds = 0
    over = False

    def guest() -> None:
        while not over:
            doorbell.outbox.ring(PORT)
            if not select.select([doorbell.inbox.eventfd], [], [], PATIENCE)[0]:
                return
            doorbell.inbox.take()

    with lingering_loop() as lingering, watched(doorbell.outbox), trio.fail_after(PATIENCE):
        thread = threading.Thread(target=guest)
        thread.start()
        while rounds < 2000 or not lingering.statistics()["lingered"]:
            assert await take(doorbell) == [PORT]
            rounds += 1
            over = rounds >= 2000 and bool(lingering.statistics()["lingered"])
            doorbell.inbox.ring(PORT)
        await trio.to_thread.run_sync(thread.join)
        assert 0 <= lingering.statistics()["linger_ns"] <= 400_000


async def test_nobody_writes_the_eventfd_of_a_loop_that_looks(doorbell: Doorbell) -> None:
    """What was rung meanwhile is found by the eventfd all the same."""
    with lingering_loop() as lingering, watched(doorbell.outbox), trio.fail_after(PATIENCE):
        lingering._linger.limit = 400_000
        doorbell.outbox.ring(PORT)
        doorbell.outbox.quiet()  # as if it had been rung while the loop looked
        assert await take(doorbell) == [PORT]
        assert lingering.statistics()["lingered"] == 1
    doorbell.outbox.ring(PORT)
    assert os.eventfd_read(doorbell.outbox.eventfd) == 1  # it no longer looks


async def test_what_else_comes_is_found_at_once(doorbell: Doorbell) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, lingering_loop() as lingering, watched(doorbell.outbox), trio.fail_after(PATIENCE):
        while not lingering.statistics()["lingered"]:
            lingering._linger.limit = 400_000
            timer = threading.Timer(0.0001, theirs.send, [b"x"])
            timer.start()
            await trio.lowlevel.wait_readable(ours)
            assert ours.recv(1) == b"x"
            await trio.to_thread.run_sync(timer.join)


async def test_a_loop_that_waits_long_sleeps(doorbell: Doorbell) -> None:
    with lingering_loop() as lingering, watched(doorbell.outbox):
        lingering._linger.limit = 100_000
        began = time.process_time()
        for _ in range(5):
            await trio.sleep(0.1)
        assert lingering.statistics()["linger_ns"] == 0
        assert time.process_time() - began < 0.25


async def test_more_guests_than_are_looked_at(doorbell: Doorbell) -> None:
    """The loop just sleeps, and goes on to linger when there are fewer."""
    with lingering_loop() as lingering:
        for _ in range(MOST_BELLS + 1):
            lingering.watch(doorbell.outbox)
        lingering._linger.limit = 400_000
        doorbell.outbox.ring(PORT)
        assert await take(doorbell) == [PORT]
        assert lingering.statistics()["lingered"] == 0
        for _ in range(MOST_BELLS + 1):
            lingering.forget(doorbell.outbox)


async def test_a_loop_that_does_not_linger(doorbell: Doorbell) -> None:
    with watched(doorbell.outbox):
        doorbell.outbox.ring(PORT)
        assert await take(doorbell) == [PORT]
