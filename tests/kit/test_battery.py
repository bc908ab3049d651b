# SPDX-License-Identifier: GPL-2.0-only
"""The battery: a sound pair of drivers survives it, and each classic bug is found within a few seeds."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

import native_build
from dom0.kit.battery import shrink, trace_of, try_seed
from dom0.kit.faults import KINDS, Fault, plan
from dom0.kit.plugin import Seeded
from tests.kit.planted import PLANTED, SOUND

WITHIN = 1000


@pytest.mark.seeds(30)
def test_the_echo_device_survives(xenpy: Seeded) -> None:
    xenpy.check(SOUND)


@pytest.mark.parametrize("kind", KINDS)
def test_it_survives_each_fault_at_several_moments(kind: str) -> None:
    for number in range(3):
        faults = [Fault(0.001 + 0.003 * number, kind, 0x9E3779B1 * (number + 1) & 0xFFFFFFFF)]
        failure = try_seed(SOUND, number, faults)
        assert failure is None, failure.report()


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug: str) -> None:
    for seed in range(WITHIN):
        failure = try_seed(PLANTED[bug], seed)
        if failure is not None:
            break
    else:
        raise AssertionError(f"not found within {WITHIN} seeds: {bug}")
    shortest = shrink(PLANTED[bug], failure)
    assert len(shortest.faults) <= len(failure.faults)
    assert f"seed {seed}: " in shortest.report()


def test_the_same_seed_is_the_same_run() -> None:
    traces = set()
    for seed in range(5):
        trace = trace_of(SOUND, seed)
        assert trace == trace_of(SOUND, seed)
        traces.add(trace)
    assert len(traces) == 5


def test_another_process_with_other_hashes_runs_the_same() -> None:
    script = "\n".join(
        (
            "from dom0.kit.battery import trace_of",
            "from tests.kit.planted import SOUND",
            "print(hash('x'))",
            "print(trace_of(SOUND, 3))",
        )
    )
    outputs = []
    for hash_seed in ("1", "2"):
        path = os.pathsep.join([str(native_build.ROOT), str(native_build.ROOT / "examples" / "echo_device")])
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": path}
        output = subprocess.check_output([sys.executable, "-c", script], env=environment, text=True)
        outputs.append(output.split("\n", 1))
    assert outputs[0][0] != outputs[1][0], "the hashes are the same, so this shows nothing"
    assert hashlib.sha256(outputs[0][1].encode()).digest() == hashlib.sha256(outputs[1][1].encode()).digest()


def test_plans_are_made_by_the_seed() -> None:
    assert plan(5) == plan(5)
    seen = {fault.kind for seed in range(200) for fault in plan(seed)}
    assert seen == set(KINDS)
