# SPDX-License-Identifier: GPL-2.0-only
"""The cache of unpacked kernels: it saves work, and nothing that happens to it can do harm."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from dom0.builder.cache import unpacked
from dom0.builder.kernel import load_kernel
from tests.builder.images import Load, elf

CONTENTS = random.Random(2).randbytes(3 << 20) + bytes(5 << 20) + b"end"
PACKED = b"packed" + random.Random(1).randbytes(1 << 20)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "kernels"


def use(directory: Path, packed: bytes = PACKED) -> bool:
    """Ask for an unpacked file; says whether it came from the cache."""
    calls = []

    def unpack() -> tuple[bytes, str]:
        calls.append(1)
        return CONTENTS, "bzImage (xz)"

    assert unpacked(packed, unpack, directory) == (CONTENTS, "bzImage (xz)")
    return not calls


def only_entry(directory: Path) -> Path:
    (entry,) = directory.iterdir()
    return entry


def test_hit(directory: Path) -> None:
    assert not use(directory)
    assert use(directory)
    entry = only_entry(directory)
    assert entry.stat().st_blocks * 512 < 4 << 20, "zeros are holes"
    assert entry.stat().st_mode & 0o077 == directory.stat().st_mode & 0o077 == 0


def test_other_contents_are_another_entry(directory: Path) -> None:
    use(directory)
    assert not use(directory, PACKED + b"!")


def test_small_and_unpacked_files_are_not_kept(directory: Path) -> None:
    use(directory, b"small")
    unpacked(PACKED, lambda: (PACKED, "ELF"), directory)
    assert not directory.exists()


def test_only_the_last_used_are_kept(directory: Path) -> None:
    kernels = [PACKED + bytes([n]) for n in range(5)]
    entries = [directory / hashlib.sha256(kernel).hexdigest() for kernel in kernels]
    for age, (kernel, entry) in enumerate(zip(kernels[:4], entries, strict=False)):
        use(directory, kernel)
        os.utime(entry, (age, age))
    assert use(directory, kernels[0]), "now it was used last"
    use(directory, kernels[4])
    assert set(directory.iterdir()) == {entries[0], *entries[2:]}


def _truncate(entry: Path) -> None:
    os.truncate(entry, entry.stat().st_size - 1)


def _flip(entry: Path) -> None:
    data = bytearray(entry.read_bytes())
    data[-1] ^= 1
    entry.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": _truncate,
    "a bit flipped": _flip,
    "empty": lambda entry: os.truncate(entry, 0),
    "no header": lambda entry: entry.write_bytes(b"x" * 10000),
    "header without facts": lambda entry: entry.write_bytes(b"xen-py kernel 1\n{}".ljust(4096, b"\0")),
    "header that is no object": lambda entry: entry.write_bytes(b"xen-py kernel 1\n[]".ljust(4096, b"\0")),
    "header that is nothing": lambda entry: entry.write_bytes(b"xen-py kernel 1\n\xff".ljust(4096, b"\0")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_entries_are_made_anew(directory: Path, damage: str) -> None:
    use(directory)
    DAMAGE[damage](only_entry(directory))
    assert not use(directory)
    assert use(directory)


def test_directory_others_may_write_into(directory: Path) -> None:
    use(directory)
    directory.chmod(0o777)
    assert not use(directory)


def test_no_directory_to_be_had(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not use(tmp_path / "file" / "kernels")
    (tmp_path / "link").symlink_to(tmp_path)
    assert not use(tmp_path / "link")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_kernels_go_through_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernel = elf([Load(data=random.Random(3).randbytes(2 << 20))])
    (tmp_path / "vmlinuz").write_bytes(gzip.compress(kernel))
    seen: list[int] = []
    first = load_kernel(tmp_path / "vmlinuz", lambda what, done, total: seen.append(done))
    second = load_kernel(tmp_path / "vmlinuz", lambda what, done, total: pytest.fail("it unpacks again"))
    assert seen
    assert first == second
    assert second.data == kernel
    assert second.packing == "ELF (gzip)"
