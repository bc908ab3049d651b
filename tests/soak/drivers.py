# SPDX-License-Identifier: GPL-2.0-only
"""The battery for drivers at its full length: the echo device under faults, and equal traces of equal seeds.

    python -m tests.soak.drivers [--seeds 10000] [--twice 1000] [--first 0] [--jobs N]

Each of `--seeds` seeds is a run with that seed's faults; of the first `--twice` of them the trace is taken twice, in
processes whose hashes differ. Seeds that fail are printed with the fewest faults that still show it; the run goes on
to the end and returns 1.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import native_build
from tests.soak.report import Report

CHUNK = 20
"""Seeds that a process gets at a time."""
REPORT_EVERY = 1000

T = TypeVar("T")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.drivers", description="Drivers under faults.")
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--twice", type=int, default=1_000, help="how many of them have their traces compared")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    seeds = range(options.first, options.first + options.seeds)
    with Report("drivers") as report:
        failed = _survive(seeds, options.jobs, report)
        different = _repeat(seeds[: options.twice], options.jobs, report)
        assert not failed, f"{len(failed)} of {len(seeds)} seeds fail: {failed[:20]}"
        assert not different, f"these seeds have two traces: {different[:20]}"
    return report.status


def _survive(seeds: range, jobs: int, report: Report) -> list[int]:
    failed = []
    for done, (seed, what) in enumerate(_spread(_failure, seeds, jobs), 1):
        if what:
            failed.append(seed)
            report.say(what)
        if done % REPORT_EVERY == 0 or done == len(seeds):
            report.say(f"{done} of {len(seeds)} seeds with faults, {len(failed)} failed")
    return failed


def _repeat(seeds: range, jobs: int, report: Report) -> list[int]:
    first, second = (dict(_spread(_trace, seeds, jobs)) for _ in range(2))
    different = [seed for seed in seeds if first[seed] != second[seed]]
    distinct = len(set(first.values()))
    report.say(f"{len(seeds)} seeds run twice: {distinct} distinct traces, {len(different)} not the same again")
    return different


def _spread(work: Callable[[int], T], seeds: range, jobs: int) -> Iterator[tuple[int, T]]:
    """`work` on every seed, in new processes (each has hashes of its own), in the order of the seeds."""
    with multiprocessing.get_context("spawn").Pool(jobs, initializer=_prepare) as pool:
        yield from zip(seeds, pool.imap(work, seeds, chunksize=CHUNK), strict=True)


def _prepare() -> None:
    sys.path.insert(0, os.fspath(native_build.ROOT / "examples" / "echo_device"))


def _failure(seed: int) -> str:
    from dom0.kit.battery import shrink, try_seed
    from tests.kit.planted import SOUND

    failure = try_seed(SOUND, seed)
    return shrink(SOUND, failure).report() if failure is not None else ""


def _trace(seed: int) -> str:
    from dom0.kit.battery import trace_of
    from tests.kit.planted import SOUND

    return hashlib.sha256(trace_of(SOUND, seed).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
