# SPDX-License-Identifier: GPL-2.0-only
"""The guest-side tests: every kernel of domU/native/tests is booted, and its verdict asserted.

What each kernel tests, and what its outcomes mean, is in the comment at the head of its source. All verdicts were the
same on real Xen 4.17. A kernel whose success is the end of its domain says so in advance ("Expects: CRASH").
"""

from __future__ import annotations

import re

import pytest
import trio

import native_build
from dom0.host.machine import open_machine
from dom0.toolstack.config import DomainConfig, ShutdownAction
from xen_py.abi.xen import ShutdownReason

KERNELS = sorted(path.stem for path in (native_build.GUESTS / "tests").glob("test_*.c"))
VERDICT = re.compile(r"^--- Xen-py Test (Result|Expects): (\w+)(?:: (.*))?\r$", re.MULTILINE)
SECONDS = 20
"""Longer than any of them takes on a loaded machine; a guest that hangs must not hang the suite."""


async def run(kernel: str) -> tuple[str, int | None, str]:
    """Boot a kernel in this process: its console, its shutdown reason, the hypervisor's messages."""
    config = DomainConfig(
        name=kernel,
        kernel=str(native_build.GUEST_OUTPUT / f"{kernel}.elf"),
        cmdline="selftest",
        memory_kb=16 * 1024,
        on_poweroff=ShutdownAction.DESTROY,
        on_reboot=ShutdownAction.DESTROY,
        on_crash=ShutdownAction.DESTROY,
    )
    async with open_machine() as machine:
        guest = await machine.create(config)
        with trio.move_on_after(SECONDS) as waiting:
            await guest.wait_shutdown()
            await guest.wait_gone()
        messages = machine.messages.text()
        assert not waiting.cancelled_caught, f"{kernel} does not end; console so far:\n{guest.console.text}\n{messages}"
        console = await guest.console.read_to_end()
    return console, guest.domain.shutdown_reason, messages


@pytest.mark.parametrize("kernel", KERNELS)
async def test_kernel(kernel: str) -> None:
    console, reason, messages = await run(kernel)
    what = f"shutdown reason {reason}, console:\n{console}\nmessages:\n{messages}"
    verdicts = [match.groups() for match in VERDICT.finditer(console)]
    assert len(verdicts) == 1, what
    kind, outcome, _text = verdicts[0]
    if kind == "Result":
        assert (outcome, reason) == ("SUCCESS", ShutdownReason.POWEROFF), what
    else:
        assert reason == ShutdownReason[outcome], what


async def test_console_ring_loses_nothing() -> None:
    console, _reason, _messages = await run("test_console_ring")
    lines = [line for line in console.split("\r\n") if line.startswith("line ")]
    expected = [f"line {n} ".ljust(62, chr(ord("a") + n % 26)) for n in range(2000)]
    assert lines == expected


def test_every_kernel_has_a_head_comment() -> None:
    for kernel in KERNELS:
        source = (native_build.GUESTS / "tests" / f"{kernel}.c").read_text()
        assert source.startswith("// SPDX-License-Identifier: GPL-2.0-only\n// Tests: "), kernel
