# SPDX-License-Identifier: GPL-2.0-only
"""A network card as xl.cfg's `vif` list and `xl network-attach` name it: xl-network-configuration(5).

`parse` reads it as xl does, word by word, in xl's words where it cannot be; `forward=` is a word of our own. What
cannot be had here is for `refusal`. A card without an address gets one under 00:16:3e that depends on the guest's uuid
and the card's number only, so it is the same whenever the guest starts again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, Self

import attrs

from dom0.backend.net.filters import parse_addresses
from dom0.backend.net.forward import parse_forwards
from dom0.backend.net.switch import DEFAULT_BRIDGE, Vlans, VlanSyntaxError
from dom0.toolstack.devicefields import DeviceSyntaxError, fields_from_plain
from dom0.toolstack.devices import NewDevice

KIND = "vif"
DEFAULT_MTU = 1500
DEFAULT_INTERVAL_USECS = 50_000
SCRIPT = "/etc/xen/scripts/vif-bridge"
"""What libxl would run, and writes down. Where a card names it, its backend does what it would do."""
_LEAST_MTU, _LARGEST_MTU = 68, 65517
_LARGEST_DEVID = 1 << 20
_LONGEST = 1024
_NO_MAC = "00:00:00:00:00:00"
_RATE = re.compile(r"([0-9]+)([GMK]?)([Bb])/s")
_INTERVAL = re.compile(r"([0-9]+)([mu]?)s?")
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_TEXTS = {
    "bridge": "bridge",
    "netdev": "gatewaydev",
    "gatewaydev": "gatewaydev",
    "ip": "ip",
    "script": "script",
    "backend": "backend_domain",
    "vifname": "ifname",
    "model": "model",
    "vlan": "vlan",
    "forward": "forward",
}


class NicSyntaxError(DeviceSyntaxError):
    """A network card that cannot be; one line, as xl words it."""


@attrs.frozen
class NicConfig:
    """One network card: plain data. None stands for what was not said."""

    mac: str | None = None
    devid: int | None = None
    bridge: str | None = None
    gatewaydev: str | None = None
    ip: str | None = None
    script: str | None = None
    backend_domain: str | None = None
    ifname: str | None = None
    model: str | None = None
    nictype: str | None = None
    mtu: int | None = None
    vlan: str | None = None
    forward: str | None = None
    """Ports of the host that lead to the guest: a word of ours."""
    rate_bytes: int | None = None
    """In each interval."""
    rate_interval: int | None = None
    """Microseconds."""
    trusted: bool | None = None
    colo: tuple[tuple[str, str], ...] = ()

    def refusal(self) -> str | None:
        """Why xen-py cannot have such a card, if it cannot."""
        if self.nictype == "ioemu":
            return "trying to create PV or PVH guest with an emulated interface"
        try:
            parse_addresses(self.ip or "")
            parse_forwards(self.forward or "")
            if self.vlan:
                Vlans.parse(self.vlan)
        except (ValueError, VlanSyntaxError) as error:
            return str(error)
        if self.bridge is not None and not _NAME.fullmatch(self.bridge):
            return f"bridge={self.bridge} is not the name of a bridge"
        if self.mtu and not _LEAST_MTU <= self.mtu <= _LARGEST_MTU:
            return f"mtu={self.mtu} is not within {_LEAST_MTU} and {_LARGEST_MTU}"
        if self.script is not None and (self.forward or self.vlan):
            word = "forward" if self.forward else "vlan"
            return f"{word}= is for xen-py's own switches: not together with script="
        not_yet = (
            (self.script is not None and self.script.rpartition("/")[2] != "vif-bridge", f"script={self.script}"),
            (bool(self.colo), "colo"),
            (self.backend_domain not in (None, "0", "Domain-0"), f"backend={self.backend_domain}"),
        )
        return next((f"{what} is not built yet" for wrong, what in not_yet if wrong), None)

    def settled(self, uuid: str, devid: int) -> Self:
        """With a number and an address."""
        number = devid if self.devid is None else self.devid
        return attrs.evolve(self, devid=number, mac=self.mac or stable_mac(uuid, number))

    def device(self) -> NewDevice:
        """What goes into the store of a card that is settled: libxl's nodes (libxl_nic.c)."""
        assert self.devid is not None and self.mac is not None
        back = [("script", self.script if (self.script or "").startswith("/") else SCRIPT)]
        back += [("vifname", self.ifname)] if self.ifname else []
        back.append(("mac", self.mac))
        back += [("ip", self.ip)] if self.ip else []
        back += [("gatewaydev", self.gatewaydev)] if self.gatewaydev else []
        back += [("rate", f"{self.rate_bytes},{self.rate_interval}")] if self.rate_interval else []
        mtu = self.mtu or DEFAULT_MTU
        back += [("mtu", str(mtu))] if mtu != DEFAULT_MTU else []
        back += [("vlan", self.vlan)] if self.vlan else []
        back += [("forward", self.forward)] if self.forward else []
        back += [("linux-bridge", "1")] if self.script else []
        back += [
            ("bridge", self.bridge or DEFAULT_BRIDGE),
            ("handle", str(self.devid)),
            ("type", "vif"),
            ("hotplug-status", ""),
        ]
        front = (("handle", str(self.devid)), ("mac", self.mac), ("trusted", str(int(self.trusted is not False))))
        texts = tuple((name, value or "") for name, value in back)
        return NewDevice(KIND, self.devid, texts, front, (("mtu", str(mtu)),))

    def to_libxl(self) -> dict[str, Any]:
        """`libxl_device_nic` as libxl's JSON has it: what is at its default is left out."""
        fields: dict[str, Any] = {
            "backend_domname": self.backend_domain,
            "devid": self.devid,
            "mtu": self.mtu or None,
            "model": self.model,
            "mac": self.mac,
            "ip": self.ip,
            "bridge": self.bridge,
            "ifname": self.ifname,
            "script": self.script,
            "nictype": None if self.nictype is None else {"vif": "vif", "ioemu": "vif_ioemu"}[self.nictype],
            "rate_bytes_per_interval": self.rate_bytes,
            "rate_interval_usecs": self.rate_interval,
            "gatewaydev": self.gatewaydev,
            **dict(self.colo),
            "vlan": self.vlan,
            "forward": self.forward,
            "trusted": None if self.trusted is None else str(self.trusted),
        }
        return {key: value for key, value in fields.items() if value is not None}

    def to_plain(self) -> dict[str, Any]:
        return attrs.asdict(self)

    @classmethod
    def from_plain(cls, plain: object) -> Self:
        """Back from `to_plain`; whatever arrives is checked. NicSyntaxError."""
        nic = cls(**fields_from_plain(cls, plain, "network card", NicSyntaxError))
        texts = [value for value in attrs.asdict(nic).values() if isinstance(value, str)]
        if not all(len(text) <= _LONGEST and text.isprintable() for text in texts):
            raise NicSyntaxError("a network card with a text that is too long or has control characters in it is none")
        if nic.mac is not None and _mac(nic.mac) != nic.mac:
            raise NicSyntaxError("Invalid parameter `mac'.")
        if nic.nictype not in (None, "vif", "ioemu"):
            raise NicSyntaxError("Invalid parameter `type'.")
        if nic.devid is not None and not 0 <= nic.devid <= _LARGEST_DEVID:
            raise NicSyntaxError(f"devid={nic.devid} is not a number up to {_LARGEST_DEVID}")
        return nic


def stable_mac(uuid: str, devid: int) -> str:
    """Xen's prefix and three bytes that only this card of this guest has, as far as three bytes go."""
    digest = hashlib.sha256(f"{uuid} {devid}".encode()).digest()
    return f"00:16:3e:{digest[0] & 0x7F:02x}:{digest[1]:02x}:{digest[2]:02x}"


def settle(nics: Sequence[NicConfig], uuid: str) -> tuple[NicConfig, ...]:
    """All cards of a guest with their numbers and addresses. NicSyntaxError where two have one number."""
    taken = {nic.devid for nic in nics if nic.devid is not None}
    if len(taken) < sum(nic.devid is not None for nic in nics):
        raise NicSyntaxError("two network cards have one devid")
    found: list[NicConfig] = []
    for nic in nics:
        free = next(number for number in range(len(nics) + len(taken) + 1) if number not in taken)
        found.append(nic.settled(uuid, free))
        taken.add(free if nic.devid is None else nic.devid)
    return tuple(found)


def parse(words: Sequence[str], source: str, warn: Any = lambda line: None) -> NicConfig:
    """The card of some words; `source` names the place in messages of the rate. NicSyntaxError."""
    found: dict[str, Any] = {}
    colo: dict[str, str] = {}
    for word in words:
        key, equals, value = word.lstrip(" ").partition("=")
        if key in ("trusted", "untrusted") and not equals:
            found["trusted"] = key == "trusted"
        elif not equals:
            raise NicSyntaxError(f"unrecognized argument `{word.lstrip(' ')}'")
        elif key == "type":
            if value not in ("vif", "ioemu"):
                raise NicSyntaxError("Invalid parameter `type'.")
            found["nictype"] = value
        elif key == "mac":
            found["mac"] = _mac(value)
        elif key in ("devid", "mtu"):
            found[key] = _number(key, value)
        elif key == "rate":
            found["rate_bytes"], found["rate_interval"] = _rate(value, source)
        elif key == "accel":
            warn("the accel parameter for vifs is currently not supported")
        elif key in _TEXTS:
            if key == "netdev":
                warn("the netdev parameter is deprecated, please use gatewaydev instead")
            found[_TEXTS[key]] = value
        elif key == "forwarddev" or key.startswith("colo_"):
            colo["coloft_forwarddev" if key == "forwarddev" else key] = value
        else:
            raise NicSyntaxError(f"unrecognized argument `{word.lstrip(' ')}'")
    if found.get("mac") == _NO_MAC:
        del found["mac"]
    return NicConfig(**found, colo=tuple(colo.items()))


def _mac(text: str) -> str:
    """As xl reads it: six numbers with something between them."""
    parts = re.split(r"[^0-9A-Fa-f]", text, maxsplit=5)
    if len(parts) != 6 or not all(re.fullmatch(r"[0-9A-Fa-f]{1,2}", part) for part in parts):
        raise NicSyntaxError("Invalid parameter `mac'.")
    if int(parts[0], 16) & 1:
        raise NicSyntaxError(f"Invalid parameter `mac': {text} is the address of a group.")
    return ":".join(f"{int(part, 16):02x}" for part in parts)


def _number(key: str, text: str) -> int:
    if not re.fullmatch(r"0[xX][0-9a-fA-F]{1,8}|[0-9]{1,9}", text):
        raise NicSyntaxError(f"xl: {key}={text} is not a number")
    return int(text, 16 if text[:2] in ("0x", "0X") else 10)


def _rate(text: str, source: str) -> tuple[int, int]:
    """`10Mb/s@20ms` as bytes in each interval, and its microseconds."""

    def wrong(message: str, part: str) -> NicSyntaxError:
        return NicSyntaxError(f"{source}: config parsing error in vif: {message} in `{part}'")

    speed, at, every = text.partition("@")
    if not speed:
        raise wrong("no rate specified", text)
    match = _RATE.fullmatch(speed)
    if match is None:
        raise wrong("invalid rate", speed)
    size = int(match[1])
    if not 0 < size < 1 << 32:
        raise wrong("rate overflow", speed)
    size *= {"G": 10**9, "M": 10**6, "K": 10**3, "": 1}[match[2]]
    if match[3] == "b":
        size //= 8
    interval = DEFAULT_INTERVAL_USECS
    if at:
        match = _INTERVAL.fullmatch(every)
        if match is None:
            raise wrong("invalid replenishment interval", every)
        interval = int(match[1]) * {"u": 1, "m": 1000, "": 10**6}[match[2]]
        if not 0 < interval < 1 << 32:
            raise wrong("replenishment interval overflow", every)
    if not size * interval // 10**6:
        raise wrong("rate too low for its interval", text)
    return size * interval // 10**6, interval
