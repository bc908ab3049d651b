# SPDX-License-Identifier: GPL-2.0-only
"""`xen-py image`: fetching through apt, with stand-ins for apt's programs, and the other commands."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from dom0.image import fetch, modules
from dom0.image.errors import ImageError
from dom0.image.main import add_parser, run
from dom0.image.paths import cache_dir, images_dir, resolve
from tests.builder.images import bzimage, elf
from tests.image.test_initramfs import FAKE_BUSYBOX

APT_CONFIG = """\
#!/bin/sh
cat <<'END'
APT::Update::Post-Invoke:: "touch $HOOK";
Acquire::http::Proxy "proxy.invalid";
Acquire::IndexTargets::deb::Contents "x";
END
"""
APT_CACHE = """\
#!/bin/sh
for name; do :; done
case $name in
linux-image-amd64) printf 'Package: %s\\nVersion: 6.1+1\\nDepends: linux-image-6.1-amd64 (= 6.1)\\n' "$name" ;;
linux-image-6.1-amd64) printf 'Package: %s\\nVersion: 1:6.1-1\\nDepends: kmod, linux-base (>= 4) | x\\n' "$name" ;;
busybox-static) printf 'Package: %s\\nVersion: 1.35\\n\\nPackage: older\\nVersion: 1\\n' "$name" ;;
esac
"""
APT_GET = """\
#!/bin/sh
echo "$@" >>"$CALLS"
grep Acquire "$APT_CONFIG" >"$CALLS.conf"
fd=${2#*=}
case "$*" in
*update*) [ -z "$OFFLINE" ] || { echo 'E: Temporary failure resolving' >&2; exit 100; } ;;
*indextargets*) printf 'Other|Other|http://other.invalid/\\nDebian|Debian|http://mirror.invalid/\\n' ;;
*download*)
    echo dlstatus:1:37.5:Retrieving >/proc/self/fd/$fd
    for name; do :; done
    name=${name%%=*}
    [ -z "$NODEB" ] || { echo 'E: 404 Not Found' >&2; exit 100; }
    cp "$DEBS/$name" "${name}_1_amd64.deb" ;;
esac
"""
DPKG_DEB = """\
#!/bin/sh
cat "$2"
"""


def _tar(directory: Path, name: str, files: dict[str, bytes]) -> None:
    with tarfile.open(directory / name, "w") as archive:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of our own and fake apt tools; gives the file they note their calls in."""
    tools, debs = tmp_path / "bin", tmp_path / "debs"
    tools.mkdir()
    debs.mkdir()
    for name, script in (
        ("apt-config", APT_CONFIG),
        ("apt-cache", APT_CACHE),
        ("apt-get", APT_GET),
        ("dpkg-deb", DPKG_DEB),
    ):
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    _tar(
        debs,
        "linux-image-6.1-amd64",
        {
            "./boot/config-6.1-amd64": b"CONFIG",
            "./boot/vmlinuz-6.1-amd64": bzimage(elf()),
            "./lib/modules/6.1-amd64/kernel/drivers/net/xen-netfront.ko": b"netfront",
            "./lib/x": bytes(1 << 20),
        },
    )
    _tar(debs, "busybox-static", {"./usr/bin/busybox": FAKE_BUSYBOX.encode()})
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DEBS", str(debs))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


def xen_py(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return run(parser.parse_args(["image", *arguments]))


def test_fetch(calls: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert xen_py("fetch", "debian") == 0
    directory = images_dir() / "debian-1_6.1-1"
    assert capsys.readouterr().out.split() == [str(directory / name) for name in fetch.FILES]
    assert (images_dir() / "debian").resolve() == directory.resolve()
    assert (directory / "vmlinuz").read_bytes() == bzimage(elf())
    assert (directory / "config").read_bytes() == b"CONFIG"
    assert os.access(directory / "busybox", os.X_OK)
    assert b"/init: started" in gzip.decompress((directory / "initramfs.gz").read_bytes())
    assert sorted(path.name for path in images_dir().iterdir()) == ["debian", "debian-1_6.1-1"]
    assert resolve("image:debian/vmlinuz") == str(images_dir() / "debian" / "vmlinuz")
    settings = Path(f"{calls}.conf").read_text()
    assert 'Acquire::http::Proxy "proxy.invalid";' in settings, "the machine's way to the net is kept"
    assert "IndexTargets" not in settings
    assert not list((cache_dir() / "apt").rglob("*.deb")), "what was downloaded is gone"


def test_second_run_asks_nobody(calls: Path) -> None:
    assert xen_py("fetch", "debian") == 0
    calls.unlink()
    assert xen_py("fetch", "debian") == 0
    assert not calls.exists()
    assert xen_py("fetch", "debian", "--update") == 0
    assert "download" not in calls.read_text(), "the newest is there already"


def _as_of_another_version(name: str, how: str | None) -> Path:
    """The image as one that knew another recipe for that file, or no recipes at all, has left it."""
    directory = (images_dir() / "debian").resolve()
    (directory / name).write_bytes(b"of old")
    made = json.loads((directory / "recipe").read_text())
    (directory / "recipe").write_text(json.dumps(made | {name: how}) if how else "")
    return directory


def test_an_old_initramfs_is_made_anew_without_asking_anybody(calls: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert xen_py("fetch", "debian") == 0
    directory = _as_of_another_version("initramfs.gz", "another")
    calls.unlink()
    assert capsys.readouterr().err == ""
    assert xen_py("fetch", "debian") == 0
    assert "debian: initramfs.gz of another version of xen-py, made anew\n" in capsys.readouterr().err
    assert b"/init: started" in gzip.decompress((directory / "initramfs.gz").read_bytes())
    assert not calls.exists()
    assert xen_py("fetch", "debian") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("how", ["./lib/modules//kernel/fs/ext4/ext4.ko", None], ids=["other_modules", "no_recipe"])
def test_old_modules_are_fetched_anew(calls: Path, capsys: pytest.CaptureFixture[str], how: str | None) -> None:
    """As of a version that did not know of network cards yet, or did not write down what it knew."""
    assert xen_py("fetch", "debian") == 0
    directory = _as_of_another_version("modules.tar", how)
    calls.unlink()
    assert xen_py("fetch", "debian") == 0
    assert "modules.tar" in capsys.readouterr().err
    assert "download linux-image-6.1-amd64" in calls.read_text()
    assert modules.unpack((directory / "modules.tar").read_bytes()) == {"xen-netfront": b"netfront"}
    assert b"load /lib/modules/xen-netfront.ko" in gzip.decompress((directory / "initramfs.gz").read_bytes())
    assert sorted(path.name for path in images_dir().iterdir()) == ["debian", "debian-1_6.1-1"]
    calls.unlink()
    assert xen_py("fetch", "debian") == 0
    assert not calls.exists()


def test_suite(calls: Path) -> None:
    assert xen_py("fetch", "debian", "--suite", "trixie") == 0
    assert (images_dir() / "debian-trixie" / "vmlinuz").exists()
    assert not (images_dir() / "debian").exists()
    (sources,) = (cache_dir() / "apt" / "etc").glob("*.list")
    assert sources.read_text().endswith("http://mirror.invalid/ trixie main\n")
    assert "other.invalid" not in sources.read_text()
    assert xen_py("fetch", "debian", "--suite", "a b") == 1


def test_progress(calls: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    fetch.fetch_debian(lambda *step: steps.append(step), print)
    assert ("Downloading linux-image-6.1-amd64", 37, 100) in steps
    assert ("Downloading busybox-static", 100, 100) in steps


def test_offline(calls: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OFFLINE", "1")
    (calls.parent / "bin" / "apt-cache").write_text("#!/bin/sh\n")
    assert xen_py("fetch", "debian") == 1
    message = capsys.readouterr().err
    assert "(Temporary failure resolving); check that it is online" in message
    assert message.count("\n") == 1
    assert list(images_dir().iterdir()) == []


def test_download_fails(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODEB", "1")
    with pytest.raises(ImageError, match=r"linux-image-6.1-amd64 1:6.1-1 cannot be downloaded: 404 Not Found"):
        fetch.fetch_debian(lambda *step: None, print)
    assert list(images_dir().iterdir()) == []


def test_package_without_a_kernel(calls: Path) -> None:
    _tar(calls.parent / "debs", "linux-image-6.1-amd64", {"./boot/other": b""})
    with pytest.raises(ImageError, match="holds no kernel boot/vmlinuz-6"):
        fetch.fetch_debian(lambda *step: None, print)
    (calls.parent / "debs" / "linux-image-6.1-amd64").write_bytes(b"no archive" * 1000)
    with pytest.raises(ImageError, match="cannot be unpacked"):
        fetch.fetch_debian(lambda *step: None, print)
    assert list(images_dir().iterdir()) == []


def test_not_on_debian(calls: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert xen_py("fetch", "debian") == 1
    assert "apt-get not found: images are fetched through apt" in capsys.readouterr().err


def test_unusable_cache(calls: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (calls.parent / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(calls.parent / "file"))
    assert xen_py("fetch", "debian") == 1
    assert "Not a directory" in capsys.readouterr().err


def test_initramfs_command(calls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    busybox, extra, output = tmp_path / "busybox", tmp_path / "extra", tmp_path / "out.gz"
    busybox.write_text(FAKE_BUSYBOX)
    busybox.chmod(0o755)
    extra.write_text("contents of extra")
    arguments = ("--busybox", str(busybox), "--file", f"/etc/x={extra}", "--run", "echo from-run")
    assert xen_py("initramfs", str(output), *arguments) == 0
    archive = gzip.decompress(output.read_bytes())
    assert b"contents of extra" in archive
    assert b"echo from-run\nexec init\n" in archive
    assert xen_py("initramfs", str(output)) == 1
    assert "debian/modules.tar: No such file" in capsys.readouterr().err
    assert xen_py("initramfs", str(output), "--busybox", str(busybox), "--file", "x") == 1
    assert "it takes GUEST-PATH=FILE" in capsys.readouterr().err
    assert xen_py("initramfs", "/nonexistent/x", "--busybox", str(busybox)) == 1
    assert "/nonexistent/x: No such file" in capsys.readouterr().err


def test_vmlinux_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "vmlinuz").write_bytes(bzimage(gzip.compress(elf())))
    assert xen_py("vmlinux", str(tmp_path / "vmlinuz"), str(tmp_path / "vmlinux")) == 0
    assert (tmp_path / "vmlinux").read_bytes() == elf()
    assert xen_py("vmlinux", str(tmp_path / "none"), str(tmp_path / "vmlinux")) == 1
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environ", "directory"),
    [({"XDG_CACHE_HOME": "/c"}, "/c/xen-py"), ({"XDG_CACHE_HOME": "relative"}, None), ({}, None)],
)
def test_cache_directory(environ: dict[str, str], directory: str | None) -> None:
    expected = Path.home() / ".cache" / "xen-py" if directory is None else Path(directory)
    assert cache_dir(environ) == expected
    assert resolve("image:/debian/x", environ) == f"{expected}/images/debian/x"
    assert resolve("/boot/vmlinuz", environ) == "/boot/vmlinuz"
