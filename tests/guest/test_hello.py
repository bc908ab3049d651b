# SPDX-License-Identifier: GPL-2.0-only
"""The native guest that comes along, as a user meets it: what it prints, its echo, and control/shutdown."""

from __future__ import annotations

import re

import pytest

import native_build
from dom0.host.machine import Guest, Machine, open_machine
from xen_py.abi.xen import ShutdownReason


async def boot(machine: Machine, *overrides: str) -> Guest:
    kernel = native_build.GUEST_OUTPUT / "hello.elf"
    return await machine.create(native_build.ROOT / "examples" / "hello.cfg", f'kernel="{kernel}"', *overrides)


async def test_it_tells_what_it_finds() -> None:
    async with open_machine() as machine:
        guest = await boot(machine, 'name="greeter"', 'extra="one two"')
        await guest.console.expect("Hello from a native PV guest.")
        await guest.console.expect(re.compile(r"Xen version:  4\.17\S*\r\n"))
        await guest.console.expect("magic:        xen-3.0-x86_64")
        await guest.console.expect('command line: "one two"')
        await guest.console.expect("memory:       4096 pages now")
        await guest.console.expect("name:         greeter\r\n> ")


async def test_lines_are_echoed_and_commands_obeyed() -> None:
    async with open_machine() as machine:
        guest = await boot(machine)
        await guest.console.expect("> ")
        await guest.console.send("hello x\x7fthere\r")
        await guest.console.expect("you said: hello there\r\n> ")
        await guest.console.send("sleep\r")
        await guest.console.expect(re.compile(r"slept \d+ ms"))
        await guest.console.send("poweroff\r")
        assert await guest.wait_shutdown() == ShutdownReason.POWEROFF


@pytest.mark.parametrize(
    ("wish", "reason"),
    [("poweroff", ShutdownReason.POWEROFF), ("halt", ShutdownReason.POWEROFF), ("reboot", ShutdownReason.REBOOT)],
)
async def test_control_shutdown(wish: str, reason: ShutdownReason) -> None:
    async with open_machine() as machine:
        guest = await boot(machine, 'on_reboot="destroy"')
        await guest.console.expect("> ")
        await guest.shutdown(wish)
        await guest.console.expect(f"control/shutdown: {wish}")
        assert await guest.wait_shutdown() == reason
