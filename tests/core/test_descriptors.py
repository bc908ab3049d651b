# SPDX-License-Identifier: GPL-2.0-only
"""Which segment descriptors a guest may have, and what becomes of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_py.descriptors import check_descriptor, check_page
from xen_py.types import XenError

PRESENT, SEGMENT = 1 << 47, 1 << 44


@pytest.mark.parametrize(
    ("raw", "fixed"),
    [
        (0, 0),
        (0x00AF9B000000FFFF, 0x00AFFB000000FFFF),  # ring 0 code
        (0x00CF93000000FFFF, 0x00CFF3000000FFFF),
        (0x00CFB3000000FFFF, 0x00CFF3000000FFFF),  # ring 1
        (0x00CFF3000000FFFF, 0x00CFF3000000FFFF),
        (0x0000090000000067, 0x0000090000000067),  # a TSS, not present
        (0x0000890000000067, None),
        (0x0000820000000067, None),  # an LDT
        (0x00008E0000080000, None),  # an interrupt gate
        (0x0000EC0000080000, 0x00008C00000B0000),  # a call gate: its DPL moves into the selector
        (0x0000EC00E0330000, 0x00008C00E0330000),
        (0x0000EC00E0080000, None),  # to the hypervisor's code
        (0x0000EC0100080000, None),  # reserved bits
        (0x0000800000000000, 0x0000800000000000),  # second half of a call gate
    ],
)
def test_descriptor(raw: int, fixed: int | None) -> None:
    if fixed is None:
        with pytest.raises(XenError):
            check_descriptor(raw)
    else:
        assert check_descriptor(raw) == fixed
        assert check_descriptor(fixed) == fixed or fixed >> 40 & 0x1F == 0xC


@given(st.integers(0, (1 << 64) - 1))
def test_nothing_privileged_gets_through(raw: int) -> None:
    try:
        fixed = check_descriptor(raw)
    except XenError:
        return
    if fixed & PRESENT and fixed & SEGMENT:
        assert fixed >> 45 & 3 == 3
    elif fixed & PRESENT:
        assert fixed >> 40 & 0xF in (0, 0xC)


def test_page() -> None:
    page = memoryview(bytearray(4096)).cast("Q")
    page[1] = 0x00AF9B000000FFFF
    check_page(page)
    assert page[1] == 0x00AFFB000000FFFF
    page[511] = 0x0000890000000067
    with pytest.raises(XenError):
        check_page(page)
