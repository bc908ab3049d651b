# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel asks of Xen: its ELF notes, or the string in the `__xen_guest` section of old images.

Pure. Notes are looked for in PT_NOTE segments, then in SHT_NOTE sections, then the old section, as Xen does.
Source: public/elfnote.h.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

import attrs

from dom0.builder.elf import PT_NOTE, SHT_NOBITS, SHT_NOTE, Elf
from dom0.builder.errors import BuildError
from xen_py.abi.elfnote import FEATURE_NAMES, GUEST_SECTION, NOTE_NAME, NUMERIC_NOTES, STRING_NOTES, ElfNote

_MAX_NOTES = 4096
_MAX_STRING = 1024
_ADDRESS = (1 << 64) - 1


@attrs.frozen
class XenNotes:
    """The kernel's wishes, unset ones None. Addresses are virtual."""

    entry: int | None = None
    hypercall_page: int | None = None
    virt_base: int | None = None
    paddr_offset: int | None = None
    init_p2m: int | None = None
    phys32_entry: int | None = None
    unmapped_ramdisk: bool = False
    """MOD_START_PFN: the ramdisk need not be in the initial mapping."""
    supported_features: int = 0
    required_features: int = 0
    guest_os: str = ""
    guest_version: str = ""
    xen_version: str = ""
    loader: str = ""
    log: tuple[str, ...] = ()
    """One line a note, as real Xen's builder logs them."""


def parse(elf: Elf, name: str) -> XenNotes:
    """The Xen notes of a kernel that can be booted as a PV guest; BuildError (about `name`) otherwise."""
    notes = _from_notes(elf, name) or _from_guest_section(elf, name)
    if notes is None:
        raise BuildError(
            f"{name}: not a Xen kernel: it has neither Xen ELF notes nor a {GUEST_SECTION} section"
            " (Linux needs CONFIG_XEN_PV)"
        )
    if notes.phys32_entry is not None and notes.entry is None and notes.virt_base is None:
        raise BuildError(f"{name}: built for PVH only (PHYS32_ENTRY without ENTRY); Linux needs CONFIG_XEN_PV")
    if not notes.loader.startswith("generic") and not notes.guest_os.startswith("linux"):
        raise BuildError(
            f"{name}: made for loader {notes.loader!r} and system {notes.guest_os!r};"
            " only the generic loader or Linux can be booted"
        )
    if not notes.xen_version.startswith("xen-3.0"):
        raise BuildError(f"{name}: made for {notes.xen_version or 'no version of Xen'!r}, not for xen-3.0")
    if notes.required_features >> FEATURE_NAMES["dom0"] & 1:
        raise BuildError(f"{name}: can only be dom0 (it requires the feature dom0)")
    if notes.paddr_offset is not None and notes.virt_base is None:
        raise BuildError(f"{name}: its PADDR_OFFSET note makes no sense without VIRT_BASE")
    return notes


def _from_notes(elf: Elf, name: str) -> XenNotes | None:
    segments = [elf.contents(s) for s in elf.segments if s.type == PT_NOTE and s.offset != 0]
    found = _collect(segments, name)
    if found is None:
        found = _collect([elf.contents(s) for s in elf.sections if s.type == SHT_NOTE], name)
    return found


def _collect(areas: list[memoryview], name: str) -> XenNotes | None:
    notes: XenNotes | None = None
    count = 0
    for area in areas:
        for owner, kind, desc in _walk(area):
            count += 1
            if count > _MAX_NOTES:
                raise BuildError(f"{name}: ELF file is damaged: more than {_MAX_NOTES} notes")
            if owner == NOTE_NAME.encode():
                notes = _apply(notes or XenNotes(), kind, desc, name)
    return notes


def _walk(area: memoryview) -> Iterator[tuple[bytes, int, bytes]]:
    """(owner, type, descriptor) of each note; stops at one that does not fit."""
    offset = 0
    while offset + 12 <= len(area):
        namesz, descsz, kind = struct.unpack_from("<III", area, offset)
        desc_at = offset + 12 + (namesz + 3 & ~3)
        offset = desc_at + (descsz + 3 & ~3)
        if desc_at + descsz > len(area):
            return
        owner = bytes(area[desc_at - (namesz + 3 & ~3) :][: min(namesz, 16)]).split(b"\0")[0]
        yield owner, kind, bytes(area[desc_at : desc_at + min(descsz, _MAX_STRING)])


def _apply(notes: XenNotes, kind: int, desc: bytes, name: str) -> XenNotes:
    try:
        note = ElfNote(kind)
    except ValueError:
        return attrs.evolve(notes, log=(*notes.log, f"note: unknown ({kind:#x})"))
    if note in NUMERIC_NOTES:
        value = int.from_bytes(desc, "little") if len(desc) in (1, 2, 4, 8) else 0
        return _numeric(attrs.evolve(notes, log=(*notes.log, f"note: {note.name} = {value:#x}")), note, value)
    if note in STRING_NOTES:
        text = _text(desc)
        return _string(attrs.evolve(notes, log=(*notes.log, f'note: {note.name} = "{text}"')), note, text, name)
    return attrs.evolve(notes, log=(*notes.log, f"note: {note.name}"))


def _numeric(notes: XenNotes, note: ElfNote, value: int) -> XenNotes:
    match note:
        case ElfNote.ENTRY:
            return attrs.evolve(notes, entry=value)
        case ElfNote.HYPERCALL_PAGE:
            return attrs.evolve(notes, hypercall_page=None if value == _ADDRESS else value)
        case ElfNote.VIRT_BASE:
            return attrs.evolve(notes, virt_base=None if value == _ADDRESS else value)
        case ElfNote.PADDR_OFFSET:
            return attrs.evolve(notes, paddr_offset=None if value == _ADDRESS else value)
        case ElfNote.INIT_P2M:
            return attrs.evolve(notes, init_p2m=None if value == _ADDRESS else value)
        case ElfNote.MOD_START_PFN:
            return attrs.evolve(notes, unmapped_ramdisk=value != 0)
        case ElfNote.SUPPORTED_FEATURES:
            return attrs.evolve(notes, supported_features=notes.supported_features | value)
        case ElfNote.PHYS32_ENTRY:
            return attrs.evolve(notes, phys32_entry=value)
    return notes


def _string(notes: XenNotes, note: ElfNote, text: str, name: str) -> XenNotes:
    match note:
        case ElfNote.GUEST_OS:
            return attrs.evolve(notes, guest_os=text)
        case ElfNote.GUEST_VERSION:
            return attrs.evolve(notes, guest_version=text)
        case ElfNote.XEN_VERSION:
            return attrs.evolve(notes, xen_version=text)
        case ElfNote.LOADER:
            return attrs.evolve(notes, loader=text)
        case ElfNote.FEATURES:
            return _features(notes, text, name)
    return notes


def _features(notes: XenNotes, text: str, name: str) -> XenNotes:
    """Features separated by `|`; one with `!` in front is required, and an unknown required one is an error."""
    supported, required = notes.supported_features, notes.required_features
    for word in filter(None, text.split("|")):
        number = FEATURE_NAMES.get(word.removeprefix("!"))
        if number is not None:
            supported |= 1 << number
            required |= word.startswith("!") << number
        elif word.startswith("!"):
            raise BuildError(f"{name}: requires the feature {word[1:]!r}, which Xen does not have")
    return attrs.evolve(notes, supported_features=supported, required_features=required)


_GUEST_STRINGS = {
    "LOADER": ElfNote.LOADER,
    "GUEST_OS": ElfNote.GUEST_OS,
    "GUEST_VER": ElfNote.GUEST_VERSION,
    "XEN_VER": ElfNote.XEN_VERSION,
    "FEATURES": ElfNote.FEATURES,
}
_GUEST_NUMBERS = {
    "VIRT_BASE": ElfNote.VIRT_BASE,
    "VIRT_ENTRY": ElfNote.ENTRY,
    "ELF_PADDR_OFFSET": ElfNote.PADDR_OFFSET,
    "HYPERCALL_PAGE": ElfNote.HYPERCALL_PAGE,
}


def _from_guest_section(elf: Elf, name: str) -> XenNotes | None:
    """The `__xen_guest` string: NAME=value, comma, ... In it HYPERCALL_PAGE counts pages from VIRT_BASE."""
    for section in elf.sections:
        if section.name == GUEST_SECTION.encode() and section.type != SHT_NOBITS:
            break
    else:
        return None
    notes = XenNotes()
    for word in _text(bytes(elf.contents(section)[: 4 * _MAX_STRING])).split(","):
        key, _, text = word.partition("=")
        notes = attrs.evolve(notes, log=(*notes.log, f'{GUEST_SECTION}: {key}="{text}"'))
        if key in _GUEST_STRINGS:
            notes = _string(notes, _GUEST_STRINGS[key], text, name)
        elif key in _GUEST_NUMBERS:
            notes = _numeric(notes, _GUEST_NUMBERS[key], _strtoull(text))
    if notes.hypercall_page is not None:
        page = notes.hypercall_page << 12
        notes = attrs.evolve(notes, hypercall_page=page + (notes.virt_base or 0) & _ADDRESS)
    if notes.paddr_offset is None:
        notes = attrs.evolve(notes, paddr_offset=notes.virt_base)
    return notes


def _strtoull(text: str) -> int:
    """As C's strtoull with base 0: what does not look like a number is 0."""
    match = re.match(r"\s*(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]{0,19})", text)
    if match is None:
        return 0
    digits = match[1]
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10
    return min(int(digits, base), _ADDRESS)


def _text(raw: bytes) -> str:
    """A C string as something that may be logged."""
    text = raw.split(b"\0", 1)[0].decode("ascii", "replace")
    return "".join(c if c.isprintable() else "?" for c in text)
