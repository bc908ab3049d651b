# SPDX-License-Identifier: GPL-2.0-only
"""Disks in formats that QEMU knows: qemu-nbd serves the image on a private socket, as QEMU serves Xen's qdisks.

qemu-nbd (Debian package qemu-utils) is started for each disk and told the format; it ends when its last connection
does, and so with the host, however that ends. Several connections let several requests be under way, where the server
says that a flush on one covers them all.

When the engine dies, what it had not written out is lost to the guest, which believes it written. So it is not started
again behind the guest's back: the device fails with that reason, as a real disk would. Owner: the trio thread.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any, Self

import trio

from dom0.backend.block.image import DiskError, Transfer
from dom0.backend.block.nbd import Connection, Offer, RefusedByServer
from xen_py.io.blkif import SECTOR_SIZE

CONNECTIONS = 8
FORMATS = {"qcow": "qcow", "qcow2": "qcow2", "vhd": "vpc", "qed": "qed", "vmdk": "vmdk", "vdi": "vdi", "vhdx": "vhdx"}
"""Names of ours, and QEMU's for the same."""
_START_SECONDS = 20.0
_END_SECONDS = 10.0
PROGRAM = "qemu-nbd"


class EngineDisk:
    """A disk behind qemu-nbd."""

    sector_size = physical_sector_size = SECTOR_SIZE
    can_discard_securely = False

    def __init__(self, path: str, readonly: bool, process: subprocess.Popen[bytes], all_: list[Connection]) -> None:
        self.path = path
        self.readonly = readonly
        self.sectors = all_[0].size // SECTOR_SIZE
        self.can_discard = not readonly and Offer.TRIM in all_[0].offers
        self._process = process
        self._all = all_
        self._idle = list(all_)
        self._limit = trio.CapacityLimiter(len(all_))
        self._counts = {"in_thread": 0, "flushes": 0, "discards": 0}

    @classmethod
    async def open(cls, path: str, form: str, readonly: bool) -> Self:
        """Start the engine. DiskError."""
        return await trio.to_thread.run_sync(cls._open, path, form, readonly)

    @classmethod
    def _open(cls, path: str, form: str, readonly: bool) -> Self:
        program = shutil.which(PROGRAM)
        if program is None:
            raise DiskError(f"disk {path}: format {form} needs {PROGRAM}, which is not there (Debian: qemu-utils)")
        with tempfile.TemporaryDirectory(prefix="xen-py-nbd-") as folder:
            socket = os.path.join(folder, "socket")
            options = [f"--socket={socket}", f"--format={FORMATS[form]}", f"--shared={CONNECTIONS}", "--discard=unmap"]
            options += ["--read-only"] if readonly else ["--cache=writeback"]
            process = subprocess.Popen(
                [program, *options, "--", path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            connections: list[Connection] = []
            try:
                connections.append(_first_connection(process, socket, path))
                if Offer.MULTI_CONN in connections[0].offers:
                    connections += [Connection(socket) for _ in range(CONNECTIONS - 1)]
            except BaseException as error:
                for connection in connections:
                    connection.close()
                process.kill()
                process.communicate()
                if isinstance(error, OSError):
                    raise DiskError(f"disk {path}: {error.strerror}") from error
                raise
        return cls(path, readonly, process, connections)

    def attempt(self, transfer: Transfer) -> bool:
        return False

    async def transfer(self, *transfers: Transfer) -> None:
        self._counts["in_thread"] += len(transfers)

        def move(connection: Connection) -> None:
            for transfer in transfers:
                do = connection.write if transfer.write else connection.read
                do(transfer.offset, transfer.pieces)

        await self._with_connection(move)

    async def flush(self) -> None:
        self._counts["flushes"] += 1
        if not self.readonly:
            await self._with_connection(Connection.flush)

    async def discard(self, offset: int, length: int, secure: bool) -> None:
        self._counts["discards"] += 1
        await self._with_connection(lambda connection: connection.trim(offset, length))

    async def _with_connection(self, do: Callable[[Connection], None]) -> None:
        def run() -> None:
            try:
                connection = self._idle.pop()
            except IndexError:
                raise OSError(errno.EIO, "the engine is gone") from None
            try:
                do(connection)
            except RefusedByServer:
                self._idle.append(connection)
                raise
            self._idle.append(connection)

        await trio.to_thread.run_sync(run, limiter=self._limit)

    def refresh(self) -> bool:
        """Images of these formats do not change their size while they are served. DiskError: the engine is gone."""
        if self._process.poll() is not None:
            how = self._process.returncode
            raise DiskError(f"disk {self.path}: {PROGRAM} has ended ({how}); unflushed data is lost")
        return False

    async def close(self) -> None:
        await trio.to_thread.run_sync(self._close)

    def _close(self) -> None:
        for connection in self._all:
            connection.close()
        try:
            self._process.communicate(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def statistics(self) -> dict[str, Any]:
        return {"sectors": self.sectors, "engine": self._process.pid, "connections": len(self._idle), **self._counts}


def _first_connection(process: subprocess.Popen[bytes], socket: str, path: str) -> Connection:
    """As soon as the engine listens. DiskError with its own words where it ends instead."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            return Connection(socket)
        except (FileNotFoundError, ConnectionError):  # it listens before it looks at the image: reset, if it ends then
            if process.poll() is not None:
                assert process.stderr is not None
                said = process.stderr.read(1000).decode(errors="replace").strip().replace("\n", "; ")
                raise DiskError(f"disk {path}: {said or PROGRAM + ' ended at once'}") from None
            if time.monotonic() > deadline:
                raise DiskError(f"disk {path}: {PROGRAM} does not come up") from None
        time.sleep(0.01)
