# SPDX-License-Identifier: GPL-2.0-only
"""Both halves on seeded machines: what they say, and that faults do not hurt them."""

import pytest
from echo_device.backend import EchoBackend
from echo_device.frontend import EchoFrontend

from dom0.kit.battery import Pair
from dom0.kit.guests import inside


async def use(echo):
    for number in range(10):
        data = b"hello" * number
        assert await echo.say(data) == data


@pytest.mark.seeds(5)
def test_echo_survives(xenpy):
    xenpy.check(Pair(EchoBackend, EchoFrontend, use))


def test_the_configuration_makes_it_loud(xenpy):
    async def body(machine):
        machine.backends.register(EchoBackend)
        async with inside(machine, "type=echo,loud=1") as guest, guest.device(EchoFrontend) as echo:
            assert echo.loud
            assert await echo.say(b"hello") == b"HELLO"

    xenpy.run(body)
