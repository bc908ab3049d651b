# SPDX-License-Identifier: GPL-2.0-only
"""xl-disk-configuration(5) and xen-vbd-interface(7): what xl reads, word for word."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0.toolstack import vdev
from dom0.toolstack.diskspec import DiskConfig, DiskSyntaxError, parse

RW: dict[str, Any] = {"format": "raw", "readwrite": 1}
CD: dict[str, Any] = {"format": "raw", "removable": 1, "is_cdrom": 1}


@pytest.mark.parametrize(
    ("spec", "json"),
    [
        ("/dev/vg/guest,,hda", {"pdev_path": "/dev/vg/guest", "vdev": "hda", **RW}),
        ("/dev/vg/guest,raw,xvda,rw", {"pdev_path": "/dev/vg/guest", "vdev": "xvda", **RW}),
        ("/img, raw, xvda , r", {"pdev_path": "/img", "vdev": "xvda ", "format": "raw"}),
        ("format=raw, vdev=hda, access=rw, target=/a,b", {"pdev_path": "/a,b", "vdev": "hda", **RW}),
        ("raw:/x,xvda", {"pdev_path": "/x", "vdev": "xvda", **RW}),
        ("qcow2:/x,xvda,w", {"pdev_path": "/x", "vdev": "xvda", "format": "qcow2", "readwrite": 1}),
        ("phy:/x,xvda,w", {"pdev_path": "/x", "vdev": "xvda", **RW}),
        ("tap:aio:/x,xvda,w", {"pdev_path": "/x", "vdev": "xvda", **RW}),
        ("tap2:tapdisk:qcow:/x,xvda", {"pdev_path": "/x", "vdev": "xvda", "format": "qcow", "readwrite": 1}),
        ("nbd:host,xvda", {"pdev_path": "host", "vdev": "xvda", "script": "block-nbd", **RW}),
        ("file:/x.iso,hdc:cdrom,r", {"pdev_path": "/x.iso", "vdev": "hdc", **CD}),
        (",hdc:cdrom", {"pdev_path": "", "vdev": "hdc", **CD, "format": "empty"}),
        ("/x.iso,,hdc,cdrom", {"pdev_path": "/x.iso", "vdev": "hdc", **CD}),
        ("vdev=hdc,devtype=cdrom", {"vdev": "hdc", **CD, "format": "empty"}),
        ("vdev=xvda,target=", {"pdev_path": "", "vdev": "xvda", **RW}),
        ("/x,vhd,xvda,no-discard", {"pdev_path": "/x", "vdev": "xvda", "format": "vhd", "readwrite": 1,
                                    "discard_enable": "False"}),
        ("/x,,xvda,discard,direct-io-safe", {"pdev_path": "/x", "vdev": "xvda", **RW, "direct_io_safe": True,
                                             "discard_enable": "True"}),
        ("/x,,xvda,backendtype=phy,backend=store", {"backend_domname": "store", "pdev_path": "/x", "vdev": "xvda",
                                                     "backend": "phy", **RW}),
        ("/x,,xvda,untrusted,grant_usage=1", {"pdev_path": "/x", "vdev": "xvda", **RW, "trusted": "False",
                                              "grant_usage": "True"}),
        ("/x,,xvda,specification=virtio", {"pdev_path": "/x", "vdev": "xvda", **RW, "specification": "virtio"}),
        ("script=block-x,vdev=xvda,target=y", {"pdev_path": "y", "vdev": "xvda", "script": "block-x", **RW}),
    ],
)  # fmt: skip
def test_what_it_means(spec: str, json: dict[str, Any]) -> None:
    disk = parse([spec])
    assert disk.to_libxl() == json
    assert DiskConfig.from_plain(disk.to_plain()) == disk


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("/x", "no vdev specified"),
        ("vdev=xvda", "no target specified (and device not removable)"),
        ("/x,,xvda,rw,more", "too many positional parameters: near `more'"),
        ("/x,foo,xvda", "unknown value for format: near `foo'"),
        ("/x,,xvda,q", "unknown value for access: near `q'"),
        ("/x,,xvda,access=q", "unknown value for access: near `q'"),
        ("/x,,xvda,devtype=tape", "unknown value for type: near `devtype=tape'"),
        ("/x,,xvda,backendtype=q", "unknown value for backendtype: near `q'"),
        ("/x,,xvda,format=raw,format=vhd", "format respecified: near `vhd'"),
        ("/x,,xvda,vdev=xvdb", "vdev respecified: near `xvdb'"),
        ("/x,,xvda,target=/y", "target respecified: near `/y'"),
        ("/x,,xvda,speed=9", "unknown parameter: near `speed=9'"),
        ("gluster:/x,xvda", "unknown deprecated disk prefix: near `gluster:'"),
        (",hdc:floppy", "unknown deprecated type: near `floppy'"),
        ("/x,,xvda,=", "bad disk syntax: near `='"),
    ],
)
def test_what_is_wrong_with_it(spec: str, error: str) -> None:
    with pytest.raises(DiskSyntaxError) as caught:
        parse([spec])
    assert str(caught.value) == f"config parsing error in disk specification: {error} in `{spec}'"


def test_several_words_are_one_disk() -> None:
    assert parse(["/x", "raw", "xvdb", "access=ro"]).to_libxl() == {"pdev_path": "/x", "vdev": "xvdb", "format": "raw"}


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("xvda", 51712), ("xvda1", 51713), ("xvdb", 51728), ("xvdp15", 51967), ("xvdq", 268439552),
        ("xvda16", 268435472), ("xvdaa", (1 << 28) | 26 << 8), ("d0", 51712), ("d0p1", 51713), ("d16p0", 268439552),
        ("hda", 768), ("hdb3", 835), ("hdc", 5632), ("hdd1", 5697), ("sda", 2048), ("sdb2", 2066), ("sdp15", 2303),
        ("51712", 51712), ("0xca00", 51712), ("0145000", 51712), ("0", 0),
        ("hde", None), ("hda64", None), ("sdq", None), ("sda16", None), ("xvda256", None), ("vda", None), ("", None),
        ("xvd", None), ("xvda01", None), ("XVDA", None), ("d", None), ("d0p", None),
        ("2147483648", None), ("089", None),
    ],
)  # fmt: skip
def test_names_and_numbers(name: str, number: int | None) -> None:
    assert vdev.number(name) == number


@given(st.lists(st.text("abdevxqcow2:,= /phyrtg-", max_size=30), min_size=1, max_size=3))
def test_any_text_is_a_disk_or_an_error(specs: list[str]) -> None:
    try:
        disk = parse(specs)
    except DiskSyntaxError as error:
        assert "\n" not in str(error)
    else:
        assert DiskConfig.from_plain(disk.to_plain()) == disk


@pytest.mark.parametrize(
    "change",
    [{"vdev": None}, {"format": "vdi"}, {"readwrite": 1}, {"cdrom": None}, {"target": "x" * 4097}, {"colo": [["a"]]},
     {"colo": "ab"}, {"what": "x"}],
)  # fmt: skip
def test_what_comes_over_the_socket_is_checked(change: dict[str, Any]) -> None:
    with pytest.raises(DiskSyntaxError):
        DiskConfig.from_plain(parse(["/x,,xvda"]).to_plain() | change)
    for plain in ({}, [], {"target": "/x"}):
        with pytest.raises(DiskSyntaxError, match="a disk in a domain configuration is not one"):
            DiskConfig.from_plain(plain)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("/x,,xvdz99999", "Invalid or unsupported virtual disk identifier xvdz99999"),
        ("/x,,xvda,backendtype=tap", "blktap is not supported"),
        ("/x,,xvda,script=block-x", "script=block-x is not built yet"),
        ("/x,,xvda,specification=virtio", "specification=virtio is not built yet"),
        ("/x,,xvda,backend=other", "backend=other is not built yet"),
        ("/x,,xvda,colo", "colo is not built yet"),
        ("/x,raw,xvda", None),
    ],
)
def test_what_is_not_served_says_so(spec: str, reason: str | None) -> None:
    assert parse([spec]).refusal() == reason
