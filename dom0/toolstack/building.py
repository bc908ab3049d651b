# SPDX-License-Identifier: GPL-2.0-only
"""Building a domain's memory without holding up the host: the builder in a worker thread, its progress brought back.

Called by `dom0.toolstack.lifecycle` on the trio thread; the memory is the new domain's and nobody else's yet.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import cffi
import trio

from dom0.builder.build import Built, build, load_kernel, load_ramdisk
from dom0.builder.program import program_image
from dom0.toolstack.config import DomainConfig
from xen_py.memory import GuestMemory
from xen_py.spec import Program
from xen_py.types import Port

Progress = Callable[[str, int, int], None]
"""Called with stage, done, total."""

_ffi = cffi.FFI()
_ffi.cdef("int malloc_trim(size_t pad);")
_libc: Any = _ffi.dlopen(None)


async def build_domain(
    config: DomainConfig, memory: GuestMemory, store_port: Port, console_port: Port, progress: Progress | None
) -> Built:
    """Fill `memory` as `config` says; `progress` is called on this thread. Raises BuildError."""
    try:
        return await trio.to_thread.run_sync(_build, config, memory, store_port, console_port, _reporter(progress))
    finally:
        _give_back_free_memory()


async def build_in_turn(
    config: DomainConfig, memory: GuestMemory, store_port: Port, console_port: Port, progress: Progress | None
) -> Built:
    """The same without a thread: nothing else happens meanwhile, so nothing happens in another order."""
    await trio.lowlevel.checkpoint()
    return _build(config, memory, store_port, console_port, progress)


def _build(
    config: DomainConfig, memory: GuestMemory, store_port: Port, console_port: Port, progress: Progress | None
) -> Built:
    program = Program.parse(config.kernel)
    return build(
        program_image(program) if program else load_kernel(config.kernel, progress),
        None if config.ramdisk is None else load_ramdisk(config.ramdisk),
        config.cmdline or "",
        memory,
        config.memory_kb // 4,
        store_port=store_port,
        console_port=console_port,
        vcpus=config.maxvcpus,
        progress=progress,
    )


def _reporter(progress: Progress | None) -> Progress | None:
    """`progress`, callable from the worker thread."""
    if progress is None:
        return None
    token = trio.lowlevel.current_trio_token()

    def report(stage: str, done: int, total: int) -> None:
        token.run_sync_soon(progress, stage, done, total)

    return report


def _give_back_free_memory() -> None:
    """Unpacking leaves tens of megabytes of free memory with the C library; the machine can use them."""
    with suppress(AttributeError):  # not every C library has it
        _libc.malloc_trim(0)
