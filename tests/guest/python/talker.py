# SPDX-License-Identifier: GPL-2.0-only
"""A guest for tests: answers lines, and ends as it is told."""

from __future__ import annotations

import trio

from domU.guest import Guest
from xen_py.abi.xen import ShutdownReason


async def main(guest: Guest) -> None:
    await guest.console.print(f"{guest.name} is domain {guest.domid}, told {guest.cmdline!r}")
    try:
        while True:
            match (await guest.console.readline()).split():
                case ["crash"]:
                    raise ValueError("as you wish")
                case ["reboot"]:
                    await guest.shutdown(ShutdownReason.REBOOT)
                case ["quit"]:
                    return
                case ["import"]:
                    import colorsys  # something that nobody has imported before

                    await guest.console.print(f"imported {colorsys.__name__}")
                case ["write", path]:
                    try:
                        with open(path, "w"):
                            await guest.console.print("written")
                    except OSError as error:
                        await guest.console.print(f"not written: {error.strerror}")
                case ["sleep", seconds]:
                    await trio.sleep(float(seconds))
                    await guest.console.print("slept")
                case words:
                    await guest.console.print("you said", *words)
    finally:
        with trio.CancelScope(shield=True):
            await guest.console.print("good bye")
