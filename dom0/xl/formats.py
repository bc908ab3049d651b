# SPDX-License-Identifier: GPL-2.0-only
"""The tables xl prints: plain data in, text out, to the byte as the scripts of this world parse it.

Pure functions. Format strings from tools/xl/xl_info.c and xl_vcpu.c; checked against what Xen 4.17 printed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from dom0.toolstack.text import printable
from dom0.xl.domains import DomainRow, VcpuRow

_REASON_LETTERS = "-rscwS"
"""poweroff, reboot, suspend, crash, watchdog, soft reset."""


def domain_list(
    domains: Iterable[DomainRow],
    *,
    verbose: bool = False,
    context: bool = False,
    cpupool: bool = False,
    numa: bool = False,
) -> str:
    """`xl list`. A shut-down domain's reason in words follows its row with `verbose`, where xl has nothing to say."""
    header = "Name                                        ID   Mem VCPUs\tState\tTime(s)"
    if verbose:
        header += "   UUID                            Reason-Code\tSecurity Label"
    elif context:
        header += "   Security Label"
    header += "         Cpupool" * cpupool + " NODE Affinity" * numa
    lines = [header]
    for domain in domains:
        row = (
            f"{domain.name:<40} {domain.domid:5d} {domain.mem_kb // 1024:5d} {domain.vcpus_online:5d}"
            f"     {state_letters(domain)}  {domain.cpu_time_ns / 1e9:8.1f}"
        )
        if verbose:
            reason = f"{domain.shutdown_reason or 0:x}" if domain.shutdown else "-"
            row += f" {domain.uuid} {reason:>8}"
        if verbose or context:
            row += f" {'-':>16}"
        row += f"{'Pool-0':>16}" * cpupool + " all" * numa
        if verbose and domain.shutdown and domain.reason_text:
            row += f" {printable(domain.reason_text)}"
        lines.append(row)
    return "\n".join(lines)


def state_letters(domain: DomainRow) -> str:
    reason = (domain.shutdown_reason or 0) if domain.shutdown else 0
    return "".join(
        (
            "r" if domain.running else "-",
            "b" if domain.blocked else "-",
            "p" if domain.paused else "-",
            "s" if domain.shutdown else "-",
            _REASON_LETTERS[reason] if 0 <= reason < len(_REASON_LETTERS) else "?",
            "d" if domain.dying else "-",
        )
    )


def vm_list(domains: Iterable[DomainRow]) -> str:
    """`xl vm-list`."""
    rows = [f"{domain.uuid}  {domain.domid:d}    {domain.name:<30}" for domain in domains]
    return "\n".join(["UUID                                  ID    name", *rows])


VCPU_LIST_HEADER = f"{'Name':<32} {'ID':>5} {'VCPU':>5} {'CPU':>5} {'State':>5} {'Time(s)':>9} Affinity (Hard / Soft)"


def vcpu_list(domain: DomainRow, vcpus: Iterable[VcpuRow]) -> list[str]:
    """The rows of `xl vcpu-list` for one domain. Every vCPU may run anywhere."""
    lines = []
    for vcpu in vcpus:
        if vcpu.online:
            where = f"{vcpu.cpu:5d} {'r' if vcpu.running else '-':>3}{'b' if vcpu.blocked else '-'}- "
        else:
            where = f"{'-':>5} {'-':>3}-p "
        lines.append(
            f"{domain.name:<32} {domain.domid:5d} {vcpu.vcpu:5d}{where}{vcpu.cpu_time_ns / 1e9:9.1f}  all / all"
        )
    return lines


def uptime(domains: Iterable[DomainRow], now: float, *, short: bool = False) -> str:
    """`xl uptime`, and `-s`."""
    lines = [] if short else [f"{'Name':<33} {'ID':>4} Uptime"]
    clock = time.strftime("%H:%M:%S", time.localtime(now))
    for domain in domains:
        seconds = max(0, int(now) - int(domain.start_time))
        if short:
            lines.append(f" {clock} up {_duration(seconds, short=True)}, {domain.name} ({domain.domid})")
        else:
            lines.append(f"{domain.name:<33} {domain.domid:4d} {_duration(seconds, short=False)}")
    return "\n".join(lines)


def _duration(seconds: int, *, short: bool) -> str:
    days, seconds = divmod(seconds, 86400)
    hours, seconds = divmod(seconds, 3600)
    minutes, seconds = divmod(seconds, 60)
    text = f"{hours:2d}:{minutes:02d}" if short else f"{hours:2d}:{minutes:02d}:{seconds:02d}"
    return f"{days} day{'s' if days > 1 else ''}, {text}" if days else text


def info(fields: Mapping[str, object], *, only: str | None = None, numa: bool = False) -> list[str]:
    """`xl info`: a `name : value` line a field; `only` gives the values of the names that begin so."""
    if only is not None:
        return [str(value) for name, value in fields.items() if f"{name:<23}: ".startswith(only)]
    lines = []
    for name, value in fields.items():
        if numa and name == "xen_major":
            lines += _numa(fields)
        lines.append(f"{name:<23}: {value}")
    return lines


def _numa(fields: Mapping[str, object]) -> list[str]:
    """The tables of `xl info -n`; the host is one node, its CPUs in the order of their numbers."""

    def count(name: str) -> int:
        return max(1, int(str(fields.get(name, 1))))

    threads, cores = count("threads_per_core"), count("cores_per_socket")
    rows = [
        f"{cpu:3d}:    {cpu // threads % cores:4d}     {cpu // (threads * cores):4d}     {0:4d}"
        for cpu in range(count("nr_cpus"))
    ]
    memory = f"{0:4d}:    {fields.get('total_memory', 0):>6}     {fields.get('free_memory', 0):>6}      10"
    return [
        "cpu_topology           :",
        "cpu:    core    socket     node",
        *rows,
        "device topology        :",
        "device           node",
        "No device topology data available",
        "numa_info              :",
        "node:    memsize    memfree    distances",
        memory,
    ]
