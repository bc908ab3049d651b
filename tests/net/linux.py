# SPDX-License-Identifier: GPL-2.0-only
"""Debian guests with network cards, driven over their consoles."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from dom0.image.paths import images_dir
from tests.system.harness import TROUBLE, Host, Session


class Shell:
    """A guest's shell on its console."""

    def __init__(self, session: Session) -> None:
        self._session = session
        session.expect("# ")

    def run(self, line: str, patience: float = 60) -> str:
        """What the line printed. AssertionError unless it succeeds."""
        start = self.start(line)
        status = self._session.expect(r"^done=([0-9]+)", patience)
        output = self._session.output[start : status.start()].decode(errors="replace")
        assert status[1] == b"0", f"{line}: {status[1].decode()}: {output}"
        return output

    def start(self, line: str) -> int:
        start = len(self._session.output)
        self._session.send(line + "; echo done=$?\n")
        return start

    def wait(self, pattern: str, patience: float = 60) -> re.Match[bytes]:
        return self._session.expect(pattern, patience)

    def check(self) -> None:
        """The kernel has had nothing to complain of."""
        trouble = TROUBLE.search(self._session.output)
        assert trouble is None, self._session.output[-3000:].decode(errors="replace")


@contextmanager
def guests(host: Host, *cards: str, memory: int = 160) -> Iterator[list[Shell]]:
    """A Debian guest for each line of `vif`, with a shell each; they boot at the same time."""
    ramdisk = host.folder / "net-initramfs.gz"
    host.command("xen-py", "image", "initramfs", ramdisk)
    with ExitStack() as stack:
        sessions = []
        for number, card in enumerate(cards):
            name = f"net{number}"
            config = host.config(
                name,
                kernel="image:debian/vmlinuz",
                ramdisk=str(ramdisk),
                cmdline="console=hvc0 panic=5 quiet",
                memory=memory,
            )
            config.write_text(config.read_text() + f"vif = {card}\n")
            host.xl("create", config)
            sessions.append(stack.enter_context(host.session("console", name)))
        shells = [Shell(session) for session in sessions]
        yield shells
        for shell in shells:
            shell.check()


def transfer(receiver: Shell, sender: Shell, address: str, times: int = 1, port: int = 5000) -> None:
    """A stream from one guest to the other, busybox so many times, arrives as it was sent."""
    busybox = (images_dir() / "debian" / "busybox").read_bytes()
    receiver.start(f"nc -l -p {port} | md5sum")
    receiver.wait("nc -l.*done")  # the line is echoed; its program listens by the time the other guest has slept
    sender.run("sleep 0.5")
    sender.run(f"cat {' '.join(['/bin/busybox'] * times)} | nc {address} {port}", 120)
    found = receiver.wait(r"^([0-9a-f]{32})  -", 120)
    assert found[1].decode() == hashlib.md5(busybox * times).hexdigest()
    receiver.wait("^done=0")
