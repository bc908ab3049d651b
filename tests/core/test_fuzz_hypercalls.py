# SPDX-License-Identifier: GPL-2.0-only
"""Whatever a guest asks for, it gets a number back, the counts add up, and nothing but its own memory has changed."""

from __future__ import annotations

import pytest

from tests.core import reference
from tests.core.fuzz import Fuzzer
from tests.core.machine import build_machine
from xen_py.types import GuestCrash

ROUNDS = 12
CALLS = 1500


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_hypercalls_only_return_numbers(seed: int) -> None:
    machine = build_machine(vcpus=1 + seed % 2)
    fuzzer = Fuzzer(machine, seed)
    domain = machine.domain
    try:
        for n in range(CALLS):
            fuzzer.scramble()
            call = fuzzer.call()
            try:
                result = machine.call(*call)
            except GuestCrash:
                result = 0
            except Exception as error:
                error.add_note(f"call {n} of seed {seed}: {[hex(a) for a in call]}")
                raise
            assert isinstance(result, int) and -(1 << 63) <= result < 1 << 64, call
            domain.shutdown = None
            domain.vcpus[0].blocked = False
            if n % 10 == 0:
                machine.clock.advance(fuzzer.r.randrange(10**7))
                domain.run_timers()
                try:
                    reference.check(domain)
                except AssertionError as error:
                    error.add_note(f"after call {n} of seed {seed}")
                    raise
        reference.check(domain)
    finally:
        machine.close()
