# SPDX-License-Identifier: GPL-2.0-only
"""The pytest plugin: drivers tested on seeded machines.

    @pytest.mark.seeds(100)
    def test_echo_survives(xenpy):
        xenpy.check(Pair(EchoBackend, EchoFrontend, use))      # the battery, with the faults of each seed

    @pytest.mark.seeds(20)
    def test_long_text(xenpy):
        xenpy.run(body)                                        # `await body(machine)`, without faults

A test with the mark runs once for each seed; without it, with seed 0. A test that fails says with which seed, with as
few faults as still show it, and how the trace of that run ended; `pytest 'test_x.py::test_y[seed17]'` is the same run
again. `--xenpy-seed N` counts from N.

pytest loads this module whenever xen-py is installed, so it imports the machine only when a test asks for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from dom0.host.machine import Machine
    from dom0.kit.battery import Pair

T = TypeVar("T")

_SHOWN = 40
"""Records of a trace that a failure shows."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("xenpy").addoption("--xenpy-seed", type=int, default=0, help="the first seed of tests with seeds")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "seeds(count): run the test with that many seeds (fixture xenpy)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    mark = metafunc.definition.get_closest_marker("seeds")
    if "xenpy" in metafunc.fixturenames:
        first = metafunc.config.getoption("--xenpy-seed")
        seeds = range(first, first + (mark.args[0] if mark else 1))
        metafunc.parametrize("xenpy", seeds, indirect=True, ids=[f"seed{seed}" for seed in seeds])


class Seeded:
    """What the fixture `xenpy` gives a test: machines with the test's seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.trace: list[str] = []
        """The records of the last `run`, a line each."""

    def run(self, body: Callable[[Machine], Awaitable[T]]) -> T:
        """`await body(machine)` on a machine of that seed, its trace kept."""
        from dom0.kit.seeded import Recorder, run

        recorder = Recorder()
        self.trace = recorder.lines

        async def traced(machine: Machine) -> T:
            await recorder.attach(machine)
            return await body(machine)

        return run(traced, self.seed)

    def check(self, pair: Pair) -> None:
        """The battery with the faults of that seed; fails with the shortest run that shows what is wrong."""
        from dom0.kit.battery import shrink, try_seed

        failure = try_seed(pair, self.seed)
        if failure is not None:
            pytest.fail(shrink(pair, failure).report(), pytrace=False)


@pytest.fixture
def xenpy(request: pytest.FixtureRequest) -> Seeded:
    """Machines that the test's seed decides."""
    seeded = Seeded(request.param)
    request.node._xenpy = seeded
    return seeded


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    outcome = yield
    report = outcome.get_result()
    seeded: Seeded | None = getattr(item, "_xenpy", None)
    if seeded is not None and report.when == "call" and report.failed and seeded.trace:
        lines = [f"seed {seeded.seed}; the last of {len(seeded.trace)} records:", *seeded.trace[-_SHOWN:]]
        report.sections.append(("xen-py's trace", "\n".join(lines)))
