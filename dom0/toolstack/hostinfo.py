# SPDX-License-Identifier: GPL-2.0-only
"""The machine we run on, as a hypervisor would describe it: processors, memory that can still be given, `xl info`.

Every value is true of this machine or of xen-py itself; what has no counterpart here (IOMMU, HVM) is left out or zero.
Functions only; read afresh at each call. Sources: proc(5), cgroups(7), xl's output_physinfo.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import attrs

from xen_py.abi.version import XEN_CAPS, XEN_EXTRA, XEN_MAJOR, XEN_MINOR, XEN_VERSION, XEN_VIRT_START

RESERVE_KB = 128 * 1024
"""Memory that is never given to guests: for the host process and the rest of the machine."""
PER_DOMAIN_KB = 32 * 1024
"""What a guest costs besides its own memory: its process, translated code, tables."""

_CGROUP = Path("/sys/fs/cgroup")


@attrs.frozen
class Memory:
    """In KiB: what the machine (or the control group we are in) has, and what of it is free."""

    total_kb: int
    available_kb: int


@attrs.frozen
class Processors:
    count: int
    cores_per_socket: int
    threads_per_core: int
    mhz: float


def memory() -> Memory:
    figures = _key_values(Path("/proc/meminfo"))
    total, available = figures["MemTotal:"], figures["MemAvailable:"]
    for limit, used in _cgroup_limits():
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return Memory(total, available)


def free_for_guests(machine: Memory, promised_kb: int) -> int:
    """KiB a new guest may have, when `promised_kb` of what running guests were given is not yet in use."""
    return max(0, machine.available_kb - promised_kb - RESERVE_KB)


def processors() -> Processors:
    count = len(os.sched_getaffinity(0))
    text = _read(Path("/proc/cpuinfo"))

    def number(name: str, fallback: float) -> float:
        found = re.search(rf"^{name}\s*:\s*([0-9.]+)", text, re.MULTILINE)
        return float(found.group(1)) if found else fallback

    cores = max(1, int(number("cpu cores", 1)))
    threads = max(1, int(number("siblings", cores)) // cores)
    return Processors(count, cores, threads, number("cpu MHz", 0.0))


def describe(machine: Memory, free_kb: int) -> dict[str, str | int]:
    """The fields of `xl info`, in its order."""
    system = platform.uname()
    cpus = processors()
    return {
        "host": system.node,
        "release": system.release,
        "version": system.version,
        "machine": system.machine,
        "nr_cpus": cpus.count,
        "max_cpu_id": cpus.count - 1,
        "nr_nodes": 1,
        "cores_per_socket": cpus.cores_per_socket,
        "threads_per_core": cpus.threads_per_core,
        "cpu_mhz": f"{cpus.mhz:.3f}",
        "hw_caps": hardware_capabilities(),
        "virt_caps": "pv gnttab-v1",
        "total_memory": machine.total_kb // 1024,
        "free_memory": free_kb // 1024,
        "sharing_freed_memory": 0,
        "sharing_used_memory": 0,
        "outstanding_claims": 0,
        "free_cpus": 0,
        "xen_major": XEN_MAJOR,
        "xen_minor": XEN_MINOR,
        "xen_extra": XEN_EXTRA,
        "xen_version": XEN_VERSION,
        "xen_caps": XEN_CAPS,
        "xen_scheduler": "credit2",
        "xen_pagesize": os.sysconf("SC_PAGE_SIZE"),
        "platform_params": f"virt_start={XEN_VIRT_START:#x}",
        "xen_changeset": "",
        "xen_commandline": "",
        "cc_compiler": platform.python_compiler(),
        "cc_compile_by": "",
        "cc_compile_domain": "",
        "cc_compile_date": "",
        "build_id": "",
        "xend_config_format": 4,
    }


# The first eight words of Xen's feature set, by the flag names of /proc/cpuinfo; "" is a bit without a name there.
_FEATURE_WORDS = (
    "fpu vme de pse tsc msr pae mce cx8 apic . sep mtrr pge mca cmov pat pse36 pn clflush . dts acpi mmx fxsr sse sse2 "
    "ss ht tm ia64 pbe",
    "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm . pcid dca sse4_1 sse4_2 "
    "x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor",
    ". . . . . . . . . . . syscall . . . . . . . mp nx . mmxext . . fxsr_opt pdpe1gb rdtscp . lm 3dnowext 3dnow",
    "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt . lwp fma4 "
    "tce . nodeid_msr . tbm topoext perfctr_core perfctr_nb . bpext ptsc perfctr_llc mwaitx",
    "xsaveopt xsavec xgetbv1 xsaves",
    "fsgsbase tsc_adjust sgx bmi1 hle avx2 . smep bmi2 erms invpcid rtm cqm . mpx rdt_a avx512f avx512dq rdseed adx "
    "smap avx512ifma . clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl",
    ". avx512vbmi umip pku ospke waitpkg avx512_vbmi2 . gfni vaes vpclmulqdq avx512_vnni avx512_bitalg tme "
    "avx512_vpopcntdq . la57 . . . . . rdpid . . cldemote . movdiri movdir64b enqcmd",
    ". . . . . . . . constant_tsc",
)


def hardware_capabilities() -> str:
    """What `xl info` shows as hw_caps, from the flags the kernel names."""
    found = re.search(r"^flags\s*:(.*)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    flags = set(found.group(1).split()) if found else set()
    words = []
    for names in _FEATURE_WORDS:
        words.append(sum(1 << bit for bit, name in enumerate(names.split()) if name in flags))
    return ":".join(f"{word:08x}" for word in words)


def _cgroup_limits() -> list[tuple[int, int]]:
    """(limit, used) in KiB of every control group above us that limits memory; page cache does not count as used."""
    found = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            top, limit_name, used_name = _CGROUP, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            top, limit_name, used_name = _CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            limit, used = _read(folder / limit_name).strip(), _read(folder / used_name).strip()
            if limit.isdigit() and used.isdigit():
                cache = _key_values(folder / "memory.stat").get("inactive_file", 0)
                found.append((int(limit) // 1024, max(0, int(used) - cache) // 1024))
            if folder == top:
                break
    return found


def _key_values(path: Path) -> dict[str, int]:
    fields = (line.split() for line in _read(path).splitlines())
    return {words[0]: int(words[1]) for words in fields if len(words) > 1 and words[1].isdigit()}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
