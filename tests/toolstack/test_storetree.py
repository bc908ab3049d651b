# SPDX-License-Identifier: GPL-2.0-only
"""What the toolstack writes into the store, against what libxl 4.17 wrote for the same guest."""

from collections.abc import Iterable

import attrs
import trio

from dom0.toolstack import storetree
from dom0.toolstack.storetree import Operation, StoredDomain
from xen_py.types import DomId
from xenstore.daemon import Daemon
from xenstore.local import LocalClient

UUID = "d5e5a122-2c71-49e3-b921-ad7cc94b60dc"
GUEST = StoredDomain(
    domid=DomId(3),
    name="gpv",
    uuid=UUID,
    memory_kb=131072,
    maxmem_kb=131072,
    vcpus=1,
    maxvcpus=1,
    guest_os="linux",
    kernel="/guest/vmlinuz",
    ramdisk="/guest/domu.cpio.gz",
    cmdline="console=hvc0 rdinit=/init panic=5",
    start_time=1795336940.1,
    store_port=1,
    store_mfn=46081,
    console_port=2,
    console_mfn=46082,
)

IDLE = """\
/tool = ""   (n0)
/tool/xenstored = ""   (n0)
/local = ""   (n0)
/local/domain = ""   (n0)
/local/domain/0 = ""   (n0)
/local/domain/0/control = ""   (n0)
/local/domain/0/control/feature-poweroff = "1"   (n0)
/local/domain/0/control/feature-reboot = "1"   (n0)
/local/domain/0/control/feature-suspend = "1"   (n0)
/local/domain/0/domid = "0"   (n0)
/local/domain/0/name = "Domain-0"   (n0)
/local/domain/0/memory = ""   (n0)
/local/domain/0/memory/target = "1048576"   (n0)
/local/domain/0/memory/static-max = "17179869180"   (n0)
/local/pool = ""   (n0)
/local/pool/0 = ""   (n0)
/local/pool/0/name = "Pool-0"   (n0)
/vm = ""   (n0)
/libxl = ""   (n0)
"""

BACKEND = """\
/local/domain/0/backend = ""   (n0)
/local/domain/0/backend/console = ""   (n0)
/local/domain/0/backend/console/3 = ""   (n0)
/local/domain/0/backend/console/3/0 = ""   (n0,r3)
/local/domain/0/backend/console/3/0/frontend = "/local/domain/3/console"   (n0,r3)
/local/domain/0/backend/console/3/0/frontend-id = "3"   (n0,r3)
/local/domain/0/backend/console/3/0/online = "1"   (n0,r3)
/local/domain/0/backend/console/3/0/state = "1"   (n0,r3)
/local/domain/0/backend/console/3/0/protocol = "vt100"   (n0,r3)
"""

# As `xenstore-ls -fp` showed them before the guest wrote anything of its own, the console's path as ours.
FRONTEND = f"""\
/local/domain/3 = ""   (n0,r3)
/local/domain/3/vm = "/vm/{UUID}"   (n0,r3)
/local/domain/3/name = "gpv"   (n0,r3)
/local/domain/3/cpu = ""   (n0,r3)
/local/domain/3/cpu/0 = ""   (n0,r3)
/local/domain/3/cpu/0/availability = "online"   (n0,r3)
/local/domain/3/memory = ""   (n0,r3)
/local/domain/3/memory/static-max = "131072"   (n0,r3)
/local/domain/3/memory/target = "131072"   (n0,r3)
/local/domain/3/memory/videoram = "0"   (n0,r3)
/local/domain/3/device = ""   (n0,r3)
/local/domain/3/device/suspend = ""   (n0,r3)
/local/domain/3/device/suspend/event-channel = ""   (n3)
/local/domain/3/control = ""   (n0,r3)
/local/domain/3/control/shutdown = ""   (n3)
/local/domain/3/control/feature-poweroff = ""   (n3)
/local/domain/3/control/feature-reboot = ""   (n3)
/local/domain/3/control/feature-suspend = ""   (n3)
/local/domain/3/control/sysrq = ""   (n3)
/local/domain/3/control/platform-feature-multiprocessor-suspend = "1"   (n0,r3)
/local/domain/3/control/platform-feature-xs_reset_watches = "1"   (n0,r3)
/local/domain/3/data = ""   (n3)
/local/domain/3/drivers = ""   (n3)
/local/domain/3/feature = ""   (n3)
/local/domain/3/attr = ""   (n3)
/local/domain/3/error = ""   (n3)
/local/domain/3/domid = "3"   (n0,r3)
/local/domain/3/store = ""   (n0,r3)
/local/domain/3/store/port = "1"   (n0,r3)
/local/domain/3/store/ring-ref = "46081"   (n0,r3)
/local/domain/3/console = ""   (n0,r3)
/local/domain/3/console/backend = "/local/domain/0/backend/console/3/0"   (n0,r3)
/local/domain/3/console/backend-id = "0"   (n3,r0)
/local/domain/3/console/limit = "1048576"   (n0,r3)
/local/domain/3/console/type = "xenconsoled"   (n0,r3)
/local/domain/3/console/output = "pty"   (n0,r3)
/local/domain/3/console/tty = "/dev/pts/0"   (n0,r3)
/local/domain/3/console/port = "2"   (n0,r3)
/local/domain/3/console/ring-ref = "46082"   (n0,r3)
"""

VM = f"""\
/vm/{UUID} = ""   (n0,r3)
/vm/{UUID}/name = "gpv"   (n0,r3)
/vm/{UUID}/uuid = "{UUID}"   (n0,r3)
/vm/{UUID}/image = ""   (n0,r3)
/vm/{UUID}/image/ostype = "linux"   (n0,r3)
/vm/{UUID}/image/kernel = "/guest/vmlinuz"   (n0,r3)
/vm/{UUID}/image/ramdisk = "/guest/domu.cpio.gz"   (n0,r3)
/vm/{UUID}/image/cmdline = "console=hvc0 rdinit=/init panic=5"   (n0,r3)
/vm/{UUID}/start_time = "1795336940.10"   (n0,r3)
"""

LIBXL = """\
/libxl/3 = ""   (n0)
/libxl/3/device = ""   (n0)
/libxl/3/device/console = ""   (n0)
/libxl/3/device/console/0 = ""   (n0)
/libxl/3/device/console/0/frontend = "/local/domain/3/console"   (n0)
/libxl/3/device/console/0/backend = "/local/domain/0/backend/console/3/0"   (n0)
/libxl/3/device/console/0/frontend-id = "3"   (n0)
/libxl/3/device/console/0/online = "1"   (n0)
/libxl/3/device/console/0/state = "1"   (n0)
/libxl/3/device/console/0/protocol = "vt100"   (n0)
/libxl/3/type = "pv"   (n0)
/libxl/3/dm-version = "qemu_xen"   (n0)
"""

# What `xenstore-watch /local/domain` printed while the same guest was created (and removed, after it).
WATCHED = """\
/local/domain/5
/local/domain/5/vm
/local/domain/5/name
/local/domain/5/cpu
/local/domain/5/memory
/local/domain/5/device
/local/domain/5/device/suspend/event-channel
/local/domain/5/control
/local/domain/5/control/shutdown
/local/domain/5/control/feature-poweroff
/local/domain/5/control/feature-reboot
/local/domain/5/control/feature-suspend
/local/domain/5/control/sysrq
/local/domain/5/data
/local/domain/5/drivers
/local/domain/5/feature
/local/domain/5/attr
/local/domain/5/error
/local/domain/5/control/platform-feature-multiprocessor-suspend
/local/domain/5/control/platform-feature-xs_reset_watches
/local/domain/5/memory/static-max
/local/domain/5/memory/target
/local/domain/5/memory/videoram
/local/domain/5/domid
/local/domain/5/store/port
/local/domain/5/store/ring-ref
/local/domain/5/cpu/0/availability
/local/domain/5/console
/local/domain/5/console/backend
/local/domain/5/console/backend-id
/local/domain/5/console/limit
/local/domain/5/console/type
/local/domain/5/console/output
/local/domain/5/console/tty
/local/domain/5/console/port
/local/domain/5/console/ring-ref
/local/domain/0/backend/console/5/0
/local/domain/0/backend/console/5/0/frontend
/local/domain/0/backend/console/5/0/frontend-id
/local/domain/0/backend/console/5/0/online
/local/domain/0/backend/console/5/0/state
/local/domain/0/backend/console/5/0/protocol
/local/domain/5/console/tty
"""
UNWATCHED = """\
/local/domain/5/console
/local/domain/0/backend/console/5/0
/local/domain/0/backend/console/5
/local/domain/0/backend/console
/local/domain/0/backend
/local/domain/5
"""


def transaction(client: LocalClient, operations: Iterable[Operation]) -> None:
    todo = list(operations)
    client.run_transaction(lambda t: storetree.apply(t, todo))


def create(client: LocalClient, guest: StoredDomain) -> None:
    transaction(client, storetree.made(guest.domid, guest.name, guest.uuid))
    transaction(client, storetree.device_model(guest.domid))
    transaction(client, storetree.built(guest))
    transaction(client, storetree.console(guest))
    transaction(client, storetree.console_served(guest.domid, "/dev/pts/0"))


def remove(client: LocalClient, guest: StoredDomain) -> None:
    transaction(client, storetree.devices_gone(guest.domid))
    for operation in storetree.gone(guest.domid, guest.uuid):
        storetree.apply(client, [operation])


def listed(client: LocalClient, path: str = "") -> str:
    text = ""
    for name in client.directory(path or "/"):
        at = f"{path}/{name}"
        text += f'{at} = "{client.read(at).decode()}"   ({",".join(client.get_perms(at))})\n' + listed(client, at)
    return text


def lines(*texts: str) -> set[str]:
    return {line for text in texts for line in text.splitlines()}


async def test_fresh_store() -> None:
    client = Daemon().client()
    transaction(client, storetree.dom0_nodes(1048576))
    assert listed(client) == IDLE


async def test_nodes_values_and_permissions() -> None:
    client = Daemon().client()
    transaction(client, storetree.dom0_nodes(1048576))
    create(client, GUEST)
    assert set(listed(client).splitlines()) == lines(IDLE, BACKEND, FRONTEND, VM, LIBXL)


async def test_order_within_each_directory() -> None:
    client = Daemon().client()
    create(client, GUEST)
    assert listed(client, "/local/domain/3") == FRONTEND.split("\n", 1)[1]
    assert listed(client, f"/vm/{UUID}") == VM.split("\n", 1)[1]
    assert listed(client, "/libxl/3") == LIBXL.split("\n", 1)[1]


async def test_nothing_stays() -> None:
    client = Daemon().client()
    transaction(client, storetree.dom0_nodes(1048576))
    create(client, GUEST)
    remove(client, GUEST)
    assert listed(client) == IDLE
    remove(client, GUEST)
    assert listed(client) == IDLE


async def test_order_of_events() -> None:
    daemon = Daemon()
    client = daemon.client()
    transaction(client, storetree.dom0_nodes(1048576))
    channel = daemon.client().watch("/local/domain")
    assert channel.receive_nowait()[0] == "/local/domain"
    guest = attrs.evolve(GUEST, domid=DomId(5))

    def seen() -> list[str]:
        paths = []
        while True:
            try:
                paths.append(channel.receive_nowait()[0])
            except trio.WouldBlock:
                return paths

    events: list[str] = []
    for step in (
        storetree.made(guest.domid, guest.name, guest.uuid),
        storetree.device_model(guest.domid),
        storetree.built(guest),
        storetree.console(guest),
        storetree.console_served(guest.domid, "/dev/pts/0"),
    ):
        transaction(client, step)
        events += seen()
    assert events == WATCHED.splitlines()
    remove(client, guest)
    assert seen() == UNWATCHED.splitlines()
