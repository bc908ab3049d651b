# SPDX-License-Identifier: GPL-2.0-only
"""Guests that use each other's grants: kernels in C and programs in Python, in VM processes, on threads, in the loop.

Both sides work at once, so that each waits for the other's thread while its own is asked. And either side may die.
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
import trio

import native_build
from dom0.host.machine import Guest, Machine, open_machine
from dom0.toolstack.config import DomainConfig, ShutdownAction
from xen_py.abi.xen import ShutdownReason
from xen_py.types import DomId

PROGRAMS = str(Path(__file__).parent / "python")


@pytest.fixture(params=[False, True], ids=["threads", "processes"])
def processes(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def config(name: str, kernel: str, cmdline: str) -> DomainConfig:
    return DomainConfig(
        name=name,
        kernel=kernel,
        program_path=(PROGRAMS,) if kernel.startswith("python:") else (),
        cmdline=cmdline,
        memory_kb=16 * 1024,
        on_poweroff=ShutdownAction.PRESERVE,
        on_crash=ShutdownAction.PRESERVE,
    )


def neighbour(name: str, peer: int, rounds: int) -> DomainConfig:
    return config(name, str(native_build.GUEST_OUTPUT / "neighbour.elf"), f"{peer} {rounds}")


def borrower(name: str, cmdline: str) -> DomainConfig:
    return config(name, "python:borrower:main", cmdline)


def foreign(machine: Machine) -> dict[str, int]:
    return machine.toolstack.foreign.statistics()


async def lending(machine: Machine) -> tuple[Guest, str]:
    """The machine's first guest, and the reference of the page that it has lent to the second."""
    lender = await machine.create(borrower("lender", "lend 2"))
    return lender, (await lender.console.expect(re.compile(r"lent as (\d+)")))[1]


async def ended_well(guest: Guest) -> None:
    assert await guest.wait_shutdown() == ShutdownReason.POWEROFF, guest.domain.reason_text


async def test_two_kernels_at_once(processes: bool) -> None:
    with trio.fail_after(120):
        async with open_machine(processes=processes) as machine:
            guests = [await machine.create(neighbour(f"n{n}", 3 - n, 200)) for n in (1, 2)]
            for guest in guests:
                await guest.console.expect("neighbour: ok")
                await ended_well(guest)
            assert foreign(machine)["mappings"] == 0
            assert foreign(machine)["maps"] >= 2 * 2 * 200
            await machine.debug_keys.press("g")
            for guest in guests:
                vm = guest.domain.vm
                assert vm is not None
                usage = await vm.grants.usage()
                assert (usage["in_use"], usage["mappings"]) == (2, 0), "console and store"


async def test_programs_lend_and_borrow(processes: bool) -> None:
    with trio.fail_after(60):
        async with open_machine(processes=processes) as machine:
            lender, ref = await lending(machine)
            user = await machine.create(borrower("user", f"borrow 1 {ref}"))
            await user.console.expect("borrowed b'lent'")
            await user.console.expect("gave it back")
            await lender.console.expect("written b'lentback'")
            await lender.console.expect("got it back")
            await ended_well(lender)
            await ended_well(user)


async def test_a_program_and_a_kernel(processes: bool) -> None:
    """On a machine with threads the program runs in the host's loop and the kernel does not: the loop has to wait."""
    with trio.fail_after(60):
        async with open_machine(processes=processes) as machine:
            kernel = await machine.create(neighbour("kernel", 2, 1))
            program = await machine.create(borrower("program", "borrow 1 8"))
            await program.console.expect("gave it back")
            await ended_well(program)
            await machine.toolstack.destroy(kernel.domid)
            assert foreign(machine)["mappings"] == 0


async def test_the_user_dies(processes: bool) -> None:
    """What it had is the lender's again."""
    with trio.fail_after(60):
        async with open_machine(processes=processes) as machine:
            lender, ref = await lending(machine)
            user = await machine.create(borrower("user", f"borrow 1 {ref} keep"))
            await user.console.expect("borrowed")
            assert machine.toolstack.foreign.users(lender.domid) == {user.domid: 1}
            vm = lender.domain.vm
            assert vm is not None
            assert (await vm.grants.usage())["in_use"] == 3, "console, store, and the one that was lent"
            await machine.debug_keys.press("g")
            assert re.search(rf"\[0x{int(ref):03x}\] +2 ", machine.messages.text())
            await user.destroy()
            assert (await vm.grants.usage())["in_use"] == 2
            assert foreign(machine)["mappings"] == 0


async def test_the_lender_dies(processes: bool) -> None:
    """Its user goes on with what it has; the domid stays taken until that is given back."""
    with trio.fail_after(60):
        async with open_machine(processes=processes) as machine:
            lender, ref = await lending(machine)
            user = await machine.create(borrower("user", f"borrow 1 {ref} keep"))
            await user.console.expect("borrowed")
            await lender.destroy()
            assert machine.toolstack.foreign.is_used(DomId(1))
            assert "d1: its memory stays: d2 has 1 of its grants mapped" in machine.messages.text()
            await user.console.send("\n")
            await user.console.expect("gave it back")
            await ended_well(user)
            assert not machine.toolstack.foreign.is_used(DomId(1))


async def test_a_killed_process_in_the_middle() -> None:
    """kill -9 of one of two that are at work on each other: the other is told so, and the host has no debts left."""
    with trio.fail_after(60):
        async with open_machine(processes=True) as machine:
            guests = [await machine.create(neighbour(f"n{n}", 3 - n, 1_000_000)) for n in (1, 2)]
            for guest in guests:
                await guest.console.expect("neighbour: found")
            victim, other = guests
            assert victim.domain.vm is not None
            os.kill(victim.domain.vm.info().pid, signal.SIGKILL)
            assert await victim.wait_shutdown() == ShutdownReason.CRASH
            await other.console.expect("the status of a")
            await other.destroy()
            await victim.destroy()
            assert foreign(machine)["mappings"] == 0


async def test_a_stopped_process_holds_up_its_neighbour_only_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dom0.host.foreign.PATIENCE", 0.5)
    with trio.fail_after(60):
        async with open_machine(processes=True) as machine:
            lender, ref = await lending(machine)
            assert lender.domain.vm is not None
            pid = lender.domain.vm.info().pid
            os.kill(pid, signal.SIGSTOP)
            try:
                user = await machine.create(borrower("user", f"borrow 1 {ref} keep"))
                await user.console.expect("eagain")
            finally:
                os.kill(pid, signal.SIGCONT)
            await user.console.expect("borrowed")
            usage = await lender.domain.vm.grants.usage()
            assert [row[3] for row in usage["pinned"]][2:] == [1 << 16], "mapped once, late ones given back"
