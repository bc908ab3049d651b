# SPDX-License-Identifier: GPL-2.0-only
"""cpio archives and initramfs images: read back field by field, the same bytes every time."""

from __future__ import annotations

import gzip
import stat
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest

from dom0.image import cpio, initramfs
from dom0.image.errors import ImageError

FAKE_BUSYBOX = """\
#!/bin/sh
[ "$1" = --list-full ] && printf '%s\\n' bin/busybox bin/sh bin/mount sbin/init sbin/poweroff usr/bin/cttyhack
"""


@attrs.frozen
class Member:
    mode: int
    data: bytes
    device: tuple[int, int]
    inode: int
    links: int


def unpack(archive: bytes) -> dict[str, Member]:
    """As Linux reads it (buffer-format.rst), strictly."""
    members: dict[str, Member] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        inode, mode, uid, gid, links, mtime, size, major, minor, rmajor, rminor, namesize, check = fields
        assert (uid, gid, mtime, major, minor, check) == (0, 0, 0, 0, 0, 0)
        name_at = at + 110
        name = archive[name_at : name_at + namesize - 1].decode()
        assert archive[name_at + namesize - 1] == 0
        data_at = name_at + namesize + 3 & ~3
        at = data_at + size + 3 & ~3
        if name == "TRAILER!!!":
            assert not any(archive[at:])
            assert len(archive) % 512 == 0
            return members
        assert name not in members
        parent = name.rpartition("/")[0]
        assert not parent or stat.S_ISDIR(members[parent].mode), f"{name} comes before its directory"
        members[name] = Member(mode, archive[data_at : data_at + size], (rmajor, rminor), inode, links)


@pytest.fixture
def busybox(tmp_path: Path) -> str:
    path = tmp_path / "busybox"
    path.write_text(FAKE_BUSYBOX)
    path.chmod(0o755)
    return str(path)


def test_cpio() -> None:
    entries = [
        cpio.directory("d", 0o700),
        cpio.file("d/odd", b"12345", 0o640),
        cpio.symlink("d/link", "odd"),
        cpio.char_device("console", 5, 1),
        cpio.file("empty", b""),
    ]
    members = unpack(cpio.archive(entries))
    assert list(members) == ["d", "d/odd", "d/link", "console", "empty"]
    assert members["d"] == Member(stat.S_IFDIR | 0o700, b"", (0, 0), 1, 2)
    assert members["d/odd"] == Member(stat.S_IFREG | 0o640, b"12345", (0, 0), 2, 1)
    assert members["d/link"] == Member(stat.S_IFLNK | 0o777, b"odd", (0, 0), 3, 1)
    assert members["console"] == Member(stat.S_IFCHR | 0o600, b"", (5, 1), 4, 1)


def test_initramfs(busybox: str) -> None:
    files: Mapping[str, tuple[bytes, int]] = {"/etc/deep/er/file": (b"x", 0o600), "bin/mount": (b"mine", 0o700)}
    packed = initramfs.build(busybox, files=files, init_lines=["echo one", "echo two"])
    members = unpack(gzip.decompress(packed))
    init = members["init"].data.decode()
    assert init.startswith("#!/bin/sh\n")
    assert init.endswith("echo one\necho two\nexec init\n")
    assert members["init"].mode == stat.S_IFREG | 0o755
    assert members["bin/busybox"].data == Path(busybox).read_bytes()
    assert members["bin/sh"] == attrs.evolve(
        members["bin/sh"], mode=stat.S_IFLNK | 0o777, data=b"/bin/busybox", device=(0, 0), links=1
    )
    assert members["usr/bin/cttyhack"].data == b"/bin/busybox"
    for action in ("poweroff", "reboot", "halt"):
        assert members[f"sbin/{action}"].data == f"#!/bin/sh\nexec /etc/rc.shutdown {action}\n".encode()
        assert members[f"sbin/{action}"].mode == stat.S_IFREG | 0o755
    assert members["dev/console"].device == (5, 1)
    assert members["dev/null"].device == (1, 3)
    assert members["tmp"].mode == stat.S_IFDIR | 0o1777
    assert members["etc/deep/er/file"].mode == stat.S_IFREG | 0o600
    assert members["bin/mount"].data == b"mine"
    for directory in ("proc", "sys", "dev", "run", "root", "mnt"):
        assert stat.S_ISDIR(members[directory].mode)


def test_the_same_every_time(busybox: str) -> None:
    first = initramfs.build(busybox, files={"a": (b"1", 0o644), "b": (b"2", 0o644)})
    assert first == initramfs.build(busybox, files={"b": (b"2", 0o644), "a": (b"1", 0o644)})
    assert first[4:8] == bytes(4), "no time in the gzip header"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"../etc/passwd": (b"", 0)}, "not a usable path"),
        ({"/": (b"", 0)}, "not a usable path"),
        ({"": (b"", 0)}, "not a usable path"),
        ({"etc": (b"", 0)}, "both a file and a directory"),
        ({"init/x": (b"", 0)}, "both a file and a directory"),
    ],
)
def test_bad_paths(busybox: str, files: dict[str, tuple[bytes, int]], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        initramfs.build(busybox, files=files)


def test_bad_busybox(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        initramfs.build(str(tmp_path / "none"))
    (tmp_path / "text").write_text("no program")
    with pytest.raises(ImageError, match="cannot ask busybox for its applets"):
        initramfs.build(str(tmp_path / "text"))
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho usage\n")
    other.chmod(0o755)
    with pytest.raises(ImageError, match="not a busybox with a shell"):
        initramfs.build(str(other))
