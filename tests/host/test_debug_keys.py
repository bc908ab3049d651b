# SPDX-License-Identifier: GPL-2.0-only
"""`xl debug-keys`: what the hypervisor prints about grant tables, from a few entries to thousands."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import trio

import dom0.host.debugkeys as debugkeys
from dom0.host.debugkeys import grant_table_lines
from tests.host.guests import hello, watched_machine
from xen_py.abi.grant_table import entry_v1
from xen_py.types import GrantRef

HEADER = [
    "      -------- active --------       -------- shared --------",
    "[ref] localdom mfn      pin          localdom gmfn     flags",
]


def usage(**changes: Any) -> dict[str, Any]:
    numbers = {**dict.fromkeys(("in_use", "revoked", "unlisted", "maptrack_frames", "mappings"), 0)}
    numbers["max_maptrack_frames"] = 1024
    return {"frames": 1, "max_frames": 64, **numbers, "pinned": [], "granted": [], **changes}


def test_a_table_that_nobody_uses() -> None:
    assert grant_table_lines(3, usage(frames=2, maptrack_frames=1)) == [
        *HEADER,
        "grant-table for remote d3 (v1)",
        "  2 frames (64 max), 1 maptrack frames (1024 max)",
        "no active grant table entries",
    ]


def test_every_column() -> None:
    rows = [[8, 0, 0x10123, 0x100, 0, 0x10123, 9], [0x1234, 7, 0xFFFFFFF, 0x01010101, 32752, 0xABCDEF0, 0x19]]
    granted = [[0, False, 20, 1], [0, True, 3, 0], [7, False, 1, 1]]
    assert grant_table_lines(1, usage(pinned=rows, in_use=1002, granted=granted, unlisted=5, revoked=1))[4:] == [
        "[0x008]      0 0x10123 0x00000100          0 0x010123 0x09",
        "[0x1234]      7 0xfffffff 0x01010101      32752 0xabcdef0 0x19",
        "  and 1000 more active entries",
        "  granted to d0: 20 entries, 1 active",
        "  granted to d0 read-only: 3 entries, 0 active",
        "  granted to d7: 1 entries, 1 active",
        "  granted to others: 5 entries",
        "  active though the guest has taken them back: 1 entries",
    ]


async def test_grants_of_running_guests() -> None:
    async with watched_machine() as machine:
        first, second = [await machine.create(hello(name)) for name in ("first", "second")]
        for guest in (first, second):
            await guest.console.expect("> ")
        memory = first.domain.memory
        assert memory is not None and first.domain.vm is not None
        base = memory.geometry.mfn_base
        table = memory.frame(memory.geometry.grant_mfn(0))
        for ref in range(8, 508):
            entry_v1.pack_into(table, ref * 8, 1, 0 if ref < 400 else ref, base + 3000)
        grants = first.domain.vm.grants
        frames = await grants.pin([(GrantRef(ref), True) for ref in range(8, 400)])
        machine.messages.text(clear=True)
        await machine.debug_keys.press("xg\n")
        lines = [line.removeprefix("(XEN) ") for line in machine.messages.text().splitlines()]
        assert lines[:3] == ["gnttab_usage_print_all [ key 'g' pressed", *HEADER]
        assert lines[3:5] == [
            "grant-table for remote d1 (v1)",
            "  1 frames (64 max), 0 maptrack frames (1024 max)",
        ]
        assert [line[:14] for line in lines[5:7]] == ["[0x000]      0", "[0x001]      0"], "console and store"
        assert lines[7:8] == [
            f"[0x008]      0 0x{base + 3000:05x} 0x00000100          0 0x{base + 3000:06x} 0x09",
        ]
        assert lines[261:263] == [
            "  and 138 more active entries",
            "  granted to d0: 394 entries, 394 active",
        ]
        assert lines[263] == "  granted to d400: 1 entries, 0 active"
        assert lines[-7:-4] == [
            HEADER[-1],
            "grant-table for remote d2 (v1)",
            "  1 frames (64 max), 0 maptrack frames (1024 max)",
        ]
        assert lines[-2:] == ["  granted to d0: 2 entries, 2 active", "gnttab_usage_print_all ] done"]
        await grants.unpin(frame for frame in frames if not isinstance(frame, int))


async def test_help_and_unknown_keys() -> None:
    async with watched_machine() as machine:
        await machine.debug_keys.press("\x00zé")
        assert machine.messages.text() == ""
        await machine.debug_keys.press("h")
        assert machine.messages.text().splitlines() == [
            "(XEN) 'h' pressed -> showing installed handlers",
            "(XEN)  key 'g' (ascii '67') => print grant table usage",
            "(XEN)  key 'h' (ascii '68') => show this message",
        ]


async def test_a_domain_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debugkeys, "PATIENCE", 0.1)
    async with watched_machine(processes=True) as machine:
        guest = await machine.create(hello())
        await guest.console.expect("> ")
        assert guest.domain.vm is not None
        pid = guest.domain.vm.info().pid
        os.kill(pid, signal.SIGSTOP)
        await machine.debug_keys.press("g")
        assert "grant-table for remote d1: it does not answer; dom0 has 0 grants in use" in machine.messages.text()
        os.kill(pid, signal.SIGCONT)
        # its answer comes too late and harms nobody
        usage_now = await guest.domain.vm.grants.usage()
        assert usage_now["in_use"] == 2
        await trio.lowlevel.checkpoint()
        assert guest.domain.shutdown_reason is None
