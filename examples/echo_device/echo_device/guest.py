# SPDX-License-Identifier: GPL-2.0-only
"""A guest that uses the device: kernel = "python:echo_device.guest:main"."""

from __future__ import annotations

from domU.guest import Guest
from echo_device.frontend import EchoFrontend


async def main(guest: Guest) -> None:
    async with guest.device(EchoFrontend) as echo:
        await guest.console.print("echo says:", (await echo.say(guest.cmdline.encode())).decode())
