# SPDX-License-Identifier: GPL-2.0-only
"""Packets in slots: what a frontend may send, what costs it the packet, what costs it the device."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_py.io.netchain import (
    ENDURED_SLOTS,
    RxAssembler,
    TxAssembler,
    as_request,
    as_response,
    gso_extra,
    rx_chain,
    rx_slots,
    tx_chain,
)
from xen_py.io.netif import (
    Extra,
    ExtraFlag,
    ExtraType,
    GsoExtra,
    GsoType,
    RxFlag,
    RxResponse,
    Status,
    TxFlag,
    TxRequest,
)
from xen_py.io.ring import RingBroken

MORE, EXTRA = TxFlag.MORE_DATA, TxFlag.EXTRA_INFO
HASH = Extra(ExtraType.HASH, 0, bytes(6))
JOIN = Extra(ExtraType.MCAST_ADD, 0, b"\1\0\x5e\0\0\1")


def test_a_packet_in_one_slot() -> None:
    (chain,) = TxAssembler().feed([TxRequest(8, 100, TxFlag.CSUM_BLANK, 7, 60)])
    assert (chain.refused, chain.size, chain.pieces()) == (None, 60, [(8, 100, 60)])
    assert [tuple(response) for response in chain.responses(Status.OKAY)] == [(7, 0)]


def test_fragments_and_extras_over_several_looks() -> None:
    slots = tx_chain([(1, 10, 20), (2, 0, 4096), (3, 5, 9)], TxFlag.CSUM_BLANK, [gso_extra(GsoType.TCPV4, 1448)])
    slots = [slot if number == 1 else slot._replace(id=number + 50) for number, slot in enumerate(slots)]
    for cut in range(len(slots)):
        assembler = TxAssembler()
        assert assembler.feed(slots[:cut]) == []
        assert (assembler.unfinished() is None) is (cut == 0)
        (chain,) = assembler.feed(slots[cut:])
        assert chain.refused is None
        assert chain.pieces() == [(1, 10, 20), (2, 0, 4096), (3, 5, 9)]
        assert chain.size == 4125
        assert [tuple(r) for r in chain.responses(Status.ERROR)] == [(50, -1), (0, 1), (52, -1), (53, -1)]
        assert assembler.unfinished() is None


def first(size: int, flags: int = 0, offset: int = 0) -> TxRequest:
    return TxRequest(1, offset, flags, 0, size)


@pytest.mark.parametrize(
    ("slots", "refused"),
    [
        ([first(13)], "13 bytes"),
        ([first(14)], None),
        ([first(4096)], None),
        ([first(4097)], "leave the page"),
        ([first(100, offset=4000)], "leave the page"),
        ([first(0xFFFF, offset=0xFFFF)], "leave the page"),
        ([first(100, MORE), first(101)], "larger than the packet"),
        ([first(100, MORE), first(100)], None),
        ([first(100, MORE), first(0)], None),
        ([first(5000, MORE), first(900, offset=3500)], "leave the page"),
        ([first(18 * 10, MORE), *[first(10, MORE)] * 16, first(10)], None),
        ([first(19 * 10, MORE), *[first(10, MORE)] * 17, first(10)], "19 slots"),
        ([first(60, EXTRA), as_request(gso_extra(GsoType.TCPV4, 0))], "segments of type 1 and 0"),
        ([first(60, EXTRA), as_request(gso_extra(GsoType.NONE, 9))], "segments of type 0"),
        ([first(60, EXTRA), as_request(Extra(ExtraType.GSO, 0, b"\x20\0\3\0\0\0"))], "segments of type 3"),
        ([first(0, EXTRA), as_request(JOIN)], None),
        ([first(60, EXTRA), as_request(HASH)], None),
    ],
)
def test_what_costs_the_packet(slots: list[TxRequest], refused: str | None) -> None:
    (chain,) = TxAssembler().feed(slots)
    assert len(chain.responses(Status.ERROR)) == len(slots)
    assert chain.refused is None if refused is None else refused in (chain.refused or "")


@pytest.mark.parametrize(
    "slots",
    [
        [first(60, EXTRA), as_request(Extra(0, 0, bytes(6)))],
        [first(60, EXTRA), as_request(Extra(5, 0, bytes(6)))],
        [first(60, EXTRA), as_request(Extra(255, 1, bytes(6)))],
        [first(60, EXTRA), *[as_request(Extra(ExtraType.HASH, ExtraFlag.MORE, bytes(6)))] * 9],
        [first(60, MORE)] * (ENDURED_SLOTS + 1),
    ],
)
def test_what_costs_the_device(slots: list[TxRequest]) -> None:
    with pytest.raises(RingBroken):
        TxAssembler().feed(slots)


def test_the_last_extra_of_a_type_counts() -> None:
    extras = [gso_extra(GsoType.TCPV4, 100), gso_extra(GsoType.TCPV6, 200)]
    (chain,) = TxAssembler().feed(tx_chain([(1, 0, 60)], 0, extras))
    assert chain.extra(ExtraType.GSO) == extras[1].data
    assert chain.extra(ExtraType.HASH) is None


SLOT = st.builds(
    TxRequest,
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 100, 4000, 65535]),
    st.integers(0, 15),
    st.integers(0, 65535),
    st.sampled_from([0, 10, 14, 60, 1500, 4096, 5000, 65535]),
)


@given(st.lists(SLOT, max_size=60), st.integers(1, 60))
def test_every_slot_is_answered_once_whatever_it_holds(slots: list[TxRequest], step: int) -> None:
    assembler = TxAssembler()
    answered = 0
    try:
        for at in range(0, len(slots), step):
            for chain in assembler.feed(slots[at : at + step]):
                answered += len(chain.responses(Status.OKAY))
                if chain.refused is None and chain.size >= 14:
                    assert sum(length for _, _, length in chain.pieces()) == chain.size
                    assert all(length >= 0 and offset + length <= 4096 for _, offset, length in chain.pieces())
    except RingBroken:
        return
    rest = assembler.unfinished()
    held = 0 if rest is None else len(rest.responses(Status.OKAY))
    assert answered + held == len(slots)


@given(st.integers(1, 65535), st.booleans())
def test_what_is_laid_out_is_put_together_again(length: int, cut: bool) -> None:
    extras = [gso_extra(GsoType.TCPV6, 1440)] if cut else []
    data_slots = rx_slots(length)
    answers = rx_chain(range(100, 100 + data_slots), length, RxFlag.CSUM_BLANK, extras)
    assert len(answers) == rx_slots(length, len(extras))
    slots = [as_response(answer) if isinstance(answer, Extra) else answer for answer in answers]
    (chain,) = RxAssembler().feed(slots)
    assert chain.refused is None
    assert sum(size for _, _, size in chain.parts) == length
    assert chain.slots == list(range(len(slots)))
    assert [position for position, _, _ in chain.parts] == [0, *range(1 + len(extras), len(slots))]
    assert chain.gso() == (GsoExtra(1440, GsoType.TCPV6, 0) if cut else None)


def test_a_backend_that_is_not_believed() -> None:
    assembler = RxAssembler()
    bad = [RxResponse(0, 0, 0, -1), RxResponse(0, 4000, 0, 97), RxResponse(0, 0, 0, 0)]
    assert [bool(chain.refused) for chain in assembler.feed(bad)] == [True] * 3
    (chain,) = assembler.feed([RxResponse(0, 4000, 0, 96)])
    assert chain.parts == [(3, 4000, 96)]
    with pytest.raises(RingBroken):
        RxAssembler().feed([RxResponse(0, 0, RxFlag.MORE_DATA, 10)] * (ENDURED_SLOTS + 1))
    with pytest.raises(RingBroken):
        RxAssembler().feed([RxResponse(0, 0, RxFlag.EXTRA_INFO, 10), as_response(Extra(9, 0, bytes(6)))])
