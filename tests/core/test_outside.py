# SPDX-License-Identifier: GPL-2.0-only
"""Frames that a backend is writing: not made a table of, but waited for, and given up when that takes too long."""

from __future__ import annotations

import threading
import time

import pytest

from tests.core import reference
from tests.core.machine import FREE, PAGES, RO_FLAGS, VA, Machine
from xen_py import outside
from xen_py.abi.xen import Hypercall
from xen_py.frames import FrameType
from xen_py.types import Errno

PIN_L1, UNPIN = 0, 4


def test_a_frame_is_barred_for_as_long_as_it_is_a_table(machine: Machine) -> None:
    barred = machine.memory.barred
    machine.read_only(FREE)
    for _ in range(2):
        assert not barred[FREE]
        assert machine.mmuext(PIN_L1, machine.mfn(FREE)) == 0
        assert barred[FREE]
        assert machine.mmuext(UNPIN, machine.mfn(FREE)) == 0
    machine.words(FREE)[0] = machine.entry(PAGES + 1, RO_FLAGS)  # nobody's frame
    assert machine.mmuext(PIN_L1, machine.mfn(FREE)) < 0
    assert not barred[FREE]
    reference.check(machine.domain)


def test_descriptors_are_looked_at_again_after_others_could_write_them(machine: Machine) -> None:
    page, list_ = FREE, VA(FREE + 1)
    machine.read_only(page)
    machine.put(FREE + 1, machine.mfn(page).to_bytes(8, "little"))
    assert machine.call(Hypercall.SET_GDT, list_, 8) == 0
    assert machine.memory.barred[page]
    assert machine.call(Hypercall.SET_GDT, list_, 0) == 0
    assert not machine.memory.barred[page]
    machine.words(page)[3] = 0x0000_8E00_0000_0000  # an interrupt gate, which no guest may have
    assert machine.call(Hypercall.SET_GDT, list_, 8) == -Errno.EINVAL
    reference.check(machine.domain)


def test_a_table_waits_for_who_writes_the_frame(machine: Machine) -> None:
    machine.read_only(FREE)
    machine.memory.writers[FREE] = 1
    seen: list[int] = []

    def write() -> None:
        while not machine.memory.barred[FREE]:
            time.sleep(0.001)
        machine.words(FREE)[5] = machine.entry(FREE + 1, RO_FLAGS)
        seen.append(machine.domain.frames.refs[FREE + 1])
        machine.memory.writers[FREE] = 0

    thread = threading.Thread(target=write)
    thread.start()
    assert machine.mmuext(PIN_L1, machine.mfn(FREE)) == 0
    thread.join()
    assert machine.domain.frames.refs[FREE + 1] == seen[0] + 1, "what was written last was not looked at"
    assert machine.domain.frames.outside.waits == 1
    reference.check(machine.domain)


def test_who_writes_for_too_long(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "PATIENCE", 0.01)
    machine.read_only(FREE)
    machine.memory.writers[FREE] = 2
    assert machine.mmuext(PIN_L1, machine.mfn(FREE)) == -Errno.EBUSY
    assert machine.domain.frames.types[FREE] == FrameType.NONE
    assert not machine.memory.barred[FREE]
    reference.check(machine.domain)
    machine.memory.writers[FREE] = 0
    assert machine.mmuext(PIN_L1, machine.mfn(FREE)) == 0
    reference.check(machine.domain)
