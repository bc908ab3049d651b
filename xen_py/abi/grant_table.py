# SPDX-License-Identifier: GPL-2.0-only
"""Grant tables: constants and layouts, version 1 entries. Source: public/grant_table.h.

Pure; anyone may use it.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct


class GnttabOp(IntEnum):
    """`GNTTABOP_*`."""

    MAP_GRANT_REF = 0
    UNMAP_GRANT_REF = 1
    SETUP_TABLE = 2
    DUMP_TABLE = 3
    TRANSFER = 4
    COPY = 5
    QUERY_SIZE = 6
    UNMAP_AND_REPLACE = 7
    SET_VERSION = 8
    GET_STATUS_FRAMES = 9
    GET_VERSION = 10
    SWAP_GRANT_REF = 11
    CACHE_FLUSH = 12


COMMAND_BITS = 12
"""Bits of the command word that are the operation; those above belong to Xen's continuations."""


class GrantStatus(IntEnum):
    """`GNTST_*`: what became of one operation."""

    OKAY = 0
    GENERAL_ERROR = -1
    BAD_DOMAIN = -2
    BAD_GNTREF = -3
    BAD_HANDLE = -4
    BAD_VIRT_ADDR = -5
    BAD_DEV_ADDR = -6
    NO_DEVICE_SPACE = -7
    PERMISSION_DENIED = -8
    BAD_PAGE = -9
    BAD_COPY_ARG = -10
    ADDRESS_TOO_BIG = -11
    EAGAIN = -12
    NO_SPACE = -13


class GrantFlag:
    """`GTF_*`: the flags of an entry. The two lowest bits are its type."""

    PERMIT_ACCESS = 1
    ACCEPT_TRANSFER = 2
    TRANSITIVE = 3
    READONLY = 4
    READING = 8
    WRITING = 0x10
    SUB_PAGE = 0x100


GRANT_TYPE_MASK = 3


class MapFlag:
    """`GNTMAP_*`."""

    DEVICE = 1
    HOST = 2
    READONLY = 4
    APPLICATION = 8
    CONTAINS_PTE = 0x10


MAP_AVAIL_SHIFT = 16
"""From this bit on: bits for the guest, of which three go into the available bits of the page-table entry."""


class CopyFlag:
    """`GNTCOPY_*`: which side is a grant reference; the other is a frame number."""

    SOURCE_GREF = 1
    DEST_GREF = 2


RESERVED_ENTRIES = 8
"""The toolstack's own entries."""
RESERVED_CONSOLE = 0
RESERVED_XENSTORE = 1

ENTRY_SIZE = 8
ENTRIES_PER_FRAME = 4096 // ENTRY_SIZE

entry_v1 = Struct("<HHI")
"""flags, domid, frame"""
map_grant_ref = Struct("<QIIHhIQ")
"""host_addr, flags, ref, dom, status, handle, dev_bus_addr"""
unmap_grant_ref = Struct("<QQIhxx")
"""host_addr, dev_bus_addr, handle, status; unmap_and_replace has new_addr for the second"""
UNMAP_STATUS = 20
setup_table = Struct("<HxxIhxxxxxxQ")
"""dom, nr_frames, status, frame_list"""
SETUP_STATUS = 8
dump_table = Struct("<Hh")
"""dom, status"""
transfer = Struct("<QHxxIhxxxxxx")
"""mfn, domid, ref, status"""
copy = Struct("<QHHxxxxQHHxxxxHHhxx")
"""source: ref or frame, domid, offset; dest: the same; len, flags, status"""
COPY_STATUS = 36
query_size = Struct("<HxxIIhxx")
"""dom, nr_frames, max_nr_frames, status"""
set_version = Struct("<I")
get_status_frames = Struct("<IHhQ")
"""nr_frames, dom, status, frame_list"""
STATUS_FRAMES_STATUS = 6
get_version = Struct("<HxxI")
"""dom, version"""
GET_VERSION_VERSION = 4
swap_grant_ref = Struct("<IIhxx")
"""ref_a, ref_b, status"""
SWAP_STATUS = 8
