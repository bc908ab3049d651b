# SPDX-License-Identifier: GPL-2.0-only
"""The doorbell page: marks are taken once, nothing is lost between two processes at full speed."""

import os
import select

import pytest

from xen_py.doorbell import MAX_PORTS, PUBLISHED_VCPUS, Doorbell, RunState
from xen_py.types import Port

ROUNDS = 20_000
PORTS = [Port(n) for n in (1, 2, 63, 64, 700, 4095)]


def test_marks_are_taken_once() -> None:
    bell = Doorbell.create()
    for port in (Port(5), Port(4095), Port(5), Port(64)):
        bell.inbox.ring(port)
    assert bell.inbox.take() == [5, 64, 4095]
    assert bell.inbox.take() == []
    assert bell.outbox.take() == []
    bell.close()
    bell.close()


def test_a_port_that_cannot_be_is_not_marked() -> None:
    bell = Doorbell.create()
    bell.inbox.ring(Port(MAX_PORTS))
    assert not bell.inbox.waiting()
    assert bell.inbox.take() == []
    bell.close()


def test_eventfd_says_when_to_look() -> None:
    bell = Doorbell.create()
    poll = select.poll()
    poll.register(bell.inbox.eventfd, select.POLLIN)
    assert not poll.poll(0)
    bell.inbox.ring(Port(9))
    assert poll.poll(0)
    bell.inbox.take()
    assert not poll.poll(0)
    bell.inbox.poke()
    assert poll.poll(0)
    assert bell.inbox.take() == []
    bell.close()


def test_state_is_seen_through_a_second_mapping() -> None:
    bell = Doorbell.create()
    other = Doorbell(*(os.dup(fd) for fd in bell.fds))
    bell.publish_state(RunState.BLOCKED)
    bell.publish(1234, [(True, False, 10**12), (False, True, 7)])
    assert other.state is RunState.BLOCKED
    assert other.pages == 1234
    assert other.vcpus() == [(True, False, 10**12), (False, True, 7)]
    bell.publish(1, [(True, False, 0)] * 100)
    assert len(other.vcpus()) == PUBLISHED_VCPUS
    bell.close()
    other.close()


def test_nonsense_in_the_page_is_survived() -> None:
    bell = Doorbell.create()
    os.pwrite(bell.fds[0], b"\xff" * 4096, 0)
    assert bell.state is RunState.RUNNING
    assert len(bell.vcpus()) == PUBLISHED_VCPUS
    assert bell.outbox.take() == list(range(MAX_PORTS))
    bell.close()


def serve(bell: Doorbell) -> None:
    """The other process: answer each mark of the inbox with the same mark in the outbox."""
    poll = select.poll()
    poll.register(bell.inbox.eventfd, select.POLLIN)
    answered = 0
    while answered < ROUNDS:
        if not bell.inbox.waiting():
            poll.poll()
        for port in bell.inbox.take():
            bell.outbox.ring(port)
            answered += 1


def test_two_processes_lose_nothing() -> None:
    """Each port goes round and round; one lost mark or wake-up would leave both sides asleep for ever."""
    bell = Doorbell.create()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            serve(bell)
            status = 0
        finally:
            os._exit(status)
    poll = select.poll()
    poll.register(bell.outbox.eventfd, select.POLLIN)
    sent = 0
    back = 0
    for port in PORTS:
        bell.inbox.ring(port)
        sent += 1
    while back < ROUNDS:
        if not poll.poll(30_000):
            pytest.fail(f"silence after {back} of {ROUNDS} answers: a notification was lost")
        for port in bell.outbox.take():
            back += 1
            if sent < ROUNDS:
                bell.inbox.ring(port)
                sent += 1
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not bell.outbox.waiting()
    bell.close()
