# SPDX-License-Identifier: GPL-2.0-only
"""Access to guest memory by guest addresses: through the guest's tables, with the guest's rights, or EFAULT."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.machine import DATA, FREE, L1, PAGES, USER_CODE, USER_VA, VA, Machine, build_machine
from xen_py.types import Errno, XenError

HOLE = VA(PAGES)


@pytest.mark.parametrize("size", [0, 1, 8, 4096, 4097, 12288])
@pytest.mark.parametrize("offset", [0, 1, 4095])
def test_what_is_written_is_read(machine: Machine, size: int, offset: int) -> None:
    data = bytes(n * 7 & 0xFF for n in range(size))
    machine.domain.access.write(VA(FREE, offset), data)
    assert machine.domain.access.read(VA(FREE, offset), size) == data
    start = (FREE << 12) + offset
    assert bytes(machine.memory.bytes[start : start + size]) == data


@pytest.mark.parametrize(
    ("va", "readable", "writable"),
    [
        (VA(DATA), True, True),
        (VA(L1), True, False),
        (HOLE, False, False),
        (0, False, False),
        (USER_VA, False, False),
        (0xFFFF800000000000, False, False),
        (0xFFFF808000000000, False, False),
        (0xFFFF87FFFFFFF000, False, False),
        (0x0000800000000000, False, False),
        (0xFFFF7FFFFFFFFFFF, False, False),
        ((1 << 64) - 1, False, False),
    ],
)
def test_rights(machine: Machine, va: int, readable: bool, writable: bool) -> None:
    access = machine.domain.access
    assert access.readable(va) == readable
    for allowed, operation in (
        (readable, lambda: access.read(va, 1)),
        (readable, lambda: access.read_u64(va)),
        (writable, lambda: access.write(va, b"\0")),
        (writable, lambda: access.write_u64(va, 0)),
    ):
        if allowed:
            operation()
        else:
            with pytest.raises(XenError) as caught:
                operation()
            assert caught.value.errno == Errno.EFAULT


def test_accessed_and_dirty_bits_are_set(machine: Machine) -> None:
    entries = machine.words(L1)
    entries[FREE] &= ~0x60
    machine.domain.access.read(VA(FREE), 1)
    assert entries[FREE] & 0x60 == 0x20
    machine.domain.access.write(VA(FREE), b"x")
    assert entries[FREE] & 0x60 == 0x60


def test_the_tables_in_force(machine: Machine) -> None:
    machine.user_mode(b"abc")
    assert machine.domain.access.read(USER_VA, 3) == b"abc"
    assert machine.get(USER_CODE, 3) == b"abc"
    with pytest.raises(XenError):
        machine.domain.access.read(VA(DATA), 1)


def test_a_write_that_runs_into_a_hole_fails(machine: Machine) -> None:
    with pytest.raises(XenError):
        machine.domain.access.write(HOLE - 4, b"12345678")
    with pytest.raises(XenError):
        machine.domain.access.read(HOLE - 4, 8)


def test_any_address() -> None:
    machine = build_machine()

    @given(st.integers(0, (1 << 64) - 1), st.integers(0, 5000))
    def try_it(va: int, size: int) -> None:
        try:
            assert len(machine.domain.access.read(va, size)) == size
        except XenError as error:
            assert error.errno == Errno.EFAULT

    try_it()
    machine.close()
