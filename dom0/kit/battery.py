# SPDX-License-Identifier: GPL-2.0-only
"""A pair of drivers put through seeds and faults, and what must be true of it afterwards, whatever happened.

    pair = Pair(EchoBackend, EchoFrontend, use)         # `use(frontend)` works with the device and checks what it gets
    failure = try_seed(pair, 17)                        # None, or what was wrong
    print(shrink(pair, failure).report())               # the fewest faults that still show it

One run: a guest opens the device again and again and uses it, while the plan's faults happen. Then the device must
either work or be Closed with a reason in `error/`; nothing may hang (in virtual time, of which there is plenty), no
exception may reach a log, and when the guest is gone nothing of it may be left: no pinned grant, no port, no node.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from dom0.backend.driver import Backend
from dom0.host.machine import Machine
from dom0.kit.faults import CORRUPTING, Fault, Injector, plan
from dom0.kit.guests import inside
from dom0.kit.seeded import Recorder, run
from dom0.toolstack.domain import GuestDomain
from xen_py.drive.bus import BusError
from xen_py.drive.half import DeviceFailed, parse_own_state
from xen_py.drive.queue import QueueClosed
from xen_py.io.xenbus import State
from xenstore.errors import XenstoreError
from xenstore.local import LocalClient

PATIENCE = 3600.0
"""Seconds of virtual time after which a run hangs."""
TRIES = 3
GIVE_UP_SECONDS = 60.0
"""How long a user waits for an answer where data may have been destroyed, and with it the answer."""
USES = 4
"""How often the device is opened and used while the faults happen."""
_SHOWN = 40

GIVES_UP = (DeviceFailed, QueueClosed, BusError, XenstoreError)
"""What a frontend's user must expect of a device that goes away."""


@dataclass(frozen=True)
class Pair:
    """Two halves of a device, and what to do with it."""

    backend: type[Backend]
    frontend: Any
    """A subclass of `domU.frontend.driver.Frontend`."""
    use: Callable[[Any], Awaitable[None]]
    """Work with a connected frontend; AssertionError where it got what it must not get."""
    settings: str = ""
    """As in xl.cfg, behind the type."""

    @property
    def item(self) -> str:
        return f"type={self.backend.type}{',' + self.settings if self.settings else ''}"


@dataclass
class Failure:
    """What was wrong with one run."""

    seed: int
    faults: list[Fault]
    what: str
    trace: list[str] = field(default_factory=list)

    def report(self) -> str:
        """For people: the seed, the faults, the end of the trace."""
        lines = [f"seed {self.seed}: {self.what}"]
        lines += [f"  {fault}" for fault in self.faults] or ["  without any fault"]
        lines += [f"the last of {len(self.trace)} records:", *self.trace[-_SHOWN:]]
        return "\n".join(lines)


def try_seed(pair: Pair, seed: int, faults: Sequence[Fault] | None = None) -> Failure | None:
    """One run with the plan of that seed, or with those faults; a failure comes with the whole trace of its run."""
    todo = plan(seed) if faults is None else list(faults)
    what = _outcome(pair, seed, todo, None)
    if not what:
        return None
    recorder = Recorder()  # it costs half of a run's time, and the run is the same again
    again = _outcome(pair, seed, todo, recorder)
    if again != what:
        what = f"{what}\nand, run again with the same seed: {again or 'nothing wrong'}"
    return Failure(seed, todo, what, recorder.until_mark())


def trace_of(pair: Pair, seed: int) -> str:
    """The trace of the run with that seed, a record a line; of two runs it is the same."""
    recorder = Recorder()
    _outcome(pair, seed, plan(seed), recorder)
    return recorder.text


def _outcome(pair: Pair, seed: int, faults: list[Fault], recorder: Recorder | None) -> str:
    """What was wrong, or nothing."""
    try:
        with _Logged(recorder) as logged:
            run(lambda machine: _one(machine, pair, faults, recorder), seed)
        return logged.first
    except* AssertionError as group:
        what = str(_first(group))
    except* trio.TooSlowError:
        what = "it hangs"
    except* Exception as group:
        what = "".join(traceback.format_exception(_first(group))[-3:]).strip()
    return what


def shrink(pair: Pair, failure: Failure) -> Failure:
    """The failure with as few faults as still show one."""
    best = failure
    smaller = True
    while smaller:
        smaller = False
        for number in range(len(best.faults)):
            found = try_seed(pair, best.seed, best.faults[:number] + best.faults[number + 1 :])
            if found is not None:
                best, smaller = found, True
                break
    return best


# ---- one run ----


class _Device:
    """The device under test, for the injector."""

    def __init__(self, pair: Pair, guest: Any) -> None:
        self.kind = pair.backend.type
        self.devid = 0
        self.guest = guest
        self.frontend: Any = None


async def _one(machine: Machine, pair: Pair, faults: list[Fault], recorder: Recorder | None) -> None:
    machine.backends.register(pair.backend)
    client = machine.store
    before = _nodes(client)
    ports = machine.switchboard.statistics()["handlers"]
    trusted = not any(fault.kind in CORRUPTING for fault in faults)
    with trio.fail_after(PATIENCE):
        if recorder is not None:
            await recorder.attach(machine)
        async with inside(machine, pair.item, name="tested") as guest:
            device = _Device(pair, guest)
            injector = Injector(machine, device, faults)
            machine.trace.carry_by(injector.carry)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(injector.run)
                with trio.CancelScope() as living:
                    nursery.start_soon(_end_with, machine.toolstack.find(guest.domid), living)
                    for _ in range(USES):
                        await _use(pair, device, trusted, recorder)
                await injector.finished.wait()
                nursery.cancel_scope.cancel()
            if not guest.kernel.is_dead():
                await _judge(machine, pair, device, trusted)
        left = _nodes(client) - before
        assert not left, f"nodes are left in the store: {sorted(left)}"
        now = machine.switchboard.statistics()["handlers"]
        assert now == ports, f"{now} ports of dom0 are open, not {ports}"
    client.close()


async def _end_with(domain: GuestDomain, living: trio.CancelScope) -> None:
    """What the test does as the guest ends when the guest does."""
    await domain.shut_down.wait()
    living.cancel()


async def _use(pair: Pair, device: _Device, trusted: bool, recorder: Recorder | None = None) -> bool:
    """Open the device, work with it, close it; whether that went well."""
    try:
        with trio.move_on_after(math.inf if trusted else GIVE_UP_SECONDS) as patience:
            async with device.guest.device(pair.frontend, device.devid) as device.frontend:
                await pair.use(device.frontend)
        return not patience.cancelled_caught
    except Exception as error:
        expected = GIVES_UP if trusted else (*GIVES_UP, AssertionError)
        if not all(isinstance(each, expected) for each in _leaves(error)):
            if recorder is not None:
                recorder.mark()
            raise
        await trio.sleep(0.01)
        return False
    finally:
        device.frontend = None


async def _judge(machine: Machine, pair: Pair, device: _Device, trusted: bool) -> None:
    """When all is over, the device works or says why not."""
    guest = device.guest
    for _ in range(TRIES):
        if await _use(pair, device, trusted):
            break
        await trio.sleep(2)
    else:
        front = f"{guest.path}/device/{device.kind}/{device.devid}"
        back = f"/local/domain/0/backend/{device.kind}/{guest.domid}/{device.devid}"
        states = [parse_own_state(machine.store.read_or_none(f"{path}/state")) for path in (front, back)]
        if State.UNKNOWN not in states:  # one that is missing, or is none, is a device that was taken away
            reasons = [
                machine.store.read_or_none(path)
                for path in (
                    f"{guest.path}/error/device/{device.kind}/{device.devid}/error",
                    f"/local/domain/0/error/backend/{device.kind}/{guest.domid}/{device.devid}/error",
                )
            ]
            assert State.CLOSED in states and any(reasons), f"it neither works nor says why: states {states}"
    domain = machine.toolstack.domains.get(guest.domid)
    if domain is not None and domain.vm is not None:
        await trio.sleep(20)
        pinned = domain.vm.grants.statistics().pinned
        assert not pinned, f"{pinned} grants are pinned though the device is closed"
        assert not guest.grants.collect(), "grants are in use though the device is closed"


def _nodes(client: LocalClient) -> set[str]:
    """Every node of the store but those of dom0's own account of itself."""
    found: set[str] = set()

    def visit(path: str) -> None:
        for name in client.directory(path or "/"):
            found.add(f"{path}/{name}")
            visit(f"{path}/{name}")

    visit("")
    return found


def _leaves(error: BaseException) -> list[BaseException]:
    """The exceptions of a group, whatever nurseries it went through."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [error]


def _first(error: BaseException) -> BaseException:
    return _leaves(error)[0]


class _Logged(logging.Handler):
    """Notes what the host's own logs say went wrong."""

    def __init__(self, recorder: Recorder | None) -> None:
        super().__init__(logging.ERROR)
        self.first = ""
        self._recorder = recorder

    def emit(self, record: logging.LogRecord) -> None:
        if not self.first:
            self.first = self.format(record)
            if self._recorder is not None:
                self._recorder.mark()

    def __enter__(self) -> _Logged:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_error: object) -> None:
        logging.getLogger().removeHandler(self)
