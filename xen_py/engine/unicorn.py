# SPDX-License-Identifier: GPL-2.0-only
"""The Unicorn engine: guest instructions run by QEMU's translator in this process.

The run loop and everything that touches Unicorn are in native/engine.c; here is only the binding (cffi in ABI mode, so
that no Python headers are needed to build). Owned by the domain's thread, see `Engine`.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cffi import FFI

from xen_py.engine import EngineError, EventPaths, R

if TYPE_CHECKING:
    from xen_py.evtchn import PendingEvents
    from xen_py.frames import FrameTable

_ABI = 10
_ffi = FFI()
_ffi.cdef(
    """
struct xpy_counters { uint64_t runs, syscalls, exceptions, kicks, tlb_flushes, page_flushes, code_drops; };
struct xpy_cpuid { uint32_t leaf, subleaf, eax, ebx, ecx, edx; };
struct xpy_fast {
    uint8_t *memory;
    uint64_t mfn_base, frames;
    uint32_t *refs, *type_counts, *code_maps;
    uint8_t *types, *flags;
    void *vcpu;
    uint64_t m2p_entry, version;
    uint64_t writable_pagetables, architectural_iopl, m2p_strict;
    uint64_t shared_info, tsc_mul, tsc_shift, alone;
    uint8_t *ports;
    uint64_t *events, *allocated;
    uint64_t calls[64], guest_syscalls, page_faults, upcalls, kicks, sleeps, lingered, looks;
};
struct xpy_paths {
    void *inbox, *outbox;
    int inbox_fd, outbox_fd, link_fd;
    int *routes;
    uint64_t *published;
};
typedef struct xpy_engine xpy_engine;
int xpy_abi(void);
xpy_engine *xpy_open(const char *libunicorn, uint32_t translation_buffer, char *why, size_t why_size);
void xpy_close(xpy_engine *e);
int xpy_map(xpy_engine *e, uint64_t machine_address, uint64_t size, void *host);
int xpy_unmap(xpy_engine *e, uint64_t machine_address, uint64_t size);
uint64_t *xpy_regs(xpy_engine *e);
struct xpy_fast *xpy_fast(xpy_engine *e);
struct xpy_counters *xpy_counters(xpy_engine *e);
void xpy_set_gdt(xpy_engine *e, uint64_t base, uint32_t limit);
void xpy_set_ldt(xpy_engine *e, uint64_t base, uint32_t limit);
void xpy_set_cr0_ts(xpy_engine *e, int ts);
int xpy_set_cpuid(xpy_engine *e, const struct xpy_cpuid *table, size_t n);
void xpy_set_debugreg(xpy_engine *e, int n, uint64_t value);
void xpy_set_tsc(xpy_engine *e, int64_t offset, int trap);
void xpy_flush_tlb(xpy_engine *e);
void xpy_flush_page(xpy_engine *e, uint64_t va);
void xpy_drop_code(xpy_engine *e, uint64_t va, size_t n);
int xpy_run(xpy_engine *e);
size_t xpy_fpu_size(xpy_engine *e);
void xpy_fpu_save(xpy_engine *e, void *blob);
void xpy_fpu_restore(xpy_engine *e, const void *blob);
void xpy_kick(xpy_engine *e);
int xpy_kick_pending(xpy_engine *e);
void xpy_clear_kick(xpy_engine *e);
int xpy_connect(xpy_engine *e, const struct xpy_paths *paths);
void xpy_set_deadline(xpy_engine *e, uint64_t monotonic_ns);
void xpy_set_block_budget(xpy_engine *e, uint64_t blocks);
uint64_t xpy_blocks(xpy_engine *e);
uint64_t xpy_rdtsc(void);
"""
)

TRANSLATION_BUFFER = 16 << 20
"""Bytes for translated code, all of which a busy guest comes to use. When it is full everything is translated anew:
Debian's kernel, from its start through a few seconds of disk jobs to its end, takes 6.1 s with 12 MiB, 5.6 s with 16
and 5.2 s with 24; with 2 MiB several times as long."""


@cache
def library() -> Any:
    """The compiled half; raises `EngineError` when it is missing or of another version."""
    path = Path(__file__).parent / "native" / "libxenpy.so"
    if not path.exists():
        raise EngineError(f"{path.name} is not built: run `make` in a clone, or reinstall xen-py")
    # For all to see: Unicorn, which is loaded later, takes one of its functions from here (native/look.c).
    lib: Any = _ffi.dlopen(str(path), os.RTLD_NOW | os.RTLD_GLOBAL)
    if lib.xpy_abi() != _ABI:
        raise EngineError(f"{path.name} is of version {lib.xpy_abi()}, not {_ABI}: build it again with `make`")
    return lib


@cache
def _unicorn_path() -> bytes:
    spec = importlib.util.find_spec("unicorn")
    for place in spec.submodule_search_locations or () if spec else ():
        for name in ("libunicorn.so.2", "libunicorn.so"):
            path = Path(place) / "lib" / name
            if path.exists():
                return str(path).encode()
    raise EngineError("the unicorn library is not installed: pip install unicorn==2.1.4")


def rdtsc() -> int:
    """The host's time-stamp counter."""
    return int(library().xpy_rdtsc())


class UnicornEngine:
    """See `Engine`."""

    def __init__(self, translation_buffer: int = TRANSLATION_BUFFER) -> None:
        self._lib = library()
        why = _ffi.new("char[256]")
        self._e = self._lib.xpy_open(_unicorn_path(), translation_buffer, why, 256)
        if self._e == _ffi.NULL:
            reason = bytes(_ffi.buffer(why)).split(b"\0")[0].decode()
            raise EngineError(f"Unicorn cannot be used: {reason}. xen-py needs the unicorn 2.1.4 wheel for x86-64")
        block = _ffi.buffer(self._lib.xpy_regs(self._e), R.COUNT * 8)
        self.regs = memoryview(block).cast("B").cast("Q")
        self._maps: dict[int, Any] = {}
        self._fast = self._lib.xpy_fast(self._e)
        self._held: list[Any] = []
        self.run = self._bind(self._lib.xpy_run)
        self.flush_tlb = self._bind(self._lib.xpy_flush_tlb)
        self.kick = self._bind(self._lib.xpy_kick)
        self.kick_pending = self._bind(self._lib.xpy_kick_pending)
        self.clear_kick = self._bind(self._lib.xpy_clear_kick)

    def _bind(self, function: Any) -> Any:
        engine = self._e
        return lambda: function(engine)

    def map(self, machine_address: int, host: memoryview) -> None:
        buffer = _ffi.from_buffer(host, require_writable=True)
        if self._lib.xpy_map(self._e, machine_address, len(buffer), buffer):
            raise EngineError(f"machine memory {machine_address:#x}+{len(buffer):#x} cannot be mapped")
        self._maps[machine_address] = buffer

    def unmap(self, machine_address: int, size: int) -> None:
        if self._lib.xpy_unmap(self._e, machine_address, size):
            raise EngineError(f"machine memory {machine_address:#x}+{size:#x} cannot be unmapped")
        _ffi.release(self._maps.pop(machine_address))

    def flush_page(self, va: int) -> None:
        self._lib.xpy_flush_page(self._e, va)

    def drop_code(self, va: int, size: int) -> None:
        self._lib.xpy_drop_code(self._e, va, size)

    def set_gdt(self, base: int, limit: int) -> None:
        self._lib.xpy_set_gdt(self._e, base, limit)

    def set_ldt(self, base: int, limit: int) -> None:
        self._lib.xpy_set_ldt(self._e, base, limit)

    def set_task_switched(self, flag: bool) -> None:
        self._lib.xpy_set_cr0_ts(self._e, flag)

    def set_debugreg(self, n: int, value: int) -> None:
        self._lib.xpy_set_debugreg(self._e, n, value)

    def set_cpuid(self, table: list[tuple[int, int | None, int, int, int, int]]) -> None:
        rows = _ffi.new("struct xpy_cpuid[]", len(table))
        for row, (leaf, subleaf, eax, ebx, ecx, edx) in zip(rows, table, strict=True):
            row.leaf, row.subleaf = leaf, 0xFFFFFFFF if subleaf is None else subleaf
            row.eax, row.ebx, row.ecx, row.edx = eax, ebx, ecx, edx
        if self._lib.xpy_set_cpuid(self._e, rows, len(table)):
            raise MemoryError

    def set_tsc(self, offset: int, trap: bool) -> None:
        self._lib.xpy_set_tsc(self._e, offset, trap)

    def save_state(self) -> bytes:
        size = self._lib.xpy_fpu_size(self._e)
        blob = _ffi.new("char[]", size)
        self._lib.xpy_fpu_save(self._e, blob)
        return bytes(_ffi.buffer(blob, size))

    def restore_state(self, blob: bytes) -> None:
        if len(blob) != self._lib.xpy_fpu_size(self._e):
            raise EngineError(f"a CPU state of {len(blob)} bytes is not from this version of Unicorn")
        self._lib.xpy_fpu_restore(self._e, blob)

    def set_deadline(self, monotonic_ns: int) -> None:
        self._lib.xpy_set_deadline(self._e, monotonic_ns)

    def set_block_budget(self, blocks: int) -> None:
        self._lib.xpy_set_block_budget(self._e, blocks)

    def accelerate(self, memory: memoryview, frames: FrameTable, m2p_entry: int, version: int) -> None:
        fast = self._fast
        for name, view in (
            ("memory", memory),
            ("refs", frames.refs),
            ("type_counts", frames.type_counts),
            ("code_maps", frames.code_maps),
            ("types", frames.types),
            ("flags", frames.flags),
            ("allocated", frames.tally),
        ):
            setattr(fast, name, self._hold(view, _ffi.typeof(getattr(fast, name))))
        fast.mfn_base, fast.frames, fast.m2p_entry = frames.base, frames.count, m2p_entry
        fast.version = version

    def _hold(self, view: memoryview, kind: Any) -> Any:
        """A pointer to it, good until `close`."""
        buffer = _ffi.from_buffer(view, require_writable=True)
        self._held.append(buffer)
        return _ffi.cast(kind, buffer)

    def see_to_events(self, events: PendingEvents, shared_info: int, tsc_scale: tuple[int, int], alone: bool) -> None:
        fast = self._fast
        fast.shared_info, fast.alone = shared_info, alone
        fast.tsc_mul, fast.tsc_shift = tsc_scale[0], tsc_scale[1] & 0xFF
        fast.ports = self._hold(events.kinds, "uint8_t *")
        fast.events = self._hold(events.shared, "uint64_t *")

    def connect(self, paths: EventPaths) -> None:
        bells = paths.doorbell
        where: Any = _ffi.new("struct xpy_paths *")
        where.inbox, where.inbox_fd = self._hold(bells.inbox.words, "void *"), bells.inbox.eventfd
        where.outbox, where.outbox_fd = self._hold(bells.outbox.words, "void *"), bells.outbox.eventfd
        where.link_fd = paths.link_fd
        where.routes = self._hold(paths.routes, "int *")
        where.published = self._hold(bells.published, "uint64_t *")
        error = self._lib.xpy_connect(self._e, where)
        if error:
            raise OSError(-error, "the inbox cannot be watched")

    def set_vcpu(self, words: memoryview | None) -> None:
        self._fast.vcpu = _ffi.NULL if words is None else self._hold(words, "void *")

    def set_assists(self, writable_pagetables: bool, architectural_iopl: bool, m2p_strict: bool) -> None:
        fast = self._fast
        fast.writable_pagetables, fast.architectural_iopl = writable_pagetables, architectural_iopl
        fast.m2p_strict = m2p_strict

    def accelerated(self) -> dict[str, int]:
        fast = self._fast
        done = {str(n): count for n, count in enumerate(fast.calls) if count}
        names = ("guest_syscalls", "page_faults", "upcalls", "kicks", "sleeps", "lingered", "looks")
        return done | {name: int(getattr(fast, name)) for name in names}

    def statistics(self) -> dict[str, int]:
        c = self._lib.xpy_counters(self._e)
        names = ("runs", "syscalls", "exceptions", "kicks", "tlb_flushes", "page_flushes", "code_drops")
        return {name: int(getattr(c, name)) for name in names} | {"blocks": int(self._lib.xpy_blocks(self._e))}

    def close(self) -> None:
        if self._e is not None:
            self.regs.release()
            self._lib.xpy_close(self._e)
            self._e = None
            for buffer in (*self._maps.values(), *self._held):
                _ffi.release(buffer)
            self._held.clear()
            self._maps.clear()
