# SPDX-License-Identifier: GPL-2.0-only
"""Putting a domain together, and taking apart whatever there is of it.

The order is libxl's: what the store shows, and when, is interface (`storetree`). `make` may fail anywhere; `dismantle`
copes with every stage, and with a domain whose process has died.

Owner: the trio thread; `dom0.toolstack.lifecycle` decides when.
"""

from __future__ import annotations

import uuid as uuidlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from dom0.backend.console import Console, ConsoleLog, open_listener
from dom0.backend.grants import GuestGone, GuestGrants, PinnedFrame
from dom0.host.foreign import ForeignGrants
from dom0.host.hosted import HostedVm
from dom0.host.spawn import Spawner
from dom0.host.switchboard import Switchboard
from dom0.host.vm import Vm
from dom0.toolstack import building, disks, nics, storetree
from dom0.toolstack.bootloader import booted
from dom0.toolstack.building import Progress
from dom0.toolstack.devices import Devices, NewDevice
from dom0.toolstack.dmesg import MessageBuffer
from dom0.toolstack.domain import GuestDomain
from xen_py.abi.grant_table import RESERVED_CONSOLE, RESERVED_XENSTORE
from xen_py.clock import Clock
from xen_py.io.console import ConsoleRing
from xen_py.link import HostLink
from xen_py.maptrack import MAX_FRAMES
from xen_py.memory import GRANT_FRAMES, GuestMemory, MemoryGeometry
from xen_py.spec import DomainSpec, Program
from xen_py.types import DomId, GrantRef, Mfn, Port, XenError
from xenstore.daemon import Daemon
from xenstore.local import LocalClient

DEFAULT_MAX_PORT = 1023
"""The highest event channel port of a domain whose configuration names none."""
RELEASE_SECONDS = 10
"""How long backends may take to let go of a dead guest's grants. One that never does costs memory, no more."""


class Assembler:
    """Makes and unmakes the domains of one host."""

    def __init__(
        self,
        nursery: trio.Nursery,
        spawner: Spawner,
        switchboard: Switchboard,
        store: Daemon,
        client: LocalClient,
        messages: MessageBuffer,
        rundir: Path,
        clock: Clock,
        devices: Devices,
        foreign: ForeignGrants,
    ) -> None:
        self._foreign = foreign
        self.builds_in_turn = False
        self._devices = devices
        self._clock = clock
        self._nursery = nursery
        self._spawner = spawner
        self._switchboard = switchboard
        self._daemon = store
        self._client = client
        self._messages = messages
        self._rundir = rundir

    async def make(
        self,
        guest: GuestDomain,
        progress: Progress | None,
        on_over: Callable[[GuestDomain, int, str], None],
        on_death: Callable[[GuestDomain, str], None],
    ) -> None:
        """All of the domain, paused before its first instruction. Whatever this raises, `dismantle` follows."""
        config, domid = guest.config, guest.domid
        self.write(storetree.made(domid, guest.name, guest.uuid))
        self.write(storetree.device_model(domid))
        ports = config.max_event_channels
        self._switchboard.add_domain(domid, config.maxvcpus, DEFAULT_MAX_PORT if ports is None else ports)
        broker = self._switchboard.broker
        store_port = broker.alloc_unbound(DomId(0), domid, DomId(0))
        console_port = broker.alloc_unbound(DomId(0), domid, DomId(0))
        memory = guest.memory = GuestMemory.create(MemoryGeometry.for_domain(config.maxmem_kb // 4), guest.name)
        build = building.build_in_turn if self.builds_in_turn else building.build_domain
        async with booted(config, self._rundir) as config:
            built = await build(config, memory, store_port, console_port, progress)
        guest.build_log = built.log
        spec = DomainSpec(
            domid,
            guest.name,
            uuidlib.UUID(guest.uuid).bytes,
            config.maxvcpus,
            config.memory_kb // 4,
            memory.geometry,
            built.start,
            store_port,
            console_port,
            built.store_mfn,
            built.console_mfn,
            Program.parse(config.kernel, config.program_path),
            GRANT_FRAMES if config.max_grant_frames is None else config.max_grant_frames,
            MAX_FRAMES if config.max_maptrack_frames is None else config.max_maptrack_frames,
        )
        self._open_console(guest, memory, console_port, built.console_mfn)
        over, death = partial(on_over, guest), partial(on_death, guest)
        if spec.program is not None and self._spawner.in_process:
            await self._start_vm(guest, HostedVm(spec, memory, self._services(guest), self._clock, over, death))
        else:
            await self._start_vm(guest, Vm(spec, memory, self._services(guest), self._foreign, over, death))
        await self._pin_rings(guest, memory, spec)
        stored = storetree.StoredDomain(
            domid=domid,
            name=guest.name,
            uuid=guest.uuid,
            memory_kb=config.memory_kb,
            maxmem_kb=config.maxmem_kb,
            vcpus=config.vcpus,
            maxvcpus=config.maxvcpus,
            guest_os=built.guest_os,
            kernel=config.kernel,
            ramdisk=config.ramdisk,
            cmdline=config.cmdline,
            start_time=guest.start_time,
            store_port=store_port,
            store_mfn=built.store_mfn,
            console_port=console_port,
            console_mfn=built.console_mfn,
        )
        self.write(storetree.built(stored))
        self._introduce(guest, memory, store_port, built.store_mfn)
        self.write(storetree.console(stored))
        self.write(storetree.console_served(domid, str(self.console_path(domid))))
        await disks.add_all(self._devices, domid, config.disks)
        await nics.add_all(self._devices, domid, config.nics)
        for device in config.devices:
            await self._devices.add(domid, NewDevice(device.type, device.devid, device.settings))

    def _open_console(self, guest: GuestDomain, memory: GuestMemory, port: Port, mfn: Mfn) -> None:
        def warn(text: str) -> None:
            self._messages.hypervisor(f"d{guest.domid}: {text}")

        bound = self._switchboard.bind(guest.domid, port, lambda: console.on_event())
        guest.ports.append(bound)
        log = ConsoleLog(self._rundir / "log" / f"guest-{guest.name}.log", warn)
        console = guest.console = Console(ConsoleRing(memory.frame(mfn)), log, bound.notify, warn)
        listener = open_listener(self.console_path(guest.domid))
        guest.serving, guest.served = trio.CancelScope(), trio.Event()
        self._nursery.start_soon(self._serve_console, console, listener, guest.serving, guest.served)

    async def _serve_console(
        self, console: Console, listener: trio.SocketListener, scope: trio.CancelScope, served: trio.Event
    ) -> None:
        try:
            async with listener:
                with scope:
                    await console.serve(listener, self._nursery)
        finally:
            served.set()

    def _services(self, guest: GuestDomain) -> HostLink:
        """What answers the domain's calls."""

        def console_write(data: bytes) -> None:
            self._messages.guest(guest.domid, data)
            if guest.console is not None:
                guest.console.write(data)

        others = self._foreign.now(guest.domid)
        return self._switchboard.link_for(guest.domid, console_write, self._messages.hypervisor, others)

    async def _start_vm(self, guest: GuestDomain, vm: Vm | HostedVm) -> None:
        guest.vm = vm
        self._switchboard.connect(guest.domid, vm.deliver)
        await self._nursery.start(vm.run, self._spawner)

    async def _pin_rings(self, guest: GuestDomain, memory: GuestMemory, spec: DomainSpec) -> None:
        """Hold the pages of console and store by their grants, as xenconsoled and xenstored do, while they are served.

        Whatever the guest does, they become no page tables while dom0 writes into them.
        """
        assert guest.vm is not None
        grants = guest.ring_grants = GuestGrants(guest.domid, memory, guest.vm.order)
        wanted = {RESERVED_CONSOLE: spec.console_mfn, RESERVED_XENSTORE: spec.store_mfn}
        for ref, pin in zip(wanted, await grants.pin([(GrantRef(ref), False) for ref in wanted]), strict=True):
            if not isinstance(pin, PinnedFrame):
                raise GuestGone(f"the page of reserved grant {ref} cannot be had: {pin.name.lower()}")
            guest.ring_pins.append(pin)
            if pin.index != memory.geometry.index(wanted[ref]):
                raise GuestGone(f"reserved grant {ref} is of another page than the guest was given")

    def _introduce(self, guest: GuestDomain, memory: GuestMemory, port: Port, mfn: Mfn) -> None:
        def serve() -> None:
            if guest.store is not None:
                guest.store.on_event()

        bound = self._switchboard.bind(guest.domid, port, serve)
        guest.ports.append(bound)
        guest.store = self._daemon.introduce(guest.domid, memory.frame(mfn), bound.notify)

    def console_path(self, domid: DomId) -> Path:
        return self._rundir / "console" / f"{domid}.sock"

    async def dismantle(self, guest: GuestDomain) -> None:
        """Whatever there is of the domain, from the loop that runs it to its last node. Never fails half-way."""
        if guest.vm is not None:
            await guest.vm.destroy()
            await self._foreign.user_gone(guest.domid)
        if guest.console is not None:
            guest.console.close()
        if guest.serving is not None:
            guest.serving.cancel()
            await guest.served.wait()
            self.console_path(guest.domid).unlink(missing_ok=True)
        self._messages.guest_gone(guest.domid)
        await self._devices.destroy_all(guest.domid)
        self.write(storetree.devices_gone(guest.domid))
        for operation in storetree.gone(guest.domid, guest.uuid):
            storetree.apply(self._client, [operation])
        if guest.vm is not None:
            with trio.move_on_after(RELEASE_SECONDS):
                await guest.vm.grants.released()
            if held := guest.vm.grants.statistics().pinned:
                text = f"d{guest.domid}: its memory stays: backends have {held} of its grants in use"
                self._messages.hypervisor(text)
        if guest.ring_grants is not None:
            await guest.ring_grants.unpin(guest.ring_pins)
            guest.ring_pins.clear()
        self.release_memory(guest)
        self._daemon.release(guest.domid)
        for port in guest.ports:
            port.close()
        with suppress(XenError):  # it may not have come that far
            self._switchboard.remove_domain(guest.domid)

    def release_memory(self, guest: GuestDomain) -> None:
        """Give the guest's memory back. Its loop is gone; the host's own views of it go first."""
        if guest.memory is None:
            return
        if guest.console is not None:
            guest.console.close()
        if guest.store is not None:
            guest.store.close()
            guest.store = None
        for pin in guest.ring_pins:
            pin.data.release()
        guest.memory.close()
        guest.memory = None
        for user, count in self._foreign.users(guest.domid).items():
            self._messages.hypervisor(f"d{guest.domid}: its memory stays: d{user} has {count} of its grants mapped")

    def write(self, operations: Iterable[storetree.Operation]) -> None:
        """One transaction."""
        todo = list(operations)
        self._client.run_transaction(lambda transaction: storetree.apply(transaction, todo))
