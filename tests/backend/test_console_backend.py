# SPDX-License-Identifier: GPL-2.0-only
"""The console backend: nothing lost, nobody waited for, nothing trusted."""

import errno
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from dom0.backend.console import Console, ConsoleClosed, ConsoleLog, open_listener
from xen_py.io.console import IN_SIZE, OUT_SIZE, ConsoleRing


class Guest:
    """The guest's half of a console, its backend, and what passed between them."""

    def __init__(self, path: Path) -> None:
        self.page = bytearray(4096)
        self.front = ConsoleRing(memoryview(self.page))
        self.warnings: list[str] = []
        self.notified = 0
        self.log = ConsoleLog(path, self.warnings.append)
        self.console = Console(ConsoleRing(memoryview(self.page)), self.log, self._notify, self.warnings.append)

    def _notify(self) -> None:
        self.notified += 1

    def write(self, data: bytes) -> None:
        while data:
            data = data[self.front.put_output(data) :]
            self.console.on_event()

    def read(self) -> bytes:
        data = self.front.take_input()
        self.console.on_event()
        return data


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(tmp_path / "guest-x.log")
    yield guest
    guest.console.close()


@asynccontextmanager
async def served(guest: Guest, path: Path) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery, open_listener(path) as listener:
        nursery.start_soon(guest.console.serve, listener, nursery)
        yield
        nursery.cancel_scope.cancel()


async def read_exactly(stream: trio.abc.Stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = await stream.receive_some(count - len(data))
        assert part, f"end of stream after {data!r}"
        data += part
    return data


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([part async for part in stream])


def test_output_reaches_the_log_and_frees_the_ring(guest: Guest) -> None:
    text = bytes(range(256)) * 100
    guest.write(text)
    assert guest.log.path.read_bytes() == text
    assert guest.front.put_output(bytes(OUT_SIZE)) == OUT_SIZE
    assert guest.notified >= len(text) // OUT_SIZE


def test_what_was_not_announced_is_taken_at_the_end(guest: Guest) -> None:
    guest.front.put_output(b"last words")
    guest.console.close()
    assert guest.log.path.read_bytes() == b"last words"
    guest.console.drain()
    guest.console.close()


def test_console_io_keeps_its_place_among_ring_output(guest: Guest) -> None:
    guest.front.put_output(b"one ")
    guest.console.write(b"two ")
    guest.write(b"three")
    assert guest.log.path.read_bytes() == b"one two three"


def test_a_later_domain_of_the_same_name_appends(tmp_path: Path) -> None:
    for text in (b"first\n", b"second\n"):
        guest = Guest(tmp_path / "guest-x.log")
        guest.write(text)
        assert guest.console.statistics().output_bytes == len(text)
        guest.console.close()
    assert (tmp_path / "guest-x.log").read_bytes() == b"first\nsecond\n"


def test_broken_indices_are_reported_once_and_may_recover(guest: Guest) -> None:
    indices = memoryview(guest.page)[IN_SIZE + OUT_SIZE : IN_SIZE + OUT_SIZE + 16].cast("I")
    indices[3] = 5000
    guest.console.on_event()
    guest.console.on_event()
    assert len(guest.warnings) == 1
    assert guest.console.statistics().broken
    indices[2] = indices[3] = 0
    guest.write(b"better")
    assert guest.log.path.read_bytes() == b"better"
    assert not guest.console.statistics().broken


def test_a_full_disk_costs_the_output_and_nothing_else(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("dom0.backend.console.os.write", full)
        guest.write(b"lost")
        guest.write(b"lost")
    guest.write(b"kept")
    assert guest.log.path.read_bytes() == b"kept"
    assert guest.console.statistics().lost_bytes == 8
    assert len(guest.warnings) == 1


async def test_input_flows_as_fast_as_the_guest_takes_it(guest: Guest) -> None:
    text = os.urandom(10 * IN_SIZE + 7)
    got = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guest.console.feed, text)
        while len(got) < len(text):
            await trio.lowlevel.checkpoint()
            part = guest.read()
            assert len(part) <= IN_SIZE
            got += part
    assert got == text
    assert guest.console.statistics().input_bytes == len(text)


async def test_input_to_a_domain_that_goes_away_ends(guest: Guest) -> None:
    async with trio.open_nursery() as nursery:

        async def feed() -> None:
            with pytest.raises(ConsoleClosed):
                await guest.console.feed(bytes(5000))

        nursery.start_soon(feed)
        await trio.testing.wait_all_tasks_blocked()
        guest.console.close()


async def test_client_gets_all_from_the_first_byte_and_the_end(guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "1.sock"
    guest.write(b"before anyone looked\n")
    async with served(guest, path), await trio.open_unix_socket(path) as client:
        assert await read_exactly(client, 21) == b"before anyone looked\n"
        await client.send_all(b"typed")
        while not (typed := guest.read()):
            await trio.lowlevel.checkpoint()
        assert typed == b"typed"
        guest.write(b"live\n")
        guest.front.put_output(b"goodbye\n")
        guest.console.close()
        assert await read_all(client) == b"live\ngoodbye\n"
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_client_starts_with_what_no_client_has_seen(guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "1.sock"
    async with served(guest, path):
        guest.write(b"one")
        async with await trio.open_unix_socket(path) as first:
            assert await read_exactly(first, 3) == b"one"
        while guest.console.statistics().clients:
            await trio.lowlevel.checkpoint()
        guest.write(b"two")
        async with await trio.open_unix_socket(path) as second:
            assert await read_exactly(second, 3) == b"two"


async def test_a_slow_client_holds_nobody_up_and_loses_nothing(guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "1.sock"
    text = os.urandom(3_000_000)
    async with served(guest, path):
        slow = await trio.open_unix_socket(path)
        await trio.testing.wait_all_tasks_blocked()
        guest.write(text)
        assert guest.log.path.stat().st_size == len(text)
        guest.console.close()
        async with slow:
            assert await read_all(slow) == text


async def test_a_client_that_closed_its_writing_half_still_reads(guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "1.sock"
    async with served(guest, path):
        async with await trio.open_unix_socket(path) as client:
            await client.send_eof()
            await trio.testing.wait_all_tasks_blocked()
            guest.write(b"still here")
            assert await read_exactly(client, 10) == b"still here"
            assert guest.console.statistics().clients == 1
        while guest.console.statistics().clients:
            await trio.lowlevel.checkpoint()


async def test_a_client_that_leaves_frees_its_place_while_the_guest_is_silent(guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "1.sock"
    async with served(guest, path):
        for _ in range(3):
            client = await trio.open_unix_socket(path)
            await trio.testing.wait_all_tasks_blocked()
            await client.aclose()
        while guest.console.statistics().clients:
            await trio.lowlevel.checkpoint()
