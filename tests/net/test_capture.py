# SPDX-License-Identifier: GPL-2.0-only
"""Captures: what is seen of a vif and of a bridge, with its checksums right; what a slow client loses."""

from __future__ import annotations

from dom0.backend.net import capture as captures
from dom0.backend.net.capture import Capture
from dom0.backend.net.datapath import Datapath
from dom0.backend.net.switch import Switch
from tests.net.captures import read_capture
from tests.net.frames import EVERYONE, A, B, frame, ip4, udp, whole
from xen_py.io.packet import Csum, Packet


async def test_a_vif_and_a_bridge() -> None:
    switch = Switch("xenbr0", lambda: 0.0, Datapath())
    one, two = (switch.plug(f"vif{n}.0", lambda packet: True) for n in (1, 2))
    switch.plug("vif3.0", lambda packet: True)
    with Capture(switch, "vif1.0", 0, lambda: 1 << 60) as narrow, Capture(switch, None, 20, lambda: 5) as wide:
        blank = ip4(B, A, "10.0.0.1", "10.0.0.2", 17, udp(b"hello"))
        one.send(Packet(frame(EVERYONE, A)))
        one.send(Packet(blank, Csum.BLANK))
        two.send(Packet(frame(A, B, body=b"odd")))
        names, frames = read_capture((await narrow.take())[0])
        assert names == ["vif1.0"]
        assert [(f.data, f.direction) for f in frames] == [
            (frame(EVERYONE, A), 2),
            (whole(blank), 2),
            (frame(A, B, body=b"odd"), 1),
        ]
        assert {f.time_ns for f in frames} == {1 << 60}
        names, frames = read_capture((await wide.take())[0])
        assert names == ["vif1.0", "vif2.0"]
        assert [(f.interface, len(f.data), f.length) for f in frames] == [(0, 14, 14), (0, 20, 47), (1, 17, 17)]
    one.send(Packet(frame(EVERYONE, A)))
    assert switch.observers == []


async def test_who_is_slow_loses_frames_and_is_told() -> None:
    switch = Switch("xenbr0", lambda: 0.0, Datapath())
    one = switch.plug("vif1.0", lambda packet: True)
    with Capture(switch, None, 0, lambda: 0) as capture:
        for _ in range(captures.MOST_WAITING // 60000 + 10):
            one.send(Packet(frame(EVERYONE, A, body=bytes(60000))))
        _, lost = await capture.take()
        assert 0 < lost < 12
        assert (await capture.take())[1] == 0
