# SPDX-License-Identifier: GPL-2.0-only
"""Where the running system's sockets and logs live, and why nobody else can get at them.

Both sides use this: the host process makes the directory before it listens, `xl` looks there for the host. Whoever can
write into the directory could pose as the host, so its owner and mode are checked every time. Holds no state.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

LONGEST_SOCKET_PATH = 107
"""What fits into sockaddr_un, without the final NUL."""
_LONGEST_NAME_INSIDE = "/console/65535.sock"


class RunDirError(Exception):
    """The run directory cannot be used; the text is one line, ready for the user."""


def run_directory(environ: Mapping[str, str] | None = None) -> Path:
    """The run directory, made if it was not there, and checked.

    `$XENPY_RUNDIR`, else `$XDG_RUNTIME_DIR/xen-py`, else `xen-py-<uid>` under the temporary directory. It belongs to
    the caller and only the caller may enter it. Raises `RunDirError`.
    """
    path = _chosen(os.environ if environ is None else environ)
    if len(os.fsencode(path)) + len(_LONGEST_NAME_INSIDE) > LONGEST_SOCKET_PATH:
        raise RunDirError(f"run directory {path}: the path is too long for unix sockets; set XENPY_RUNDIR")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise RunDirError(f"run directory {path}: {error.strerror}; set XENPY_RUNDIR") from error
    if not stat.S_ISDIR(status.st_mode):
        raise RunDirError(f"run directory {path} is not a directory; remove it or set XENPY_RUNDIR")
    if status.st_uid != os.geteuid():
        raise RunDirError(f"run directory {path} belongs to user {status.st_uid}; set XENPY_RUNDIR")
    if status.st_mode & 0o077:
        raise RunDirError(f"run directory {path} is open to others (mode {status.st_mode & 0o777:o}); chmod 700 it")
    return path


def _chosen(environ: Mapping[str, str]) -> Path:
    if chosen := environ.get("XENPY_RUNDIR"):
        return Path(os.path.abspath(chosen))
    runtime = environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isdir(runtime):
        return Path(runtime) / "xen-py"
    return Path(tempfile.gettempdir()) / f"xen-py-{os.geteuid()}"
