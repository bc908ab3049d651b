# SPDX-License-Identifier: GPL-2.0-only
"""What the toolstack writes into the store, as data: the paths, values, permissions and order libxl uses.

Guests, xl and other tools read these nodes, and watchers see them come in this order, so all of it is interface. Each
function gives the operations of one transaction; `apply` carries them out. Seen in a trace of xenstored 4.17.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import attrs

from xen_py.types import DomId
from xenstore.errors import NotFound


class StoreOperations(Protocol):
    """What `apply` needs of a store client or of one of its transactions."""

    def write(self, path: str, value: str) -> None: ...
    def mkdir(self, path: str) -> None: ...
    def rm(self, path: str) -> None: ...
    def directory(self, path: str) -> list[str]: ...
    def set_perms(self, path: str, perms: list[str]) -> None: ...


@attrs.frozen
class Write:
    path: str
    value: str = ""
    perms: tuple[str, ...] = ()


@attrs.frozen
class Mkdir:
    path: str
    perms: tuple[str, ...]


@attrs.frozen
class Remove:
    path: str


@attrs.frozen
class Prune:
    """Remove a node, then each parent that holds nothing any more."""

    path: str


Operation = Write | Mkdir | Remove | Prune

DOM0_ONLY = ("n0",)
CONSOLE_LIMIT = 1 << 20
"""Bytes of unread output that xenconsoled would keep for a guest; ours keeps all of it, in a file."""


@attrs.frozen(kw_only=True)
class StoredDomain:
    """What the store is told of a domain."""

    domid: DomId
    name: str
    uuid: str
    memory_kb: int
    maxmem_kb: int
    vcpus: int
    maxvcpus: int
    guest_os: str
    kernel: str
    ramdisk: str | None
    cmdline: str | None
    start_time: float
    store_port: int
    store_mfn: int
    console_port: int
    console_mfn: int

    @property
    def path(self) -> str:
        return f"/local/domain/{self.domid}"

    @property
    def vm_path(self) -> str:
        return f"/vm/{self.uuid}"


def dom0_nodes(memory_kb: int) -> Iterator[Operation]:
    """What dom0's kernel and xen-init-dom0 leave on a fresh Xen."""
    for feature in ("poweroff", "reboot", "suspend"):
        yield Write(f"/local/domain/0/control/feature-{feature}", "1")
    yield Write("/local/domain/0/domid", "0")
    yield Write("/local/domain/0/name", "Domain-0")
    yield Write("/local/domain/0/memory/target", str(memory_kb))
    yield Write("/local/domain/0/memory/static-max", "17179869180")
    yield Write("/local/pool/0/name", "Pool-0")
    yield Mkdir("/vm", DOM0_ONLY)
    yield Mkdir("/libxl", DOM0_ONLY)


def made(domid: DomId, name: str, uuid: str) -> Iterator[Operation]:
    """A domain came to be: the nodes it and its tools find there from the start (libxl__domain_make)."""
    path, vm_path, libxl_path = f"/local/domain/{domid}", f"/vm/{uuid}", f"/libxl/{domid}"
    readable = ("n0", f"r{domid}")
    own = (f"n{domid}",)
    yield Remove(path)
    yield Write(path, "", readable)
    yield Remove(vm_path)
    yield Write(vm_path, "", readable)
    yield Remove(libxl_path)
    yield Write(libxl_path, "", DOM0_ONLY)
    yield Write(f"{libxl_path}/device", "", DOM0_ONLY)
    yield Write(f"{path}/vm", vm_path)
    yield from renamed(domid, name, uuid)
    for node in ("cpu", "memory", "device"):
        yield Write(f"{path}/{node}", "", readable)
    yield Write(f"{path}/device/suspend/event-channel", "", own)
    yield Write(f"{path}/control", "", readable)
    for node in ("shutdown", "feature-poweroff", "feature-reboot", "feature-suspend", "sysrq"):
        yield Write(f"{path}/control/{node}", "", own)
    for node in ("data", "drivers", "feature", "attr", "error"):
        yield Write(f"{path}/{node}", "", own)
    yield Write(f"{vm_path}/uuid", uuid)
    yield Write(f"{vm_path}/name", name)
    yield Write(f"{path}/control/platform-feature-multiprocessor-suspend", "1")
    yield Write(f"{path}/control/platform-feature-xs_reset_watches", "1")
    yield Write(f"{libxl_path}/type", "pv")


def renamed(domid: DomId, name: str, uuid: str) -> Iterator[Operation]:
    yield Write(f"/local/domain/{domid}/name", name)
    yield Write(f"/vm/{uuid}/name", name)


def device_model(domid: DomId) -> Iterator[Operation]:
    yield Write(f"/libxl/{domid}/dm-version", "qemu_xen")


def built(domain: StoredDomain) -> Iterator[Operation]:
    """Its memory is filled: figures, the store's own ring, where it was booted from (libxl__build_post)."""
    path, vm_path = domain.path, domain.vm_path
    yield Write(f"{path}/memory/static-max", str(domain.maxmem_kb))
    yield Write(f"{path}/memory/target", str(domain.memory_kb))
    yield Write(f"{path}/memory/videoram", "0")
    yield Write(f"{path}/domid", str(domain.domid))
    yield Write(f"{path}/store/port", str(domain.store_port))
    yield Write(f"{path}/store/ring-ref", str(domain.store_mfn))
    for vcpu in range(domain.maxvcpus):
        yield Write(f"{path}/cpu/{vcpu}/availability", "online" if vcpu < domain.vcpus else "offline")
    yield Write(f"{vm_path}/image/ostype", domain.guest_os)
    yield Write(f"{vm_path}/image/kernel", domain.kernel)
    yield Write(f"{vm_path}/start_time", f"{domain.start_time:.2f}")
    if domain.ramdisk is not None:
        yield Write(f"{vm_path}/image/ramdisk", domain.ramdisk)
    if domain.cmdline is not None:
        yield Write(f"{vm_path}/image/cmdline", domain.cmdline)


def console(domain: StoredDomain) -> Iterator[Operation]:
    """Console 0: a front and a back directory as any device has, though the builder has connected it already."""
    domid, front = domain.domid, f"{domain.path}/console"
    back, libxl = f"/local/domain/0/backend/console/{domid}/0", f"/libxl/{domid}/device/console/0"
    readable = ("n0", f"r{domid}")
    yield Remove(libxl)
    yield Write(f"{libxl}/frontend", front)
    yield Write(f"{libxl}/backend", back)
    yield Remove(front)
    yield Mkdir(front, readable)
    yield Write(f"{front}/backend", back)
    yield Write(f"{front}/backend-id", "0", (f"n{domid}", "r0"))
    yield Write(f"{front}/limit", str(CONSOLE_LIMIT), readable)
    yield Write(f"{front}/type", "xenconsoled", readable)
    yield Write(f"{front}/output", "pty", readable)
    yield Write(f"{front}/tty", "", readable)
    yield Write(f"{front}/port", str(domain.console_port), readable)
    yield Write(f"{front}/ring-ref", str(domain.console_mfn), readable)
    yield Remove(back)
    yield Mkdir(back, readable)
    both = (("frontend-id", str(domid)), ("online", "1"), ("state", "1"), ("protocol", "vt100"))
    for name, value in (("frontend", front), *both):
        yield Write(f"{back}/{name}", value)
    for name, value in both:
        yield Write(f"{libxl}/{name}", value)


def console_served(domid: DomId, tty: str) -> Iterator[Operation]:
    """The console's backend is at work."""
    yield Write(f"/local/domain/{domid}/console/tty", tty)


def devices_gone(domid: DomId) -> Iterator[Operation]:
    """The first half of a removal, one transaction: the console, as the only device there is."""
    yield Prune(f"/local/domain/{domid}/console")
    yield Prune(f"/libxl/{domid}/device/console/0")
    yield Prune(f"/local/domain/0/backend/console/{domid}/0")


def gone(domid: DomId, uuid: str) -> Iterator[Operation]:
    """The second half; each by itself, as libxl does it."""
    yield Remove(f"/vm/{uuid}")
    yield Remove(f"/local/domain/{domid}")
    yield Remove(f"/libxl/{domid}")


def apply(store: StoreOperations, operations: Iterable[Operation]) -> None:
    for operation in operations:
        match operation:
            case Write(path, value, perms):
                store.write(path, value)
                if perms:
                    store.set_perms(path, list(perms))
            case Mkdir(path, perms):
                store.mkdir(path)
                store.set_perms(path, list(perms))
            case Remove(path):
                _remove(store, path)
            case Prune(path):
                while path.count("/") > 1 and _remove(store, path):
                    path = path.rpartition("/")[0]
                    if store.directory(path):
                        break


def _remove(store: StoreOperations, path: str) -> bool:
    """Whether there was anything to remove: a node whose parent is missing too counts as removed already."""
    try:
        store.rm(path)
    except NotFound:
        return False
    return True
