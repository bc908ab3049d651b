# SPDX-License-Identifier: GPL-2.0-only
"""Interleavings of the two halves' single accesses to the shared indices: no wake-up is ever lost.

Each half runs in a thread that gives its turn away before every access; a schedule says whose turn is next. All
schedules of a short conversation in which a half is interrupted up to PREEMPTIONS times (it may sleep as often as it
likes) are run, one after the other. As a check of the check, a half with the classic mistake must hang.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from xen_py.io.ring import BackRing, FrontRing, RingKind
from xen_py.types import PAGE_SIZE

BYTES = RingKind("bytes", 16, 16, bytes, bytes)
REQUESTS = 2
PREEMPTIONS = 3
FRONT, BACK = 0, 1


class Hang(Exception):
    """Both halves sleep and something is left to do."""


class Stopped(Exception):
    """The run is over; leave."""


class Conversation:
    """One run under one schedule: the choices it had (whoever could move) are left in `choices`."""

    def __init__(self, schedule: list[int], forgetful: bool) -> None:
        self.turns = [threading.Semaphore(0), threading.Semaphore(0)]
        self.given_back = threading.Semaphore(0)
        self.events = [False, False]
        self.asleep = [False, False]
        self.over = [False, False]
        self.stop = False
        self.failures: list[Exception] = []
        self.schedule = schedule
        self.choices: list[tuple[int, int]] = []  # (taken, how many could be taken)
        self.forgetful = forgetful
        page = bytearray(PAGE_SIZE)
        self.front = FrontRing(BYTES, [memoryview(page)])
        self.back = BackRing(BYTES, [memoryview(page)])
        for who, half in ((FRONT, self.front), (BACK, self.back)):
            half._header = Stepped(half._header, lambda who=who: self.step(who))  # type: ignore[assignment,misc]

    def step(self, who: int) -> None:
        """Give the turn away and wait for the next."""
        self.given_back.release()
        self.turns[who].acquire()
        if self.stop:
            raise Stopped

    def notify(self, who: int) -> None:
        self.step(1 - who)
        self.events[who] = True

    def sleep(self, who: int) -> None:
        self.asleep[who] = True
        self.step(who)
        self.asleep[who] = self.events[who] = False

    def run_front(self) -> None:
        for number in range(REQUESTS):
            self.front.put_request(bytes([number]) * 16)
            if self.front.push():
                self.notify(BACK)
        got: list[bytes] = []
        while True:
            got += self.front.take_responses()
            if len(got) == REQUESTS:
                break
            if not self.front.final_check():
                self.sleep(FRONT)
        assert got == [bytes([number]) * 16 for number in range(REQUESTS)]

    def run_back(self) -> None:
        done = 0
        while done < REQUESTS:
            for request in self.back.take_requests():
                self.back.put_response(request)
                done += 1
            if self.back.push():
                self.notify(FRONT)
            if done == REQUESTS:
                break
            if self.forgetful:
                self.back._header[1] = done + 1  # asks for an event, but does not look again
                self.sleep(BACK)
            elif not self.back.final_check():
                self.sleep(BACK)

    def run(self) -> None:
        threads = [
            threading.Thread(target=self._half, args=(who, part))
            for who, part in ((FRONT, self.run_front), (BACK, self.run_back))
        ]
        for thread in threads:
            thread.start()
            self.given_back.acquire()
        try:
            mover, preemptions = FRONT, 0
            while not all(self.over):
                able = [who for who in (mover, 1 - mover) if self._can_move(who)]
                if not able:
                    raise Hang(f"schedule {[taken for taken, _ in self.choices]}")
                at = len(self.choices)
                taken = self.schedule[at] if at < len(self.schedule) else 0
                preempts = able[0] == mover
                self.choices.append((taken, 1 if preempts and preemptions == PREEMPTIONS else len(able)))
                preemptions += preempts and taken
                mover = able[taken]
                self.turns[mover].release()
                self.given_back.acquire()
        finally:
            self.stop = True
            for turn in self.turns:
                turn.release()
            for thread in threads:
                thread.join()
        if self.failures:
            raise self.failures[0]

    def _can_move(self, who: int) -> bool:
        return not self.over[who] and not (self.asleep[who] and not self.events[who])

    def _half(self, who: int, part: Callable[[], None]) -> None:
        try:
            self.step(who)
            part()
        except Stopped:
            pass
        except Exception as error:
            self.failures.append(error)
        self.over[who] = True
        self.given_back.release()


class Stepped:
    """The header's indices, each access a step of its own."""

    def __init__(self, header: memoryview, step: Callable[[], None]) -> None:
        self.header = header
        self.step = step

    def __getitem__(self, at: int) -> int:
        self.step()
        return self.header[at]

    def __setitem__(self, at: int, value: int) -> None:
        self.step()
        self.header[at] = value


def explore(forgetful: bool = False) -> int:
    """Run all schedules, depth first: how many there were."""
    schedule: list[int] = []
    runs = 0
    while True:
        conversation = Conversation(schedule, forgetful)
        conversation.run()
        runs += 1
        choices = conversation.choices
        while choices and choices[-1][0] + 1 == choices[-1][1]:
            choices.pop()
        if not choices:
            return runs
        schedule = [taken for taken, _ in choices[:-1]] + [choices[-1][0] + 1]


def test_no_interleaving_loses_a_wake_up() -> None:
    assert explore() > 300


def test_a_half_that_forgets_the_final_check_is_caught() -> None:
    with pytest.raises(Hang):
        explore(forgetful=True)
