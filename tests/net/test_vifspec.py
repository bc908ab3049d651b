# SPDX-License-Identifier: GPL-2.0-only
"""`vif=`: xl's grammar and words, the store's nodes as libxl writes them, addresses that stay."""

from __future__ import annotations

import msgpack  # type: ignore[import-untyped]
import pytest

from dom0.toolstack.vifspec import SCRIPT, NicConfig, NicSyntaxError, parse, settle, stable_mac

UUID = "a7af0df8-bb52-49a9-a4e5-5402b7fbe831"


def spec(text: str) -> NicConfig:
    return parse([word for word in text.split(",") if word], "F")


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("", {}),
        ("mac=0:16:3E:74:3d:7,model=rtl8139, bridge=br1", {
            "mac": "00:16:3e:74:3d:07", "model": "rtl8139", "bridge": "br1"
        }),
        ("type=vif,vifname=v,script=vif-bridge,backend=0", {
            "nictype": "vif", "ifname": "v", "script": "vif-bridge", "backend_domain": "0"
        }),
        ("ip=10.0.0.1 fd00::1,gatewaydev=eth0,devid=3,mtu=0x578", {
            "ip": "10.0.0.1 fd00::1", "gatewaydev": "eth0", "devid": 3, "mtu": 1400
        }),
        ("rate=10Mb/s", {"rate_bytes": 62500, "rate_interval": 50000}),
        ("rate=1MB/s@20ms", {"rate_bytes": 20000, "rate_interval": 20000}),
        ("rate=250KB/s@100us", {"rate_bytes": 25, "rate_interval": 100}),
        ("rate=1GB/s@1s", {"rate_bytes": 10**9, "rate_interval": 10**6}),
        ("rate=8b/s@1", {"rate_bytes": 1, "rate_interval": 10**6}),
        ("vlan=10p/20,untrusted", {"vlan": "10p/20", "trusted": False}),
        ("trusted,mac=00:00:00:00:00:00", {"trusted": True}),
        ("forwarddev=f,colo_sock_mirror_id=m", {"colo": (("coloft_forwarddev", "f"), ("colo_sock_mirror_id", "m"))}),
    ],
)  # fmt: skip
def test_grammar(text: str, fields: dict[str, object]) -> None:
    nic = spec(text)
    assert nic == NicConfig(**fields)  # type: ignore[arg-type]
    assert NicConfig.from_plain(msgpack.unpackb(msgpack.packb(nic.to_plain()))) == nic


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "unrecognized argument `nonsense'"),
        ("mac", "unrecognized argument `mac'"),
        ("foo=bar", "unrecognized argument `foo=bar'"),
        ("type=tap", "Invalid parameter `type'."),
        ("mac=00:16:3e:74:3d", "Invalid parameter `mac'."),
        ("mac=00:16:3e:74:3d:100", "Invalid parameter `mac'."),
        ("mac=01:16:3e:74:3d:01", "Invalid parameter `mac': 01:16:3e:74:3d:01 is the address of a group."),
        ("rate=", "F: config parsing error in vif: no rate specified in `'"),
        ("rate=10", "F: config parsing error in vif: invalid rate in `10'"),
        ("rate=0b/s", "F: config parsing error in vif: rate overflow in `0b/s'"),
        ("rate=1Mb/s@x", "F: config parsing error in vif: invalid replenishment interval in `x'"),
        ("rate=1Mb/s@5000s", "F: config parsing error in vif: replenishment interval overflow in `5000s'"),
        ("rate=1b/s@1us", "F: config parsing error in vif: rate too low for its interval in `1b/s@1us'"),
        ("mtu=big", "xl: mtu=big is not a number"),
    ],
)
def test_what_is_no_card(text: str, message: str) -> None:
    with pytest.raises(NicSyntaxError) as error:
        spec(text)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("script=vif-route", "script=vif-route is not built yet"),
        ("backend=net", "backend=net is not built yet"),
        ("type=ioemu", "trying to create PV or PVH guest with an emulated interface"),
        ("ip=nowhere", "ip=nowhere: 'nowhere' is not an IP address"),
        ("vlan=10/20", "vlan=10/20: one VLAN must be that of untagged frames: put a p behind it"),
        ("mtu=20", "mtu=20 is not within 68 and 65517"),
        ("bridge=a b", "bridge=a b is not the name of a bridge"),
        ("forwarddev=f", "colo is not built yet"),
        ("script=/etc/xen/scripts/vif-bridge,backend=Domain-0,bridge=br0.5", None),
        ("script=vif-bridge,forward=1:2", "forward= is for xen-py's own switches: not together with script="),
        ("script=vif-bridge,vlan=5", "vlan= is for xen-py's own switches: not together with script="),
    ],
)
def test_what_cannot_be_had(text: str, reason: str | None) -> None:
    assert spec(text).refusal() == reason


def test_warnings() -> None:
    said: list[str] = []
    parse(["accel=x", "netdev=eth0"], "F", said.append)
    assert said == [
        "the accel parameter for vifs is currently not supported",
        "the netdev parameter is deprecated, please use gatewaydev instead",
    ]


@pytest.mark.parametrize(
    "plain",
    [None, {"mac": "nonsense"}, {"devid": True}, {"devid": -1}, {"what": 1}, {"ip": "\n"}, {"colo": [1]}, {"mac": 1}],
)
def test_what_comes_over_the_socket_is_checked(plain: object) -> None:
    with pytest.raises(NicSyntaxError):
        NicConfig.from_plain(plain)


def test_addresses_and_numbers_stay() -> None:
    nics = settle([spec(""), spec("devid=0"), spec("mac=2:0:0:0:0:1"), spec("devid=7")], UUID)
    assert [nic.devid for nic in nics] == [1, 0, 2, 7]
    assert nics[0].mac == stable_mac(UUID, 1) != nics[1].mac
    assert nics[0].mac is not None and nics[0].mac.startswith("00:16:3e:")
    assert settle(nics, UUID) == nics
    with pytest.raises(NicSyntaxError, match="one devid"):
        settle([spec("devid=1"), spec("devid=1")], UUID)


def test_nodes_are_libxls() -> None:
    (nic,) = settle([spec("mac=00:16:3e:00:00:01")], UUID)
    new = nic.device()
    assert new.back == (
        ("script", SCRIPT),
        ("mac", "00:16:3e:00:00:01"),
        ("bridge", "xenbr0"),
        ("handle", "0"),
        ("type", "vif"),
        ("hotplug-status", ""),
    )
    assert new.front == (("handle", "0"), ("mac", "00:16:3e:00:00:01"), ("trusted", "1"))
    assert new.front_readonly == (("mtu", "1500"),)
    text = "vifname=v,ip=10.0.0.1,gatewaydev=g,rate=8Mb/s,mtu=9000,vlan=5,bridge=b,devid=2,untrusted"
    (nic,) = settle([spec(text)], UUID)
    names = ["script", "vifname", "mac", "ip", "gatewaydev", "rate", "mtu", "vlan", "bridge", "handle", "type"]
    assert [name for name, _ in nic.device().back] == [*names, "hotplug-status"]
    assert dict(nic.device().back)["rate"] == "50000,50000"
    assert dict(nic.device().front)["trusted"] == "0"
    (nic,) = settle([spec("script=vif-bridge")], UUID)
    assert nic.device().back[:3] == (("script", SCRIPT), ("mac", nic.mac), ("linux-bridge", "1"))


def test_json_is_libxls() -> None:
    assert spec("").to_libxl() == {}
    assert spec("type=vif,rate=8Mb/s,trusted,bridge=b").to_libxl() == {
        "bridge": "b",
        "nictype": "vif",
        "rate_bytes_per_interval": 50000,
        "rate_interval_usecs": 50000,
        "trusted": "True",
    }
