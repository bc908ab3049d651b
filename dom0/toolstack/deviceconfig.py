# SPDX-License-Identifier: GPL-2.0-only
"""A device of a driver of one's own, as xl.cfg names it: `device = [ "type=echo,greeting=hello", ... ]`.

Each item is a list of key=value words. `type` is the device's type, for which a backend must be installed; `devid` its
number (the next free one of its type if it is not given). All else is for the backend, which finds it as nodes in its
directory. Disks and network interfaces have keys and grammars of their own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Self

import attrs

from dom0.toolstack.devicefields import DeviceSyntaxError, is_pair

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_OURS = frozenset({"frontend", "frontend-id", "online", "state", "hotplug-status"})
"""Nodes of the backend's directory that are the toolstack's or the driver's."""
_LARGEST_DEVID = 1 << 20
_LONGEST_VALUE = 1024


@attrs.frozen
class DeviceConfig:
    """One device: plain data."""

    type: str
    devid: int
    settings: tuple[tuple[str, str], ...] = ()
    """What the backend is told, in order."""

    @classmethod
    def parse(cls, item: str, before: Sequence[DeviceConfig]) -> Self:
        """An item of the list; `before` are those in front of it, whose numbers are taken."""
        words: dict[str, str] = {}
        for word in item.split(","):
            key, equals, value = word.strip().partition("=")
            if not equals or not _KEY.fullmatch(key):
                raise DeviceSyntaxError(f"{word.strip()!r} is not key=value")
            if key in words:
                raise DeviceSyntaxError(f"{key} is given twice")
            words[key] = value
        kind = words.pop("type", None)
        if kind is None:
            raise DeviceSyntaxError("a device needs a type= (for which a backend is installed)")
        taken = {device.devid for device in before if device.type == kind}
        number = words.pop("devid", None)
        if number is None:
            devid = next(n for n in range(len(taken) + 1) if n not in taken)
        elif number.isdecimal() and int(number) <= _LARGEST_DEVID:
            devid = int(number)
        else:
            raise DeviceSyntaxError(f"devid={number} is not a number up to {_LARGEST_DEVID}")
        if devid in taken:
            raise DeviceSyntaxError(f"there are two devices {kind} {devid}")
        return cls(kind, devid, tuple(words.items())).checked()

    def checked(self) -> Self:
        """DeviceSyntaxError where it cannot be a device."""
        if not _NAME.fullmatch(self.type) or self.type in ("vbd", "vif", "console", "suspend"):
            raise DeviceSyntaxError(f"type={self.type} is not a type that `device' can have")
        if type(self.devid) is not int or not 0 <= self.devid <= _LARGEST_DEVID:
            raise DeviceSyntaxError(f"devid={self.devid} is not a number up to {_LARGEST_DEVID}")
        for key, value in self.settings:
            if key in _OURS or not _KEY.fullmatch(key):
                raise DeviceSyntaxError(f"{key}= is not for a configuration to set")
            if len(value) > _LONGEST_VALUE or not value.isprintable():
                raise DeviceSyntaxError(f"the value of {key}= is too long or has control characters in it")
        return self

    def to_plain(self) -> dict[str, Any]:
        return {"type": self.type, "devid": self.devid, "settings": [list(pair) for pair in self.settings]}

    @classmethod
    def from_plain(cls, plain: object) -> Self:
        match plain:
            case {"type": str(kind), "devid": int(devid), "settings": [*pairs]} if all(map(is_pair, pairs)):
                return cls(kind, devid, tuple((key, value) for key, value in pairs)).checked()
        raise DeviceSyntaxError("a device in a domain configuration is not one")
