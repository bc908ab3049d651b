# SPDX-License-Identifier: GPL-2.0-only
"""Guests written in Python: in the host's own loop and in a VM process they live, talk and end alike."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from dom0.host.machine import Guest, Machine, open_machine
from dom0.kit.guests import configured, held, kernel_for
from dom0.toolstack.config import DomainConfig, ShutdownAction
from dom0.toolstack.domain import ToolstackError
from xen_py.abi.xen import DOMID_SELF, Hypercall, ShutdownReason, Virq
from xen_py.types import DomId, Errno, XenError

PROGRAMS = str(Path(__file__).parent / "python")


@pytest.fixture(params=[False, True], ids=["in the loop", "in a process"])
def processes(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def talker(name: str = "talker", target: str = "talker:main") -> DomainConfig:
    return DomainConfig(
        name=name,
        kernel=f"python:{target}",
        program_path=(PROGRAMS,),
        cmdline="be kind",
        memory_kb=16 * 1024,
        on_poweroff=ShutdownAction.PRESERVE,
        on_reboot=ShutdownAction.PRESERVE,
        on_crash=ShutdownAction.PRESERVE,
    )


@asynccontextmanager
async def talking(processes: bool) -> AsyncIterator[tuple[Machine, Guest]]:
    with trio.fail_after(60):
        async with open_machine(processes=processes) as machine:
            guest = await machine.create(talker())
            await guest.console.expect("told 'be kind'")
            yield machine, guest


async def test_it_talks_and_powers_off(processes: bool) -> None:
    async with talking(processes) as (_, guest):
        await guest.console.send("hello there\n")
        await guest.console.expect("you said hello there")
        await guest.console.send("import\nquit\n")
        await guest.console.expect("imported colorsys")
        assert await guest.wait_shutdown() == ShutdownReason.POWEROFF
        await guest.console.expect("good bye")


async def test_a_crash_has_its_traceback_in_the_log(processes: bool) -> None:
    async with talking(processes) as (_, guest):
        await guest.console.send("crash\n")
        assert await guest.wait_shutdown() == ShutdownReason.CRASH
        assert guest.domain.reason_text == "ValueError: as you wish"
        await guest.console.expect("Traceback (most recent call last)")
        await guest.console.expect('raise ValueError("as you wish")')
        await guest.console.expect("ValueError: as you wish")


async def test_it_asks_for_an_end_itself(processes: bool) -> None:
    async with talking(processes) as (_, guest):
        await guest.console.send("reboot\n")
        assert await guest.wait_shutdown() == ShutdownReason.REBOOT


@pytest.mark.parametrize(
    ("word", "reason"), [("poweroff", ShutdownReason.POWEROFF), ("reboot", ShutdownReason.REBOOT)]
)
async def test_it_obeys_control_shutdown_and_ends_in_order(processes: bool, word: str, reason: ShutdownReason) -> None:
    async with talking(processes) as (_, guest):
        await guest.shutdown(word)
        assert await guest.wait_shutdown() == reason
        await guest.console.expect("good bye")


async def test_it_is_destroyed_at_any_moment(processes: bool) -> None:
    async with talking(processes) as (machine, guest):
        await guest.console.send("sleep 100\n")
        await guest.destroy()
        assert [row["name"] for row in machine.toolstack.rows()] == ["Domain-0"]


async def test_a_paused_guest_gets_nothing_until_it_goes_on(processes: bool) -> None:
    async with talking(processes) as (_, guest):
        await guest.pause()
        await guest.console.send("are you there\n")
        await trio.sleep(0.1)
        assert "you said" not in guest.console.text
        await guest.unpause()
        await guest.console.expect("you said are you there")


async def test_a_process_of_its_own_may_not_write_files(tmp_path: Path) -> None:
    async with talking(True) as (_, guest):
        await guest.console.send(f"write {tmp_path / 'x'}\n")
        await guest.console.expect("not written: Operation not permitted")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("no_such_module:main", "ProgramError: there is no module 'no_such_module' (looked in "),
        ("talker:nothing", "ProgramError: module 'talker' has no function 'nothing'"),
    ],
)
async def test_a_program_that_is_not_there_is_a_crash_that_says_so(processes: bool, target: str, reason: str) -> None:
    with trio.fail_after(60):
        async with open_machine(processes=processes) as machine:
            guest = await machine.create(talker(target=target))
            assert await guest.wait_shutdown() == ShutdownReason.CRASH
            assert guest.domain.reason_text is not None
            assert guest.domain.reason_text.startswith(reason)


async def test_many_lines_both_ways_lose_nothing() -> None:
    async with open_machine() as machine, held(machine) as (handle, guest):
        lines = [f"line {n} ".ljust(60, "x") for n in range(500)]

        async def echo() -> None:
            for _ in range(2 * len(lines)):  # the newline behind a carriage return is an empty line of its own
                await guest.console.print("heard", await guest.console.readline())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo)
            for line in lines:
                await handle.console.send(line + "\r\n")
                await handle.console.expect("heard " + line)


async def test_hypercalls_are_those_of_any_guest() -> None:
    async with open_machine() as machine, held(machine) as (_, guest):
        kernel = guest.kernel
        assert kernel.call(Hypercall.XEN_VERSION, 0) == 4 << 16 | 17
        with pytest.raises(XenError) as caught:
            kernel.call(99, 0)
        assert caught.value.errno == Errno.ENOSYS
        with pytest.raises(XenError) as caught:
            kernel.hypercall(Hypercall.XEN_VERSION, 1, 0xDEAD000)  # extraversion to nowhere
        assert caught.value.errno == Errno.EFAULT
        counts = machine.toolstack.domains[guest.domid]
        assert counts.vm is not None


async def test_timers_of_the_hypervisor_wake_it() -> None:
    async with open_machine() as machine, held(machine) as (_, guest):
        rung = trio.Event()
        port = guest.events.bind_virq(Virq.TIMER, rung.set)
        soon = guest.kernel.domain.clock.now() + 20_000_000
        guest.kernel.hypercall(Hypercall.SET_TIMER_OP, soon)
        with trio.fail_after(10):
            await rung.wait()
        assert guest.kernel.domain.clock.now() >= soon
        port.close()


async def test_grants_pages_and_ports_come_and_go() -> None:
    async with open_machine() as machine, held(machine) as (_, guest):
        before = guest.statistics()
        vm = machine.toolstack.domains[guest.domid].vm
        assert vm is not None
        refs = [guest.grants.grant(DomId(0), guest.kernel.allocate()) for _ in range(600)]  # more than one frame's
        frames = await vm.grants.pin([(refs[0], False), (refs[599], True)])
        assert not guest.grants.end(refs[0])
        for ref in refs:
            guest.grants.end_and_free(ref)
        assert guest.grants.statistics()["lingering"] == 2
        await vm.grants.unpin(frames)  # type: ignore[arg-type]
        assert guest.grants.collect() == 0
        port = guest.events.offer(DomId(0), lambda: None)
        port.close()
        port.close()
        after = guest.statistics()
        for name in ("pages_free", "granted", "ports_open"):
            assert after[name] == before[name]


async def test_events_between_ports_of_its_own() -> None:
    async with open_machine() as machine, held(machine) as (_, guest):
        heard: list[str] = []
        one = guest.events.offer(DOMID_SELF, lambda: heard.append("one"))
        other = guest.events.bind(DOMID_SELF, one.port, lambda: heard.append("other"))
        heard.clear()  # binding marks the new port
        one.notify()
        other.notify()
        assert heard == ["other", "one"]


async def test_a_device_of_an_unknown_type_is_refused_with_its_name() -> None:
    async def main(guest: object) -> None: ...

    async with open_machine() as machine:
        with pytest.raises(ToolstackError, match=r"no backend for devices of type 'unheard-of' is installed"):
            await machine.create(configured("x", kernel_for("x", main), "type=unheard-of"))
        assert len(machine.toolstack.domains) == 0
