# SPDX-License-Identifier: GPL-2.0-only
"""What a VM process gives up, and how it is known to its parent and to `ps`.

A guest that breaks out of the emulator finds itself in a process that can compute, wait, and talk to the host over the
descriptors it already has: no file to open, no socket or process to make, no privilege to gain, nobody to signal.

`isolate` is for the template process, whose children inherit it; `confine` is each VM process's own last act before
guest instructions run. Both are final. Sources: Linux's seccomp(2), prctl(2), user_namespaces(7), proc(5).
"""

from __future__ import annotations

import os
import resource
import stat
from typing import Any

from xen_py.doorbell import open_native

_ffi, _native = open_native("""
    int xenpy_sandbox_filter(int may_read_files, int may_use_network);
    int xenpy_no_new_privileges(void);
    int xenpy_die_with_parent(int parent);
    int xenpy_leave_namespaces(void);
    int xenpy_set_name(const char *name);
""")

TITLE_ROOM = 96
"""Bytes of command line a process needs so that it can be renamed in place."""
_LOG_ROOM = 1 << 20
"""Bytes one VM process may add to the host's log by its standard error."""
_DESCRIPTORS = 256
_NETWORK_DESCRIPTORS = 4096
"""For all connections of all guests."""


def die_with_parent(parent: int) -> None:
    """Be killed when process `parent` ends; SystemExit if it already has."""
    if _native.xenpy_die_with_parent(parent) < 0:
        raise SystemExit(1)


def isolate() -> bool:
    """Leave the machine's network and IPC namespaces; False where the system does not allow it."""
    return bool(_native.xenpy_leave_namespaces() == 0)


def confine() -> None:
    """Give up privileges, files, network and processes for good. Raises OSError rather than run unconfined."""
    _confine(may_read_files=False)


def confine_program() -> None:
    """The same for a guest that is a program: it may still read files, which importing modules is."""
    _confine(may_read_files=True)


def confine_network() -> None:
    """The same for a network stack: it may make Internet sockets, and read files (which name servers there are)."""
    _confine(may_read_files=True, may_use_network=True, descriptors=_NETWORK_DESCRIPTORS)


def _confine(*, may_read_files: bool, may_use_network: bool = False, descriptors: int = _DESCRIPTORS) -> None:
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, descriptors)
    _limit(resource.RLIMIT_FSIZE, _log_size() + _LOG_ROOM)
    _check(_native.xenpy_no_new_privileges(), "no_new_privs")
    _check(_native.xenpy_sandbox_filter(may_read_files, may_use_network), "the system call filter")


def set_title(title: str) -> None:
    """Show as `title` in ps, as far as it fits into the memory the kernel keeps the command line in.

    The short name (top, /proc/PID/stat) is made without spaces: too many programs split that line at them.
    """
    _native.xenpy_set_name(title.replace(": ", ":").partition(" ")[0].encode()[:15])
    start, end = _command_line()
    if end > start:
        text = title.encode()[: end - start - 1]
        _ffi.memmove(_ffi.cast("char *", start), text + bytes(end - start - len(text)), end - start)


def _command_line() -> tuple[int, int]:
    with open("/proc/self/stat") as file:
        fields: Any = file.read().rpartition(")")[2].split()
    return int(fields[45]), int(fields[46])  # arg_start and arg_end, fields 48 and 49 counted from the pid


def _limit(which: int, most: int) -> None:
    hard = resource.getrlimit(which)[1]
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(which, (most, most))


def _log_size() -> int:
    try:
        status = os.fstat(2)
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(-result, f"cannot set up {what}: {os.strerror(-result)}")
