# SPDX-License-Identifier: GPL-2.0-only
"""FreeBSD's netfront: what it does to the store and the rings, as sys/dev/xen/netfront/netfront.c has it.

It follows the backend's state. InitWait: rings and one event channel for each queue, nodes in one transaction,
Connected, then buffers into all slots. A page is granted for each use and the grant ended when it is answered, which
must be possible. Responses to what it sends are asked for half-way through what is under way; a received packet must be
there with all its slots. A change of what it can receive closes and connects again (Closing, Closed, Initialising).
"""

from __future__ import annotations

from collections.abc import Mapping

from domU.events import GuestPort
from domU.guest import Guest
from domU.kernel import Page
from tests.net.foreign import RX_SLOTS, Player, SharedRing, pieces
from xen_py.io import netif
from xen_py.io.netchain import RxAssembler, as_request, gso_extra
from xen_py.io.netif import ExtraType, GsoType, RxFlag, RxRequest, Status, TxFlag, TxRequest
from xen_py.io.packet import Csum, Packet
from xen_py.io.xenbus import State
from xen_py.types import PAGE_SIZE, GrantRef

NUM_QUEUES = 4
"""hw.xn.num_queues."""
HEADER = 66
"""Bytes of the first buffer of a large segment: the headers, which the stack has put into one of their own."""
CLUSTER = 2048
MOST_FRAGMENTS = 18


class Queue:
    """A ring each way, with one event channel."""

    def __init__(self, player: FreeBsd, number: int) -> None:
        self.number = number
        self._player = player
        self.rx = SharedRing(player, netif.RX_RING)
        self.tx = SharedRing(player, netif.TX_RING)
        self.port: GuestPort = player.offer(self.on_event)
        self._ids = list(range(1, RX_SLOTS + 1))
        """Free ones; 0 is the head of the list."""
        self._sent: dict[int, tuple[Page, GrantRef]] = {}
        self._posted: dict[int, tuple[Page, GrantRef]] = {}
        """By the slot's index, which is the request's id."""
        self._produced = self._consumed = 0
        self._answered = 0
        self._asked = 0

    # ---- out ----

    def send(self, packet: Packet) -> None:
        """xn_assemble_tx_request: a slot for each buffer."""
        large = packet.gso is not GsoType.NONE
        buffers = pieces(packet.data, HEADER) if large else pieces(packet.data, min(len(packet.data), CLUSTER), CLUSTER)
        assert len(buffers) <= MOST_FRAGMENTS and self.tx.ring.free() > MOST_FRAGMENTS + 2
        for number, data in enumerate(buffers):
            page, ref = self._player.lend(readonly=True)
            offset = 0 if len(data) > CLUSTER else CLUSTER  # the second cluster of a page
            page.data[offset : offset + len(data)] = data
            identifier = self._ids.pop()
            self._sent[identifier] = page, ref
            flags = 0 if number == len(buffers) - 1 else TxFlag.MORE_DATA
            if number:
                self.tx.ring.put(TxRequest(ref, offset, flags, identifier, len(data)))
                continue
            if packet.csum is Csum.BLANK:
                flags |= TxFlag.CSUM_BLANK | TxFlag.DATA_VALIDATED
            flags |= TxFlag.EXTRA_INFO if large else 0
            self.tx.ring.put(TxRequest(ref, offset, flags, identifier, len(packet.data)))
            if large:
                assert packet.gso is GsoType.TCPV4, "FreeBSD does not cut IPv6"
                self.tx.ring.put(as_request(gso_extra(packet.gso, packet.gso_size)))
            self._asked += large
        self._asked += len(buffers)
        self.on_tx()
        if self.tx.ring.push():
            self.port.notify()

    def on_tx(self) -> None:
        """xn_txeof."""
        for response in self.tx.ring.take():
            self._answered += 1
            if response.status == Status.NULL:
                continue
            assert response.status == Status.OKAY
            self._player.free(*self._sent.pop(response.id))
            self._ids.append(response.id)
        self.tx.ask_for_event_at(self._answered + ((self._asked - self._answered) >> 1) + 1)

    # ---- in ----

    def fill(self) -> None:
        """xn_alloc_rx_buffers: all slots that are free."""
        while self._produced - self._consumed < RX_SLOTS:
            self._post(*self._player.lend())
        if self.rx.ring.push():
            self.port.notify()

    def _post(self, page: Page, ref: GrantRef) -> None:
        index = self._produced % RX_SLOTS
        assert index not in self._posted
        self._posted[index] = page, ref
        self.rx.ring.put(RxRequest(index, ref))
        self._produced += 1

    def on_rx(self) -> None:
        """xn_rxeof."""
        while True:
            responses = self.rx.ring.take()
            chains = RxAssembler().feed(responses)
            assert sum(len(chain.slots) for chain in chains) == len(responses), "not enough frags"
            first = self._consumed
            self._consumed += len(responses)
            for chain in chains:
                assert chain.refused is None
                extras = set(chain.slots) - {position for position, _, _ in chain.parts}
                data = b""
                for position, offset, size in chain.parts:
                    page, ref = self._posted.pop((first + position) % RX_SLOTS)
                    assert responses[position].id == (first + position) % RX_SLOTS
                    data += bytes(page.data[offset : offset + size])
                    self._player.free(page, ref)
                for position in sorted(extras):  # xn_move_rx_slot: the same buffer once more
                    self._post(*self._posted.pop((first + position) % RX_SLOTS))
                assert all(extra.type == ExtraType.GSO for extra in chain.extras)
                csum = Csum.BLANK if chain.flags & RxFlag.CSUM_BLANK else Csum.UNKNOWN
                gso = chain.gso()
                packet = Packet(data, csum)
                if gso is not None:
                    packet = Packet(data, csum, GsoType(gso.type), gso.size)
                self._player.received.append((self.number, packet, chain.extras))
            self.fill()
            if not self.rx.ring.final_check():
                break

    def on_event(self) -> None:
        self.on_rx()
        self.on_tx()

    def disconnect(self) -> None:
        """The backend is closed: everything is taken back at once."""
        for page, ref in (*self._posted.values(), *self._sent.values()):
            self._player.free(page, ref)
        for ring in (self.rx, self.tx):
            ring.end()
        self.port.close()


class FreeBsd(Player):
    """See the module. `run` is its watch on the backend's state."""

    def __init__(self, guest: Guest) -> None:
        super().__init__(guest)
        self.queues: list[Queue] = []
        self.lro = self.rxcsum = True
        self._reset = False
        self.connections = 0

    async def run(self) -> None:
        async with self.watching():
            while True:
                await self._backend_changed(await self.backend_state())
                await self.changed()

    async def _backend_changed(self, state: State) -> None:
        ours = await self.guest.bus.read(f"{self.path}/state")
        match state:
            case State.INIT_WAIT if ours == b"1":
                await self._connect()
                await self.set_state(State.CONNECTED)
                for queue in self.queues:
                    queue.port.notify()
                    queue.on_tx()
                    queue.fill()
                self.connections += 1
            case State.CLOSING:
                await self.set_state(State.CLOSED)
            case State.CLOSED if self._reset:
                self.disconnect()
                await self.set_state(State.INITIALISING)
                self._reset = False

    async def _connect(self) -> None:
        """xn_connect and talk_to_backend."""
        assert await self.read_backend("feature-rx-copy") == "1"
        count = min(NUM_QUEUES, int(await self.read_backend("multi-queue-max-queues") or "1"))
        self.queues = [Queue(self, number) for number in range(count)]
        nodes: dict[str, object] = {}
        if count == 1:
            nodes |= self._keys(self.queues[0], "")
        else:
            nodes["multi-queue-num-queues"] = count
            for queue in self.queues:
                nodes |= self._keys(queue, f"queue-{queue.number}/")
        nodes |= {"request-rx-copy": 1, "feature-rx-notify": 1, "feature-sg": 1}
        if self.lro:
            nodes["feature-gso-tcpv4"] = 1
        if not self.rxcsum:
            nodes["feature-no-csum-offload"] = 1
        await self.write(nodes)

    @staticmethod
    def _keys(queue: Queue, prefix: str) -> Mapping[str, object]:
        """write_queue_xenstore_keys."""
        return {
            f"{prefix}tx-ring-ref": queue.tx.ref,
            f"{prefix}rx-ring-ref": queue.rx.ref,
            f"{prefix}event-channel": queue.port.port,
        }

    def send(self, packet: Packet, flowid: int = 0) -> None:
        assert len(packet.data) <= 17 * PAGE_SIZE
        self.queues[flowid % len(self.queues)].send(packet)

    async def set_capabilities(self, *, lro: bool, rxcsum: bool) -> None:
        """SIOCSIFCAP: what it can receive is negotiated anew."""
        self.lro, self.rxcsum = lro, rxcsum
        self._reset = True
        for name in ("feature-gso-tcpv4", "feature-no-csum-offload"):
            await self.remove(name)
        await self.set_state(State.CLOSING)

    def disconnect(self) -> None:
        for queue in self.queues:
            queue.disconnect()
        self.queues = []
