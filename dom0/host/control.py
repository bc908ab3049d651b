# SPDX-License-Identifier: GPL-2.0-only
"""The control socket, the host's side: what `xl` and other programs ask of a running host.

Every message is a little-endian 32-bit length and that many bytes of msgpack. A request is `[id, method, params]`; the
answer `[id, "ok", result]` or `[id, "error", {"code", "message", "lines"}]`, after any number of
`[id, "progress", {"stage", "done", "total"}]`, of `[id, "records", {"lost", "records"}]` for a trace, or of
`[id, "frames", {"lost", "data"}]` for a capture. A connection's requests are answered one after the other; one that
hangs up takes its unfinished request back (a create leaves nothing, a wait is forgotten, a trace ends).

The socket is its owner's alone (the run directory's mode, and the peer's credentials are checked), but what comes in
is checked all the same: a mistake in a client must not hurt the host. Owner: the trio thread.
"""

from __future__ import annotations

import logging
import os
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import trio

from dom0.backend.console import open_listener
from dom0.backend.net.backend import NetBackend
from dom0.backend.net.capture import Capture
from dom0.backend.net.switch import Switch
from dom0.host.machine import Machine
from dom0.host.tracestream import TraceStream
from dom0.host.vm import VmStuck
from dom0.toolstack import hostinfo
from dom0.toolstack.config import ConfigError, DomainConfig
from dom0.toolstack.diskspec import DiskConfig, DiskSyntaxError
from dom0.toolstack.domain import ToolstackError
from dom0.toolstack.vifspec import NicConfig, NicSyntaxError
from xen_py.abi.version import XEN_VERSION

SOCKET_NAME = "control.sock"
LONGEST_REQUEST = 1 << 20
_LENGTH = struct.Struct("<I")
_PEER = struct.Struct("iII")
_SO_PEERCRED = 17

_log = logging.getLogger("xen-py.control")

Params = dict[str, Any]


class _BadRequest(Exception):
    """Not a request; the connection is closed."""


class ControlServer:
    """Serves one machine. `on_stop` is called when a client asks the host to end."""

    def __init__(self, machine: Machine, on_stop: Callable[[], None]) -> None:
        self._machine = machine
        self._on_stop = on_stop
        toolstack = machine.toolstack
        self._methods: dict[str, Callable[[Params, _Answer], Awaitable[Any]]] = {
            "host.hello": self._hello,
            "host.info": self._info,
            "host.dmesg": self._dmesg,
            "host.debug_keys": self._debug_keys,
            "host.stop": self._stop,
            "trace.records": self._trace,
            "domain.create": self._create,
            "domain.list": self._list,
            "domain.vcpus": self._vcpus,
            "domain.config": self._config,
            "domain.destroy": lambda params, _: toolstack.destroy(_domid(params)),
            "domain.pause": lambda params, _: toolstack.pause(_domid(params)),
            "domain.unpause": lambda params, _: toolstack.unpause(_domid(params)),
            "domain.shutdown": lambda params, _: toolstack.request_shutdown(_domid(params), _text(params, "reason")),
            "domain.rename": self._rename,
            "block.attach": self._block_attach,
            "block.detach": self._block_detach,
            "block.list": self._block_list,
            "network.attach": self._network_attach,
            "network.detach": self._network_detach,
            "network.list": self._network_list,
            "network.capture": self._capture,
            "domain.wait": self._wait,
            "domain.console": self._console,
        }

    async def serve(self, path: Path, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        async with open_listener(path) as listener, trio.open_nursery() as nursery:
            task_status.started()
            while True:
                try:
                    stream = await listener.accept()
                except OSError as error:
                    _log.warning("a client could not be accepted: %s", error)
                    await trio.sleep(0.1)
                    continue
                nursery.start_soon(self._serve_client, stream)

    async def _serve_client(self, stream: trio.SocketStream) -> None:
        _, uid, _ = _PEER.unpack(stream.socket.getsockopt(trio.socket.SOL_SOCKET, _SO_PEERCRED, _PEER.size))
        try:
            async with stream:
                if uid not in (0, os.geteuid()):
                    _log.warning("user %d may not control this host", uid)
                    return
                await _Connection(stream, self._dispatch).serve()
        except* _BadRequest as error:
            _log.warning("a client was disconnected: %s", "; ".join(map(str, error.exceptions)))
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except* Exception:
            _log.exception("a client's connection failed")

    async def _dispatch(self, method: str, params: Params, answer: _Answer) -> None:
        """Carry out one request; the one place where errors become answers."""
        function = self._methods.get(method)
        try:
            if function is None:
                raise ToolstackError(f"this host knows no method {method!r}; is it of another version?")
            result = await function(params, answer)
        except ToolstackError as error:
            await answer.send("error", {"code": error.code, "message": str(error), "lines": error.lines})
        except (ConfigError, VmStuck) as error:
            await answer.send("error", {"code": 1, "message": str(error), "lines": []})
        except Exception as error:
            _log.exception("request %s failed", method)
            message = f"xen-py failed: {type(error).__name__}: {error}; see the host's log"
            await answer.send("error", {"code": 1, "message": message, "lines": []})
        else:
            await answer.send("ok", result)
            if method == "host.stop":
                self._on_stop()

    # methods

    async def _hello(self, _params: Params, _answer: _Answer) -> Any:
        return {"version": XEN_VERSION, "pid": os.getpid()}

    async def _info(self, _params: Params, _answer: _Answer) -> Any:
        return hostinfo.describe(hostinfo.memory(), self._machine.toolstack.free_kb())

    async def _dmesg(self, params: Params, _answer: _Answer) -> Any:
        return self._machine.messages.text(clear=bool(params.get("clear")))

    async def _debug_keys(self, params: Params, _answer: _Answer) -> Any:
        await self._machine.debug_keys.press(_text(params, "keys"))

    async def _trace(self, params: Params, answer: _Answer) -> Any:
        """Records as they come, in parts of the kind "records", until the client hangs up."""
        domid, kinds = params.get("domid"), params.get("kinds")
        if (domid is not None and type(domid) is not int) or not (kinds is None or isinstance(kinds, list)):
            raise ToolstackError("a trace is of a domain and of kinds of records")
        async with TraceStream(self._machine, domid, kinds) as stream:
            while True:
                records, lost = await stream.take()
                await answer.send("records", {"lost": lost, "records": records})

    async def _stop(self, _params: Params, _answer: _Answer) -> Any:
        """The answer goes out first, see `_dispatch`."""

    async def _create(self, params: Params, answer: _Answer) -> Any:
        config = DomainConfig.from_plain(params.get("config"))
        paused = bool(params.get("paused"))
        guest = await self._machine.toolstack.create(config, paused=paused, progress=answer.progress)
        return {"domid": guest.domid}

    async def _list(self, _params: Params, _answer: _Answer) -> Any:
        return self._machine.toolstack.rows()

    async def _vcpus(self, params: Params, _answer: _Answer) -> Any:
        return self._machine.toolstack.vcpus(_domid(params))

    async def _config(self, params: Params, _answer: _Answer) -> Any:
        return self._machine.toolstack.find(_domid(params)).config.to_plain()

    async def _rename(self, params: Params, _answer: _Answer) -> Any:
        self._machine.toolstack.rename(_domid(params), _text(params, "name"))

    async def _block_attach(self, params: Params, _answer: _Answer) -> Any:
        try:
            disk = DiskConfig.from_plain(params.get("disk"))
        except DiskSyntaxError as error:
            raise ToolstackError(str(error)) from None
        await self._machine.toolstack.attach_disk(_domid(params), disk)

    async def _block_detach(self, params: Params, _answer: _Answer) -> Any:
        force = bool(params.get("force"))
        await self._machine.toolstack.detach_disk(_domid(params), _text(params, "vdev"), force=force)

    async def _block_list(self, params: Params, _answer: _Answer) -> Any:
        return self._machine.toolstack.disk_rows(_domid(params))

    async def _network_attach(self, params: Params, _answer: _Answer) -> Any:
        try:
            nic = NicConfig.from_plain(params.get("nic"))
        except NicSyntaxError as error:
            raise ToolstackError(str(error)) from None
        await self._machine.toolstack.attach_nic(_domid(params), nic)

    async def _network_detach(self, params: Params, _answer: _Answer) -> Any:
        await self._machine.toolstack.detach_nic(_domid(params), _text(params, "device"))

    async def _network_list(self, params: Params, _answer: _Answer) -> Any:
        return self._machine.toolstack.nic_rows(_domid(params))

    async def _capture(self, params: Params, answer: _Answer) -> Any:
        """A pcapng file as it comes to be, in parts of the kind "frames", until the client hangs up."""
        snap = params.get("snap")
        if type(snap) is not int or snap < 0:
            raise ToolstackError("a capture keeps a number of bytes of each frame, 0 for all")
        switch, vif = self._captured(params)
        with Capture(switch, vif, snap, time.time_ns) as capture:
            while True:
                data, lost = await capture.take()
                await answer.send("frames", {"lost": lost, "data": data})

    def _captured(self, params: Params) -> tuple[Switch, str | None]:
        """What a capture is to be of."""
        if "bridge" in params:
            switch = self._machine.bridges.find(_text(params, "bridge"))
            if switch is None:
                names = ", ".join(switch.name for switch in self._machine.bridges.all()) or "none yet"
                raise ToolstackError(f"there is no bridge {params['bridge']!r}; there are: {names}")
            return switch, None
        domid, devid = _domid(params), params.get("devid")
        backend = self._machine.backends.device("vif", domid, devid) if type(devid) is int else None
        if not isinstance(backend, NetBackend):
            raise ToolstackError(f"domain {domid} has no network card {devid}")
        return backend.switch, backend.vif

    async def _wait(self, params: Params, _answer: _Answer) -> Any:
        event = _text(params, "event")
        if event not in ("shutdown", "death"):
            raise ToolstackError(f"a domain's {event!r} cannot be waited for")
        return {"reason": await self._machine.toolstack.wait(_domid(params), event)}

    async def _console(self, params: Params, _answer: _Answer) -> Any:
        guest = self._machine.toolstack.find(_domid(params))
        if guest.console is None:
            raise ToolstackError(f"domain {guest.domid} has no console yet")
        return {"path": str(self._machine.toolstack.console_path(guest.domid))}


class _Connection:
    """One client: a task reads, so that a hang-up is seen while a request is at work."""

    def __init__(
        self, stream: trio.SocketStream, dispatch: Callable[[str, Params, _Answer], Awaitable[None]]
    ) -> None:
        self._stream = stream
        self._dispatch = dispatch

    async def serve(self) -> None:
        requests, take = trio.open_memory_channel[tuple[int, str, Params]](16)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read, requests, nursery.cancel_scope)
            async for number, method, params in take:
                answer = _Answer(self._stream, number)
                async with trio.open_nursery() as request:
                    request.start_soon(answer.report)
                    await self._dispatch(method, params, answer)
                    answer.finish()

    async def _read(
        self, requests: trio.MemorySendChannel[tuple[int, str, Params]], connection: trio.CancelScope
    ) -> None:
        while True:
            header = await self._exactly(_LENGTH.size)
            if not header:
                connection.cancel()
                return
            (length,) = _LENGTH.unpack(header)
            if length > LONGEST_REQUEST:
                raise _BadRequest(f"a request of {length} bytes")
            await requests.send(_request(await self._exactly(length)))

    async def _exactly(self, count: int) -> bytes:
        """That many bytes, or none at the end of the stream."""
        data = bytearray()
        while len(data) < count:
            piece = await self._stream.receive_some(count - len(data))
            if not piece:
                if data:
                    raise _BadRequest("half a message")
                return b""
            data += piece
        return bytes(data)


class _Answer:
    """What goes back for one request. Progress is told as the client takes it: only the latest counts."""

    def __init__(self, stream: trio.SocketStream, number: int) -> None:
        self._stream = stream
        self._number = number
        self._sending = trio.Lock()
        self._latest: dict[str, object] | None = None
        self._news = trio.Event()
        self._finished = False

    def progress(self, stage: str, done: int, total: int) -> None:
        self._latest = {"stage": stage, "done": done, "total": total}
        self._news.set()

    async def report(self) -> None:
        while True:
            await self._news.wait()
            self._news = trio.Event()
            if self._finished:
                return
            if self._latest is not None:
                await self.send("progress", self._latest)

    def finish(self) -> None:
        """The answer has been sent; `report` ends, after what it may be sending."""
        self._finished = True
        self._news.set()

    async def send(self, kind: str, payload: object) -> None:
        packed: bytes = msgpack.packb([self._number, kind, payload], default=str)
        async with self._sending:
            await self._stream.send_all(_LENGTH.pack(len(packed)) + packed)


def _request(data: bytes) -> tuple[int, str, Params]:
    try:
        message = msgpack.unpackb(data)
    except ValueError as error:
        raise _BadRequest(f"not msgpack: {error}") from error
    match message:
        case [int(number), str(method), dict(params)]:
            return number, method, params
    raise _BadRequest("a message that is no request")


def _domid(params: Params) -> int:
    domid = params.get("domid")
    if type(domid) is not int:
        raise ToolstackError("the request names no domain")
    return domid


def _text(params: Params, key: str) -> str:
    text = params.get(key)
    if not isinstance(text, str):
        raise ToolstackError(f"the request has no {key}")
    return text
