# SPDX-License-Identifier: GPL-2.0-only
"""A guest for tests that uses a page of another one, or lends one: told by its command line which, and whose."""

from __future__ import annotations

import trio

from domU.grants import GrantRefused
from domU.guest import Guest
from xen_py.types import DomId, GrantRef


async def main(guest: Guest) -> None:
    what, domid, *more = guest.cmdline.split()
    if what == "lend":
        page = guest.kernel.allocate()
        page.data[:5] = b"lent\0"
        ref = guest.grants.grant(DomId(int(domid)), page)
        await guest.console.print(f"lent as {ref}")
        while page.data[4] == 0:
            await trio.sleep(0.001)
        await guest.console.print(f"written {bytes(page.data[:8])!r}")
        while not guest.grants.end(ref):
            await trio.sleep(0.001)
        await guest.console.print("got it back")
    else:
        ref = GrantRef(int(more[0]))
        while True:
            try:
                mapped = guest.grants.map(DomId(int(domid)), ref)
                break
            except GrantRefused as error:
                await guest.console.print(str(error))
                await trio.sleep(0.005)
        await guest.console.print(f"borrowed {bytes(mapped.data[:4])!r}")
        if "keep" in more:
            await guest.console.readline()
        mapped.data[4:8] = b"back"
        guest.grants.unmap(mapped)
        await guest.console.print("gave it back")
