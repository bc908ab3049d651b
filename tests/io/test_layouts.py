# SPDX-License-Identifier: GPL-2.0-only
"""The structures and constants of the PV protocols equal those of Xen's public headers, as a C compiler sees them."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.debian import unpacked
from xen_py.io import blkif, netif, ring, xenbus
from xen_py.io.layout import Field, Layout
from xen_py.io.ring import RingKind

# Layout, C structure, our field -> C member where the names differ
STRUCTURES: list[tuple[Layout[Any], str, dict[str, str]]] = [
    (blkif.SEGMENT, "struct blkif_request_segment", {}),
    (blkif.REQUEST, "struct blkif_request", {"segments": "seg"}),
    (blkif.DISCARD_REQUEST, "struct blkif_request_discard", {}),
    (blkif.INDIRECT_REQUEST, "struct blkif_request_indirect", {}),
    (blkif.RESPONSE, "struct blkif_response", {}),
    (netif.TX_REQUEST, "struct netif_tx_request", {}),
    (netif.TX_RESPONSE, "struct netif_tx_response", {}),
    (netif.RX_REQUEST, "struct netif_rx_request", {}),
    (netif.RX_RESPONSE, "struct netif_rx_response", {}),
    (netif.EXTRA, "struct netif_extra_info", {"data": "u"}),
    (netif.GSO_EXTRA, "__typeof__(((struct netif_extra_info *)0)->u.gso)", {}),
    (netif.HASH_EXTRA, "__typeof__(((struct netif_extra_info *)0)->u.hash)", {}),
    (netif.CTRL_REQUEST, "struct xen_netif_ctrl_request", {"data0": "data[0]", "data1": "data[1]", "data2": "data[2]"}),
    (netif.CTRL_RESPONSE, "struct xen_netif_ctrl_response", {}),
    (netif.GREF_MAPPING, "struct xen_netif_gref", {}),
]

RINGS: list[tuple[RingKind, str]] = [
    (blkif.RING, "blkif"),
    (netif.TX_RING, "netif_tx"),
    (netif.RX_RING, "netif_rx"),
    (netif.CTRL_RING, "xen_netif_ctrl"),
]


def _enum(kind: type[IntEnum], prefix: str, **renamed: str) -> dict[str, int]:
    return {renamed.get(member.name, prefix + member.name): member.value for member in kind}


CONSTANTS: dict[str, int] = {
    **_enum(blkif.Operation, "BLKIF_OP_"),
    **_enum(blkif.Status, "BLKIF_RSP_"),
    **{f"VDISK_{flag.name}": flag.value for flag in blkif.DiskInfo},
    "BLKIF_MAX_SEGMENTS_PER_REQUEST": blkif.MAX_SEGMENTS,
    "BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST": blkif.MAX_INDIRECT_PAGES,
    "BLKIF_DISCARD_SECURE": blkif.DISCARD_SECURE,
    **{f"NETTXF_{str(flag.name).lower()}": flag.value for flag in netif.TxFlag},
    **{f"NETRXF_{str(flag.name).lower()}": flag.value for flag in netif.RxFlag},
    **_enum(netif.Status, "NETIF_RSP_"),
    **_enum(netif.ExtraType, "XEN_NETIF_EXTRA_TYPE_"),
    **_enum(netif.GsoType, "XEN_NETIF_GSO_TYPE_"),
    **_enum(netif.CtrlType, "XEN_NETIF_CTRL_TYPE_"),
    **_enum(netif.CtrlStatus, "XEN_NETIF_CTRL_STATUS_"),
    **{f"XEN_NETIF_CTRL_HASH_TYPE_{flag.name}": flag.value for flag in netif.HashType},
    **_enum(netif.HashAlgorithm, "XEN_NETIF_CTRL_HASH_ALGORITHM_"),
    "XEN_NETIF_EXTRA_FLAG_MORE": netif.ExtraFlag.MORE,
    "XEN_NETIF_CTRLF_GREF_readonly": netif.GREF_READONLY,
    "XEN_NETIF_MAX_TX_SIZE": netif.MAX_TX_SIZE,
    "XEN_NETIF_NR_SLOTS_MIN": netif.MIN_SLOTS_PER_PACKET,
    **{f"XenbusState{state.name.title().replace('_', '')}": state.value for state in xenbus.State},
}

PAGES = (1, 2, 4, 8, 16)
HEADERS = ("xen", "grant_table", "io/ring", "io/blkif", "io/netif", "io/xenbus")


def _questions() -> list[str]:
    """C expressions, in the order in which the test takes the answers."""
    found = []
    for layout, name, renamed in STRUCTURES:
        found.append(f"sizeof({name})")
        for field in layout.fields:
            member = renamed.get(field.name, field.name)
            found += [f"offsetof({name}, {member})", f"sizeof((({name} *)0)->{member})"]
    for _, name in RINGS:
        found += [f"__CONST_RING_SIZE({name}, {pages} * 4096)" for pages in PAGES]
    members = ("req_prod", "req_event", "rsp_prod", "rsp_event", "ring")
    return [*found, *(f"offsetof(struct blkif_sring, {member})" for member in members), *CONSTANTS]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Every number the C compiler gives: a table in a library, so that no C library is needed."""
    headers = unpacked("libxen-dev") / "usr" / "include"
    folder: Path = tmp_path_factory.mktemp("abi")
    questions = _questions()
    includes = [f"#include <{name}>" for name in ("stddef.h", "stdint.h", *(f"xen/{name}.h" for name in HEADERS))]
    table = ", ".join(f"(long)({question})" for question in questions)
    (folder / "abi.c").write_text("\n".join([*includes, f"const long answers[] = {{{table}}};\n"]))
    flags = ["-shared", "-nostdlib", "-ffreestanding", "-D__XEN_TOOLS__", f"-I{headers}"]
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-gnu"]
    subprocess.run([*compiler, *flags, "abi.c", "-o", "abi.so"], cwd=folder, check=True)
    return iter((ctypes.c_long * len(questions)).in_dll(ctypes.CDLL(str(folder / "abi.so")), "answers"))


def test_structures_rings_and_constants_are_xens(answers: Iterator[int]) -> None:
    for layout, name, _ in STRUCTURES:
        assert layout.size == next(answers), name
        for field in layout.fields:
            assert field == Field(field.name, next(answers), next(answers)), name
    for kind, name in RINGS:
        assert [kind.slots(pages) for pages in PAGES] == [next(answers) for _ in PAGES], name
    header = [ring.REQ_PROD * 4, ring.REQ_EVENT * 4, ring.RSP_PROD * 4, ring.RSP_EVENT * 4, ring.HEADER_SIZE]
    assert header == [next(answers) for _ in header]
    assert {name: next(answers) for name in CONSTANTS} == CONSTANTS
    assert list(answers) == []


def test_a_slot_is_decoded_as_what_it_is() -> None:
    segments = [blkif.Segment(7, 0, 7), blkif.Segment(8, 3, 4)]
    read = blkif.Request(blkif.Operation.READ, 2, 51712, 0x1122334455667788, 99, blkif.pack_segments(segments))
    assert blkif.decode_request(blkif.REQUEST.pack(read)) == read
    assert blkif.segments_of(read.segments, 2) == segments
    discard = blkif.DiscardRequest(blkif.Operation.DISCARD, 0, 51712, 5, 8, 16)
    assert blkif.decode_request(blkif.DISCARD_REQUEST.pack(discard).ljust(blkif.REQUEST.size, b"\xff")) == discard
    grefs = bytes(range(32))
    indirect = blkif.IndirectRequest(blkif.Operation.INDIRECT, blkif.Operation.WRITE, 300, 6, 8, 51712, grefs)
    assert blkif.decode_request(blkif.INDIRECT_REQUEST.pack(indirect).ljust(blkif.REQUEST.size, b"\0")) == indirect
    with pytest.raises(ValueError, match="12 segments where a plain request holds 11"):
        blkif.pack_segments([blkif.Segment(1, 0, 0)] * 12)


class Pair(NamedTuple):
    first: int
    second: int


def test_a_description_must_fit_its_fields() -> None:
    with pytest.raises(ValueError, match="Pair: no format for second"):
        Layout(Pair, "H")
    with pytest.raises(ValueError, match="'2H' is several values"):
        Layout(Pair, "2H")
