# SPDX-License-Identifier: GPL-2.0-only
"""A Linux guest on the ring: its kernel's xenbus, and Debian's own xenstore tools inside it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import debian
from tests.system.harness import BIN, Host, Session, fetch_debian
from tests.system.scenarios import PROMPT
from tests.xenstore.reference import TOOLS, library_path
from xenstore.client import Client

NAMES = ("ls", "read", "write", "list", "rm", "exists", "watch", "chmod")


@pytest.fixture(scope="session")
def ramdisk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image's initramfs with Debian's tools and the libraries they need."""
    fetch_debian()
    root = debian.unpacked(*TOOLS, "libc6", "libgcc-s1")
    libraries = Path(library_path(root))
    files = [f"usr/bin/xenstore-{name}={root}/usr/bin/xenstore-{name}" for name in NAMES]
    for name in ("libxenstore.so.4", "libxentoolcore.so.1"):
        files.append(f"lib/{name}={(libraries / name).resolve()}")
    for name in ("libc.so.6", "libgcc_s.so.1"):
        files.append(f"lib/{name}={next(path for path in root.rglob(name)).resolve()}")
    loader = next(path for path in root.rglob("ld-linux-x86-64.so.2") if path.is_file())
    files.append(f"lib64/ld-linux-x86-64.so.2={loader.resolve()}")
    output = tmp_path_factory.mktemp("images") / "xenstore-initramfs.gz"
    arguments = [part for file in files for part in ("--file", file)]
    subprocess.run([str(BIN / "xen-py"), "image", "initramfs", str(output), *arguments], check=True)
    return output


def ask(console: Session, command: str) -> str:
    """Run a command in the guest; what it printed, and its exit code at the end."""
    console.send(f"echo begin; {command}; echo code=$?.\n")
    found = console.expect(r"^begin\r?\n([^\0]*?)code=(\d+)\.\r?\n")
    console.expect(PROMPT)
    return found[1].decode().replace("\r", "") + found[2].decode()


def test_xenbus_and_tools_in_a_guest(tmp_path: Path, ramdisk: Path, our_tool: Callable[[str], str]) -> None:
    with Host(tmp_path) as host, host.session("create", "-c", str(host.debian("guest", ramdisk))) as console:
        console.expect(PROMPT)
        domid = host.xl("domid", "guest").strip()
        home = f"/local/domain/{domid}"
        environment = host.environment | {"XENSTORED_PATH": str(host.rundir / "xenstored.sock")}
        ask(console, "mount -t devtmpfs dev /dev; export LD_LIBRARY_PATH=/lib")
        with Client(environment["XENSTORED_PATH"]) as dom0:
            # its own home looks the same from inside and from outside
            outside = subprocess.run(
                [our_tool("xenstore-ls"), "-fp", home], env=environment, check=True, capture_output=True, text=True
            ).stdout
            assert f'{home}/name = "guest"' in outside
            assert ask(console, f"xenstore-ls -fp {home}") == outside + "0"
            assert ask(console, "xenstore-read name domid") == f"guest\n{domid}\n0"
            # it may write what is its own, and nothing else
            assert ask(console, "xenstore-write data/from-guest 'hello from linux'") == "0"
            assert dom0.read(f"{home}/data/from-guest") == b"hello from linux"
            assert dom0.get_perms(f"{home}/data/from-guest") == [f"n{domid}"]
            assert ask(console, "xenstore-write name other 2>&1").endswith("could not write path name\n1")
            assert ask(console, "xenstore-ls / 2>&1").endswith("Permission denied\n1")
            assert dom0.read(f"{home}/name") == b"guest"
            # watches and transactions
            console.send("xenstore-watch -n 2 data/watched; echo done.\n")
            console.expect(r"^data/watched\r?\n")
            dom0.write(f"{home}/data/watched", "by dom0")
            console.expect(r"^data/watched\r?\ndone\.")
            console.expect(PROMPT)
            assert ask(console, "xenstore-write data/a 1 data/b 2 && xenstore-rm data/a") == "0"
            assert {"from-guest", "watched", "b"} <= set(dom0.list(f"{home}/data"))
            # the kernel's own xenbus: it has put itself where the toolstack looks for it
            assert dom0.read(f"{home}/control/feature-poweroff") == b"1"
        host.xl("shutdown", "-w", "guest")
