# SPDX-License-Identifier: GPL-2.0-only
"""A disk as xl.cfg's `disk` list and `xl block-attach` name it: xl-disk-configuration(5).

The rules below are those of xl's scanner. At each place in the text the rule that matches the longest piece wins, the
first of several such; so old prefixes ("phy:/dev/x"), parameters with names and those without can be mixed as users of
xl have them in their files. What the words mean is for `DiskConfig`; whether it can be had here for `refusal`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any, Self

import attrs

from dom0.toolstack import vdev
from dom0.toolstack.devicefields import DeviceSyntaxError, fields_from_plain
from dom0.toolstack.devices import NewDevice

FORMATS = ("raw", "qcow", "qcow2", "vhd", "qed", "empty")
_BACKENDS = ("phy", "tap", "qdisk", "standalone")
_SPECIFICATIONS = ("xen", "virtio")
KIND = "vbd"


class DiskSyntaxError(DeviceSyntaxError):
    """A disk that cannot be; one line, as xl words it, without the place."""


@attrs.frozen
class DiskConfig:
    """One disk: plain data. None and False stand for what was not said."""

    vdev: str
    target: str | None = None
    """Path on the host; absolute once xl sends it."""
    format: str = "raw"
    readwrite: bool = True
    cdrom: bool = False
    backend: str | None = None
    """The kind that was asked for."""
    backend_domain: str | None = None
    script: str | None = None
    direct_io_safe: bool = False
    discard: bool | None = None
    trusted: bool | None = None
    grant_usage: bool | None = None
    specification: str | None = None
    colo: tuple[tuple[str, str], ...] = ()

    @property
    def devid(self) -> int:
        """Its number; DiskSyntaxError where the name is none."""
        found = vdev.number(self.vdev)
        if found is None:
            raise DiskSyntaxError(f"Invalid or unsupported virtual disk identifier {self.vdev}")
        return found

    def refusal(self) -> str | None:
        """Why xen-py cannot serve it, if it cannot."""
        if vdev.number(self.vdev) is None:
            return f"Invalid or unsupported virtual disk identifier {self.vdev}"
        if self.backend == "tap":
            return "blktap is not supported"
        not_yet = (
            (self.backend == "standalone", "backendtype=standalone"),
            (self.specification == "virtio", "specification=virtio"),
            (self.script is not None, f"script={self.script}"),
            (bool(self.colo), "colo"),
            (self.backend_domain not in (None, "0", "Domain-0"), f"backend={self.backend_domain}"),
            (self.grant_usage is not None, "grant_usage"),
        )
        return next((f"{what} is not built yet" for wrong, what in not_yet if wrong), None)

    def located(self) -> Self:
        """With a target that means the same from any directory."""
        return attrs.evolve(self, target=os.path.abspath(self.target)) if self.target else self

    def device(self) -> NewDevice:
        """What goes into the store: libxl's nodes (libxl_disk.c)."""
        form = "cdrom" if self.cdrom else "disk"
        foreign = self.format not in ("raw", "empty")
        params = "" if self.format == "empty" else f"{self.format}:{self.target}" if foreign else self.target or ""
        back = [
            ("params", params),
            ("removable", str(int(self.cdrom))),
            ("bootable", "1"),
            ("dev", self.vdev),
            ("type", "qdisk" if foreign else "phy"),
            ("mode", "w" if self.readwrite else "r"),
            ("device-type", form),
        ]
        if self.direct_io_safe:
            back.append(("direct-io-safe", "1"))
        back.append(("discard-enable", str(int(self.readwrite if self.discard is None else self.discard))))
        trusted = (("trusted", str(int(self.trusted))),) if self.trusted is not None else ()
        front = (("virtual-device", str(self.devid)), ("device-type", form), ("protocol", "x86_64-abi"), *trusted)
        return NewDevice(KIND, self.devid, tuple(back), front)

    def to_libxl(self) -> dict[str, Any]:
        """`libxl_device_disk` as libxl's JSON has it: what is at its default is left out."""
        fields: dict[str, Any] = {
            "backend_domname": self.backend_domain,
            "pdev_path": self.target,
            "vdev": self.vdev,
            "backend": self.backend,
            "format": self.format,
            "script": self.script,
            "removable": int(self.cdrom) or None,
            "readwrite": int(self.readwrite) or None,
            "is_cdrom": int(self.cdrom) or None,
            "direct_io_safe": True if self.direct_io_safe else None,
            "discard_enable": None if self.discard is None else str(self.discard),
            "specification": self.specification,
            **dict(self.colo),
            "trusted": None if self.trusted is None else str(self.trusted),
            "grant_usage": None if self.grant_usage is None else str(self.grant_usage),
        }
        return {key: value for key, value in fields.items() if value is not None}

    def to_plain(self) -> dict[str, Any]:
        return attrs.asdict(self)

    @classmethod
    def from_plain(cls, plain: object) -> Self:
        """Back from `to_plain`; whatever arrives is checked. DiskSyntaxError."""
        disk = cls(**fields_from_plain(cls, plain, "disk", DiskSyntaxError))
        if disk.format not in FORMATS:
            raise DiskSyntaxError(f"a disk of format {disk.format!r} is none")
        return disk


# ---- the scanner ----


class _Scanner:
    """What has been read so far; rules act on it."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.found: dict[str, Any] = {}
        self.old_prefix = False
        self.access_set = False

    def fail(self, message: str, near: str | None = None) -> DiskSyntaxError:
        text = "" if near is None else f": near `{near}'"
        return DiskSyntaxError(f"config parsing error in disk specification: {message}{text} in `{self.spec}'")

    def save(self, name: str, field: str, value: str) -> None:
        if self.found.get(field):
            raise self.fail(f"{name} respecified", value)
        self.found[field] = value

    def choose(self, field: str, value: str, known: Sequence[str], message: str, respecified: str) -> None:
        if value not in known:
            raise self.fail(message, value)
        if self.found.get(field, value) != value:
            raise self.fail(f"{respecified} respecified", value)
        self.found[field] = value

    def set_format(self, value: str) -> None:
        self.choose("format", value or "raw", FORMATS, "unknown value for format", "format")

    def set_access(self, value: str) -> None:
        if value not in ("r", "ro", "rw", "w", ""):
            raise self.fail("unknown value for access", value)
        self.found["readwrite"] = value not in ("r", "ro")

    def set_colo(self, text: str) -> None:
        key, equals, value = text.partition("=")
        colo = self.found.setdefault("colo_words", {})
        name = {"colo": "colo_enable", "no-colo": "colo_enable"}.get(key, key.replace("-", "_"))
        colo[name] = value if equals else str(key == "colo")

    def positional(self, value: str) -> None:
        if self.found.get("target") is None:
            self.save("target", "target", value)
        elif not self.old_prefix and "format" not in self.found:
            if not self.found["target"] and self.vdev_and_type(value):
                self.found["format"] = "empty"
            else:
                self.set_format(value)
        elif self.found.get("vdev") is None:
            if not self.vdev_and_type(value):
                self.save("vdev", "vdev", value)
        elif not self.access_set:
            self.access_set = True
            self.set_access(value)
        else:
            raise self.fail("too many positional parameters", value)

    def vdev_and_type(self, value: str) -> bool:
        """The old <vdev>:<type>; False where it is not that."""
        name, colon, kind = value.rpartition(":")
        if not colon:
            return False
        self.save("vdev", "vdev", name)
        if kind not in ("cdrom", "disk"):
            raise self.fail("unknown deprecated type", kind)
        self.found["cdrom"] = kind == "cdrom"
        return True

    def prefix(self, text: str) -> None:
        self.old_prefix = True
        word = text.removesuffix(":")
        if word in FORMATS:
            self.set_format(word)
        elif word in ("iscsi", "nbd", "enbd", "drbd"):
            self.save("script", "script", f"block-{word}")

    def disk(self) -> DiskConfig:
        """What it all comes to."""
        found = dict(self.found)
        found.setdefault("format", "raw")
        if found.get("cdrom"):
            found["readwrite"] = False
            if not found.get("target"):
                found["format"] = "empty"
        if found.get("vdev") is None:
            raise self.fail("no vdev specified")
        if found.get("target") is None and not found.get("cdrom"):
            raise self.fail("no target specified (and device not removable)")
        colo = found.pop("colo_words", {})
        return DiskConfig(**found, colo=tuple(colo.items()))


Act = Callable[[_Scanner, str], None]


def _value(act: Callable[[_Scanner, str], None]) -> Act:
    """For a piece key=value: acts on the value."""
    return lambda scanner, text: act(scanner, text.partition("=")[2])


def _saved(name: str, field: str) -> Act:
    return _value(lambda scanner, value: scanner.save(name, field, value))


def _chosen(field: str, known: Sequence[str], name: str) -> Act:
    return _value(lambda scanner, value: scanner.choose(field, value, known, f"unknown value for {name}", field))


def _is(field: str, value: bool) -> Act:
    return lambda scanner, _text: scanner.found.__setitem__(field, value)


def _wrong(message: str) -> Act:
    def act(scanner: _Scanner, text: str) -> None:
        raise scanner.fail(message, text)

    return act


_RULES: tuple[tuple[re.Pattern[str], Act], ...] = tuple(
    (re.compile(pattern, re.ASCII), act)
    for pattern, act in (
        (r"([ \t\n]+)(?:[^ \t\n].*)?", lambda scanner, text: None),
        (r"format=[^,]*,?", _value(_Scanner.set_format)),
        (r"cdrom,?", _is("cdrom", True)),
        (r"devtype=cdrom,?", _is("cdrom", True)),
        (r"devtype=disk,?", _is("cdrom", False)),
        (r"devtype=[^,]*,?", _wrong("unknown value for type")),
        (r"access=[^,]*,?", _value(_Scanner.set_access)),
        (r"backend=[^,]*,?", _saved("backend", "backend_domain")),
        (r"backendtype=[^,]*,?", _chosen("backend", _BACKENDS, "backendtype")),
        (r"specification=[^,]*,?", _chosen("specification", _SPECIFICATIONS, "specification")),
        (r"vdev=[^,]*,?", _saved("vdev", "vdev")),
        (r"script=[^,]*,?", _saved("script", "script")),
        (r"direct-io-safe,?", _is("direct_io_safe", True)),
        (r"discard,?", _is("discard", True)),
        (r"no-discard,?", _is("discard", False)),
        (r"(?:no-)?colo,?", _Scanner.set_colo),
        (r"(?:colo-host|colo-port|colo-export|active-disk|hidden-disk)=[^,]*,?", _Scanner.set_colo),
        (r"trusted,?", _is("trusted", True)),
        (r"untrusted,?", _is("trusted", False)),
        (r"grant_usage=1,?", _is("grant_usage", True)),
        (r"grant_usage=0,?", _is("grant_usage", False)),
        (r"target=.*", _saved("target", "target")),
        (r"[a-z][-a-z0-9]*=[^,],?", _wrong("unknown parameter")),
        (r"((?:raw|qcow2?|vhd):).*", _Scanner.prefix),
        (r"((?:iscsi|e?nbd|drbd):).*", _Scanner.prefix),
        (r"((?:tapdisk|tap2?|aio|ioemu|file|phy):).*", _Scanner.prefix),
        (r"([a-z][a-z0-9]*:)(?:[^a-z0-9].*)?", _wrong("unknown deprecated disk prefix")),
        (r"[^=,]*,|[^=,]+,?", _Scanner.positional),
    )
)
"""Pattern and what is done with the piece: the first group where there is one, else all of it without a last comma."""


def parse(specs: Sequence[str]) -> DiskConfig:
    """The disk of one or several texts, read one behind the other. DiskSyntaxError."""
    scanner = _Scanner("")
    for spec in specs:
        scanner.spec = spec
        at = 0
        while at < len(spec):
            matches = [(match, act) for pattern, act in _RULES if (match := pattern.match(spec, at))]
            if not matches:
                raise scanner.fail("bad disk syntax", spec[at:])
            match, act = max(matches, key=lambda found: len(found[0][0]))
            piece = match[1] if match.re.groups else match[0]
            at += len(piece)
            act(scanner, piece.removesuffix(","))
    return scanner.disk()
