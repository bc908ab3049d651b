# SPDX-License-Identifier: GPL-2.0-only
"""One half of a device carrying out the handshake table (`xen_py.io.xenbus`): when to look, what to do, how to switch.

`Half` owns the loop; the halves' drivers (`dom0.backend.driver`, `domU.frontend.driver`) say what the steps are. The
rules are those at the head of `xen_py.io.xenbus`:

- it looks when a state, `online` or the wish has changed, and whenever it has done something;
- a step comes first, then the switch: one transaction reads both states and writes ours, unless either was written
  since we looked;
- a failure is remembered until it has been shown in `error/` and carried out;
- a step that waits for a user is broken off when a state is written.

Nobody but the task in `run` calls a step. `fail`, `want`, `unwant`, `peer_gone` and `ask_to_reconfigure` may be called
from anywhere in the same trio loop.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, ClassVar

import trio

from xen_py.drive.bell import Bell
from xen_py.drive.bus import BadNode, Bus, BusError, BusNodes, Nodes, TooManyNodes, read_tree
from xen_py.io.ring import RingBroken
from xen_py.io.xenbus import Action, Do, Event, Side, State, next_action, parse_state

_log = logging.getLogger("xen-py.xenbus")

PATIENCE: dict[Side, float] = {Side.FRONTEND: 5 * 60, Side.BACKEND: math.inf}
"""Seconds without any change of state until TIMEOUT; backends wait for a frontend as long as it takes."""

EXPECTED = (RingBroken, BadNode, TooManyNodes, BusError)
"""What the other end can bring about: a reason in `error/` and no traceback."""


class DeviceFailed(Exception):
    """A step or a request cannot be done; the text goes to `error/` and to the log."""


def step_fields(ours: State, theirs: State, event: Event, action: Action) -> dict[str, str]:
    """A step of the handshake as fields of a trace's record."""
    return {
        "ours": ours.name.lower(),
        "theirs": theirs.name.lower(),
        "event": event.name.lower(),
        "do": action.do.name.lower(),
        "to": action.switch_to.name.lower() if action.switch_to is not None else "",
    }


class Half(ABC):
    """A device's half from its start to its end. See the module."""

    side: ClassVar[Side]
    published: ClassVar[State] = State.INITIALISED
    """Where a frontend goes when it has published its rings."""

    def __init__(self, bus: Bus, own: str, other: str, error_path: str, name: str) -> None:
        """`own` and `other` are the two directories, `error_path` the one for our reason, `name` is for messages."""
        self.bus = bus
        self.own = own
        self.other = other
        self.name = name
        self.state = State.UNKNOWN
        """Ours, as last seen or written."""
        self.other_state = State.UNKNOWN
        self.connected = False
        """CONNECT has been done and DISCONNECT has not."""
        self.over = trio.Event()
        """The device has ended."""
        self.failure: str | None = None
        """Why it failed last; it stays when the failure has been carried out."""
        self.on_change: Callable[[], None] = lambda: None
        """Called after each change of our state or wish, and at the end."""
        self.observe: Callable[[State, State, Event, Action], None] = lambda ours, theirs, event, action: None
        """Told of each cell of the table that is acted on: for traces."""
        self._error_path = error_path
        self._wish = Event.WANTED
        self._gone = False
        self._unhandled: str | None = None
        """A failure that has not been carried out."""
        self._reconfigure = False
        self._nonsense: bytes | None = None
        """What the other end had for a state when we last complained of it."""
        self._written = 0
        self._gave_up_at = -1
        """What `_written` was when patience was lost last: once is enough."""
        self._bell = Bell()
        self._waiting_step: trio.CancelScope | None = None
        self._prepared = False
        self._freed = True
        self._counts: Counter[str] = Counter()

    # ---- what the driver does; each may raise DeviceFailed or what EXPECTED names ----

    @abstractmethod
    async def do_prepare(self) -> None: ...

    @abstractmethod
    async def do_publish(self) -> None: ...

    @abstractmethod
    async def do_connect(self, nodes: Nodes) -> None:
        """`nodes` is the other end's directory as it was in one moment together with its state."""

    @abstractmethod
    async def do_reconfigure(self, nodes: Nodes) -> None: ...

    @abstractmethod
    async def do_disconnect(self) -> None:
        """Called when connected, and to clear up after a CONNECT or PUBLISH that failed half-way."""

    @abstractmethod
    async def do_free(self) -> None: ...

    # ---- what others may ask ----

    @property
    def wish(self) -> Event:
        return self._wish

    def want(self) -> None:
        """The device is wanted (again)."""
        self._set_wish(Event.WANTED, asked=True)

    def unwant(self) -> None:
        """The device is to go."""
        self._set_wish(Event.UNWANTED, asked=True)

    def peer_gone(self) -> None:
        """The other end's domain is dead."""
        if not self._gone:
            self._gone = True
            self._stir()

    def ask_to_reconfigure(self) -> None:
        """Negotiate anew while connected."""
        self._reconfigure = True
        self._stir()

    def fail(self, reason: str) -> None:
        """A request, a ring or the device itself has failed: close with this reason."""
        self._counts["failures"] += 1
        if self._unhandled is None:
            _log.info("%s: %s", self.name, reason)
            self._unhandled = self.failure = reason
            self._stir()

    def statistics(self) -> dict[str, Any]:
        return {"state": self.state.name.lower(), "wish": self._wish.name.lower(), **self._counts}

    # ---- the loop ----

    async def run(self) -> None:
        """Carry out the handshake until our node is deleted. Cancelled, it leaves the store as it is."""
        try:
            async with AsyncExitStack() as stack:
                for path in self._watched():
                    await stack.enter_async_context(self.bus.watch(path, self._on_write))
                while await self._turn():
                    pass
        except BusError as error:
            self.failure = f"the store is gone: {error}"
        finally:
            with trio.CancelScope(shield=True):
                await self._end()
            self.over.set()
            self.on_change()

    def _watched(self) -> list[str]:
        return [f"{self.own}/state", f"{self.other}/state"]

    def _on_write(self) -> None:
        self._written += 1
        if self._waiting_step is not None:
            self._waiting_step.cancel()
        self._bell.ring()

    def _stir(self) -> None:
        if self._waiting_step is not None:
            self._waiting_step.cancel()
        self._bell.ring()

    def _set_wish(self, wish: Event, *, asked: bool = False) -> None:
        if wish is self._wish or (self._wish is Event.UNWANTED and not asked):
            return
        self._wish = wish
        self._stir()
        self.on_change()

    async def _turn(self) -> bool:
        """Look once and act, or wait until there is something to look at. False: the device is over."""
        seen = self._written
        ours, theirs = await self._look()
        self.state, self.other_state = ours, theirs
        event, action = self._choose(ours, theirs)
        if action.do is Do.END:
            self.observe(ours, theirs, event, action)
            return False
        if action.do is Do.WAIT and action.switch_to is None and action.wish is None:
            self.observe(ours, theirs, event, action)
            await self._rest(seen, ours, theirs)
            return True
        idle = self._is_done(action)
        if not await self._carry_out(action, event, ours, theirs, seen):
            return True
        if idle and action.switch_to is None and action.wish is None:
            await self._rest(seen, ours, theirs)
        return True

    async def _look(self) -> tuple[State, State]:
        """Both states. Nonsense of the other end's is a failure, once; then it counts as none."""
        ours = parse_own_state(await self.bus.read(f"{self.own}/state"))
        value = await self.bus.read(f"{self.other}/state")
        try:
            theirs = parse_state(value)
            self._nonsense = None
        except ValueError as error:
            if value != self._nonsense:
                self._nonsense = value
                self.fail(str(error))
            theirs = State.UNKNOWN
        await self.look_further()
        return ours, theirs

    async def look_further(self) -> None:  # noqa: B027
        """For what a half looks at beside the states."""

    def _choose(self, ours: State, theirs: State) -> tuple[Event, Action]:
        if self._gone:
            event = Event.GONE
        elif self._unhandled is not None:
            event = Event.FAILED
        else:
            event = self._wish
        action = next_action(self.side, ours, theirs, event, self.published)
        settled = action.do is Do.WAIT or self._is_done(action)
        if self._reconfigure and event is Event.WANTED and settled and action.switch_to is None:
            self._reconfigure = False
            return Event.RECONFIGURE, next_action(self.side, ours, theirs, Event.RECONFIGURE, self.published)
        return event, action

    async def _rest(self, seen: int, ours: State, theirs: State) -> None:
        """Nothing to do: wait until something changes, or for too long."""
        if self._written != seen or self._unhandled is not None:
            return
        waits = self._is_impatient(ours) and seen != self._gave_up_at
        patience = PATIENCE[self.side] if waits else math.inf
        with trio.move_on_after(patience) as waiting:
            await self._bell.wait()
        if waiting.cancelled_caught:
            await self._lose_patience(seen, ours, theirs, patience)

    async def _lose_patience(self, seen: int, ours: State, theirs: State, patience: float) -> None:
        self._counts["timeouts"] += 1
        self._gave_up_at = seen
        action = next_action(self.side, ours, theirs, Event.TIMEOUT, self.published)
        if action.do is Do.FAIL:
            self._unhandled = f"the other end is in {theirs.name}, unmoved for {patience:.0f} seconds"
            self.failure = self._unhandled
        await self._carry_out(action, Event.TIMEOUT, ours, theirs, seen)

    def _is_impatient(self, ours: State) -> bool:
        return ours not in (State.CONNECTED, State.CLOSED) or self._wish is Event.UNWANTED

    # ---- acting ----

    def _is_done(self, action: Action) -> bool:
        """Whether the action's step has nothing left to do."""
        match action.do:
            case Do.CONNECT:
                return self.connected
            case Do.PREPARE:
                return self._prepared
            case Do.DISCONNECT:
                return not self.connected
            case Do.FREE:
                return self._freed
            case Do.FAIL:
                return False
        return False

    async def _carry_out(self, action: Action, event: Event, ours: State, theirs: State, seen: int) -> bool:
        """Step, switch, wish. False where it was overtaken by a write or failed: look again."""
        self.observe(ours, theirs, event, action)
        try:
            if not await self._step(action, ours, theirs, seen):
                return False
        except EXPECTED as error:
            self.fail(str(error))
            return False
        except DeviceFailed as error:
            self.fail(str(error))
            return False
        except Exception as error:
            _log.exception("%s: step %s failed", self.name, action.do.name)
            self.fail(f"xen-py failed: {type(error).__name__}: {error}")
            return False
        if action.switch_to is not None and not await self._switch(action.switch_to, ours, theirs, seen):
            return False
        if event is Event.FAILED or (event is Event.TIMEOUT and action.do is Do.FAIL):
            self._unhandled = None
        if action.wish is not None:
            self._set_wish(action.wish)
        return True

    async def _switch(self, new: State, ours: State, theirs: State, seen: int) -> bool:
        """Write our state, if both are still what they were; whether that was so."""

        async def body(nodes: BusNodes) -> bool:
            now = parse_own_state(await nodes.read(f"{self.own}/state"))
            value = await nodes.read(f"{self.other}/state")
            if self._written != seen or now is not ours or not _still(value, theirs):
                return False
            await nodes.write(f"{self.own}/state", str(int(new)))
            return True

        if not await self.bus.run_transaction(body):
            return False
        self._counts[f"to_{new.name.lower()}"] += 1
        _log.debug("%s: %s -> %s", self.name, ours.name, new.name)
        self.state = new
        self.on_change()
        return True

    async def _step(self, action: Action, ours: State, theirs: State, seen: int) -> bool:
        """What comes before the switch; False where the other end has moved meanwhile."""
        match action.do:
            case Do.PREPARE:
                self._freed = False
                if not self._prepared:
                    await self.do_prepare()
                    self._prepared = True
            case Do.PUBLISH:
                self._freed = False
                await self.do_publish()
            case Do.CONNECT:
                return self.connected or await self._connect(ours, theirs, seen)
            case Do.RECONFIGURE:
                nodes = await self._their_nodes(ours, theirs, seen)
                if nodes is None:
                    return False
                await self.do_reconfigure(nodes)
            case Do.DISCONNECT:
                return await self._disconnect()
            case Do.FREE:
                if not await self._disconnect():
                    return False
                await self._free()
            case Do.FAIL:
                await self._report()
                await self._drop()
            case _:
                pass
        return True

    async def _connect(self, ours: State, theirs: State, seen: int) -> bool:
        nodes = await self._their_nodes(ours, theirs, seen)
        if nodes is None:
            return False
        self._freed = False
        try:
            await self.do_connect(nodes)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._drop()
            raise
        self.connected = True
        self._counts["connections"] += 1
        self.on_change()
        return True

    async def _their_nodes(self, ours: State, theirs: State, seen: int) -> Nodes | None:
        """The other end's directory of the moment in which the states were what we saw; None when that is past."""

        async def body(nodes: BusNodes) -> Nodes | None:
            found = await read_tree(nodes, self.other)
            if not _still(found.get("state"), theirs) or self._written != seen:
                return None
            return found

        return await self.bus.run_transaction(body)

    async def their_nodes(self) -> Nodes:
        """The other end's directory as it is now."""
        return await read_tree(self.bus, self.other)

    def is_free(self) -> bool:
        """Nothing is held for the device any more."""
        return self._freed

    async def _disconnect(self) -> bool:
        """Let users go; False when a state was written meanwhile and they are still there."""
        with trio.CancelScope() as self._waiting_step:
            try:
                await self._let_go()
            finally:
                self._waiting_step = None
            return True
        return False

    async def _let_go(self) -> None:
        if not self.connected:
            return
        await self.wait_for_users()
        with trio.CancelScope(shield=True):
            await self._drop()

    async def wait_for_users(self) -> None:  # noqa: B027
        """Until the device is not used any more; broken off when the other end moves."""

    async def _drop(self) -> None:
        """Stop using the rings, whatever comes of it."""
        self.connected = False
        try:
            await self.do_disconnect()
        except Exception:
            _log.exception("%s: the rings could not be let go", self.name)

    async def _free(self) -> None:
        if self._freed:
            return
        self._freed = True
        self._prepared = False
        try:
            await self.do_free()
        except Exception:
            _log.exception("%s: the device could not be taken apart", self.name)

    async def _report(self) -> None:
        """The reason, where people and the other tools look for it."""
        reason = (self._unhandled or self.failure or "it failed")[:512]
        try:
            await self.bus.write(f"{self._error_path}/error", reason)
        except Exception as error:  # a full quota, say: the device closes all the same
            _log.warning("%s: %s cannot be written: %s", self.name, self._error_path, error)

    async def _end(self) -> None:
        """Our node is gone, or we are told to stop: let go of everything."""
        if self.connected:
            await self._drop()
        await self._free()


def parse_own_state(value: bytes | None) -> State:
    """Our own node; what nobody but us writes is never nonsense, and if it is, it counts as deleted."""
    try:
        return parse_state(value)
    except ValueError:
        return State.UNKNOWN


def _still(value: bytes | None, state: State) -> bool:
    try:
        return parse_state(value) is state
    except ValueError:
        return state is State.UNKNOWN
