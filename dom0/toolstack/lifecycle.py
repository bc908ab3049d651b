# SPDX-License-Identifier: GPL-2.0-only
"""What libxl and the xl daemon do: create domains, watch over them, act on their ends, take them apart.

A domain is listed from the moment it has an id, so its name is taken at once; a create that fails, at whatever point,
takes apart what there is. Ids count up and are not used twice before the numbers run out, so that nobody who remembers
one hits another domain.

Owner: the trio thread. How a domain is put together and taken apart is in `assembler`; here is when and why.
"""

from __future__ import annotations

import logging
import time
import uuid as uuidlib
from pathlib import Path
from typing import Any

import attrs
import trio

from dom0.backend.grants import GuestGone, GuestGrants
from dom0.backend.manager import BackendManager
from dom0.builder.errors import BuildError
from dom0.host.foreign import ForeignGrants
from dom0.host.hosted import HostedVm
from dom0.host.runtimes import RuntimeMissing
from dom0.host.spawn import Spawner, SpawnError
from dom0.host.switchboard import Switchboard
from dom0.host.vm import Vm, VmStuck
from dom0.toolstack import disks, domain0, hostinfo, nics, storetree
from dom0.toolstack.assembler import Assembler
from dom0.toolstack.building import Progress
from dom0.toolstack.config import ConfigError, DomainConfig, ShutdownAction, check_name
from dom0.toolstack.devices import DeviceError, Devices
from dom0.toolstack.diskspec import DiskConfig
from dom0.toolstack.dmesg import MessageBuffer
from dom0.toolstack.domain import GuestDomain, ToolstackError
from dom0.toolstack.vifspec import NicConfig, NicSyntaxError, settle
from xen_py.abi.xen import ShutdownReason
from xen_py.clock import Clock
from xen_py.grants import INITIAL_FRAMES
from xen_py.maptrack import MAX_FRAMES
from xen_py.memory import GRANT_FRAMES
from xen_py.trace import Tracer
from xen_py.types import DomId
from xenstore.daemon import Daemon
from xenstore.errors import NotFound, XenstoreError

EXIT_FAILED = 3
"""What xl exits with when libxl could not make a domain."""
LAST_DOMID = 0x7FEF
"""Ids from 0x7ff0 on are reserved."""
ACKNOWLEDGE_SECONDS = 60
"""How long a guest has to take notice of control/shutdown."""
ENDS_KEPT = 100
"""Domains that are gone whose reason can still be asked for."""
QUICK_DEATH_SECONDS = 1
"""A domain that lived no longer is restarted with a pause, lest it turns the machine into a heater."""

_USERS_TO_MEND = (
    BuildError,
    SpawnError,
    VmStuck,
    DeviceError,
    RuntimeMissing,
    GuestGone,
    OSError,
    ValueError,
    XenstoreError,
)
"""What a creation may fail of with a line for the user; anything else is a mistake of ours."""
_log = logging.getLogger("xen-py.toolstack")
_ACTIONS = {
    ShutdownReason.POWEROFF: "on_poweroff",
    ShutdownReason.REBOOT: "on_reboot",
    ShutdownReason.CRASH: "on_crash",
    ShutdownReason.WATCHDOG: "on_watchdog",
    ShutdownReason.SOFT_RESET: "on_soft_reset",
}
_GRANT_LIMITS = (
    ("max_grant_frames", INITIAL_FRAMES, GRANT_FRAMES),
    ("max_maptrack_frames", 0, MAX_FRAMES),
    ("max_grant_version", 1, 1),
)
"""Keys of a configuration, with the least and the most that there is."""
_RESTARTS = (ShutdownAction.RESTART, ShutdownAction.RENAME_RESTART, ShutdownAction.COREDUMP_RESTART)


class Toolstack:
    """All guests of one host."""

    def __init__(
        self,
        nursery: trio.Nursery,
        spawner: Spawner,
        switchboard: Switchboard,
        store: Daemon,
        backends: BackendManager,
        messages: MessageBuffer,
        rundir: Path,
        clock: Clock,
    ) -> None:
        self.domains: dict[DomId, GuestDomain] = {}
        self._nursery = nursery
        self._daemon = store
        self._client = store.client()
        self._messages = messages
        self.devices = Devices(self._client, backends)
        self.foreign = ForeignGrants(nursery, self._runner)
        self._assembler = Assembler(
            nursery, spawner, switchboard, store, self._client, messages, rundir, clock, self.devices, self.foreign
        )
        self._ends: dict[DomId, int | None] = {}
        """Reasons of the domains gone last."""
        self._last_domid = 0
        self._tracer: Tracer | None = None
        self._clock = clock
        self._created = 0
        self._assembler.write(storetree.dom0_nodes(self._dom0_memory_kb()))

    @property
    def builds_in_turn(self) -> bool:
        """Domains are built in this thread, which waits for it, and not beside it."""
        return self._assembler.builds_in_turn

    @builds_in_turn.setter
    def builds_in_turn(self, wanted: bool) -> None:
        self._assembler.builds_in_turn = wanted

    # looking

    def find(self, domid: int) -> GuestDomain:
        guest = self.domains.get(DomId(domid))
        if guest is None:
            raise ToolstackError(f"domain {domid} does not exist")
        return guest

    def free_kb(self) -> int:
        """Memory that a new guest may have."""
        promised = sum(guest.promised_kb() for guest in self.domains.values())
        return hostinfo.free_for_guests(hostinfo.memory(), promised)

    def statistics(self) -> dict[str, int]:
        foreign = {f"foreign_{name}": count for name, count in self.foreign.statistics().items()}
        return {"domains": len(self.domains), "created": self._created, "last_domid": self._last_domid} | foreign

    async def trace(self, tracer: Tracer | None) -> None:
        """Have what every guest does recorded there, those to come too; None ends it."""
        self._tracer = self.foreign.tracer = tracer
        for guest in list(self.domains.values()):
            if guest.vm is not None and guest.building is None:
                await guest.vm.trace(tracer)

    # disks

    async def attach_disk(self, domid: int, disk: DiskConfig) -> None:
        """`xl block-attach`."""
        self._running(domid)
        await disks.attach(self.devices, self.find(domid), disk)

    async def detach_disk(self, domid: int, name: str, *, force: bool = False) -> None:
        """`xl block-detach`."""
        await disks.detach(self.devices, self.find(domid), name, force=force)

    def disk_rows(self, domid: int) -> list[dict[str, Any]]:
        """`xl block-list`."""
        return disks.rows(self._client, self.devices, DomId(domid))

    # network cards

    async def attach_nic(self, domid: int, nic: NicConfig) -> None:
        """`xl network-attach`."""
        self._running(domid)
        await nics.attach(self.devices, self.find(domid), nic)

    async def detach_nic(self, domid: int, name: str) -> None:
        """`xl network-detach`."""
        await nics.detach(self.devices, self.find(domid), name)

    def nic_rows(self, domid: int) -> list[dict[str, Any]]:
        """`xl network-list`."""
        return nics.rows(self._client, self.devices, DomId(domid))

    # creating

    async def create(
        self, config: DomainConfig, *, paused: bool = False, progress: Progress | None = None
    ) -> GuestDomain:
        """A new domain, running unless `paused`. Raises `ToolstackError`; then nothing of it is left."""
        self._check(config)
        config = self._settled(config)
        domid = self._next_domid()
        self._refuse_taken(config.name, domid)
        self._refuse_too_much(config, domid)
        guest = GuestDomain(domid, config, config.name, config.uuid, start_time=self._clock.wall() / 1e9)
        guest.building = trio.CancelScope()
        self.domains[domid] = guest
        try:
            with guest.building as building:
                await self._assembler.make(guest, progress, self._on_over, self._on_death)
            guest.building = None
            if guest.vm is not None and self._tracer is not None:
                await guest.vm.trace(self._tracer)
            if building.cancel_called:  # whether or not that has stopped it: somebody waits for the domain to go
                raise ToolstackError(f"Domain {domid}:destroyed while it was being created", code=EXIT_FAILED)
            if not paused:
                assert guest.vm is not None
                await guest.vm.unpause()
        except BaseException as error:
            guest.building = None
            with trio.CancelScope(shield=True):
                await self._take_apart(guest)
            if isinstance(error, _USERS_TO_MEND):
                text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                lines = list(guest.build_log)
                raise ToolstackError(f"Domain {domid}:{text}", code=EXIT_FAILED, lines=lines) from error
            raise
        self._created += 1
        _log.info("domain %d (%s) created", domid, guest.name)
        return guest

    def _check(self, config: DomainConfig) -> None:
        for key in _ACTIONS.values():
            action: ShutdownAction = getattr(config, key)
            if action in (ShutdownAction.COREDUMP_DESTROY, ShutdownAction.COREDUMP_RESTART):
                raise ToolstackError(f'{key}="{action.value}" is not supported yet', code=EXIT_FAILED)
        for key, low, high in _GRANT_LIMITS:
            value: int | None = getattr(config, key)
            if value is not None and not low <= value <= high:
                had = f"{low} to {high}" if low < high else f"{high} only"
                raise ToolstackError(f"{key}={value}: a guest of this host can have {had}", code=EXIT_FAILED)

    def _settled(self, config: DomainConfig) -> DomainConfig:
        """With what a guest keeps from now on, however often it restarts."""
        try:
            return attrs.evolve(config, nics=settle(config.nics, config.uuid))
        except NicSyntaxError as error:
            raise ToolstackError(str(error), code=EXIT_FAILED) from None

    def _next_domid(self) -> DomId:
        for _ in range(LAST_DOMID):
            self._last_domid = self._last_domid % LAST_DOMID + 1
            domid = DomId(self._last_domid)
            if domid not in self.domains and not self.foreign.is_used(domid):
                return domid
        raise ToolstackError("all domain ids are in use", code=EXIT_FAILED)

    def _refuse_taken(self, name: str, domid: DomId) -> None:
        if name == "Domain-0" or any(guest.name == name for guest in self.domains.values()):
            raise ToolstackError(f'Domain {domid}:Domain with name "{name}" already exists.', code=EXIT_FAILED)

    def _refuse_too_much(self, config: DomainConfig, domid: DomId) -> None:
        free_kb = self.free_kb()
        if config.memory_kb + hostinfo.PER_DOMAIN_KB > free_kb:
            raise ToolstackError(
                f"Domain {domid}:cannot have {config.memory_kb // 1024} MB of memory: "
                f"the host can give {max(0, free_kb - hostinfo.PER_DOMAIN_KB) // 1024} MB",
                code=EXIT_FAILED,
            )

    # ends

    def _on_over(self, guest: GuestDomain, reason: int, why: str) -> None:
        """The domain has shut down; it stays until somebody acts on it."""
        known = ShutdownReason(reason) if reason in ShutdownReason._value2member_map_ else ShutdownReason.CRASH
        self._ended(guest, known, why)
        if known is ShutdownReason.SUSPEND:
            return
        action: ShutdownAction = getattr(guest.config, _ACTIONS[known])
        self._nursery.start_soon(self._act, guest, action)

    def _on_death(self, guest: GuestDomain, why: str) -> None:
        """Its process has gone, killed or broken: a crash of ours, not of the guest.

        What xl says on_crash is for a guest's own crash, of which a restart makes sense here too. But destroying it
        would destroy the only sign of what happened, so it stays in the list, without its memory, until told to go.
        """
        self._ended(guest, ShutdownReason.CRASH, why)
        if guest.config.on_crash in _RESTARTS:
            self._nursery.start_soon(self._act, guest, guest.config.on_crash)
        elif not guest.dying:
            self._assembler.release_memory(guest)

    def _ended(self, guest: GuestDomain, reason: ShutdownReason, why: str) -> None:
        guest.shutdown_reason = reason
        guest.reason_text = why
        if guest.console is not None:
            guest.console.drain()
        text = f"Domain {guest.domid} has shut down, reason code {reason.value} ({reason.name.lower()}): {why}"
        self._messages.hypervisor(text)
        if guest.store is not None:
            self._daemon.domain_shutdown(guest.domid)
        guest.shut_down.set()

    async def _act(self, guest: GuestDomain, action: ShutdownAction) -> None:
        """Carry out on_poweroff and its kin."""
        _log.info("Action for shutdown reason code %s is %s", guest.shutdown_reason, action.value)
        if guest.dying or action is ShutdownAction.PRESERVE:
            return
        if action is ShutdownAction.RENAME_RESTART:
            self._set_aside(guest)
        else:
            await self.destroy(guest.domid)
        if action not in _RESTARTS:
            return
        if self._clock.wall() / 1e9 - guest.start_time < QUICK_DEATH_SECONDS:
            await trio.sleep(QUICK_DEATH_SECONDS)
        try:
            await self.create(guest.config)
        except ToolstackError as error:
            self._messages.hypervisor(f"Domain {guest.domid} ({guest.config.name}) cannot be restarted: {error}")
        except Exception:
            _log.exception("domain %d (%s) could not be restarted", guest.domid, guest.config.name)

    def _set_aside(self, guest: GuestDomain) -> None:
        """rename-restart: the old domain stays under another name and uuid, for whoever wants to look at it."""
        new_name = f"{guest.name}-{time.strftime('%Y%m%dT%H%MZ', time.gmtime())}"
        number = 1
        while any(other.name == new_name for other in self.domains.values()):
            number += 1
            new_name = f"{new_name.partition('Z')[0]}Z-{number}"
        old_uuid, guest.uuid = guest.uuid, str(uuidlib.uuid4())
        guest.name = new_name
        self._assembler.write(
            [
                storetree.Remove(f"/vm/{old_uuid}"),
                storetree.Write(f"/vm/{guest.uuid}", "", ("n0", f"r{guest.domid}")),
                storetree.Write(f"/vm/{guest.uuid}/uuid", guest.uuid),
                storetree.Write(f"/local/domain/{guest.domid}/vm", f"/vm/{guest.uuid}"),
                *storetree.renamed(guest.domid, new_name, guest.uuid),
            ]
        )

    # commands

    async def destroy(self, domid: int) -> None:
        """End a domain at once and wait until nothing is left of it."""
        guest = self.find(domid)
        if guest.building is not None:
            guest.building.cancel()
        elif not guest.dying:
            with trio.CancelScope(shield=True):
                await self._take_apart(guest)
        await guest.gone.wait()

    async def pause(self, domid: int) -> None:
        await self._running(domid).pause()

    async def unpause(self, domid: int) -> None:
        await self._running(domid).unpause()

    async def request_shutdown(self, domid: int, reason: str) -> None:
        """Ask the guest by control/shutdown, and wait until it has taken notice."""
        guest = self.find(domid)
        if reason not in ("poweroff", "reboot", "halt"):
            raise ToolstackError(f"a guest cannot be asked to {reason!r}")
        if guest.shutdown_reason is not None:
            raise ToolstackError(f"domain {domid} has already shut down")
        path = f"/local/domain/{domid}/control/shutdown"
        try:
            self._client.write(path, reason)
            async with self._client.watch(path) as changes:
                with trio.fail_after(ACKNOWLEDGE_SECONDS):
                    while self._client.read(path) == reason.encode():
                        await changes.receive()
        except NotFound:
            return  # it is gone, which is what was wanted
        except trio.TooSlowError:
            raise ToolstackError(
                f"domain {domid} has not acknowledged control/shutdown for {ACKNOWLEDGE_SECONDS} seconds; "
                "is its kernel up? `xl destroy` ends it at once"
            ) from None

    def rename(self, domid: int, name: str) -> None:
        guest = self.find(domid)
        try:
            check_name(name)
        except ConfigError as error:
            raise ToolstackError(str(error)) from error
        if name == guest.name:
            return
        self._refuse_taken(name, guest.domid)
        guest.name = name
        guest.config = attrs.evolve(guest.config, name=name)
        self._assembler.write(storetree.renamed(guest.domid, name, guest.uuid))

    async def wait(self, domid: int, event: str) -> int | None:
        """Until the domain has shut down, or is gone; its reason, None if it was destroyed.

        Of a domain that is gone already too: who made it may not have come to ask before it ended.
        """
        if DomId(domid) not in self.domains and DomId(domid) in self._ends:
            return self._ends[DomId(domid)]
        guest = self.find(domid)
        if event == "shutdown":
            await guest.shut_down.wait()
        else:
            await guest.gone.wait()
        return guest.shutdown_reason

    async def destroy_all(self) -> None:
        async with trio.open_nursery() as nursery:
            for guest in list(self.domains.values()):
                nursery.start_soon(self.destroy, guest.domid)

    def console_path(self, domid: DomId) -> Path:
        return self._assembler.console_path(domid)

    async def _take_apart(self, guest: GuestDomain) -> None:
        guest.dying = True
        await self._assembler.dismantle(guest)
        del self.domains[guest.domid]
        self._ends[guest.domid] = guest.shutdown_reason
        if len(self._ends) > ENDS_KEPT:
            del self._ends[next(iter(self._ends))]
        _log.info("domain %d (%s) is gone", guest.domid, guest.name)
        guest.shut_down.set()
        guest.gone.set()

    def _running(self, domid: int) -> Vm | HostedVm:
        guest = self.find(domid)
        if guest.vm is None or guest.building is not None:
            raise ToolstackError(f"domain {domid} is still being created")
        return guest.vm

    def _runner(self, domid: DomId) -> Vm | HostedVm | None:
        """What runs that guest, if it is there and not about to go."""
        guest = self.domains.get(domid)
        return None if guest is None or guest.dying or guest.memory is None else guest.vm

    # lists

    def rows(self) -> list[dict[str, Any]]:
        """`domain.list`, Domain-0 first."""
        return [domain0.row(self._dom0_memory_kb()), *(self.domains[domid].row() for domid in sorted(self.domains))]

    def vcpus(self, domid: int) -> list[dict[str, Any]]:
        """`domain.vcpus`."""
        return domain0.vcpus() if domid == 0 else self.find(domid).vcpus()

    def grant_tables(self) -> list[tuple[DomId, GuestGrants]]:
        """The grants of every guest that has come so far as to have some."""
        return [(domid, guest.vm.grants) for domid, guest in sorted(self.domains.items()) if guest.vm is not None]

    def _dom0_memory_kb(self) -> int:
        """Domain-0 has what guests have not and cannot have: everything else that runs on this machine."""
        guests = sum(guest.pages_kb() for guest in self.domains.values())
        return hostinfo.memory().total_kb - self.free_kb() - guests
