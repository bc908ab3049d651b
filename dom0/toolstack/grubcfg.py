# SPDX-License-Identifier: GPL-2.0-only
"""What a grub.cfg would boot by default, as far as it says so plainly: kernel, ramdisk and arguments.

A grub.cfg is a script, and nothing here runs it: entries are read from their `linux` and `initrd` lines, in the order
they are in, and the default is the one that `set default` names by number, or the first. That is what pygrub does.
Pure; the text comes from a guest's disk and may be anything.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

_MOST_LINES = 20_000


@dataclass(frozen=True)
class Entry:
    """One kernel to boot. Paths are the disk's."""

    title: str
    kernel: str
    ramdisk: str | None
    arguments: str


def default_entry(text: str) -> Entry | None:
    """The entry that boots when nobody chooses; None if there is none with a kernel."""
    entries, default = _read(text)
    if not entries:
        return None
    return entries[default] if default < len(entries) else entries[0]


def _read(text: str) -> tuple[list[Entry], int]:
    entries: list[Entry] = []
    default = 0
    title, kernel, ramdisk, arguments = "", "", None, ""

    def finish() -> None:
        if kernel:
            entries.append(Entry(title, kernel, ramdisk, arguments))

    for line in text.splitlines()[:_MOST_LINES]:
        match _words(line):
            case ["set", setting] if found := re.fullmatch(r"default=[\"']?(\d{1,3})[\"']?", setting):
                default = int(found[1])
            case ["menuentry", name, *_]:
                finish()
                title, kernel, ramdisk, arguments = name, "", None, ""
            case ["linux" | "linux16" | "linuxefi" | "kernel", path, *rest] if not kernel:
                kernel, arguments = _path(path), " ".join(rest)
            case ["initrd" | "initrd16" | "initrdefi", path, *_] if kernel and ramdisk is None:
                ramdisk = _path(path)
    finish()
    return entries, default


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return []


def _path(path: str) -> str:
    """Without the device in front, which is named as GRUB sees it: "(hd0,1)/boot/vmlinuz"."""
    return re.sub(r"^\([^)]*\)", "", path)
