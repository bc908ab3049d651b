# SPDX-License-Identifier: GPL-2.0-only
"""The domain's end of the link, where orders and answers cross."""

from __future__ import annotations

import socket
from contextlib import closing

from dom0.host.looplink import LoopLink
from dom0.host.messages import pack
from xen_py.doorbell import Doorbell
from xen_py.types import DomId


def test_an_order_that_came_before_an_answer_is_told_of() -> None:
    """Nothing on the socket would: whoever sleeps on that has to know."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kept: list[None] = []
    with ours, theirs, closing(Doorbell.create()) as doorbell:
        link = LoopLink(ours, doorbell)
        link.on_kept = lambda: kept.append(None)
        theirs.send(pack("answer", 7))
        assert link.evtchn_alloc_unbound(DomId(1), DomId(0)) == 7
        assert not kept
        theirs.send(pack("trace", 1, True))
        theirs.send(pack("answer", 8))
        assert link.evtchn_alloc_unbound(DomId(1), DomId(0)) == 8
        assert len(kept) == 1
        theirs.send(pack("pause", 2))
        assert link.orders() == [["trace", 1, True], ["pause", 2]]
        assert len(kept) == 1
