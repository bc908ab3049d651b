# SPDX-License-Identifier: GPL-2.0-only
"""What a host must bear that no driver is to blame for, on seeded machines."""

from __future__ import annotations

import pytest
import trio
from echo_device.backend import EchoBackend
from echo_device.frontend import EchoFrontend

from dom0.host.machine import Machine
from dom0.kit.guests import inside
from dom0.kit.plugin import Seeded
from dom0.kit.seeded import Recorder


@pytest.mark.parametrize("state", ["0", "banana", ""])
def test_a_device_whose_state_is_none_has_no_backend(xenpy: Seeded, state: str) -> None:
    """It would end at once, and be started again, for ever."""

    async def body(machine: Machine) -> None:
        machine.backends.register(EchoBackend)
        async with inside(machine, "type=echo") as guest:
            await trio.sleep(1)
            node = f"/local/domain/0/backend/echo/{guest.domid}/0/state"
            machine.store.write(node, state)
            started = machine.backends.statistics()["started"]
            for _ in range(30):
                await trio.lowlevel.checkpoint()
            now, device = machine.backends.statistics()["started"], machine.backends.device("echo", guest.domid, 0)
            machine.store.write(node, "1")
            assert (now, device) == (started, None)
            await trio.sleep(1)
            assert machine.backends.device("echo", guest.domid, 0) is not None

    xenpy.run(body)


@pytest.mark.seeds(3)
def test_drivers_do_not_notice_that_the_store_restarts(xenpy: Seeded) -> None:
    async def body(machine: Machine) -> None:
        machine.backends.register(EchoBackend)

        async def restart_often() -> None:
            for _ in range(40):
                machine.daemon.restart()
                await trio.sleep(0.0003)

        async with inside(machine, "type=echo") as guest, trio.open_nursery() as nursery:
            nursery.start_soon(restart_often)
            for _ in range(3):
                async with guest.device(EchoFrontend) as echo:
                    assert await echo.say(b"hello") == b"hello"

    xenpy.run(body)


def test_a_mark_in_a_trace_is_where_it_ends(xenpy: Seeded) -> None:
    recorder = Recorder()

    async def body(machine: Machine) -> None:
        await recorder.attach(machine)
        machine.store.write("/one", "")
        recorder.mark()
        machine.store.write("/two", "")
        recorder.mark()

    xenpy.run(body)
    assert "/one" in recorder.until_mark()[-1]
    assert "/two" in recorder.text
