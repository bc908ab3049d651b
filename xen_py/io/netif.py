# SPDX-License-Identifier: GPL-2.0-only
"""The network protocol: structures on the rings of a `vif`, and their constants.

A vif has a ring for what the guest sends (tx), one for what it receives (rx) and may have one for control. A packet
takes several slots: the first may say that extra information follows (`MORE` in each says whether another does), each
that a further fragment follows. An extra takes the place of a request (tx) or of a response (rx) and has no id, which
is why rx responses must stay in the slots of their requests. On tx the first fragment's `size` is that of the whole
packet. Pure data; anyone may use it.

Source: xen/include/public/io/netif.h. Linux adds an extra of type 5 (XDP) that Xen's header does not have.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import NamedTuple

from xen_py.io.layout import Layout, packer
from xen_py.io.ring import RingKind

MIN_SLOTS_PER_PACKET = 18
"""So many slots in a packet every half must accept."""
MAX_TX_SIZE = 0xFFFF


class TxFlag(IntFlag):
    CSUM_BLANK = 1
    DATA_VALIDATED = 2
    MORE_DATA = 4
    EXTRA_INFO = 8


class RxFlag(IntFlag):
    DATA_VALIDATED = 1
    CSUM_BLANK = 2
    MORE_DATA = 4
    EXTRA_INFO = 8
    GSO_PREFIX = 16


class Status(IntEnum):
    """Of a response. In an rx response a positive status is the fragment's size; NULL answers an extra on tx."""

    DROPPED = -2
    ERROR = -1
    OKAY = 0
    NULL = 1


class ExtraType(IntEnum):
    NONE = 0
    GSO = 1
    MCAST_ADD = 2
    MCAST_DEL = 3
    HASH = 4


class ExtraFlag(IntFlag):
    MORE = 1


class GsoType(IntEnum):
    NONE = 0
    TCPV4 = 1
    TCPV6 = 2


class CtrlType(IntEnum):
    INVALID = 0
    GET_HASH_FLAGS = 1
    SET_HASH_FLAGS = 2
    SET_HASH_KEY = 3
    GET_HASH_MAPPING_SIZE = 4
    SET_HASH_MAPPING_SIZE = 5
    SET_HASH_MAPPING = 6
    SET_HASH_ALGORITHM = 7
    GET_GREF_MAPPING_SIZE = 8
    ADD_GREF_MAPPING = 9
    DEL_GREF_MAPPING = 10


class CtrlStatus(IntEnum):
    SUCCESS = 0
    NOT_SUPPORTED = 1
    INVALID_PARAMETER = 2
    BUFFER_OVERFLOW = 3


class HashType(IntFlag):
    IPV4 = 1
    IPV4_TCP = 2
    IPV6 = 4
    IPV6_TCP = 8


class HashAlgorithm(IntEnum):
    NONE = 0
    TOEPLITZ = 1


class TxRequest(NamedTuple):
    gref: int
    offset: int
    flags: int
    id: int
    size: int


class TxResponse(NamedTuple):
    id: int
    status: int


class RxRequest(NamedTuple):
    id: int
    gref: int


class RxResponse(NamedTuple):
    id: int
    offset: int
    flags: int
    status: int


class Extra(NamedTuple):
    """`data` is one of GsoExtra, an Ethernet address (MCAST_*) or HashExtra."""

    type: int
    flags: int
    data: bytes


class GsoExtra(NamedTuple):
    size: int
    type: int
    features: int


class HashExtra(NamedTuple):
    """`type` is the number of the bit that the kind of hash has in `HashType`; the value's first byte is the lowest."""

    type: int
    algorithm: int
    value: bytes


class CtrlRequest(NamedTuple):
    id: int
    type: int
    data0: int
    data1: int
    data2: int


class CtrlResponse(NamedTuple):
    id: int
    type: int
    status: int
    data: int


class GrefMapping(NamedTuple):
    """An entry of the list that ADD_GREF_MAPPING and DEL_GREF_MAPPING name."""

    ref: int
    flags: int
    status: int


GREF_READONLY = 1

TX_REQUEST = Layout(TxRequest, "IHHHH")
TX_RESPONSE = Layout(TxResponse, "Hh")
RX_REQUEST = Layout(RxRequest, "H2xI")
RX_RESPONSE = Layout(RxResponse, "HHHh")
EXTRA = Layout(Extra, "BB6s")
GSO_EXTRA = Layout(GsoExtra, "HBxH")
HASH_EXTRA = Layout(HashExtra, "BB4s")
CTRL_REQUEST = Layout(CtrlRequest, "HHIII")
CTRL_RESPONSE = Layout(CtrlResponse, "HHII")
GREF_MAPPING = Layout(GrefMapping, "IHH")

TX_RING = RingKind(
    "netif_tx",
    TX_REQUEST.size,
    TX_RESPONSE.size,
    TX_REQUEST.unpack,
    TX_RESPONSE.unpack,
    packer(TX_REQUEST, EXTRA),
    TX_RESPONSE.pack,
)
"""A slot behind a request with EXTRA_INFO holds an `Extra`: only who follows the packet knows."""
RX_RING = RingKind(
    "netif_rx",
    RX_REQUEST.size,
    RX_RESPONSE.size,
    RX_REQUEST.unpack,
    RX_RESPONSE.unpack,
    RX_REQUEST.pack,
    packer(RX_RESPONSE, EXTRA),
)
CTRL_RING = RingKind.of("netif_ctrl", CTRL_REQUEST, CTRL_RESPONSE)
