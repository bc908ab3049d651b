# SPDX-License-Identifier: GPL-2.0-only
"""Debian's kernel with its own xen-netfront: guests reach each other over xenbr0, by IPv4 and IPv6, TCP and all."""

from __future__ import annotations

from pathlib import Path

from tests.net.captures import read_capture
from tests.net.linux import guests, transfer
from tests.system.harness import Host, until

MAC = "00:16:3e:00:00:0"


def test_two_debians_reach_each_other(host: Host, debian: None, tmp_path: Path) -> None:
    with guests(host, f"['mac={MAC}1']", f"['mac={MAC}2']") as (one, two):
        for number, shell in ((1, one), (2, two)):
            shell.run(f"ip addr add 10.0.0.{number}/24 dev eth0; ip link set eth0 up")
            shell.run(f"ip addr add fd00::{number}/64 dev eth0; sleep 2")  # until it is sure that it has it alone
        capture = tmp_path / "capture.pcapng"
        with host.session("netcap", "net0", "-w", str(capture)):
            until(lambda: capture.exists() and capture.stat().st_size > 0, "the capture to begin")
            one.run("ping -c 3 10.0.0.2; ping -c 1 -s 3000 10.0.0.2")
        names, frames = read_capture(capture.read_bytes())
        assert names == ["vif1.0"]
        echoes = [frame for frame in frames if frame.data[12:14] == b"\x08\x00" and frame.data[23] == 1]
        assert len(echoes) == 12  # six a way: the last was in three parts
        assert {frame.direction for frame in echoes} == {1, 2}
        two.run("ping -c 3 -s 1400 10.0.0.1")
        one.run("ping -c 3 fd00::2")
        transfer(two, one, "10.0.0.2", 2)
        transfer(one, two, "10.0.0.1")
        transfer(two, one, "fd00::2", port=6000)
        lines = host.xl("network-list", "net0", "net1").splitlines()
        assert [line.split()[:4] for line in lines[1:]] == [["0", "0", f"{MAC}{n}", "0"] for n in (1, 2)]
        assert all(line.split()[4] == "4" for line in lines[1:])


def test_cards_come_and_go(host: Host, debian: None) -> None:
    with guests(host, f"['mac={MAC}1,ip=10.0.0.1']", "[]") as (one, two):
        one.run("ip addr add 10.0.0.1/24 dev eth0; ip link set eth0 up")
        for _ in range(2):
            host.xl("network-attach", "net1", f"mac={MAC}2", "rate=20Mb/s")
            two.run("until ip link show eth0 2>/dev/null; do sleep 0.1; done")
            two.run("ip addr add 10.0.0.2/24 dev eth0; ip link set eth0 up; ping -c 3 10.0.0.1")
            host.xl("network-detach", "net1", f"{MAC}2")
            two.run("! ip link show eth0 2>/dev/null")
        assert len(host.xl("network-list", "net1").splitlines()) == 1
        host.xl("network-attach", "net1", "bridge=other")
        two.run("until ip link show eth0 2>/dev/null; do sleep 0.1; done")
        two.run("ip addr add 10.0.0.2/24 dev eth0; ip link set eth0 up")
        two.run("! ping -c 1 -W 1 10.0.0.1")
        host.xl("network-attach", "net1")
        two.run("until ip link show eth1 2>/dev/null; do sleep 0.1; done")
        two.run("ip addr flush dev eth0; ip addr add 10.0.0.2/24 dev eth1; ip link set eth1 up; ping -c 3 10.0.0.1")
        one.run("ip addr add 10.0.0.9/24 dev eth0; ! ping -c 1 -W 1 -I 10.0.0.9 10.0.0.2")
