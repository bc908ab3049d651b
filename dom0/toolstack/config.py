# SPDX-License-Identifier: GPL-2.0-only
"""A domain's configuration: what the user asked for, as one frozen value.

`xl` makes it from an xl.cfg file (`dom0.toolstack.xlcfg`), sends it to the host as plain data, and the host keeps it
for as long as the domain lives (restart needs it, `xl list -l` prints it). Nothing here touches a running domain.

Facts from libxl: the order of keys is that of `libxl_domain_config` in tools/libs/light/libxl_types.idl; keys that
still hold their default are left out; the layout is yajl's (four spaces, an empty map takes a blank line).
"""

from __future__ import annotations

import json
import uuid as uuidlib
from collections.abc import Mapping
from enum import Enum
from typing import Any, Self

import attrs

from dom0.toolstack.deviceconfig import DeviceConfig
from dom0.toolstack.devicefields import DeviceSyntaxError
from dom0.toolstack.diskspec import DiskConfig
from dom0.toolstack.vifspec import NicConfig

DEFAULT_MEMORY_KB = 32 * 1024
"""What a guest gets when its configuration names no memory at all."""
DEFAULT_EVENT_CHANNELS = 1023
"""The highest event channel port a guest may use unless its configuration says otherwise."""
MAX_VCPUS = 8192
"""Xen's ceiling for PV guests (MAX_VIRT_CPUS)."""
INVALID_DOMID = 0xFFFFFFFF
"""What libxl stores in `c_info.domid` when no particular domid was asked for."""


class ConfigError(ValueError):
    """A configuration that cannot be; the text is one line, ready for the user."""


class ShutdownAction(Enum):
    """What to do with a domain that has shut down; the values are the words of xl.cfg."""

    DESTROY = "destroy"
    RESTART = "restart"
    RENAME_RESTART = "rename-restart"
    PRESERVE = "preserve"
    COREDUMP_DESTROY = "coredump-destroy"
    COREDUMP_RESTART = "coredump-restart"
    SOFT_RESET = "soft-reset"

    @property
    def libxl_name(self) -> str:
        """The word of libxl's JSON."""
        return "restart_rename" if self is ShutdownAction.RENAME_RESTART else self.value.replace("-", "_")


def check_name(name: str) -> str:
    """A domain name becomes part of a log file's name and of store values: keep it to one clean path component."""
    if not name:
        raise ConfigError("Domain name must be specified.")
    if len(name.encode()) > 128:
        raise ConfigError(f"domain name {name[:32]!r}... is longer than 128 bytes")
    if "/" in name or not name.isprintable() or name in (".", ".."):
        raise ConfigError(f"domain name {name!r} may not contain '/' or control characters, nor be '.' or '..'")
    return name


def _name(_self: object, _attribute: object, value: str) -> None:
    check_name(value)


def _uuid(_self: object, _attribute: object, value: str) -> None:
    try:
        canonical = str(uuidlib.UUID(value))
    except ValueError:
        canonical = ""
    if canonical != value:
        raise ConfigError(f"Failed to parse UUID: {value}")


def _within(low: int, high: int) -> Any:
    def check(_self: object, attribute: attrs.Attribute[int], value: int | None) -> None:
        if value is not None and not low <= value <= high:
            raise ConfigError(f"{attribute.name} is {value}, it must lie between {low} and {high}")

    return check


_MEMORY_KB = _within(1, 1 << 40)
_INT32 = _within(0, (1 << 31) - 1)


@attrs.frozen(kw_only=True)
class DomainConfig:
    """One PV domain as configured. Plain data inside: strings, integers, booleans and `ShutdownAction`s."""

    name: str = attrs.field(validator=_name)
    uuid: str = attrs.field(factory=lambda: str(uuidlib.uuid4()), validator=_uuid)
    memory_kb: int = attrs.field(default=DEFAULT_MEMORY_KB, validator=_MEMORY_KB)
    """What the guest starts with, KiB."""
    maxmem_kb: int = attrs.field(validator=_MEMORY_KB)
    """What it may ever have, KiB; `memory_kb` unless given."""
    vcpus: int = attrs.field(default=1, validator=_within(1, MAX_VCPUS))
    """vCPUs online at the start."""
    maxvcpus: int = attrs.field(validator=_within(1, MAX_VCPUS))
    kernel: str
    """Path of the kernel, absolute once xl sends it; or a program, see `xen_py.spec.Program`."""
    program_path: tuple[str, ...] = ()
    """Directories in which to look for a program, beside those the host was installed with."""
    ramdisk: str | None = None
    bootloader: str | None = None
    """"pygrub": kernel and ramdisk are files of the first disk, those its GRUB would boot unless they are named."""
    cmdline: str | None = None
    on_poweroff: ShutdownAction = ShutdownAction.DESTROY
    on_reboot: ShutdownAction = ShutdownAction.RESTART
    on_watchdog: ShutdownAction = ShutdownAction.DESTROY
    on_crash: ShutdownAction = ShutdownAction.DESTROY
    on_soft_reset: ShutdownAction = ShutdownAction.SOFT_RESET
    max_event_channels: int | None = attrs.field(default=None, validator=_INT32)
    """Highest event channel port; None means `DEFAULT_EVENT_CHANNELS`."""
    max_grant_frames: int | None = attrs.field(default=None, validator=_INT32)
    max_maptrack_frames: int | None = attrs.field(default=None, validator=_INT32)
    max_grant_version: int | None = attrs.field(default=None, validator=_INT32)
    nomigrate: bool | None = None
    devices: tuple[DeviceConfig, ...] = ()
    """Devices of installed drivers, beside those that have a key of their own."""
    disks: tuple[DiskConfig, ...] = ()
    nics: tuple[NicConfig, ...] = ()

    @maxmem_kb.default
    def _maxmem_default(self) -> int:
        return self.memory_kb

    @maxvcpus.default
    def _maxvcpus_default(self) -> int:
        return self.vcpus

    def __attrs_post_init__(self) -> None:
        if self.maxvcpus < self.vcpus:
            raise ConfigError("xl: maxvcpus < vcpus")
        if self.maxmem_kb < self.memory_kb:
            raise ConfigError(f"maxmem ({self.maxmem_kb} KiB) is less than memory ({self.memory_kb} KiB)")
        if not self.kernel and self.bootloader is None:
            raise ConfigError("Neither kernel nor bootloader specified")
        for text in (self.kernel, self.ramdisk, self.cmdline):
            if text is not None and "\0" in text:
                raise ConfigError(f"{text!r} contains a NUL byte")

    def to_plain(self) -> dict[str, Any]:
        """The value as msgpack can carry it."""
        plain = attrs.asdict(self, recurse=False)
        plain["devices"] = [device.to_plain() for device in self.devices]
        plain["disks"] = [disk.to_plain() for disk in self.disks]
        plain["nics"] = [nic.to_plain() for nic in self.nics]
        plain["program_path"] = list(self.program_path)
        return {key: value.value if isinstance(value, ShutdownAction) else value for key, value in plain.items()}

    @classmethod
    def from_plain(cls, plain: object) -> Self:
        """Back from `to_plain`; whatever arrives is checked. Raises `ConfigError`."""
        if not isinstance(plain, Mapping):
            raise ConfigError("a domain configuration must be a map")
        known = {field.name: str(field.type) for field in attrs.fields(cls)}
        if unknown := [key for key in plain if key not in known]:
            raise ConfigError(f"unknown field {unknown[0]!r} in a domain configuration")
        if missing := [key for key in ("name", "kernel") if key not in plain]:
            raise ConfigError(f"a domain configuration without {missing[0]!r}")
        return cls(**{key: _checked(key, known[key], value) for key, value in plain.items()})

    def to_libxl_json(self, *, running: bool = False) -> str:
        """The JSON text `xl create -n` prints."""
        return libxl_json(self.to_libxl(running=running))

    def to_libxl(self, *, running: bool = False) -> dict[str, Any]:
        """`libxl_domain_config` as nested maps; `running` adds what libxl reads back from a live domain (`list -l`)."""
        create: dict[str, Any] = {"type": "pv", "name": self.name}
        if running:
            create["domid"] = INVALID_DOMID
        create |= {"uuid": self.uuid, "run_hotplug_scripts": "True"}
        build: dict[str, Any] = {
            "max_vcpus": self.maxvcpus,
            "avail_vcpus": list(range(self.vcpus)),
            "max_memkb": self.maxmem_kb,
            "target_memkb": self.memory_kb,
            "video_memkb": 0 if running else None,
            "disable_migrate": None if self.nomigrate is None else str(self.nomigrate),
            "max_grant_frames": self.max_grant_frames,
            "max_maptrack_frames": self.max_maptrack_frames,
            "max_grant_version": self.max_grant_version,
            "sched_params": {"sched": "credit2", "weight": 256, "cap": 0} if running else {},
            "claim_mode": "True",
            "event_channels": self.max_event_channels,
            "kernel": self.kernel or None,
            "cmdline": self.cmdline,
            "ramdisk": self.ramdisk,
            "bootloader": self.bootloader,
            "type.pv": {},
            "arch_arm": {},
            "arch_x86": {"msr_relaxed": "False"} if running else {},
        }
        config: dict[str, Any] = {
            "c_info": create,
            "b_info": {key: value for key, value in build.items() if value is not None},
        }
        if self.disks:
            config["disks"] = [disk.to_libxl() for disk in self.disks]
        if self.nics:
            config["nics"] = [nic.to_libxl() for nic in self.nics]
        for event in ("on_poweroff", "on_reboot", "on_watchdog", "on_crash", "on_soft_reset"):
            action: ShutdownAction = getattr(self, event)
            if action is not ShutdownAction.DESTROY:
                config[event] = action.libxl_name
        if self.devices:
            config["devices"] = [
                {"type": device.type, "devid": device.devid, **dict(device.settings)} for device in self.devices
            ]
        return config


_DEVICES: dict[str, type[DeviceConfig | DiskConfig | NicConfig]] = {
    "devices": DeviceConfig,
    "disks": DiskConfig,
    "nics": NicConfig,
}


def _checked(key: str, annotation: str, value: object) -> Any:
    """`value` if it has the type the field's annotation names."""
    if value is None and annotation.endswith("| None"):
        return None
    if key in _DEVICES and isinstance(value, list):
        try:
            return tuple(_DEVICES[key].from_plain(item) for item in value)
        except DeviceSyntaxError as error:
            raise ConfigError(str(error)) from None
    if key == "program_path" and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    kind = annotation.split(" ")[0]
    if kind == "ShutdownAction" and isinstance(value, str):
        try:
            return ShutdownAction(value)
        except ValueError:
            raise ConfigError(f'Unknown {key} action "{value}" specified') from None
    if type(value) is {"str": str, "int": int, "bool": bool}.get(kind):
        return value
    raise ConfigError(f"field {key!r} of a domain configuration must be {annotation}, not {type(value).__name__}")


def libxl_json(value: object, indent: int = 0) -> str:
    """JSON in yajl's beautified layout, without a final newline."""
    pad = " " * (indent + 4)
    if isinstance(value, Mapping):
        items = [f"{json.dumps(key)}: {libxl_json(item, indent + 4)}" for key, item in value.items()]
        opening, closing = "{", "}"
    elif isinstance(value, (list, tuple)):
        items = [libxl_json(item, indent + 4) for item in value]
        opening, closing = "[", "]"
    else:
        return json.dumps(value, ensure_ascii=False)
    body = ",\n".join(pad + item for item in items)
    return f"{opening}\n{body}\n{' ' * indent}{closing}"


def domain_zero_libxl(memory_kb: int) -> dict[str, Any]:
    """What `xl list -l` shows of Domain-0, which no configuration made."""
    return {
        "c_info": {"type": "pv", "name": "Domain-0"},
        "b_info": {
            "max_memkb": 17179869180,
            "target_memkb": memory_kb,
            "sched_params": {"sched": "credit2", "weight": 256, "cap": 0},
            "type.pv": {},
            "arch_arm": {},
            "arch_x86": {},
        },
    }
