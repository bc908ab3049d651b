# SPDX-License-Identifier: GPL-2.0-only
"""The one way building a domain fails."""

from __future__ import annotations

BUILD_EXIT_CODE = 3
"""What `xl create` exits with when a domain cannot be built (seen with Xen 4.17)."""


class BuildError(Exception):
    """A domain cannot be built; the message is one line that names what failed, why and what to do."""

    exit_code = BUILD_EXIT_CODE

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
