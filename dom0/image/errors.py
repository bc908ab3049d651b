# SPDX-License-Identifier: GPL-2.0-only
"""The one way making or getting an image fails."""

from __future__ import annotations


class ImageError(Exception):
    """An image cannot be had; the message says what failed, why and what to do."""
