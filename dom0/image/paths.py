# SPDX-License-Identifier: GPL-2.0-only
"""Where images are kept, and how a guest's configuration names them.

All of it is below `$XDG_CACHE_HOME/xen-py` (`~/.cache/xen-py`) and may be deleted at any time. A path in a guest's
configuration that begins with `image:` is looked up there, so that one configuration works for everybody.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

PREFIX = "image:"


def cache_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Our part of the user's cache; not made yet."""
    environ = os.environ if environ is None else environ
    base = environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "xen-py"


def images_dir(environ: Mapping[str, str] | None = None) -> Path:
    return cache_dir(environ) / "images"


def resolve(path: str, environ: Mapping[str, str] | None = None) -> str:
    """`image:NAME/FILE` as the path of that file; any other path as it is."""
    if not path.startswith(PREFIX):
        return path
    return str(images_dir(environ) / path.removeprefix(PREFIX).lstrip("/"))
