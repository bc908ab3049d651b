# SPDX-License-Identifier: GPL-2.0-only
"""A host that speaks the control socket's contract and has no guests: what xl is tested against.

A thread for each connection; the domains are plain rows a test may change. It records what it was asked.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]


class Refused(Exception):
    """Answered as an error."""

    def __init__(self, message: str, code: int = 1, lines: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.answer = {"code": code, "message": message, "lines": list(lines)}


def row(domid: int, name: str, **changes: Any) -> dict[str, Any]:
    """One line of domain.list."""
    return {
        "domid": domid,
        "name": name,
        "uuid": f"d5e5a122-2c71-49e3-b921-{domid:012x}" if domid else "00000000-0000-0000-0000-000000000000",
        "mem_kb": 131072,
        "max_kb": 131072,
        "vcpus_online": 1,
        "vcpus_max": 1,
        "running": False,
        "blocked": True,
        "paused": False,
        "shutdown": False,
        "dying": False,
        "shutdown_reason": None,
        "reason_text": None,
        "cpu_time_ns": 6_300_000_000,
        "start_time": 0.0,
    } | changes


class FakeHost:
    """Listens on `control.sock` in a run directory until closed."""

    def __init__(self, rundir: Path) -> None:
        self.rundir = rundir
        self.domains = {0: row(0, "Domain-0", mem_kb=1048575, running=True, blocked=False), 3: row(3, "gpv")}
        self.configs: dict[int, dict[str, Any]] = {}
        self.info: dict[str, Any] = {"host": "dom0", "xen_major": 4}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.refusals: dict[str, Refused] = {}
        self.hangs_up_on: set[str] = set()
        self.progress: list[tuple[str, int, int]] = []
        self.changed = threading.Condition()
        self.on_console: Callable[[socket.socket], None] | None = None
        """Talks to whoever attaches to a console."""
        self._listener = self._listen("control.sock", self._serve)

    def _listen(self, name: str, serve: Callable[[socket.socket], None]) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(os.fspath(self.rundir / name))
        listener.listen()

        def accept() -> None:
            with listener:
                while True:
                    try:
                        connection, _ = listener.accept()
                    except OSError:
                        return
                    threading.Thread(target=self._guarded, args=(serve, connection), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return listener

    def _guarded(self, serve: Callable[[socket.socket], None], connection: socket.socket) -> None:
        try:
            with connection:
                serve(connection)
        except (EOFError, OSError):
            pass  # the client has left

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        (self.rundir / "control.sock").unlink()

    def end(self, domid: int, reason: int | None) -> None:
        """The domain shuts down for `reason`, or (None) is gone."""
        with self.changed:
            if reason is None:
                del self.domains[domid]
            else:
                self.domains[domid] |= {"shutdown": True, "shutdown_reason": reason, "blocked": False}
            self.changed.notify_all()

    def _serve(self, connection: socket.socket) -> None:
        while True:
            (length,) = struct.unpack("<I", exactly(connection, 4))
            number, method, params = msgpack.unpackb(exactly(connection, length))
            with self.changed:
                self.asked.append((method, params))
                self.changed.notify_all()
            if method in self.hangs_up_on:
                return
            try:
                if method in self.refusals:
                    raise self.refusals[method]
                if method == "domain.create":
                    for stage, done, total in self.progress:
                        send(connection, [number, "progress", {"stage": stage, "done": done, "total": total}])
                handler = getattr(self, method.replace(".", "_"))
                send(connection, [number, "ok", handler(**params)])
            except Refused as refused:
                send(connection, [number, "error", refused.answer])

    def _existing(self, domid: int) -> dict[str, Any]:
        if domid not in self.domains:
            raise Refused(f"Domain {domid}: no such domain")
        return self.domains[domid]

    def host_info(self) -> dict[str, Any]:
        return self.info

    def host_dmesg(self, clear: bool) -> str:
        return f"(XEN) clear={clear}\n(d3) \x1b[31mred\n"

    def host_debug_keys(self, keys: str) -> None:
        pass

    def domain_list(self) -> list[dict[str, Any]]:
        return list(self.domains.values())

    def domain_vcpus(self, domid: int) -> list[dict[str, Any]]:
        running = bool(self._existing(domid)["running"])
        vcpu = {"vcpu": 0, "cpu": 0, "online": True, "running": running, "blocked": not running}
        return [vcpu | {"cpu_time_ns": 6_300_000_000}]

    def domain_config(self, domid: int) -> dict[str, Any]:
        self._existing(domid)
        return self.configs[domid]

    def domain_create(self, config: dict[str, Any], paused: bool) -> dict[str, Any]:
        with self.changed:
            domid = max(self.domains) + 1
            self.domains[domid] = row(domid, config["name"], uuid=config["uuid"], paused=paused)
            self.configs[domid] = config
        return {"domid": domid}

    def domain_destroy(self, domid: int) -> None:
        self._existing(domid)
        self.end(domid, None)

    def domain_pause(self, domid: int) -> None:
        self._existing(domid)["paused"] = True

    def domain_unpause(self, domid: int) -> None:
        self._existing(domid)["paused"] = False

    def domain_shutdown(self, domid: int, reason: str) -> None:
        self._existing(domid)
        self.end(domid, {"poweroff": 0, "reboot": 1, "halt": 0}[reason])

    def block_attach(self, domid: int, disk: dict[str, Any]) -> None:
        self._existing(domid)
        if disk["target"] == "/bad":
            raise Refused(f"Domain {domid}:Disk vdev=xvda failed to stat: /bad: No such file or directory")

    def block_detach(self, domid: int, vdev: str, force: bool) -> None:
        self._existing(domid)
        if vdev == "xvdz":
            raise Refused("Error: Device xvdz not connected.")
        if not force:
            raise Refused(f"Domain {domid}:the guest still uses it")

    def block_list(self, domid: int) -> list[dict[str, Any]]:
        self._existing(domid)
        backend = f"/local/domain/0/backend/vbd/{domid}/51712"
        numbers = {"devid": 51712, "backend_id": 0, "frontend_id": domid, "state": 4, "evtch": 11, "rref": -1}
        return [numbers | {"backend": backend}]

    def network_attach(self, domid: int, nic: dict[str, Any]) -> None:
        self._existing(domid)
        if nic["backend_domain"] is not None:
            raise Refused(f"Domain {domid}:backend={nic['backend_domain']} is not built yet")

    def network_detach(self, domid: int, device: str) -> None:
        self._existing(domid)
        if device == "7":
            raise Refused("Unknown device 7.")

    def network_list(self, domid: int) -> list[dict[str, Any]]:
        self._existing(domid)
        backend = f"/local/domain/0/backend/vif/{domid}/0"
        numbers = {"devid": 0, "backend_id": 0, "frontend_id": domid, "handle": 0, "state": 4, "evtch": 11}
        return [numbers | {"rref_tx": 768, "rref_rx": 769, "mac": "00:16:3e:00:00:01", "backend": backend}]

    def domain_rename(self, domid: int, name: str) -> None:
        self._existing(domid)["name"] = name

    def domain_wait(self, domid: int, event: str) -> dict[str, Any]:
        with self.changed:
            self._existing(domid)
            while domid in self.domains and not (event == "shutdown" and self.domains[domid]["shutdown"]):
                self.changed.wait()
            return {"reason": self.domains[domid]["shutdown_reason"] if domid in self.domains else None}

    def domain_console(self, domid: int) -> dict[str, Any]:
        self._existing(domid)
        name = f"console-{domid}.sock"
        if not (self.rundir / name).exists():
            assert self.on_console is not None, "the test did not expect anyone on the console"
            self._listen(name, self.on_console)
        return {"path": str(self.rundir / name)}


def send(connection: socket.socket, message: object) -> None:
    packed = msgpack.packb(message)
    connection.sendall(struct.pack("<I", len(packed)) + packed)


def exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data
