# SPDX-License-Identifier: GPL-2.0-only
"""The host at work: a machine with a control socket, from the first log line to a clean end.

Called by `dom0.host.main` once the run directory is ours. SIGTERM, SIGINT and `host.stop` end it cleanly: guests are
destroyed, sockets removed, the template ended. Owner: the main thread, which becomes the trio thread.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import trio

from dom0.host.control import SOCKET_NAME, ControlServer
from dom0.host.machine import open_machine
from dom0.host.spawn import TemplateProcess
from xen_py.abi.version import XEN_VERSION

_log = logging.getLogger("xen-py.host")


def serve_host(
    rundir: Path, log_fd: int, template: TemplateProcess, on_ready: Callable[[], None], *, terminal: bool
) -> int:
    """Be the host until told to end: the exit status."""
    _set_up_logging(log_fd, terminal=terminal)
    try:
        trio.run(_serve, rundir, log_fd, template, on_ready)
    except Exception:
        _log.exception("the host failed")
        return 1
    finally:
        template.close()
    _log.info("the host has ended")
    return 0


async def _serve(rundir: Path, log_fd: int, template: TemplateProcess, on_ready: Callable[[], None]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with (
            open_machine(rundir, processes=True, world=True, template=template, log_fd=log_fd) as machine,
            trio.open_nursery() as nursery,
        ):
            stop = trio.Event()

            async def watch_signals() -> None:
                async for number in signals:
                    _log.info("ending on %s", signal.Signals(number).name)
                    stop.set()

            nursery.start_soon(watch_signals)
            control = ControlServer(machine, stop.set)
            await nursery.start(control.serve, rundir / SOCKET_NAME)
            machine.messages.hypervisor(f"Xen version {XEN_VERSION} (xen-py, process {os.getpid()})")
            _log.info("host process %d serves %s", os.getpid(), rundir)
            gc.collect()
            gc.freeze()
            on_ready()
            await stop.wait()
            # no new requests; the machine's end destroys the guests, for which its backends must still be at work
            nursery.cancel_scope.cancel()
    (rundir / SOCKET_NAME).unlink(missing_ok=True)


def _set_up_logging(log_fd: int, *, terminal: bool) -> None:
    handlers: list[logging.Handler] = [logging.StreamHandler(os.fdopen(os.dup(log_fd), "a", buffering=1))]
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    if terminal:
        from rich.logging import RichHandler

        handlers.append(RichHandler(show_path=False))
    logging.basicConfig(level=logging.INFO, handlers=handlers)
