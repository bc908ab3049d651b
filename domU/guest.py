# SPDX-License-Identifier: GPL-2.0-only
"""What a Python guest's program is given: its console, the store, pages, grants, events, and its devices.

    async def main(guest: Guest) -> None:
        await guest.console.print("I am", guest.name)
        async with guest.device(EchoFrontend) as echo:
            await guest.console.print(await echo.say(b"hello"))

When `main` returns the guest powers off; an exception that leaves it is the guest's crash, with the traceback in its
log. On `xl shutdown` and `xl reboot` the program is cancelled: what it must do at its end belongs into a `finally`.
Owned by the guest's thread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from domU.bus import RingBus
from domU.events import Events
from domU.frontend.console import ConsoleFrontend
from domU.frontend.driver import Frontend
from domU.grants import Grants
from domU.kernel import Kernel
from xen_py.abi.xen import ShutdownReason
from xen_py.types import DomId
from xenstore.aclient import AsyncClient

F = TypeVar("F", bound=Frontend)


class Guest:
    """See the module."""

    def __init__(
        self, kernel: Kernel, events: Events, console: ConsoleFrontend, store: AsyncClient, domid: DomId, name: str
    ) -> None:
        self.kernel = kernel
        self.events = events
        self.grants = Grants(kernel)
        self.console = console
        self.store = store
        self.bus = RingBus(store)
        self.domid = domid
        self.name = name
        self.cmdline = kernel.start_info.cmd_line.decode(errors="replace")
        self.devices: list[Frontend] = []
        """Those that are open."""

    @property
    def path(self) -> str:
        """Its place in the store."""
        return f"/local/domain/{self.domid}"

    @asynccontextmanager
    async def device(self, driver: type[F], devid: int = 0, *, connected: bool = True) -> AsyncIterator[F]:
        """A device by its driver, for as long as the block lasts; `connected` waits until it can be used.

        DeviceFailed when it cannot be.
        """
        frontend = driver(self, devid, await self._backend(driver, devid))
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(frontend.run)
            self.devices.append(frontend)
            try:
                if connected:
                    await frontend.wait_connected()
                yield frontend
            except Exception as error:
                failure = error  # raised below, where the nursery does not put it into a group
            finally:
                self.devices.remove(frontend)
                with trio.CancelScope(shield=True):
                    await frontend.leave()
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _backend(self, driver: type[Frontend], devid: int) -> str:
        """Where the backend's directory is, as the toolstack wrote it."""
        return (await self.store.read(f"{self.path}/device/{driver.type}/{devid}/backend")).decode()

    async def device_ids(self, driver: type[Frontend]) -> list[int]:
        """The devices of that type that the toolstack has given us."""
        names = await self.bus.names(f"{self.path}/device/{driver.type}")
        return sorted(int(name) for name in names if name.isdecimal())

    async def shutdown(self, reason: ShutdownReason = ShutdownReason.POWEROFF) -> None:
        """End the domain; does not return."""
        self.kernel.shutdown(reason)
        await trio.sleep_forever()

    def statistics(self) -> dict[str, Any]:
        return {
            **self.kernel.statistics(),
            **self.events.statistics(),
            **self.grants.statistics(),
            "devices": {device.name: device.statistics() for device in self.devices},
        }
