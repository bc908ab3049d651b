# SPDX-License-Identifier: GPL-2.0-only
"""One machine's trace: the places where dom0 sees things happen, and the domains' own records, in one tracer.

Observers are installed when the first sink comes and removed when the last one goes, so a machine that nobody looks at
runs as if none of this were there. Owner: the trio thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xen_py.drive.half import step_fields
from xen_py.evtchn import Delivery
from xen_py.io.xenbus import Action, Event, State
from xen_py.trace import Sink, Tracer
from xen_py.types import DomId, Port
from xenstore.connection import Connection

if TYPE_CHECKING:
    from dom0.backend.driver import Backend
    from dom0.host.machine import Machine

_LONGEST = 256
"""Bytes of a store value that are shown."""


class MachineTrace:
    """See the module. `tracer` is where everything arrives."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._rundir = str(machine.rundir).encode()
        self.tracer = Tracer(machine.clock.now)
        self._passed: Callable[[DomId, Port, Delivery], None] | None = None

    async def add(self, sink: Sink) -> None:
        """Every record goes to `sink`, from now on."""
        first = not self.tracer.on
        self.tracer.add(sink)
        if first:
            self._install()
            await self._machine.toolstack.trace(self.tracer)

    async def remove(self, sink: Sink) -> None:
        self.tracer.remove(sink)
        if not self.tracer.on:
            self._uninstall()
            await self._machine.toolstack.trace(None)

    def carry_by(self, carry: Callable[[DomId, Port, Delivery], None]) -> None:
        """Have events carried so from now on, whether they are recorded or not."""
        if self.tracer.on:
            self._passed = carry
        else:
            self._machine.switchboard.carry = carry

    # ---- where things are seen ----

    def _install(self) -> None:
        machine = self._machine
        machine.daemon.store.observe(self._store)
        self._passed = machine.switchboard.carry
        machine.switchboard.carry = self._event
        machine.backends.observe = self._device
        for backend in machine.backends.all():
            self._device(backend)

    def _uninstall(self) -> None:
        machine = self._machine
        machine.daemon.store.forget(self._store)
        assert self._passed is not None
        machine.switchboard.carry = self._passed
        machine.backends.observe = None
        for backend in machine.backends.all():
            backend.observe = _nothing
            backend.observe_rings(None)

    def _event(self, sender: DomId, port: Port, delivery: Delivery) -> None:
        self.tracer.record(sender, "event", "send", port=port, to=delivery.domid, to_port=delivery.port)
        assert self._passed is not None
        self._passed(sender, port, delivery)

    def _store(self, connection: Connection, kind: str, payload: bytes, answer: str, reply: bytes) -> None:
        fields: dict[str, Any] = {"request": self._shown(payload), "connection": connection.id}
        if answer == "ERROR":
            fields["error"] = self._shown(reply)
        elif reply not in (b"", b"OK\0"):
            fields["reply"] = self._shown(reply)
        self.tracer.record(connection.domid, "store", kind.lower(), **fields)

    def _shown(self, payload: bytes) -> str:
        """A payload as text; our own folder by its name, which is another one in every run."""
        text = payload.replace(self._rundir, b"$XENPY_RUNDIR").rstrip(b"\0")
        shown = text[:_LONGEST].replace(b"\0", b" ").decode("ascii", "backslashreplace")
        return shown + "..." if len(text) > _LONGEST else shown

    def _device(self, backend: Backend) -> None:
        """A backend is there, or has just come."""

        def act(ours: State, theirs: State, event: Event, action: Action) -> None:
            fields = step_fields(ours, theirs, event, action)
            self.tracer.record(0, "xenbus", backend.name, domain=backend.frontend.domid, **fields)

        def slot(what: str, ring: str, values: Any) -> None:
            fields = values._asdict() if hasattr(values, "_asdict") else {"slot": values}
            about = {"device": backend.name, **fields, "domain": backend.frontend.domid}
            self.tracer.record(0, "ring", f"{ring} {what}", **about)

        backend.observe = act
        backend.observe_rings(slot)


def _nothing(_ours: State, _theirs: State, _event: Event, _action: Action) -> None:
    return None
