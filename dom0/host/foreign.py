# SPDX-License-Identifier: GPL-2.0-only
"""Guests that use grants of other guests: who has what of whom.

A guest asks (`xen_py.foreign.OthersGrants`), and the owner's own thread does it, as an order, with the asker's domid as
the user: so the rules of `xen_py.grants` decide, on the one thread that may. What is pinned for whom is counted here,
so that a guest can give back no more than it has, and what a guest had is given back when it dies.

An owner may die first. Its memory file stays with whoever has it mapped, as in Xen the frames of a dead domain do, and
its domid is not given to another domain until the last mapping has gone (`is_used`).

Askers that run in the host's own loop cannot wait for a thread elsewhere: they use `Now`, which has the order carried
out before it returns.

Owner: the trio thread.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

import trio

from dom0.backend.grants import GuestGone
from xen_py.abi.grant_table import ENTRIES_PER_FRAME, GrantStatus, MapFlag
from xen_py.grants import INITIAL_FRAMES, GrantError
from xen_py.memory import GuestMemory
from xen_py.trace import Tracer
from xen_py.types import PAGE_SIZE, DomId, GrantRef

PATIENCE = 10
"""Seconds that the owner of a grant may take: its process may be stopped, and the asker waits."""
_DOM0 = DomId(0)
_KINDS = MapFlag.HOST | MapFlag.DEVICE


class NotHeld(Exception):
    """A guest's process gives back what it does not have, or asks for what no correct one can."""


class Owner(Protocol):
    """A running guest: `dom0.host.vm.Vm` or `dom0.host.hosted.HostedVm`."""

    memory: GuestMemory

    def order(self, kind: str, *args: object, check: Callable[[Any], bool]) -> Awaitable[Any]: ...

    def order_now(self, kind: str, *args: object, check: Callable[[Any], bool]) -> Any: ...


class ForeignGrants:
    """See the module. `find` knows the guests that run."""

    def __init__(self, nursery: trio.Nursery, find: Callable[[DomId], Owner | None]) -> None:
        self._nursery = nursery
        self._find = find
        self._held: dict[DomId, Counter[tuple[DomId, GrantRef, int]]] = {}
        """For each user: of whom, which reference, GNTMAP_* of one kind; how often."""
        self._counters: Counter[str] = Counter()
        self.tracer: Tracer | None = None
        """Is told of what guests do with each other's grants, while somebody looks."""

    # what a guest elsewhere asks; statuses come back as negative numbers, as its link carries them

    async def map(self, user: DomId, owner: DomId, ref: GrantRef, flags: int) -> int:
        """The frame's index, or the status. An asker that dies meanwhile gets it and has to give it back."""
        there = self._find(owner)
        if there is None:
            return int(_nobody(owner, ref))
        result = await self._ask(there, "map", user, ref, flags, check=_index_in(there.memory), late=True)
        return self._mapped(user, owner, ref, flags, result)

    async def unmap(self, user: DomId, owner: DomId, ref: GrantRef, flags: int) -> None:
        self._give_back(user, owner, ref, flags)
        there = self._find(owner)
        if there is not None:
            await self._ask(there, "unmap", user, ref, flags, check=_is_none)

    async def read(self, user: DomId, owner: DomId, ref: GrantRef, offset: int, length: int) -> bytes | int:
        _check_piece(offset, length)
        there = self._find(owner)
        if there is None:
            return int(_nobody(owner, ref))
        self._counters["reads"] += 1
        self._record("read", user, owner, ref, offset=offset, length=length)
        result: bytes | int = await self._ask(there, "read", user, ref, offset, length, check=_bytes_of(length))
        return result

    async def write(self, user: DomId, owner: DomId, ref: GrantRef, offset: int, data: bytes) -> int:
        _check_piece(offset, len(data))
        there = self._find(owner)
        if there is None:
            return int(_nobody(owner, ref))
        self._counters["writes"] += 1
        self._record("write", user, owner, ref, offset=offset, length=len(data))
        return int(await self._ask(there, "write", user, ref, offset, data, check=_is_status))

    def memory(self, user: DomId, owner: DomId) -> GuestMemory | None:
        """For who has some of it mapped; None when the owner is gone by now."""
        if not any(of == owner for of, _, _ in self._held.get(user, ())):
            raise NotHeld(f"it has nothing of domain {owner} mapped")
        there = self._find(owner)
        return None if there is None else there.memory

    async def user_gone(self, user: DomId) -> None:
        """Give back all that a guest had. Its loop is gone, and asks for nothing more."""
        for (owner, ref, flags), count in self._held.pop(user, Counter()).items():
            for _ in range(count):
                there = self._find(owner)
                if there is not None:
                    await self._ask(there, "unmap", user, ref, flags, check=_is_none)

    def now(self, user: DomId) -> Now:
        """The same for a guest in this very loop."""
        return Now(self, user)

    # ---- looking ----

    def is_used(self, owner: DomId) -> bool:
        """Whether anybody has frames of that domain mapped."""
        return any(of == owner for held in self._held.values() for of, _, _ in held)

    def users(self, owner: DomId) -> dict[DomId, int]:
        """Who has how many mappings of that domain's frames."""
        found = {
            user: sum(count for (of, _, _), count in held.items() if of == owner) for user, held in self._held.items()
        }
        return {user: count for user, count in found.items() if count}

    def statistics(self) -> dict[str, int]:
        mappings = sum(sum(held.values()) for held in self._held.values())
        return {"users": len(self._held), "mappings": mappings, **self._counters}

    # ---- the books ----

    def _mapped(self, user: DomId, owner: DomId, ref: GrantRef, flags: int, result: int) -> int:
        self._record("map", user, owner, ref, flags=flags, result=result)
        if result < 0:
            self._counters["refused"] += 1
            return result
        held = self._held.setdefault(user, Counter())
        for kind in _kinds(flags):
            held[owner, ref, kind] += 1
        self._counters["maps"] += 1
        return result

    def _give_back(self, user: DomId, owner: DomId, ref: GrantRef, flags: int) -> None:
        held = self._held.get(user, Counter())
        kinds = _kinds(flags)
        if not kinds or not all(held[owner, ref, kind] for kind in kinds):
            raise NotHeld(f"it has not mapped grant {ref} of domain {owner} so (flags {flags:#x})")
        for kind in kinds:
            held[owner, ref, kind] -= 1
            if not held[owner, ref, kind]:
                del held[owner, ref, kind]
        if not held:
            del self._held[user]
        self._record("unmap", user, owner, ref, flags=flags)

    def _record(self, what: str, user: DomId, owner: DomId, ref: GrantRef, **fields: int) -> None:
        if self.tracer is not None:
            self.tracer.record(user, "grant", what, domain=owner, ref=ref, **fields)

    async def _ask(
        self, there: Owner, kind: str, *args: Any, check: Callable[[Any], bool], late: bool = False
    ) -> Any:
        """The owner's answer; GENERAL_ERROR when it has gone, EAGAIN when it does not answer.

        A mapping that comes `late` is undone: who asked has been told that there is none.
        """
        answers: list[Any] = []
        answered = trio.Event()
        given_up = False

        async def ask() -> None:
            result: Any = None if kind == "unmap" else int(GrantStatus.GENERAL_ERROR)
            with suppress(GuestGone):
                result = await there.order(kind, *args, check=check)
                if given_up and late and result >= 0:
                    await there.order("unmap", *args, check=_is_none)
            answers.append(result)
            answered.set()

        self._nursery.start_soon(ask)
        with trio.CancelScope(shield=True), trio.move_on_after(PATIENCE):
            await answered.wait()
            return answers[0]
        given_up = True
        return None if kind == "unmap" else int(GrantStatus.EAGAIN)


class Now:
    """`xen_py.foreign.OthersGrants` for a guest in the host's own loop."""

    def __init__(self, foreign: ForeignGrants, user: DomId) -> None:
        self._foreign = foreign
        self._user = user

    def map(self, owner: DomId, ref: GrantRef, flags: int) -> int:
        there = self._there(owner, ref)
        result = self._order(there, "map", self._user, ref, flags, check=_index_in(there.memory))
        return self._accepted(self._foreign._mapped(self._user, owner, ref, flags, result), owner, ref)

    def unmap(self, owner: DomId, ref: GrantRef, flags: int) -> None:
        self._foreign._give_back(self._user, owner, ref, flags)
        there = self._foreign._find(owner)
        if there is not None:
            with suppress(GuestGone):
                there.order_now("unmap", self._user, ref, flags, check=_is_none)

    def memory(self, owner: DomId) -> tuple[int, int]:
        memory = self._foreign.memory(self._user, owner)
        if memory is None:
            raise GrantError(GrantStatus.GENERAL_ERROR, f"domain {owner} has gone")
        return os.dup(memory.fd), memory.geometry.nr_frames

    def read(self, owner: DomId, ref: GrantRef, offset: int, length: int) -> bytes:
        there = self._there(owner, ref)
        self._foreign._record("read", self._user, owner, ref, offset=offset, length=length)
        result = self._order(there, "read", self._user, ref, offset, length, check=_bytes_of(length))
        if isinstance(result, bytes):
            return result
        raise GrantError(GrantStatus(result), f"grant {ref} of domain {owner} cannot be read")

    def write(self, owner: DomId, ref: GrantRef, offset: int, data: bytes) -> None:
        there = self._there(owner, ref)
        self._foreign._record("write", self._user, owner, ref, offset=offset, length=len(data))
        self._accepted(self._order(there, "write", self._user, ref, offset, data, check=_is_status), owner, ref)

    def _there(self, owner: DomId, ref: GrantRef) -> Owner:
        there = self._foreign._find(owner)
        if there is None:
            raise GrantError(_nobody(owner, ref), f"no grants of domain {owner}")
        return there

    def _order(self, there: Owner, kind: str, *args: object, check: Callable[[Any], bool]) -> Any:
        try:
            return there.order_now(kind, *args, check=check)
        except GuestGone as error:
            raise GrantError(GrantStatus.GENERAL_ERROR, str(error)) from None

    def _accepted(self, result: int, owner: DomId, ref: GrantRef) -> int:
        if result < 0:
            raise GrantError(GrantStatus(result), f"grant {ref} of domain {owner}")
        return result


def _kinds(flags: int) -> list[int]:
    """The kinds of mapping in `flags`, each with whether it is read-only."""
    if flags & ~(_KINDS | MapFlag.READONLY):
        raise NotHeld(f"flags {flags:#x} of a mapping")
    return [kind | flags & MapFlag.READONLY for kind in (MapFlag.HOST, MapFlag.DEVICE) if flags & kind]


def _nobody(owner: DomId, ref: GrantRef) -> GrantStatus:
    """The status where there is no such guest: dom0 is there, with a table in which nothing is granted."""
    if owner != _DOM0:
        return GrantStatus.BAD_DOMAIN
    return GrantStatus.GENERAL_ERROR if ref < INITIAL_FRAMES * ENTRIES_PER_FRAME else GrantStatus.BAD_GNTREF


def _check_piece(offset: int, length: int) -> None:
    if offset + length > PAGE_SIZE:
        raise NotHeld(f"{length} bytes at {offset} of a frame")


def _is_status(result: Any) -> bool:
    return type(result) is int and result <= 0 and result in GrantStatus._value2member_map_


def _is_none(result: Any) -> bool:
    return result is None


def _index_in(memory: GuestMemory) -> Callable[[Any], bool]:
    frames = memory.geometry.nr_frames
    return lambda result: type(result) is int and (0 <= result < frames or (result < 0 and _is_status(result)))


def _bytes_of(length: int) -> Callable[[Any], bool]:
    return lambda result: (
        len(result) == length if isinstance(result, bytes) else _is_status(result) and result != GrantStatus.OKAY
    )
