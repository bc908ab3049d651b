# SPDX-License-Identifier: GPL-2.0-only
"""Path rules: what a name may look like, and how paths hang together. Pure functions on bytes.

Source: docs/misc/xenstore.txt (characters, slashes, 3072 bytes absolute and 2048 relative).
"""

from __future__ import annotations

import re

from xenstore.errors import InvalidRequest

ABS_MAX = 3072
REL_MAX = 2048

_ABSOLUTE = re.compile(rb"/(?:[A-Za-z0-9\-_@]+(?:/[A-Za-z0-9\-_@]+)*)?")
_SPECIAL = re.compile(rb"@[A-Za-z0-9\-_@]*(?:/[A-Za-z0-9\-_@]+)*")
_DOMAIN_HOME = re.compile(rb"/local/domain/[0-9]{1,5}/")


def absolute(path: bytes, base: bytes, limit: int = 0, special: bool = False) -> bytes:
    """The absolute form of `path`, which is taken from `base` when it is relative.

    `limit` bounds its length (0: only the protocol's own bound), not counting the home of a domain;
    `special` allows names such as @releaseDomain. Raises InvalidRequest.
    """
    if path[:1] == b"@" and special:
        if not _SPECIAL.fullmatch(path) or len(path) > ABS_MAX:
            raise InvalidRequest("not a watchable special name", shown(path))
        return path
    full = path if path[:1] == b"/" else base + b"/" + path
    if path[:1] == b"@" or not _ABSOLUTE.fullmatch(full):
        raise InvalidRequest("not a path (letters, digits and -/_@, no doubled or trailing slash)", shown(path))
    if len(full) > ABS_MAX:
        raise InvalidRequest(f"path is longer than {ABS_MAX} bytes", shown(path))
    if limit:
        home = _DOMAIN_HOME.match(full)
        if len(full) - (home.end() if home else 0) > limit:
            raise InvalidRequest(f"path is longer than path-max ({limit})", shown(path))
    return full


def parent(path: bytes) -> bytes:
    """The path one level up; `/` for names directly below it and for special names."""
    cut = path.rfind(b"/")
    return path[:cut] if cut > 0 else b"/"


def join(directory: bytes, name: bytes) -> bytes:
    return directory + name if directory == b"/" else directory + b"/" + name


def shown(path: bytes) -> str:
    """A path from outside as text for messages; never fails."""
    return path.decode("ascii", "backslashreplace")
