# SPDX-License-Identifier: GPL-2.0-only
"""The structures and constants of grant tables equal those of Xen's public header, as a C compiler sees them."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from struct import Struct, calcsize

from tests.debian import unpacked
from xen_py.abi import grant_table as abi

POINTER = ("source.u.gmfn", "source.domid", "source.offset", "dest.u.gmfn", "dest.domid", "dest.offset")
STRUCTURES: list[tuple[Struct, str, tuple[str, ...]]] = [
    (abi.entry_v1, "grant_entry_v1", ("flags", "domid", "frame")),
    (
        abi.map_grant_ref,
        "gnttab_map_grant_ref",
        ("host_addr", "flags", "ref", "dom", "status", "handle", "dev_bus_addr"),
    ),
    (abi.unmap_grant_ref, "gnttab_unmap_grant_ref", ("host_addr", "dev_bus_addr", "handle", "status")),
    (abi.unmap_grant_ref, "gnttab_unmap_and_replace", ("host_addr", "new_addr", "handle", "status")),
    (abi.setup_table, "gnttab_setup_table", ("dom", "nr_frames", "status", "frame_list")),
    (abi.dump_table, "gnttab_dump_table", ("dom", "status")),
    (abi.transfer, "gnttab_transfer", ("mfn", "domid", "ref", "status")),
    (abi.copy, "gnttab_copy", (*POINTER, "len", "flags", "status")),
    (abi.query_size, "gnttab_query_size", ("dom", "nr_frames", "max_nr_frames", "status")),
    (abi.set_version, "gnttab_set_version", ("version",)),
    (abi.get_status_frames, "gnttab_get_status_frames", ("nr_frames", "dom", "status", "frame_list")),
    (abi.get_version, "gnttab_get_version", ("dom", "version")),
    (abi.swap_grant_ref, "gnttab_swap_grant_ref", ("ref_a", "ref_b", "status")),
]

OFFSETS = {
    "offsetof(struct gnttab_unmap_grant_ref, status)": abi.UNMAP_STATUS,
    "offsetof(struct gnttab_setup_table, status)": abi.SETUP_STATUS,
    "offsetof(struct gnttab_copy, status)": abi.COPY_STATUS,
    "offsetof(struct gnttab_get_status_frames, status)": abi.STATUS_FRAMES_STATUS,
    "offsetof(struct gnttab_get_version, version)": abi.GET_VERSION_VERSION,
    "offsetof(struct gnttab_swap_grant_ref, status)": abi.SWAP_STATUS,
}

CONSTANTS = {
    **{f"GNTTABOP_{op.name.lower()}": op.value for op in abi.GnttabOp},
    **{f"GNTST_{status.name.lower()}": status.value for status in abi.GrantStatus},
    "GTF_permit_access": abi.GrantFlag.PERMIT_ACCESS,
    "GTF_accept_transfer": abi.GrantFlag.ACCEPT_TRANSFER,
    "GTF_transitive": abi.GrantFlag.TRANSITIVE,
    "GTF_type_mask": abi.GRANT_TYPE_MASK,
    "GTF_readonly": abi.GrantFlag.READONLY,
    "GTF_reading": abi.GrantFlag.READING,
    "GTF_writing": abi.GrantFlag.WRITING,
    "GTF_sub_page": abi.GrantFlag.SUB_PAGE,
    "GNTMAP_device_map": abi.MapFlag.DEVICE,
    "GNTMAP_host_map": abi.MapFlag.HOST,
    "GNTMAP_readonly": abi.MapFlag.READONLY,
    "GNTMAP_application_map": abi.MapFlag.APPLICATION,
    "GNTMAP_contains_pte": abi.MapFlag.CONTAINS_PTE,
    "_GNTMAP_guest_avail0": abi.MAP_AVAIL_SHIFT,
    "GNTCOPY_source_gref": abi.CopyFlag.SOURCE_GREF,
    "GNTCOPY_dest_gref": abi.CopyFlag.DEST_GREF,
    "GNTTAB_NR_RESERVED_ENTRIES": abi.RESERVED_ENTRIES,
    "GNTTAB_RESERVED_CONSOLE": abi.RESERVED_CONSOLE,
    "GNTTAB_RESERVED_XENSTORE": abi.RESERVED_XENSTORE,
    "sizeof(struct grant_entry_v1)": abi.ENTRY_SIZE,
}


def fields(layout: Struct) -> list[tuple[int, int]]:
    """Offset and size of each field: where a number with all bits set shows."""
    codes = [code for code in layout.format if code not in "<x"]
    found = []
    for n, code in enumerate(codes):
        full = -1 if code.islower() else (1 << 8 * calcsize(code)) - 1
        packed = layout.pack(*(full if k == n else 0 for k in range(len(codes))))
        found.append((packed.index(0xFF), packed.count(0xFF)))
    return found


def test_structures_and_constants_are_xens(tmp_path: Path) -> None:
    ours: dict[str, int] = {**OFFSETS, **CONSTANTS}
    for layout, name, members in STRUCTURES:
        ours[f"sizeof(struct {name})"] = layout.size
        for member, (offset, size) in zip(members, fields(layout), strict=True):
            ours[f"offsetof(struct {name}, {member})"] = offset
            ours[f"sizeof(((struct {name} *)0)->{member})"] = size
    headers = unpacked("libxen-dev") / "usr" / "include"
    table = ", ".join(f"(long)({question})" for question in ours)
    includes = [f"#include <{name}.h>" for name in ("stddef", "stdint", "xen/xen", "xen/grant_table")]
    (tmp_path / "abi.c").write_text("\n".join([*includes, f"const long answers[] = {{{table}}};\n"]))
    flags = ["-shared", "-nostdlib", "-ffreestanding", "-D__XEN_TOOLS__", f"-I{headers}"]
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-gnu"]
    subprocess.run([*compiler, *flags, "abi.c", "-o", "abi.so"], cwd=tmp_path, check=True)
    answers = (ctypes.c_long * len(ours)).in_dll(ctypes.CDLL(str(tmp_path / "abi.so")), "answers")
    assert dict(zip(ours, answers, strict=True)) == ours
