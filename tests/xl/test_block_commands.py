# SPDX-License-Identifier: GPL-2.0-only
"""xl's commands about disks against a fake host, word for word as xl's."""

from __future__ import annotations

from tests.xl.conftest import Xl
from tests.xl.fake_host import FakeHost

NOSUCH = (1, "", "nosuch is an invalid domain identifier (rc=-6)\n")


def test_attach(host: FakeHost, xl: Xl) -> None:
    assert xl("block-attach", "gpv", "/img,raw,xvda,ro") == (0, "", "")
    method, params = host.asked[-1]
    assert method == "block.attach"
    assert params["domid"] == 3
    assert (params["disk"]["target"], params["disk"]["vdev"], params["disk"]["readwrite"]) == ("/img", "xvda", False)
    assert xl("block-attach", "gpv", "/img", "raw", "xvda", "access=ro") == (0, "", "")
    assert host.asked[-1] == (method, params)


def test_attach_of_what_cannot_be(host: FakeHost, xl: Xl) -> None:
    error = "config parsing error in disk specification: no vdev specified in `/img'"
    assert xl("block-attach", "gpv", "/img") == (1, "", f"command line: {error}\n")
    status, out, err = xl("block-attach", "gpv", "/bad,raw,xvda")
    assert (status, out) == (1, "")
    assert err.splitlines() == [
        "libxl: error: Domain 3:Disk vdev=xvda failed to stat: /bad: No such file or directory",
        "libxl_device_disk_add failed.",
    ]
    assert xl("block-attach", "nosuch", "/img,raw,xvda") == NOSUCH


def test_attach_without_doing_it(host: FakeHost, xl: Xl) -> None:
    out = xl("-N", "block-attach", "gpv", "/img,raw,xvda").out
    assert out.startswith('disk: {\n    "pdev_path": "/img",\n    "vdev": "xvda",\n')
    assert all(method != "block.attach" for method, _ in host.asked)


def test_list(host: FakeHost, xl: Xl) -> None:
    status, out, err = xl("block-list", "gpv", "nosuch")
    assert (status, err) == (0, "nosuch is an invalid domain identifier\n")
    head, row = out.splitlines()
    assert head == "Vdev  BE  handle state evt-ch ring-ref BE-path                       "
    assert row == "51712 0   3      4     11     -1       /local/domain/0/backend/vbd/3/51712"


def test_detach(host: FakeHost, xl: Xl) -> None:
    assert xl("block-detach", "--force", "gpv", "xvda") == (0, "", "")
    status, _, err = xl("block-detach", "gpv", "xvda")
    assert status == 1
    assert err.splitlines() == [
        "libxl: error: Domain 3:the guest still uses it",
        "libxl_device_disk_safe_remove failed.",
    ]
    assert xl("block-detach", "gpv", "xvdz") == (1, "", "Error: Device xvdz not connected.\n")


def test_discs_are_for_hvm_guests_as_with_libxl(host: FakeHost, xl: Xl) -> None:
    for words in (("cd-insert", "gpv", "hdc", "/a.iso"), ("cd-eject", "gpv", "hdc")):
        assert xl(*words) == (1, "", "libxl: error: Domain 3:cdrom-insert requires an HVM domain\n")
