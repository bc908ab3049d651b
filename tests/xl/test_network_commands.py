# SPDX-License-Identifier: GPL-2.0-only
"""xl's commands about network cards against a fake host, word for word as xl's."""

from __future__ import annotations

from tests.xl.conftest import Xl
from tests.xl.fake_host import FakeHost

NOSUCH = (1, "", "nosuch is an invalid domain identifier (rc=-6)\n")


def test_attach(host: FakeHost, xl: Xl) -> None:
    assert xl("network-attach", "gpv") == (0, "", "")
    assert xl("network-attach", "gpv", "mac=0:16:3e:0:0:1", "bridge=br1") == (0, "", "")
    method, params = host.asked[-1]
    assert (method, params["domid"]) == ("network.attach", 3)
    assert (params["nic"]["mac"], params["nic"]["bridge"]) == ("00:16:3e:00:00:01", "br1")
    assert xl("network-attach", "gpv", "accel=1").err == "the accel parameter for vifs is currently not supported\n"


def test_attach_of_what_cannot_be(host: FakeHost, xl: Xl) -> None:
    assert xl("network-attach", "gpv", "what") == (1, "", "unrecognized argument `what'\n")
    error = "command line: config parsing error in vif: invalid rate in `10'"
    assert xl("network-attach", "gpv", "rate=10") == (1, "", f"{error}\n")
    status, out, err = xl("network-attach", "gpv", "backend=other")
    assert (status, out) == (1, "")
    assert err.splitlines() == [
        "libxl: error: Domain 3:backend=other is not built yet",
        "libxl_device_nic_add failed.",
    ]
    assert xl("network-attach", "nosuch") == NOSUCH


def test_attach_without_doing_it(host: FakeHost, xl: Xl) -> None:
    assert xl("-N", "network-attach", "gpv", "bridge=br1").out == 'vif: {\n    "bridge": "br1"\n}\n'
    assert all(method != "network.attach" for method, _ in host.asked)


def test_list(host: FakeHost, xl: Xl) -> None:
    status, out, err = xl("network-list", "gpv", "nosuch")
    assert (status, err) == (0, "nosuch is an invalid domain identifier\n")
    head, row = out.splitlines()
    assert head == "Idx BE Mac Addr.         handle state evt-ch   tx-/rx-ring-ref BE-path                       "
    assert row == "0   0  00:16:3e:00:00:01     0     4     11   768/769         /local/domain/0/backend/vif/3/0"


def test_detach(host: FakeHost, xl: Xl) -> None:
    assert xl("network-detach", "gpv", "0") == (0, "", "")
    assert xl("network-detach", "gpv", "00:16:3e:00:00:01") == (0, "", "")
    assert xl("network-detach", "gpv", "7") == (1, "", "Unknown device 7.\n")
