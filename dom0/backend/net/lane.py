# SPDX-License-Identifier: GPL-2.0-only
"""The short way of a queue's packets: both rings served by C (engine/native/packets.c) in the event's own turn.

A ring belongs to its `TxServer` or `RxServer`, or is lent to the lane. Lent, a guest's event takes its packets out,
has them switched and answers them before the next is looked at, and a packet for the guest is in its frames when
`deliver` returns; no task wakes for either. What the lane leaves (see packets.c) makes the ring go back to the server,
which lends it again when nothing is under way. A lane that has joined a datapath (`datapath`) shares its rings with
that one's thread: packets of known flows never come here. The servers are the reference, and all there is where
events and grants must be seen one by one: in seeded machines, under a trace, with `rate=`.

Owner: the trio thread, with the lock of the datapath.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum, IntFlag
from typing import NamedTuple

from dom0.backend.frames import FRAMES, native_frames
from xen_py.doorbell import open_native
from xen_py.io.netif import Status
from xen_py.io.ring import BackRing
from xen_py.memory import GuestMemory

MOST_AT_ONCE = 64
"""Packets that one call takes."""
_ROOM = 1 << 20
NEVER = 1 << 10
"""Slots of which a ring has fewer: no event is wanted for them."""

_ffi, _native = open_native(
    FRAMES + """
    struct xenpy_packet { uint32_t at, size; uint16_t flags, gso_size; uint8_t gso, padding[3]; };
    struct xenpy_packets { uint64_t sent, received, left; };
    struct xenpy_packets *xenpy_packets_open(uint8_t *tx_page, uint32_t tx_slots, uint8_t *rx_page, uint32_t rx_slots,
        const struct xenpy_frames *frames);
    void xenpy_packets_close(struct xenpy_packets *p);
    uint32_t xenpy_packets_take(struct xenpy_packets *p, struct xenpy_packet *packets, uint32_t most, uint8_t *buffer,
        uint32_t room, uint32_t *odd);
    uint32_t xenpy_packets_answer(struct xenpy_packets *p, const int16_t *statuses);
    uint32_t xenpy_packets_put(struct xenpy_packets *p, const char *data, uint32_t size, uint32_t flags,
        uint32_t gso, uint32_t gso_size);
    uint32_t xenpy_packets_show(struct xenpy_packets *p, uint32_t wanted);
    void xenpy_packets_lend_tx(struct xenpy_packets *p, uint32_t consumed, uint32_t produced);
    void xenpy_packets_lend_rx(struct xenpy_packets *p, uint32_t consumed, uint32_t produced);
    void xenpy_packets_return_tx(struct xenpy_packets *p, uint32_t *positions);
    uint32_t xenpy_packets_return_rx(struct xenpy_packets *p, uint32_t *positions);
""")
_buffer = _ffi.new("uint8_t[]", _ROOM)
_bytes = memoryview(_ffi.buffer(_buffer))
_packets = _ffi.new("struct xenpy_packet[]", MOST_AT_ONCE)
_odd = _ffi.new("uint32_t *")
# Used within one call each: there is one thread.


class Put(IntEnum):
    """What has become of a packet for the guest."""

    DONE = 0
    FULL = 1
    """The guest has not posted enough slots."""
    ODD = 2
    """It is left to the server."""


class Settled(IntFlag):
    """What is to be done about a ring that has been settled."""

    TELL = 1
    """Send the guest an event."""
    MORE = 2
    """What was wanted has come meanwhile."""
    BROKEN = 4
    """The server is to see that the guest's index cannot be true."""


class Sent(NamedTuple):
    """A packet as it came off the ring: its first slot's flags, and what its extra says of segments (0: nothing)."""

    data: bytes
    flags: int
    gso: int
    gso_size: int


class PacketLane:
    """Of one queue. The rings' pages and the memory outlive it."""

    def __init__(self, tx: BackRing, rx: BackRing, memory: GuestMemory) -> None:
        self._held = [_ffi.from_buffer("uint8_t[]", ring.pages[0]) for ring in (tx, rx)]
        frames = native_frames(_ffi, memory, self._held)
        self._tx, self._rx = tx, rx
        self._lane = _native.xenpy_packets_open(self._held[0], tx.slots, self._held[1], rx.slots, frames)
        if self._lane == _ffi.NULL:
            self._free()
            raise MemoryError

    @property
    def address(self) -> int:
        """Of the native structure."""
        return int(_ffi.cast("uintptr_t", self._lane))

    def lend_tx(self) -> None:
        _native.xenpy_packets_lend_tx(self._lane, *self._tx.positions())

    def lend_rx(self) -> None:
        _native.xenpy_packets_lend_rx(self._lane, *self._rx.positions())

    def return_tx(self) -> None:
        positions = _ffi.new("uint32_t[2]")
        _native.xenpy_packets_return_tx(self._lane, positions)
        self._tx.go_on_from(*positions)

    def return_rx(self) -> Settled:
        """All that was put is shown."""
        positions = _ffi.new("uint32_t[2]")
        settled = Settled(_native.xenpy_packets_return_rx(self._lane, positions))
        self._rx.go_on_from(*positions)
        return settled

    def take(self) -> tuple[list[Sent], bool]:
        """Packets that the guest has sent, to be answered next; and whether one is left that the server must see."""
        count = _native.xenpy_packets_take(self._lane, _packets, MOST_AT_ONCE, _buffer, _ROOM, _odd)
        found = []
        for number in range(count):
            p = _packets[number]
            found.append(Sent(bytes(_bytes[p.at : p.at + p.size]), p.flags, p.gso, p.gso_size))
        return found, bool(_odd[0])

    def answer(self, statuses: Sequence[Status]) -> Settled:
        """A status for each packet taken, which the guest sees at once. MORE: it has sent more."""
        return Settled(_native.xenpy_packets_answer(self._lane, statuses))

    def put(self, data: bytes, flags: int, gso: int, gso_size: int) -> Put:
        """A packet into the frames that the guest has posted; it sees it at the next `show`."""
        return Put(_native.xenpy_packets_put(self._lane, data, len(data), flags, gso, gso_size))

    def show(self, wanted: int) -> Settled:
        """Show the guest what was put. MORE: `wanted` slots are there; there will be an event otherwise.

        Until the next time packets count as waiting, which others must not overtake, unless NEVER is wanted.
        """
        return Settled(_native.xenpy_packets_show(self._lane, wanted))

    def close(self) -> None:
        """Both rings are back. Idempotent."""
        if self._lane is not None:
            _native.xenpy_packets_close(self._lane)
            self._free()

    def _free(self) -> None:
        self._lane = None
        for held in self._held:
            _ffi.release(held)

    def statistics(self) -> dict[str, int]:
        if self._lane is None:
            return {}
        return {f"lane_{name}": int(getattr(self._lane, name)) for name in ("sent", "received", "left")}
