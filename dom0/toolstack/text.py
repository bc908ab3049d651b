# SPDX-License-Identifier: GPL-2.0-only
"""Text of unknown origin on its way to a terminal. Pure; used by xl and by what words its messages."""

from __future__ import annotations


def printable(text: str) -> str:
    """One line without control characters, so that no escape sequence reaches the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)
