# SPDX-License-Identifier: GPL-2.0-only
"""xl.cfg: from the text of a configuration file to a `DomainConfig`.

`xl create` calls `parse_config`; nothing here runs in the host. The language itself is in `cfgfile`, the keys in
`xlcfg_keys`. Words and exit codes follow `parse_config_data` in tools/xl/xl_parse.c, with two differences that help
the user: a value of the wrong kind is an error (xl warns and goes on with the default), and a key that nothing looks
up is warned about (xl says nothing).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from dom0.toolstack import diskspec, vifspec
from dom0.toolstack.cfgfile import ConfigSyntaxError, Setting, Value, merge, parse
from dom0.toolstack.config import ConfigError, DomainConfig, ShutdownAction
from dom0.toolstack.deviceconfig import DeviceConfig
from dom0.toolstack.devicefields import DeviceSyntaxError
from dom0.toolstack.diskspec import DiskConfig, DiskSyntaxError
from dom0.toolstack.vifspec import NicConfig, NicSyntaxError
from dom0.toolstack.xlcfg_keys import KNOWN, NOT_BUILT_YET, WITHOUT_EFFECT_ON_PV, nearest
from xen_py.spec import Program

LARGEST_FILE = 1 << 20
COMMAND_LINE = "<command line>"
"""How messages name the `key=value` words after the file on xl's command line."""

_EVENTS = ("on_poweroff", "on_reboot", "on_watchdog", "on_crash", "on_soft_reset")
_BUILT_ACTIONS = frozenset({ShutdownAction.DESTROY, ShutdownAction.RESTART, ShutdownAction.PRESERVE})
_UUID = re.compile(r"(?:[0-9a-fA-F]-?){31}[0-9a-fA-F]")
_NUMBER = re.compile(r"\s*([+-]?)(0[xX][0-9a-fA-F]+|[0-9]+)")
_LONG = 1 << 63
_INT_MAX = (1 << 31) - 1


def read_config_file(path: str) -> str:
    """The text of a configuration file; `/dev/null` stands for none. Raises `ConfigError` and `OSError`."""
    if path == "/dev/null":
        return ""
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    with Path(path).open("rb") as file:
        data = file.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise ConfigError(f"{path}: too large for a configuration file (more than {LARGEST_FILE} bytes)")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text") from None


def parse_config(
    text: str, source: str, overrides: Sequence[str] = (), warn: Callable[[str], None] = lambda line: None
) -> DomainConfig:
    """The domain that `text` describes.

    `overrides` are `key=value` words read after the text. Warnings go to `warn`, a line each, before the function
    returns. Raises `ConfigSyntaxError` (several lines) and `ConfigError` (one line).
    """
    return _interpret(merge(parse(text, source), parse("\n".join(overrides), COMMAND_LINE)), warn)


def _interpret(settings: dict[str, Setting], warn: Callable[[str], None]) -> DomainConfig:
    _warn_unknown(settings.values(), warn)
    reader = _Reader(settings)
    _check_type(reader)
    name = reader.string("name")
    if name is None:
        raise ConfigError("Domain name must be specified.")
    _pass_over_foreign_keys(settings.values(), warn)
    fields: dict[str, Any] = {"name": name, "nomigrate": reader.boolean("nomigrate")}
    if (uuid := reader.string("uuid")) is not None:
        fields["uuid"] = _uuid(uuid)
    fields |= _sizes(reader)
    fields |= {event: _action(reader, event) for event in _EVENTS if event in settings}
    for key in ("max_event_channels", "max_grant_frames", "max_maptrack_frames", "max_grant_version"):
        fields[key] = reader.number(key, 0, _INT_MAX)
    kernel = reader.string("kernel") or ""
    fields["bootloader"] = _bootloader(reader)
    if not kernel and fields["bootloader"] is None:
        raise ConfigError("Neither kernel nor bootloader specified")
    fields["devices"] = _devices(reader)
    fields["disks"] = _disks(reader)
    fields["nics"] = _nics(reader, warn)
    if Program.parse(kernel) is not None:
        fields["program_path"] = (_folder_of(settings["kernel"].source),)
    return DomainConfig(
        kernel=kernel, ramdisk=reader.string("ramdisk") or None, cmdline=_command_line(reader, warn), **fields
    )


def _warn_unknown(settings: Iterable[Setting], warn: Callable[[str], None]) -> None:
    for setting in settings:
        if setting.key not in KNOWN:
            close = nearest(setting.key)
            hint = f", did you mean `{close}'?" if close else ""
            warn(f"{setting.where}: warning: unknown parameter `{setting.key}' is ignored{hint}")


def _pass_over_foreign_keys(settings: Iterable[Setting], warn: Callable[[str], None]) -> None:
    """Refuse what is not built yet, unless it asks for nothing; warn of what a PV guest has no use for."""
    for setting in settings:
        key, value = setting.key, setting.value
        if key == "timer_mode":
            raise ConfigError('ERROR: "timer_mode" option is not supported for PV guests.')
        if key in NOT_BUILT_YET and not _asks_for_nothing(value, NOT_BUILT_YET[key]):
            raise ConfigError(f"{setting.where}: parameter `{key}': xen-py does not have this yet")
        if key in WITHOUT_EFFECT_ON_PV and not _asks_for_nothing(value, ("0", "")):
            warn(f"{setting.where}: warning: parameter `{key}' has no effect on a PV guest")


def _asks_for_nothing(value: Value, harmless: tuple[str, ...]) -> bool:
    if isinstance(value, list):
        return all(item in harmless and item not in ("0", "") for item in value)
    return value in harmless or (_to_long(value) is not None and _to_long(value) in map(_to_long, harmless))


def _check_type(reader: _Reader) -> None:
    """`type` and the older `builder` name the kind of guest; xl accepts any beginning of a word."""
    kinds = []
    for key, words in (("type", ("hvm", "pv", "pvh")), ("builder", ("hvm", "generic"))):
        given = reader.string(key)
        if given is None:
            continue
        kind = next((word for word in words if given and word.startswith(given)), None)
        if kind is None:
            raise ConfigError(f"Invalid domain type {given}.")
        kinds.append("pv" if kind == "generic" else kind)
    if len(set(kinds)) > 1:
        raise ConfigError('Contradicting "builder" and "type" options specified.')
    if kinds and kinds[0] != "pv":
        where = (reader.settings.get("type") or reader.settings["builder"]).where
        raise ConfigError(f'{where}: type="{kinds[0]}": xen-py boots PV guests only, it does not have this yet')


def _sizes(reader: _Reader) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for key, field in (("memory", "memory_kb"), ("maxmem", "maxmem_kb")):
        if (mebibytes := reader.number(key, 1, 1 << 30)) is not None:
            sizes[field] = mebibytes * 1024
    if "memory_kb" not in sizes and "maxmem_kb" in sizes:
        sizes["memory_kb"] = sizes["maxmem_kb"]
    sizes["vcpus"] = max(reader.number("vcpus", -_LONG, _LONG - 1) or 1, 1)
    if maxvcpus := reader.number("maxvcpus", 0, _INT_MAX):
        sizes["maxvcpus"] = maxvcpus
    return sizes


def _action(reader: _Reader, event: str) -> ShutdownAction:
    word = reader.string(event)
    try:
        action = ShutdownAction(word)
    except ValueError:
        raise ConfigError(f'Unknown {event} action "{word}" specified') from None
    if action not in _BUILT_ACTIONS and not (event == "on_soft_reset" and action is ShutdownAction.SOFT_RESET):
        where = reader.settings[event].where
        raise ConfigError(f'{where}: {event}="{action.value}": xen-py does not have this yet')
    return action


def _command_line(reader: _Reader, warn: Callable[[str], None]) -> str | None:
    whole, root, extra = (reader.string(key) for key in ("cmdline", "root", "extra"))
    if whole is not None:
        if root is not None or extra is not None:
            warn("Warning: ignoring root= and extra= in favour of cmdline=")
        return whole
    if root is None:
        return extra
    return f"root={root}" if extra is None else f"root={root} {extra}"


def _bootloader(reader: _Reader) -> str | None:
    """pygrub, wherever it is said to be: it is not a program here."""
    name = reader.string("bootloader")
    if not name:
        return None
    if name.rpartition("/")[2] != "pygrub":
        where = reader.settings["bootloader"].where
        raise ConfigError(f'{where}: bootloader="{name}": xen-py has "pygrub" only')
    return "pygrub"


def _devices(reader: _Reader) -> tuple[DeviceConfig, ...]:
    setting = reader.settings.get("device")
    found: list[DeviceConfig] = []
    for item in reader.strings("device"):
        try:
            found.append(DeviceConfig.parse(item, found))
        except DeviceSyntaxError as error:
            assert setting is not None
            raise ConfigError(f"{setting.where}: device={item!r}: {error}") from None
    return tuple(found)


def _disks(reader: _Reader) -> tuple[DiskConfig, ...]:
    setting = reader.settings.get("disk")
    if setting is None or setting.value == "":
        return ()
    try:
        return tuple(diskspec.parse([item]) for item in reader.strings("disk"))
    except DiskSyntaxError as error:
        raise ConfigError(f"{setting.source}: {error}") from None


def _nics(reader: _Reader, warn: Callable[[str], None]) -> tuple[NicConfig, ...]:
    setting = reader.settings.get("vif")
    if setting is None or setting.value == "":
        return ()
    try:
        return tuple(
            vifspec.parse([word for word in item.split(",") if word], setting.source, warn)
            for item in reader.strings("vif")
        )
    except NicSyntaxError as error:
        raise ConfigError(str(error)) from None


def _folder_of(source: str) -> str:
    """Where a program named in that file is looked for: beside the file, or here for one named on the command line."""
    return os.getcwd() if source in (COMMAND_LINE, "/dev/null") else os.path.dirname(os.path.abspath(source))


def _uuid(text: str) -> str:
    if _UUID.fullmatch(text) is None:
        raise ConfigError(f"Failed to parse UUID: {text}")
    digits = text.replace("-", "").lower()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _to_long(text: str) -> int | None:
    """A C `long` as strtol with base 0 reads it, or None."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    digits = match[2].lower()
    base = 16 if digits.startswith("0x") else 8 if digits.startswith("0") else 10
    try:
        value = int(digits, base)
    except ValueError:
        return None
    return -value if match[1] == "-" else value


class _Reader:
    """Typed access to the settings; every error names file, line and key."""

    def __init__(self, settings: dict[str, Setting]) -> None:
        self.settings = settings

    def string(self, key: str) -> str | None:
        setting = self.settings.get(key)
        if setting is None:
            return None
        if not isinstance(setting.value, str):
            raise ConfigError(f"{setting.where}: parameter `{key}' is a list but should be a single value")
        return setting.value

    def strings(self, key: str) -> list[str]:
        setting = self.settings.get(key)
        if setting is None:
            return []
        if isinstance(setting.value, str):
            raise ConfigError(f"{setting.where}: parameter `{key}' is a single value but should be a list")
        if not all(isinstance(item, str) for item in setting.value):
            raise ConfigError(f"{setting.where}: parameter `{key}' is a list of lists but should be one of words")
        return [str(item) for item in setting.value]

    def number(self, key: str, low: int, high: int) -> int | None:
        text = self.string(key)
        if text is None:
            return None
        where = self.settings[key].where
        if self.settings[key].added:
            raise ConfigError(f"{where}: can't use += with numbers for parameter `{key}'")
        value = _to_long(text)
        if value is None:
            raise ConfigError(f"{where}: parameter `{key}' is not a valid number")
        if value < low:
            raise ConfigError(f"{where}: parameter `{key}': value `{value}' is smaller than minimum bound '{low}'")
        if value > high:
            raise ConfigError(f"{where}: parameter `{key}': value `{value}' is greater than maximum bound '{high}'")
        return value

    def boolean(self, key: str) -> bool | None:
        value = self.number(key, -_LONG, _LONG - 1)
        return None if value is None else bool(value)


__all__ = ["COMMAND_LINE", "ConfigError", "ConfigSyntaxError", "parse_config", "read_config_file"]
