# SPDX-License-Identifier: GPL-2.0-only
"""Backends at work on a real guest's grants: pins in batches, persistent pins, and guests that lie, stall or die.

The test plays the guest's driver: it writes entries into the grant frames of an idle kernel.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from dom0.backend.grants import GuestGone, GuestGrants, PersistentPins, PinnedFrame
from dom0.host.assembly import make_domain
from dom0.host.grantorders import MOST_PINS
from dom0.host.machine import Guest, Machine
from dom0.host.vmprocess import MakeDomain
from tests.host.guests import ScriptedDomain, hello, scripted, watched_machine
from xen_py.abi.grant_table import RESERVED_CONSOLE, RESERVED_XENSTORE, GrantFlag, GrantStatus, entry_v1
from xen_py.abi.xen import ShutdownReason
from xen_py.domain import Domain
from xen_py.memory import GuestMemory, MemoryGeometry
from xen_py.spec import Blocked, Step
from xen_py.types import PAGE_SIZE, DomId, GrantRef

PERMIT, READONLY = GrantFlag.PERMIT_ACCESS, GrantFlag.READONLY
READING, WRITING = GrantFlag.READING, GrantFlag.WRITING
FIRST_PFN = 3000
"""Pages of the 16 MiB guest that its kernel does not use."""


def memory_of(guest: Guest) -> GuestMemory:
    assert guest.domain.memory is not None
    return guest.domain.memory


def grants_of(guest: Guest) -> GuestGrants:
    assert guest.domain.vm is not None
    return guest.domain.vm.grants


def entry(guest: Guest, ref: int) -> tuple[int, int, int]:
    memory = memory_of(guest)
    return entry_v1.unpack_from(memory.frame(memory.geometry.grant_mfn(ref // 512)), ref % 512 * 8)


def grant(guest: Guest, ref: int, pfn: int, flags: int = PERMIT, domid: int = 0) -> GrantRef:
    memory = memory_of(guest)
    table = memory.frame(memory.geometry.grant_mfn(ref // 512))
    entry_v1.pack_into(table, ref % 512 * 8, flags, domid, memory.geometry.mfn_base + pfn)
    return GrantRef(ref)


def page(guest: Guest, pfn: int) -> memoryview:
    return memory_of(guest).bytes[pfn * PAGE_SIZE : (pfn + 1) * PAGE_SIZE]


async def pinned(grants: GuestGrants | PersistentPins, *wants: tuple[GrantRef, bool]) -> list[PinnedFrame]:
    found = await (grants.pin(wants) if isinstance(grants, GuestGrants) else grants.use(wants))
    frames = [frame for frame in found if isinstance(frame, PinnedFrame)]
    assert len(frames) == len(wants), found
    return frames


@asynccontextmanager
async def idle_guest(
    *, processes: bool = False, make: MakeDomain = make_domain
) -> AsyncIterator[tuple[Machine, Guest]]:
    async with watched_machine(processes=processes, make=make) as machine:
        guest = await machine.create(hello())
        await guest.console.expect("> ")
        yield machine, guest


@pytest.mark.parametrize("processes", [False, True])
async def test_frames_are_shared_with_the_guest(processes: bool) -> None:
    async with idle_guest(processes=processes) as (_, guest):
        ref = grant(guest, 8, FIRST_PFN)
        page(guest, FIRST_PFN)[:5] = b"hello"
        (frame,) = await pinned(grants_of(guest), (ref, False))
        assert entry(guest, ref)[0] == PERMIT | READING | WRITING
        assert (frame.index, len(frame.data), bytes(frame.data[:5])) == (FIRST_PFN, PAGE_SIZE, b"hello")
        frame.write(4090, b"answer")
        assert bytes(page(guest, FIRST_PFN)[4090:]) == b"answer"
        with pytest.raises(ValueError, match="leave the frame"):
            frame.write(4091, b"answer")
        await grants_of(guest).unpin([frame])
        assert entry(guest, ref)[0] == PERMIT
        with pytest.raises(ValueError, match="released"):
            frame.data[0]
        with pytest.raises(ValueError, match="twice"):
            await grants_of(guest).unpin([frame])


@pytest.mark.parametrize("processes", [False, True])
async def test_a_little_data_is_copied_by_the_domain(processes: bool) -> None:
    async with idle_guest(processes=processes) as (_, guest):
        grants = grants_of(guest)
        ref, readonly = grant(guest, 8, FIRST_PFN), grant(guest, 9, FIRST_PFN + 1, PERMIT | READONLY)
        page(guest, FIRST_PFN)[4090:] = b"secret"
        found = grants.copy_out([(ref, 4090, 6), (GrantRef(77), 0, 1), (readonly, 0, 0), (GrantRef(1 << 30), 0, 1)])
        assert found == [b"secret", GrantStatus.GENERAL_ERROR, b"", GrantStatus.BAD_GNTREF]
        for number, (flags, pfn, domid) in enumerate(
            ((PERMIT, 1 << 30, 0), (PERMIT, FIRST_PFN, 1), (GrantFlag.ACCEPT_TRANSFER, FIRST_PFN, 0), (0, FIRST_PFN, 0))
        ):
            bad = grant(guest, 20 + number, pfn & 0x7FFFFFFF, flags, domid)
            assert isinstance(grants.copy_out([(bad, 0, 1)])[0], GrantStatus)
        pages = memory_of(guest).geometry.max_pages
        assert grants.copy_out([(grant(guest, 30, pages), 0, 1)]) == [GrantStatus.BAD_PAGE]
        assert await grants.copy_in([(ref, 4092, b"kt"), (readonly, 0, b"x")]) == [
            GrantStatus.OKAY,
            GrantStatus.GENERAL_ERROR,
        ]
        assert bytes(page(guest, FIRST_PFN)[4090:]) == b"sektet"
        assert entry(guest, ref)[0] == PERMIT
        assert grants.copy_out([(ref, 4090, 7), (ref, -1, 1)]) == [GrantStatus.BAD_COPY_ARG] * 2
        for places in ([(ref, 4090, b"1234567")], [(ref, -1, b"1")], [(ref, 0, bytes(4096))] * 25):
            with pytest.raises(ValueError, match="copy"):
                await grants.copy_in(places)


async def test_reserved_entries_are_the_console_and_the_store() -> None:
    async with idle_guest() as (_, guest):
        frames = await pinned(
            grants_of(guest), (GrantRef(RESERVED_CONSOLE), False), (GrantRef(RESERVED_XENSTORE), False)
        )
        geometry = memory_of(guest).geometry
        assert guest.domain.vm is not None
        spec = guest.domain.vm.spec
        assert [frame.index for frame in frames] == [geometry.index(spec.console_mfn), geometry.index(spec.store_mfn)]
        await grants_of(guest).unpin(frames)


async def test_each_of_a_batch_has_its_own_fate() -> None:
    async with idle_guest() as (_, guest):
        grants = grants_of(guest)
        good = grant(guest, 8, FIRST_PFN)
        read_only = grant(guest, 9, FIRST_PFN + 1, PERMIT | READONLY)
        foreign = grant(guest, 10, FIRST_PFN, domid=5)
        nowhere = grant(guest, 11, 1 << 20)
        wants = [(good, False), (read_only, False), (foreign, True), (nowhere, True), (GrantRef(1 << 31), True)]
        first, *refused = await grants.pin([*wants, (GrantRef(12), False)])
        assert isinstance(first, PinnedFrame)
        error = GrantStatus.GENERAL_ERROR
        assert refused == [error, error, GrantStatus.BAD_PAGE, GrantStatus.BAD_GNTREF, error]
        (second,) = await pinned(grants, (read_only, True))
        assert second.data.readonly
        with pytest.raises(TypeError):
            second.write(0, b"x")
        assert entry(guest, read_only)[0] == PERMIT | READONLY | READING
        await grants.unpin([first, second])
        statistics = grants.statistics()
        assert (statistics.pinned, statistics.pins, statistics.refused) == (0, 2, 5)


async def test_many_pins_take_several_orders() -> None:
    async with idle_guest() as (_, guest):
        grants = grants_of(guest)
        refs = [grant(guest, ref, FIRST_PFN + ref % 50) for ref in range(8, 508)]
        wants = [(ref, True) for ref in refs] * 3
        assert len(wants) > MOST_PINS
        frames = await pinned(grants, *wants)
        assert [frame.index for frame in frames] == [FIRST_PFN + ref % 50 for ref in refs] * 3
        usage = await grants.usage()
        assert (usage["in_use"], len(usage["pinned"])) == (502, 256), "with console and store"
        assert usage["pinned"][2][:4] == [8, 0, memory_of(guest).geometry.mfn_base + FIRST_PFN + 8, 0x300]
        await grants.unpin(frames)
        assert grants.statistics().batches == 4
        assert all(entry(guest, ref)[0] == PERMIT for ref in refs)


async def test_several_backends_at_once() -> None:
    async with idle_guest() as (_, guest):
        grants = grants_of(guest)
        ref = grant(guest, 8, FIRST_PFN)

        async def backend(rounds: int) -> None:
            for _ in range(rounds):
                frames = await pinned(grants, (ref, False), (ref, True))
                await grants.unpin(frames)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(backend, 20)
        assert (grants.statistics().pins, grants.statistics().pinned) == (200, 0)
        assert entry(guest, ref)[0] == PERMIT


async def test_paused_and_ended_guests_answer() -> None:
    async with idle_guest() as (_, guest):
        grants = grants_of(guest)
        ref = grant(guest, 8, FIRST_PFN)
        await guest.pause()
        frames = await pinned(grants, (ref, False))
        await guest.unpause()
        await grants.unpin(frames)
        assert entry(guest, ref)[0] == PERMIT


@pytest.mark.parametrize("processes", [False, True])
async def test_a_destroyed_guest_stays_until_the_last_unpin(processes: bool) -> None:
    async with idle_guest(processes=processes) as (machine, guest):
        grants = grants_of(guest)
        ref = grant(guest, 8, FIRST_PFN)
        page(guest, FIRST_PFN)[:4] = b"kept"
        first, second = await pinned(grants, (ref, False), (ref, True))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guest.destroy)
            assert guest.domain.vm is not None
            await guest.domain.vm.ended.wait()
            await grants.unpin([first])
            await trio.testing.wait_all_tasks_blocked()
            assert machine.toolstack.rows()[1]["dying"]
            assert bytes(second.data[:4]) == b"kept"
            with pytest.raises(GuestGone):
                await grants.pin([(ref, True)])
            with pytest.raises(GuestGone):
                await grants.usage()
            await grants.unpin([second])
        assert len(machine.toolstack.rows()) == 1
        assert grants.statistics().pinned == 0


async def test_a_killed_guest_takes_no_backend_with_it() -> None:
    async with idle_guest(processes=True) as (_, guest):
        grants = grants_of(guest)
        frames = await pinned(grants, (grant(guest, 8, FIRST_PFN), False))
        assert guest.domain.vm is not None
        os.kill(guest.domain.vm.info().pid, signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(grants.unpin, frames)  # waits for a process that does not run
            await trio.testing.wait_all_tasks_blocked()
            os.kill(guest.domain.vm.info().pid, signal.SIGKILL)
        assert await guest.wait_shutdown() == ShutdownReason.CRASH
        with pytest.raises(GuestGone):
            await grants.pin([(GrantRef(8), True)])


async def test_a_cancelled_backend_leaves_no_pin_unknown() -> None:
    async with idle_guest() as (_, guest):
        grants = grants_of(guest)
        ref = grant(guest, 8, FIRST_PFN)
        with trio.CancelScope() as scope:
            scope.cancel()
            frames = await pinned(grants, (ref, False))
        assert not scope.cancelled_caught
        with trio.CancelScope() as scope:
            scope.cancel()
            await grants.unpin(frames)
        assert (grants.statistics().pinned, entry(guest, ref)[0]) == (0, PERMIT)


class Watched:
    """Makes real domains, and notes which frames are reported as written."""

    def __init__(self) -> None:
        self.written: list[int] = []

    def make(self, *args: Any) -> Domain:
        domain = make_domain(*args)
        domain.space.written_from_outside = self.written.append  # type: ignore[method-assign,assignment]
        return domain


async def test_written_frames_are_named_to_the_domain() -> None:
    watched = Watched()
    async with idle_guest(make=watched.make) as (_, guest):
        grants = grants_of(guest)
        refs = [grant(guest, ref, FIRST_PFN + ref) for ref in range(8, 11)]
        frames = await pinned(grants, *((ref, False) for ref in refs))
        frames[0].write(0, b"x")
        await grants.announce(frames)
        assert watched.written == [], "no code has been seen there"
        grants.memory.code_seen[FIRST_PFN + 8] = 1
        await grants.announce(frames)
        assert watched.written == [FIRST_PFN + 8]
        await grants.announce(frames)
        frames[1].write(0, b"x")
        frames[2].written = True  # a driver that fills frame.data by itself, with preadv say
        await grants.unpin(frames)
        assert watched.written == [FIRST_PFN + 8, FIRST_PFN + 9, FIRST_PFN + 10]


# persistent pins


async def test_persistent_pins_are_checked_once() -> None:
    async with idle_guest() as (_, guest):
        grants = grants_of(guest)
        persistent = PersistentPins(grants, limit=4)
        refs = [grant(guest, ref, FIRST_PFN + ref) for ref in range(8, 12)]
        wants = [(ref, False) for ref in refs]
        frames = await pinned(persistent, *wants)
        await persistent.done(frames)
        batches = grants.statistics().batches
        again = await pinned(persistent, *wants, wants[0])
        assert again == [*frames, frames[0]]
        await persistent.done(again)
        assert grants.statistics().batches == batches, "not one order"
        assert persistent.statistics() == {"kept": 4, "new": 4, "reused": 5}
        assert all(entry(guest, ref)[0] & WRITING for ref in refs)
        await persistent.close()
        assert all(entry(guest, ref)[0] == PERMIT for ref in refs)


async def test_persistent_pins_have_a_limit_and_the_oldest_go() -> None:
    async with idle_guest() as (_, guest):
        persistent = PersistentPins(grants_of(guest), limit=2)
        wants = [(grant(guest, ref, FIRST_PFN + ref), ref % 2 == 1) for ref in range(8, 13)]
        in_use = await pinned(persistent, wants[0])
        others = await pinned(persistent, *wants[1:])
        await persistent.done(others)
        assert [entry(guest, ref)[0] & READING != 0 for ref in range(8, 13)] == [True, False, False, True, True]
        await persistent.done(in_use)
        # the one given back just now was used longest ago
        assert [entry(guest, ref)[0] & READING != 0 for ref in range(8, 13)] == [False, False, False, True, True]
        await persistent.close()


async def test_persistent_pins_of_one_grant_by_many() -> None:
    async with idle_guest() as (_, guest):
        grants = grants_of(guest)
        persistent = PersistentPins(grants, limit=0)
        ref = grant(guest, 8, FIRST_PFN)

        async def request() -> None:
            for _ in range(10):
                found = await persistent.use([(ref, False), (GrantRef(9), False), (ref, False)])
                assert [isinstance(each, PinnedFrame) for each in found] == [True, False, True]
                await persistent.done(each for each in found if isinstance(each, PinnedFrame))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(request)
        assert (grants.statistics().pinned, persistent.statistics()["kept"]) == (0, 0)
        assert entry(guest, ref)[0] == PERMIT


async def test_a_grant_taken_back_stays_pinned_until_it_is_let_go() -> None:
    async with idle_guest() as (_, guest):
        persistent = PersistentPins(grants_of(guest), limit=8)
        ref = grant(guest, 8, FIRST_PFN)
        frames = await pinned(persistent, (ref, False))
        await persistent.done(frames)
        grant(guest, 8, FIRST_PFN + 1, 0)
        (frame,) = await pinned(persistent, (ref, False))
        assert frame.index == FIRST_PFN
        await persistent.done([frame])
        await persistent.close()
        assert await grants_of(guest).pin([(ref, False)]) == [GrantStatus.GENERAL_ERROR]


# loops that lie


class Liar:
    """A grant table that answers what no correct one does."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def pin(self, *_args: object, **_options: object) -> Any:
        return self.answer

    def usage(self, _rows: int) -> Any:
        return self.answer


@pytest.mark.parametrize("answer", [1 << 30, -14, "text", None, True, 3.5])
async def test_a_domain_that_answers_nonsense_is_ended(answer: Any) -> None:
    def play(domain: ScriptedDomain) -> Iterator[Step]:
        domain.grants = Liar(answer)  # type: ignore[attr-defined]
        domain.say(b"lying\n")
        while True:
            yield Blocked(None)

    async with watched_machine(make=scripted(play)) as machine:
        guest = await machine.create(hello())
        await guest.console.expect("lying\n")
        with pytest.raises(GuestGone):
            await grants_of(guest).pin([(GrantRef(8), True)])
        assert await guest.wait_shutdown() == ShutdownReason.CRASH
        assert "broke the link: a result of 'pin' that cannot be" in str(guest.domain.reason_text)


GOOD_USAGE = {
    **dict.fromkeys(("frames", "max_frames", "in_use", "revoked", "unlisted"), 1),
    **dict.fromkeys(("maptrack_frames", "max_maptrack_frames", "mappings"), 1),
    "pinned": [[1] * 7],
    "granted": [[0, True, 1, 1]],
}


@pytest.mark.parametrize(
    ("kind", "answer", "possible"),
    [
        ("pin", [5, -1], True),
        ("pin", [5], False),
        ("pin", [5, 6, 7], False),
        ("pin", None, False),
        ("pin", [5, -99], False),
        ("grants", GOOD_USAGE, True),
        ("grants", GOOD_USAGE | {"frames": "1"}, False),
        ("grants", GOOD_USAGE | {"pinned": [[1] * 6]}, False),
        ("grants", GOOD_USAGE | {"pinned": ["1234567"]}, False),
        ("grants", GOOD_USAGE | {"pinned": [[1] * 7] * 257}, False),
        ("grants", GOOD_USAGE | {"granted": [[0, 1, 1, "x"]]}, False),
        ("grants", {}, False),
        ("grants", [], False),
    ],
)
async def test_answers_are_checked(kind: str, answer: Any, possible: bool) -> None:
    checked: list[bool] = []

    async def order(kind: str, *args: object, check: Any) -> Any:
        checked.append(check(answer))
        raise GuestGone

    memory = GuestMemory.create(MemoryGeometry.for_domain(16))
    grants = GuestGrants(DomId(1), memory, order)
    with pytest.raises(GuestGone):
        await (grants.usage() if kind == "grants" else grants.pin([(GrantRef(8), True), (GrantRef(9), True)]))
    assert checked == [possible]
    memory.close()
