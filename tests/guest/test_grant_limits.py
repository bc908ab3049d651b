# SPDX-License-Identifier: GPL-2.0-only
"""max_grant_frames, max_maptrack_frames and max_grant_version reach the domain, and what dom0 holds stays held."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from dom0.host.machine import open_machine
from dom0.kit.guests import configured, inside, kernel_for
from dom0.toolstack.domain import ToolstackError
from domU.grants import GrantRefused, NoGrants
from tests.host.guests import hello, watched_machine
from xen_py.abi import grant_table as abi
from xen_py.abi.grant_table import GnttabOp, GrantStatus
from xen_py.abi.xen import DOMID_SELF, Hypercall
from xen_py.mmu import PageTables
from xen_py.types import DomId, Errno, GrantRef, XenError


async def test_limits_are_the_guests() -> None:
    seen: list[Any] = []

    async def main(guest: Any) -> None:
        query = abi.query_size.pack(DOMID_SELF, 0, 0, 0)
        answer = guest.kernel.call_with(Hypercall.GRANT_TABLE_OP, GnttabOp.QUERY_SIZE, query, 1)
        seen.append(abi.query_size.unpack(answer))
        page = guest.kernel.allocate()
        try:
            while True:
                ref = guest.grants.grant(DomId(guest.domid), page)
        except NoGrants as error:
            seen.append((ref, str(error)))
        mapped = 0
        try:
            while True:
                guest.grants.map(DomId(guest.domid), GrantRef(9 + mapped % 100))
                mapped += 1
        except GrantRefused as error:
            seen.append((mapped, str(error)))

    config = attrs.evolve(configured("limited", kernel_for("limited", main)), max_grant_frames=2, max_maptrack_frames=1)
    async with open_machine() as machine:
        guest = await machine.create(config)
        await guest.wait_shutdown()
    assert seen[0] == (DOMID_SELF, 1, 2, GrantStatus.OKAY)
    assert seen[1][0] == 1023 and "max_grant_frames" in seen[1][1]
    assert seen[2][0] == 256 and "no_space" in seen[2][1]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"max_grant_frames": 65}, "max_grant_frames=65: a guest of this host can have 1 to 64"),
        ({"max_grant_frames": 0}, "max_grant_frames=0: a guest of this host can have 1 to 64"),
        ({"max_maptrack_frames": 1025}, "max_maptrack_frames=1025: a guest of this host can have 0 to 1024"),
        ({"max_grant_version": 2}, "max_grant_version=2: a guest of this host can have 1 only"),
    ],
)
async def test_more_than_there_is(fields: dict[str, int], text: str) -> None:
    async with watched_machine() as machine:
        with pytest.raises(ToolstackError, match=text):
            await machine.create(hello(**fields))


async def test_rings_of_console_and_store_stay_pages() -> None:
    """A guest cannot make a page table of what dom0 writes into, nor give the page away under it."""
    async with watched_machine() as machine, inside(machine) as guest:
        domain = guest.kernel.domain
        pages: PageTables = domain.pages
        for mfn in (domain.spec.console_mfn, domain.spec.store_mfn):
            index = domain.frames.index(mfn)
            with pytest.raises(XenError) as refused:
                pages.get_type(index, 1)
            assert refused.value.errno == Errno.EINVAL
            held = domain.frames.refs[index]
            domain.release_frame(index)
            assert domain.frames.refs[index] == held - 1 > 0
        flags = [domain.grants.entry(ref)[0] for ref in (0, 1)]
        assert flags == [abi.GrantFlag.PERMIT_ACCESS | abi.GrantFlag.READING | abi.GrantFlag.WRITING] * 2
