# SPDX-License-Identifier: GPL-2.0-only
"""The modules of a distribution's kernel that a PV guest needs before its root file system is there.

Debian builds Xen's device drivers and ext4 as modules. They are kept beside the kernel as a plain tar, in the order in
which they must be loaded, which is worked out from what each module says of itself (`depends` in its .modinfo): a
kernel package has no list of dependencies yet, it is made where the package is installed. Pure functions.
"""

from __future__ import annotations

import io
import lzma
import re
import tarfile
from collections.abc import Mapping

from dom0.image.errors import ImageError

_PLACES = {
    "xen-blkfront": "drivers/block",
    "xen-netfront": "drivers/net",
    "crc32c_generic": "crypto",
    "ext4": "fs/ext4",
    "isofs": "fs/isofs",
    "jbd2": "fs/jbd2",
    "mbcache": "fs",
    "crc16": "lib",
    "libcrc32c": "lib",
    "cdrom": "drivers/cdrom",
}
"""What a guest finds its disks, network cards and root with, and what that needs; ext4 asks for crc32c by name only."""
_DEPENDS = re.compile(rb"\0depends=([A-Za-z0-9_,-]*)\0")
_LARGEST = 64 << 20
_XZ = b"\xfd7zXZ\0"


def places(release: str) -> dict[str, str]:
    """Where in a kernel's package they may be, and the name of each."""
    return {
        f"./{top}lib/modules/{release}/kernel/{folder}/{name}.ko{ending}": name
        for name, folder in _PLACES.items()
        for top in ("", "usr/")
        for ending in ("", ".xz")
    }


def recipe() -> str:
    """What decides which modules a kernel's package is looked through for: another text, another choice."""
    return " ".join(sorted(places("")))


def depends(module: bytes) -> list[str]:
    """The modules that one needs, as it says itself."""
    match = _DEPENDS.search(module)
    return [name.decode() for name in match[1].split(b",") if name] if match else []


def in_order(packed: Mapping[str, bytes]) -> dict[str, bytes]:
    """The modules, unpacked, each behind those it needs. What is built into the kernel is not there."""
    found = {name: lzma.decompress(data) if data.startswith(_XZ) else data for name, data in packed.items()}
    by_name = {_plain(name): name for name in found}
    chosen: dict[str, bytes] = {}
    visiting: set[str] = set()

    def take(name: str) -> None:
        real = by_name.get(_plain(name))
        if real is None or real in chosen or real in visiting:
            return
        visiting.add(real)
        for needed in depends(found[real]):
            take(needed)
        chosen[real] = found[real]

    for name in sorted(found):
        take(name)
    return chosen


def _plain(name: str) -> str:
    """Module names do not tell - from _."""
    return name.replace("-", "_")


def pack(modules: Mapping[str, bytes]) -> bytes:
    """A tar with these, in order."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        for name, data in modules.items():
            member = tarfile.TarInfo(f"{name}.ko")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return output.getvalue()


def unpack(data: bytes) -> dict[str, bytes]:
    """What `pack` packed. ImageError."""
    modules = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is not None and member.size <= _LARGEST:
                    modules[member.name.removesuffix(".ko")] = file.read()
    except tarfile.TarError as error:
        raise ImageError(f"the kernel's modules cannot be read: {error}") from None
    return modules
