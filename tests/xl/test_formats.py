# SPDX-License-Identifier: GPL-2.0-only
"""The tables of xl, byte for byte, over the data real Xen had when it printed them."""

from __future__ import annotations

import time
from typing import Any

import pytest

from dom0.xl import formats
from dom0.xl.domains import DomainRow, VcpuRow
from tests.xl.fake_host import row

ZERO_UUID = "00000000-0000-0000-0000-000000000000"
GUEST_UUID = "d5e5a122-2c71-49e3-b921-ad7cc94b60dc"


def dom0(**changes: Any) -> DomainRow:
    facts = {"mem_kb": 1048576, "running": True, "blocked": False, "cpu_time_ns": 21_200_000_000}
    return DomainRow.from_plain(row(0, "Domain-0", **(facts | changes)))


def guest(**changes: Any) -> DomainRow:
    return DomainRow.from_plain(row(3, "gpv", uuid=GUEST_UUID, **changes))


def test_list() -> None:
    assert formats.domain_list([dom0(), guest()]) == (
        "Name                                        ID   Mem VCPUs\tState\tTime(s)\n"
        "Domain-0                                     0  1024     1     r-----      21.2\n"
        "gpv                                          3   128     1     -b----       6.3"
    )


def test_list_verbose() -> None:
    assert formats.domain_list([dom0(cpu_time_ns=21_400_000_000), guest()], verbose=True, context=True) == (
        "Name                                        ID   Mem VCPUs\tState\tTime(s)   UUID                            "
        "Reason-Code\tSecurity Label\n"
        f"Domain-0                                     0  1024     1     r-----      21.4 {ZERO_UUID}        -"
        "                -\n"
        f"gpv                                          3   128     1     -b----       6.3 {GUEST_UUID}        -"
        "                -"
    )


def test_list_says_why_a_domain_ended() -> None:
    crashed = guest(shutdown=True, shutdown_reason=3, blocked=False, reason_text="triple\x1b fault")
    text = formats.domain_list([crashed], verbose=True)
    assert text.endswith(f"     ---sc-       6.3 {GUEST_UUID}        3                - triple? fault")


def test_list_with_node_pool_and_context() -> None:
    header, line = formats.domain_list([dom0(cpu_time_ns=10_800_000_000)], numa=True).split("\n")
    assert header.endswith("Time(s) NODE Affinity")
    assert line == "Domain-0                                     0  1024     1     r-----      10.8 all"
    header, line = formats.domain_list([dom0()], cpupool=True).split("\n")
    assert (header[-16:], line[-17:]) == ("         Cpupool", "2          Pool-0")
    header, line = formats.domain_list([dom0()], context=True).split("\n")
    assert (header[-17:], line[-17:]) == ("   Security Label", "                -")


@pytest.mark.parametrize(
    ("changes", "letters"),
    [
        ({}, "-b----"),
        ({"blocked": False}, "------"),
        ({"blocked": False, "paused": True}, "--p---"),
        ({"running": True, "blocked": False, "dying": True}, "r----d"),
        *[({"blocked": False, "shutdown": True, "shutdown_reason": reason}, f"---s{letter}-")
          for reason, letter in enumerate("-rscwS?")],
        ({"shutdown_reason": 3}, "-b----"),
    ],
)  # fmt: skip
def test_state_letters(changes: dict[str, Any], letters: str) -> None:
    assert formats.state_letters(guest(**changes)) == letters


def test_vm_list() -> None:
    assert formats.vm_list([dom0(), guest()]) == (
        "UUID                                  ID    name\n"
        f"{ZERO_UUID}  0    Domain-0                      \n"
        f"{GUEST_UUID}  3    gpv                           "
    )


def test_vcpu_list() -> None:
    def vcpu(seconds: float, **changes: Any) -> VcpuRow:
        facts = {"vcpu": 0, "cpu": 0, "online": True, "running": False, "blocked": True}
        return VcpuRow.from_plain(facts | {"cpu_time_ns": int(seconds * 1e9)} | changes)

    assert formats.VCPU_LIST_HEADER == (
        "Name                                ID  VCPU   CPU State   Time(s) Affinity (Hard / Soft)"
    )
    assert formats.vcpu_list(dom0(), [vcpu(24.0, running=True, blocked=False)]) == [
        "Domain-0                             0     0    0   r--      24.0  all / all"
    ]
    assert formats.vcpu_list(guest(), [vcpu(6.3), vcpu(0, vcpu=1, online=False)]) == [
        "gpv                                  3     0    0   -b-       6.3  all / all",
        "gpv                                  3     1    -   --p       0.0  all / all",
    ]


def test_uptime() -> None:
    domains = [dom0(start_time=1000.0), guest(start_time=1017.2)]
    assert formats.uptime(domains, 1033.9) == (
        "Name                                ID Uptime\n"
        "Domain-0                             0  0:00:33\n"
        "gpv                                  3  0:00:16"
    )


@pytest.mark.parametrize(
    ("seconds", "long", "short"),
    [
        (59, " 0:00:59", " 0:00"),
        (86399, "23:59:59", "23:59"),
        (86400, "1 day,  0:00:00", "1 day,  0:00"),
        (2 * 86400 + 3661, "2 days,  1:01:01", "2 days,  1:01"),
        (-5, " 0:00:00", " 0:00"),
    ],
)
def test_uptime_of_days(seconds: int, long: str, short: str) -> None:
    domains = [guest(start_time=1e9 - seconds)]
    clock = time.strftime("%H:%M:%S", time.localtime(1e9))
    assert formats.uptime(domains, 1e9).split("\n")[1] == f"gpv                                  3 {long}"
    assert formats.uptime(domains, 1e9, short=True) == f" {clock} up {short}, gpv (3)"


INFO = {
    "host": "dom0",
    "nr_cpus": 2,
    "cores_per_socket": 1,
    "threads_per_core": 1,
    "virt_caps": "pv gnttab-v1",
    "total_memory": 2047,
    "free_memory": 1000,
    "xen_major": 4,
    "xen_version": "4.17.7",
    "xen_changeset": "",
}


def test_info() -> None:
    assert formats.info(INFO) == [
        "host                   : dom0",
        "nr_cpus                : 2",
        "cores_per_socket       : 1",
        "threads_per_core       : 1",
        "virt_caps              : pv gnttab-v1",
        "total_memory           : 2047",
        "free_memory            : 1000",
        "xen_major              : 4",
        "xen_version            : 4.17.7",
        "xen_changeset          : ",
    ]


@pytest.mark.parametrize(
    ("only", "values"),
    [
        ("xen_version", ["4.17.7"]),
        ("xen_", ["4", "4.17.7", ""]),
        ("xen_changeset", [""]),
        ("host   ", ["dom0"]),
        ("nosuch", []),
    ],
)
def test_info_of_a_field(only: str, values: list[str]) -> None:
    assert formats.info(INFO, only=only) == values


def test_info_numa() -> None:
    assert formats.info(INFO, numa=True)[7:18] == [
        "cpu_topology           :",
        "cpu:    core    socket     node",
        "  0:       0        0        0",
        "  1:       0        1        0",
        "device topology        :",
        "device           node",
        "No device topology data available",
        "numa_info              :",
        "node:    memsize    memfree    distances",
        "   0:      2047       1000      10",
        "xen_major              : 4",
    ]
