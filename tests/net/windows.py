# SPDX-License-Identifier: GPL-2.0-only
"""Windows' xenvif: what it does to the store and the rings, as the driver's frontend.c, receiver.c, transmitter.c and
controller.c have it (github.com/xcp-ng/win-xenvif, version 9).

It reads the backend's state and acts on it until it is what it waits for, asserting that it is one of those it knows.
Preparing, it first closes what an earlier driver has left connected. Receive buffers are granted for each use, their
ids are the slots' indices, and every response must stand in its request's slot. With several queues it has packets
hashed by the control ring, and tells the hashes of those that it sends. Which multicast it wants may change while it is
connected.
"""

from __future__ import annotations

import struct

import trio

from domU.events import GuestPort
from domU.guest import Guest
from domU.kernel import Page
from tests.net.foreign import RX_SLOTS, Player, SharedRing, pieces
from xen_py.io import netif
from xen_py.io.netchain import RxAssembler, as_request, gso_extra, hash_extra, in_a_row
from xen_py.io.netif import (
    CtrlRequest,
    CtrlStatus,
    CtrlType,
    Extra,
    ExtraType,
    GsoType,
    HashAlgorithm,
    HashExtra,
    RxFlag,
    RxRequest,
    Status,
    TxFlag,
    TxRequest,
)
from xen_py.io.packet import Csum, Packet
from xen_py.io.xenbus import State
from xen_py.types import GrantRef

HEADERS = 128
"""Bytes of a packet's beginning that are copied into a buffer of their own."""


class Queue:
    """A ring each way, with an event channel each."""

    def __init__(self, player: Windows, number: int) -> None:
        self.number = number
        self._player = player
        self.rx = SharedRing(player, netif.RX_RING)
        self.tx = SharedRing(player, netif.TX_RING)
        self.rx_port: GuestPort = player.offer(self.on_rx)
        self.tx_port: GuestPort = player.offer(self.on_tx)
        self._ids = list(range(RX_SLOTS))
        self._pending: dict[int, tuple[tuple[Page, GrantRef] | None, int]] = {}
        """By id: the buffer, and how many extras went with it."""
        self._posted: dict[int, tuple[Page, GrantRef]] = {}
        self._produced = self._consumed = 0
        self._nulls = 0

    def send(self, packet: Packet, found: HashExtra | None = None) -> None:
        """TransmitterRingPostFragments."""
        extras = [gso_extra(packet.gso, packet.gso_size)] if packet.gso is not GsoType.NONE else []
        extras += [hash_extra(found)] if found is not None else []
        flags = TxFlag.CSUM_BLANK | TxFlag.DATA_VALIDATED if packet.csum is Csum.BLANK else 0
        self._post(pieces(packet.data, min(len(packet.data), HEADERS)), flags, extras)

    def order(self, kind: ExtraType, group: bytes) -> None:
        """A change of the multicast list: a request without a buffer."""
        self._post([b""], 0, [Extra(kind, 0, group)])

    def _post(self, buffers: list[bytes], flags: int, extras: list[Extra]) -> None:
        total = sum(map(len, buffers))
        for number, data in enumerate(buffers):
            buffer = None
            if data:
                buffer = self._player.lend(readonly=True)
                buffer[0].data[: len(data)] = data
            identifier = self._ids.pop(0)
            self._pending[identifier] = buffer, 0 if number else len(extras)
            more = TxFlag.MORE_DATA if number < len(buffers) - 1 else 0
            own = 0 if number else flags | (TxFlag.EXTRA_INFO if extras else 0)
            ref = buffer[1] if buffer is not None else 0
            self.tx.ring.put(TxRequest(ref, 0, own | more, identifier, len(data) if number else total))
            if not number:
                for extra in in_a_row(extras):
                    self.tx.ring.put(as_request(extra))
        if self.tx.ring.push():
            self.tx_port.notify()

    def on_tx(self) -> None:
        while True:
            for response in self.tx.ring.take():
                if response.status == Status.NULL:
                    assert self._nulls, "an extra that was not sent"
                    self._nulls -= 1
                    continue
                assert not self._nulls, "an extra is not answered"
                assert response.status == Status.OKAY
                buffer, self._nulls = self._pending.pop(response.id)
                self._ids.append(response.id)
                if buffer is not None:
                    self._player.free(*buffer)
            if not self.tx.ring.final_check():
                break

    def fill(self) -> None:
        """ReceiverRingFill."""
        while self._produced - self._consumed < RX_SLOTS:
            index = self._produced % RX_SLOTS
            assert index not in self._posted
            self._posted[index] = self._player.lend()
            self.rx.ring.put(RxRequest(index, self._posted[index][1]))
            self._produced += 1
        if self.rx.ring.push():
            self.rx_port.notify()

    def on_rx(self) -> None:
        """ReceiverRingPoll."""
        while True:
            responses = self.rx.ring.take()
            chains = RxAssembler().feed(responses)
            assert sum(len(chain.slots) for chain in chains) == len(responses)
            first = self._consumed
            self._consumed += len(responses)
            for chain in chains:
                assert chain.refused is None
                data = b""
                bounds = {position: (offset, size) for position, offset, size in chain.parts}
                for position in chain.slots:
                    page, ref = self._posted.pop((first + position) % RX_SLOTS)
                    if position in bounds:
                        assert responses[position].id == (first + position) % RX_SLOTS
                        offset, size = bounds[position]
                        data += bytes(page.data[offset : offset + size])
                    self._player.free(page, ref)
                assert all(extra.type in (ExtraType.GSO, ExtraType.HASH) for extra in chain.extras)
                csum = Csum.BLANK if chain.flags & RxFlag.CSUM_BLANK else Csum.UNKNOWN
                gso = chain.gso()
                packet = Packet(data, csum, hash=chain.hash())
                if gso is not None:
                    packet = packet._replace(gso=GsoType(gso.type), gso_size=gso.size)
                self._player.received.append((self.number, packet, chain.extras))
            self.fill()
            if not self.rx.ring.final_check():
                break

    def disconnect(self) -> None:
        buffers = [buffer for buffer, _ in self._pending.values() if buffer is not None]
        for page, ref in (*self._posted.values(), *buffers):
            self._player.free(page, ref)
        for ring in (self.rx, self.tx):
            ring.end()
        for port in (self.rx_port, self.tx_port):
            port.close()


class Controller:
    """The control ring: one request at a time."""

    def __init__(self, player: Windows) -> None:
        self._player = player
        self.shared = SharedRing(player, netif.CTRL_RING)
        self._event = trio.Event()
        self.port: GuestPort = player.offer(lambda: self._event.set())
        self._id = 0xFFFE

    async def ask(self, kind: CtrlType, *data: int) -> int:
        self._id = self._id + 1 & 0xFFFF or 1  # zero is skipped
        self.shared.ring.put(CtrlRequest(self._id, kind, *[*data, 0, 0, 0][:3]))
        if self.shared.ring.push():
            self.port.notify()
        with trio.fail_after(5):
            while not (responses := self.shared.ring.take()):
                self._event = trio.Event()
                if not self.shared.ring.final_check():
                    await self._event.wait()
        (response,) = responses
        assert (response.id, response.type, response.status) == (self._id, kind, CtrlStatus.SUCCESS)
        answer: int = response.data
        return answer

    async def ask_with(self, kind: CtrlType, data: bytes, *more: int) -> None:
        """With a page that begins with that data, granted for the request."""
        page, ref = self._player.lend(readonly=True)
        page.data[: len(data)] = data
        await self.ask(kind, ref, *more)
        self._player.free(page, ref)

    def disconnect(self) -> None:
        self.port.close()
        self.shared.end()


class Windows(Player):
    """See the module."""

    def __init__(self, guest: Guest, processors: int) -> None:
        super().__init__(guest)
        self._processors = processors
        self.queues: list[Queue] = []
        self.controller: Controller | None = None

    async def _until(self, wanted: State, answers: dict[State, State | None]) -> None:
        """Look at the backend's state and answer it, until it is the one wanted."""
        with trio.fail_after(20):
            last = State.UNKNOWN
            while last is not wanted:
                state = await self.backend_state()
                if state is last:
                    await self.changed()
                    continue
                last = state
                if state is not wanted:
                    assert state in answers, f"the backend went to {state.name}"
                    answer = answers[state]
                    if answer is not None:
                        await self.set_state(answer)

    async def prepare(self) -> None:
        """FrontendPrepare."""
        await self._until(
            State.INIT_WAIT,
            {
                State.CLOSED: State.INITIALISING,
                State.CONNECTED: State.CLOSING,
                State.CLOSING: State.CLOSED,
                State.INITIALISING: None,
            },
        )

    async def connect(self) -> None:
        """FrontendConnect: the receiver's nodes, the transmitter's, the controller's, then how many queues."""
        count = min(self._processors, int(await self.read_backend("multi-queue-max-queues") or "1"))
        assert await self.read_backend("feature-split-event-channels") == "1"
        self.queues = [Queue(self, number) for number in range(count)]
        prefixes = ["" if count == 1 else f"queue-{queue.number}/" for queue in self.queues]
        if await self.read_backend("feature-ctrl-ring") == "1":
            self.controller = Controller(self)
        nodes: dict[str, object] = {"request-rx-copy": 1, "feature-sg": 1, "feature-rx-notify": 1}
        for version in ("4", "6"):
            await self.remove(f"feature-gso-tcpv{version}-prefix")
            nodes[f"feature-gso-tcpv{version}"] = 1
        nodes |= {"feature-no-csum-offload": 0, "feature-ipv6-csum-offload": 1}
        for prefix, queue in zip(prefixes, self.queues, strict=True):
            nodes |= {f"{prefix}rx-ring-ref": queue.rx.ref, f"{prefix}event-channel-rx": queue.rx_port.port}
        if await self.read_backend("feature-dynamic-multicast-control") == "1":
            nodes["request-multicast-control"] = 1
        for prefix, queue in zip(prefixes, self.queues, strict=True):
            nodes |= {f"{prefix}tx-ring-ref": queue.tx.ref, f"{prefix}event-channel-tx": queue.tx_port.port}
        if self.controller is not None:
            nodes |= {"ctrl-ring-ref": self.controller.shared.ref, "event-channel-ctrl": self.controller.port.port}
        nodes["multi-queue-num-queues"] = count
        await self.write(nodes)
        await self._until(
            State.CONNECTED,
            {
                State.INIT_WAIT: State.CONNECTED,
                State.INITIALISED: State.CONNECTED,
                State.CLOSING: State.CLOSED,
                State.CLOSED: None,
            },
        )
        for queue in self.queues:
            queue.fill()

    async def update_hash(self, key: bytes, mapping: list[int], types: int) -> None:
        """__FrontendUpdateHash, which only drivers with several queues come to."""
        assert len(self.queues) > 1 and self.controller is not None
        ask = self.controller
        await ask.ask(CtrlType.SET_HASH_ALGORITHM, HashAlgorithm.TOEPLITZ)
        assert types & ~await ask.ask(CtrlType.GET_HASH_FLAGS) == 0
        assert len(mapping) <= await ask.ask(CtrlType.GET_HASH_MAPPING_SIZE)
        await ask.ask(CtrlType.SET_HASH_MAPPING_SIZE, len(mapping))
        await ask.ask_with(CtrlType.SET_HASH_MAPPING, struct.pack(f"<{len(mapping)}I", *mapping), len(mapping), 0)
        await ask.ask_with(CtrlType.SET_HASH_KEY, key, len(key))
        await ask.ask(CtrlType.SET_HASH_FLAGS, types)

    async def set_all_multicast(self, wanted: bool) -> None:
        """TransmitterRequestMulticastControl."""
        await self.write({"request-multicast-control": int(not wanted)})

    async def close(self) -> None:
        """FrontendClose, and what was shared is taken back."""
        await self._until(
            State.CLOSED,
            {State.CONNECTED: State.CLOSING, State.INIT_WAIT: State.CLOSING, State.CLOSING: State.CLOSED},
        )
        self.disconnect()

    def disconnect(self) -> None:
        for queue in self.queues:
            queue.disconnect()
        self.queues = []
        if self.controller is not None:
            self.controller.disconnect()
            self.controller = None
