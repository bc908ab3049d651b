# SPDX-License-Identifier: GPL-2.0-only
"""A guest that attacks its neighbours by its rings: 100,000 contents of slots for each way to be kept in.

    python -m tests.soak.forgeries [--contents 100000] [--first 0]

Garbage, and frames with forged Ethernet, IPv4, ARP, IPv6 and neighbour discovery sources, tags, lies about segments and
checksums (`tests.net.attack`), by the rings' servers and by the datapath in turn. Nothing that is forbidden reaches a
neighbour, and the neighbours' own stream does. Returns 0, or 1 at the first thing that is not as it must be; its seed
is named.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable

import pytest
import trio

from domU.frontend.net import NetFrontend
from tests.net.attack import Attack, Listener
from tests.net.doorbells import give_doorbells
from tests.net.guests import lab
from tests.net.test_hostile import SCENES
from tests.soak.report import Report

AT_A_TIME = 5000
"""Contents that one machine sees."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.forgeries", description="Hostile network cards.")
    parser.add_argument("--contents", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    options = parser.parse_args(arguments)
    with Report("forgeries") as report:
        for name, (cards, judge, _) in SCENES.items():
            counts: Counter[str] = Counter()
            for number in range(-(-options.contents // AT_A_TIME)):
                seed = options.first + number
                try:
                    with pytest.MonkeyPatch.context() as patch:
                        if number % 2:
                            give_doorbells(patch)
                        counts += trio.run(_attack, cards, judge, seed)
                except BaseException:
                    report.say(f"{name}: seed {seed}")
                    raise
            report.say(f"{name}: {dict(counts)}")
    return report.status


async def _attack(cards: tuple[str, ...], judge: Callable[[bytes], bool], seed: int) -> Counter[str]:
    async with (
        lab(*cards) as (machine, (one, two, three)),
        two.device(NetFrontend) as other,
        three.device(Listener) as third,
    ):
        attack = Attack(one, other, third, random.Random(seed), judge)
        await attack.run(AT_A_TIME)
        attack.counts["by_datapath"] = machine.statistics()["datapath"].get("forwarded", 0)
    return attack.counts


if __name__ == "__main__":
    sys.exit(main())
