# SPDX-License-Identifier: GPL-2.0-only
"""Real guests in VM processes: life, death by every hand, and nothing left behind."""

import gc
import os
import re
import signal
from pathlib import Path

import pytest
import trio

from dom0.host.machine import Guest, Machine
from dom0.toolstack.config import ShutdownAction
from tests.host.guests import hello, watched_machine
from xen_py.abi.xen import ShutdownReason
from xen_py.types import DomId


def vm_pid(guest: Guest) -> int:
    assert guest.domain.vm is not None
    return guest.domain.vm.info().pid


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()


def status(pid: int, field: str) -> str:
    found = re.search(rf"^{field}:\s*(\S+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return found.group(1)


async def settled(machine: Machine, config: str = "hello") -> Guest:
    guest = await machine.create(hello(config))
    await guest.console.expect("name:         " + config)
    await guest.console.expect("> ")
    return guest


async def test_life_of_a_guest_in_a_process_of_its_own() -> None:
    async with watched_machine(processes=True) as machine:
        guest = await settled(machine)
        pid = vm_pid(guest)
        assert pid != os.getpid()
        assert command(pid) == "xen-py: hello [1]"
        assert status(pid, "Name") == "xen-py:hello"
        assert status(pid, "NoNewPrivs") == "1"
        assert status(pid, "Seccomp") == "2"
        assert os.getsid(pid) == pid
        await guest.console.send("how are you\n")
        await guest.console.expect("you said: how are you")
        row = machine.toolstack.rows()[1]
        assert row["cpu_time_ns"] > 0 and row["mem_kb"] == 16 * 1024
        await guest.pause()
        await guest.console.send("later\n")
        await guest.unpause()
        await guest.console.expect("you said: later")
        await guest.shutdown()
        assert await guest.wait_shutdown() == ShutdownReason.POWEROFF
        await guest.wait_gone()
        assert not Path(f"/proc/{pid}").exists()
        assert "control/shutdown: poweroff" in await guest.console.read_to_end()


async def test_reboot() -> None:
    async with watched_machine(processes=True) as machine:
        guest = await settled(machine)
        await guest.shutdown("reboot")
        await guest.wait_gone()
        while DomId(2) not in machine.toolstack.domains or machine.toolstack.domains[DomId(2)].building:
            await trio.sleep(0.01)
        again = Guest(machine.toolstack, machine.toolstack.domains[DomId(2)])
        await again.console.expect("name:         hello")
        again.console.close()


async def test_killed_process_is_a_crashed_domain_and_harms_no_other() -> None:
    async with watched_machine(processes=True) as machine:
        victim, other = await settled(machine, "victim"), await settled(machine, "other")
        pid = vm_pid(victim)
        os.kill(pid, signal.SIGKILL)
        assert await victim.wait_shutdown() == ShutdownReason.CRASH
        row = machine.toolstack.rows()[1]
        assert (row["name"], row["shutdown"], row["shutdown_reason"]) == ("victim", True, 3)
        assert row["reason_text"] == f"VM process {pid} was killed by SIGKILL"
        assert row["cpu_time_ns"] > 0
        assert row["reason_text"] in machine.messages.text()
        await other.console.send("still there?\n")
        await other.console.expect("you said: still there?")
        await victim.pause()
        await victim.destroy()
        assert [row["name"] for row in machine.toolstack.rows()] == ["Domain-0", "other"]


async def test_killed_process_restarts_where_crashes_do() -> None:
    async with watched_machine(processes=True) as machine:
        guest = await machine.create(hello(on_crash=ShutdownAction.RESTART))
        await guest.console.expect("> ")
        os.kill(vm_pid(guest), signal.SIGSEGV)
        await guest.wait_gone()
        while DomId(2) not in machine.toolstack.domains or machine.toolstack.domains[DomId(2)].building:
            await trio.sleep(0.01)


async def test_stopped_process_does_not_stop_the_toolstack() -> None:
    async with watched_machine(processes=True) as machine:
        stopped, other = await settled(machine, "stopped"), await settled(machine, "other")
        os.kill(vm_pid(stopped), signal.SIGSTOP)
        assert len(machine.toolstack.rows()) == 3
        await other.console.send("hello\n")
        await other.console.expect("you said: hello")
        await stopped.destroy()


async def test_template_killed_takes_its_children_and_is_replaced() -> None:
    async with watched_machine(processes=True) as machine:
        guest = await settled(machine)
        spawner = machine.toolstack._assembler._spawner
        template = spawner.template_pid  # type: ignore[attr-defined]
        assert command(template) == "xen-py: template"
        os.kill(template, signal.SIGKILL)
        assert await guest.wait_shutdown() == ShutdownReason.CRASH
        again = await settled(machine, "again")
        assert spawner.template_pid != template  # type: ignore[attr-defined]
        await again.destroy()


async def test_a_busy_guest_is_destroyed_at_once() -> None:
    async with watched_machine(processes=True) as machine:
        guest = await machine.create(hello())
        await guest.destroy()
        assert len(machine.toolstack.rows()) == 1


@pytest.mark.parametrize("processes", [False, True])
async def test_create_and_destroy_leave_nothing(processes: bool) -> None:
    """Descriptors, processes, threads, sockets and nodes after one guest are those before it, ten times over."""
    async with watched_machine(processes=processes) as machine:
        await (await settled(machine)).destroy()

        def descriptors() -> int:
            if not processes:
                gc.collect()  # a domain on a thread of ours holds its memory in cycles; a process's goes with it
            return len(os.listdir("/proc/self/fd"))

        def held() -> tuple[object, ...]:
            return (
                len(os.listdir("/proc/self/task")),
                Path("/proc/self/maps").read_text().count("memfd:"),
                os.listdir(machine.rundir / "console"),
                machine.store.directory("/local/domain"),
                machine.switchboard.statistics(),
                machine.toolstack.domains,
            )

        gc.collect()
        before, open_before = held(), descriptors()
        for n in range(10):
            guest = await settled(machine, f"guest{n}")
            pid = vm_pid(guest)
            await guest.destroy()
            guest.console.close()
            if processes:
                assert not Path(f"/proc/{pid}").exists()
        del guest
        assert descriptors() <= open_before
        assert held() == before
