# SPDX-License-Identifier: GPL-2.0-only
"""The store's long runs: `python -m tests.soak.xenstore [model|fuzz|kill]...` (all of them without arguments).

model: a million steps of the state machine beside the specification; fuzz: a million random messages over sockets
and rings; kill: 200 times `kill -9` under load with a journal.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.xenstore.conftest import running
from tests.xenstore.fuzz import fuzz_server, fuzz_socket
from tests.xenstore.kill import kill_rounds
from tests.xenstore.machine import StoreMachine
from tests.xenstore.test_fuzz import resident

STEPS = 50


def model(steps: int = 1_000_000) -> None:
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=steps // STEPS, stateful_step_count=STEPS, deadline=None, database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip


def fuzz(messages: int = 1_000_000) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}", flush=True)
    fuzz_server(random.Random(seed), messages // 2)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as daemon:
        pid = daemon.process.pid
        fuzz_socket(random.Random(seed), daemon.socket, messages // 2, lambda: resident(pid))
        assert "Traceback" not in daemon.log.read_text()


def kill(rounds: int = 200) -> None:
    with tempfile.TemporaryDirectory() as folder:
        kill_rounds(Path(folder), rounds, random.randrange(1 << 30))


RUNS: dict[str, Callable[[], None]] = {"model": model, "fuzz": fuzz, "kill": kill}


def main(names: Sequence[str]) -> int:
    for name in names or RUNS:
        began = time.monotonic()
        RUNS[name]()
        print(f"xenstore {name}: passed in {time.monotonic() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
