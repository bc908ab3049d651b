# SPDX-License-Identifier: GPL-2.0-only
"""A frontend in C and a backend in Python: the echo device spoken by a small native kernel."""

from __future__ import annotations

import re

import pytest
import trio
from echo_device.backend import EchoBackend

import native_build
from dom0.host.machine import open_machine
from dom0.toolstack.config import DomainConfig, ShutdownAction
from dom0.toolstack.deviceconfig import DeviceConfig
from xen_py.abi.xen import ShutdownReason


@pytest.mark.parametrize("processes", [False, True], ids=["thread", "process"])
async def test_it_connects_talks_and_closes(processes: bool) -> None:
    config = DomainConfig(
        name="echo",
        kernel=str(native_build.GUEST_OUTPUT / "echo.elf"),
        cmdline="200",
        memory_kb=16 * 1024,
        devices=(DeviceConfig.parse("type=echo", []),),
        on_poweroff=ShutdownAction.PRESERVE,
    )
    with trio.fail_after(60):
        async with open_machine(processes=processes) as machine:
            machine.backends.register(EchoBackend)
            guest = await machine.create(config)
            for at_once in (1, 32):
                match = await guest.console.expect(re.compile(rf"rate {at_once} (\d+)"))
                assert int(match[1]) > 0
            await guest.console.expect("wrong answers: 0")
            await guest.console.expect("closed")
            assert await guest.wait_shutdown() == ShutdownReason.POWEROFF
            assert guest.domain.vm is not None
            assert guest.domain.vm.grants.statistics().pinned == 0
