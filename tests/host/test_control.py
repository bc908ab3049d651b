# SPDX-License-Identifier: GPL-2.0-only
"""The control socket: xl's own client against a machine of scripted domains, and clients that misbehave."""

import os
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest
import trio

from dom0.host.control import ControlServer
from dom0.host.machine import Machine
from dom0.toolstack.config import DomainConfig
from dom0.xl.client import Client, HostError
from tests.host.guests import ScriptedDomain, hello, scripted, watched_machine
from xen_py.abi.xen import ShutdownReason
from xen_py.spec import Blocked, Shutdown, Step


def idle(domain: ScriptedDomain) -> Iterator[Step]:
    domain.say(b"up\n")
    while True:
        yield Blocked(None)


def short(domain: ScriptedDomain) -> Iterator[Step]:
    yield Shutdown(ShutdownReason.POWEROFF, "done")


class Served:
    def __init__(self, machine: Machine, path: Path) -> None:
        self.machine = machine
        self.path = path
        self.stopped = trio.Event()

    async def call(self, method: str, **params: Any) -> Any:
        return await self.use(lambda client: client.call(method, params))

    async def use(self, body: Callable[[Client], Any]) -> Any:
        def run() -> Any:
            with Client.connect(self.path.parent, start=False) as client:
                return body(client)

        return await trio.to_thread.run_sync(run)


@asynccontextmanager
async def served(script: Any = idle) -> AsyncIterator[Served]:
    async with watched_machine(make=scripted(script)) as machine, trio.open_nursery() as nursery:
        serving = Served(machine, machine.rundir / "control.sock")
        await nursery.start(ControlServer(machine, serving.stopped.set).serve, serving.path)
        yield serving
        nursery.cancel_scope.cancel()


def packed(message: object) -> bytes:
    data = msgpack.packb(message)
    return struct.pack("<I", len(data)) + bytes(data)


async def test_every_method() -> None:
    async with served() as host:
        hello_answer = await host.call("host.hello")
        assert hello_answer["pid"] == os.getpid() and hello_answer["version"].startswith("4.17")
        info = await host.call("host.info")
        assert list(info)[:2] == ["host", "release"] and info["xen_caps"] == "xen-3.0-x86_64 "
        config = hello()
        assert await host.call("domain.create", config=config.to_plain(), paused=True) == {"domid": 1}
        assert (await host.call("domain.list"))[1]["paused"]
        await host.call("domain.unpause", domid=1)
        await host.call("domain.pause", domid=1)
        await host.call("domain.unpause", domid=1)
        assert DomainConfig.from_plain(await host.call("domain.config", domid=1)) == config
        assert len(await host.call("domain.vcpus", domid=1)) == 1
        assert len(await host.call("domain.vcpus", domid=0)) == len(os.sched_getaffinity(0))
        await host.call("domain.rename", domid=1, name="other")
        assert [row["name"] for row in await host.call("domain.list")] == ["Domain-0", "other"]
        path = (await host.call("domain.console", domid=1))["path"]
        async with await trio.open_unix_socket(path) as console:
            assert await console.receive_some(100) == b"up\n"
            await host.call("domain.destroy", domid=1)
            assert await console.receive_some(100) == b""
        assert len(await host.call("domain.list")) == 1
        assert await host.call("host.dmesg", clear=True) == ""
        assert await host.call("host.debug_keys", keys="g") is None
        assert "gnttab_usage_print_all ] done" in await host.call("host.dmesg")
        await host.call("host.stop")
        await host.stopped.wait()


@pytest.mark.parametrize(
    ("method", "params", "code", "words"),
    [
        ("domain.explode", {}, 1, "knows no method"),
        ("domain.destroy", {"domid": 5}, 1, "domain 5 does not exist"),
        ("domain.destroy", {"domid": "5"}, 1, "names no domain"),
        ("domain.destroy", {}, 1, "names no domain"),
        ("domain.pause", {"domid": True}, 1, "names no domain"),
        ("domain.rename", {"domid": 1}, 1, "has no name"),
        ("domain.shutdown", {"domid": 1, "reason": "dance"}, 1, "dance"),
        ("domain.wait", {"domid": 1, "event": "birth"}, 1, "birth"),
        ("domain.create", {}, 1, "must be a map"),
        ("domain.create", {"config": {"name": "x", "kernel": "/nonexistent"}}, 3, "nonexistent"),
        ("domain.create", {"config": {"name": "hello", "kernel": "/nonexistent"}}, 3, "already exists"),
        ("domain.create", {"config": {"name": "x", "kernel": "k", "colour": "red"}}, 1, "colour"),
    ],
)
async def test_errors_are_answers(method: str, params: dict[str, Any], code: int, words: str) -> None:
    async with served() as host:
        await host.machine.create(hello())
        with pytest.raises(HostError, match=words) as error:
            await host.call(method, **params)
        assert error.value.code == code
        assert len(await host.call("domain.list")) == 2


async def test_waiting() -> None:
    async with served(short) as host:
        guest = await host.machine.create(hello(), paused=True)
        answers: list[Any] = []

        async def wait(event: str) -> None:
            answers.append(await host.call("domain.wait", domid=guest.domid, event=event))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, "shutdown")
            nursery.start_soon(wait, "death")
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert answers == []
            await guest.unpause()
        assert answers == [{"reason": 0}, {"reason": 0}]


async def test_progress_comes_before_the_answer() -> None:
    async with served() as host:
        stages: list[str] = []
        params = {"config": hello().to_plain()}
        answer = await host.use(
            lambda client: client.call("domain.create", params, lambda stage, _done, _total: stages.append(stage))
        )
        assert answer == {"domid": 1}
        assert all(isinstance(stage, str) for stage in stages)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        struct.pack("<I", 0xFFFFFFFF),
        struct.pack("<I", 4) + b"ab",
        struct.pack("<I", 1) + b"\xc1",
        packed("host.hello"),
        packed([1, "host.hello"]),
        packed([1, 2, {}]),
        packed(["1", "host.hello", {}]),
        packed([1, "host.hello", [1]]),
    ],
)
async def test_what_is_no_request_ends_the_connection(data: bytes) -> None:
    async with served() as host:
        async with await trio.open_unix_socket(host.path) as stream:
            await stream.send_all(data)
            await stream.send_eof()
            assert b"".join([part async for part in stream]) == b""
        assert await host.call("host.hello")


async def test_who_hangs_up_takes_the_request_back() -> None:
    async with served() as host:
        guest = await host.machine.create(hello())
        tasks = trio.lowlevel.current_statistics().tasks_living
        for request in (
            [1, "domain.wait", {"domid": 1, "event": "death"}],
            [1, "domain.shutdown", {"domid": 1, "reason": "poweroff"}],
            [1, "domain.create", {"config": hello("b").to_plain()}],
        ):
            async with await trio.open_unix_socket(host.path) as stream:
                await stream.send_all(packed(request))
                await trio.testing.wait_all_tasks_blocked()
        while trio.lowlevel.current_statistics().tasks_living > tasks + 3:
            await trio.sleep(0.01)
        assert await host.call("host.hello")
        await guest.destroy()


async def test_a_client_that_does_not_read_stalls_itself() -> None:
    async with served() as host:
        async with await trio.open_unix_socket(host.path) as stream:
            with trio.move_on_after(0.5):
                for n in range(100_000):
                    await stream.send_all(packed([n, "host.info", {}]))
            assert await host.call("host.hello")
        assert await host.call("host.hello")


async def test_several_requests_on_one_connection() -> None:
    async with served() as host, await trio.open_unix_socket(host.path) as stream:
        await stream.send_all(b"".join(packed([n, "host.hello", {}]) for n in range(20)))
        unpacker = msgpack.Unpacker()
        numbers = []
        buffer = b""
        while len(numbers) < 20:
            buffer += await stream.receive_some()
            while len(buffer) >= 4 and len(buffer) >= 4 + struct.unpack_from("<I", buffer)[0]:
                (length,) = struct.unpack_from("<I", buffer)
                unpacker.feed(buffer[4 : 4 + length])
                numbers.append(unpacker.unpack()[0])
                buffer = buffer[4 + length :]
        assert numbers == list(range(20))
