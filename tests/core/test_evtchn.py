# SPDX-License-Identifier: GPL-2.0-only
"""Event channels: every operation of the broker and its errors, bindings that stay symmetric, pending bits."""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgpack
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.core.machine import DATA, VA, Machine
from xen_py.abi.xen import DOMID_SELF, Hypercall, Virq
from xen_py.evtchn import Channel, ChannelState, Delivery, EventBroker, EvtchnStatus, LocalPort, PendingEvents
from xen_py.types import DomId, Errno, Port, VcpuId, XenError

D0, D1, D2, NOBODY = DomId(0), DomId(1), DomId(2), DomId(9)
BIND_INTERDOMAIN, BIND_VIRQ, CLOSE, SEND, STATUS, ALLOC_UNBOUND, BIND_IPI, BIND_VCPU, UNMASK, RESET = (
    *(0, 1, 3, 4, 5, 6, 7, 8, 9, 10),
)


def make_broker() -> EventBroker:
    broker = EventBroker()
    broker.add_domain(D0, 1)
    broker.add_domain(D1, 2, max_port=6)
    broker.add_domain(D2, 1)
    broker.alloc_unbound(D1, D1, D2)  # port 1
    broker.bind_ipi(D1, VcpuId(1))  # 2
    broker.bind_virq(D1, Virq.TIMER, VcpuId(0))  # 3
    return broker


B = Callable[[EventBroker], object]
REFUSED: list[tuple[str, B, Errno]] = [
    ("owner unknown", lambda b: b.alloc_unbound(D0, NOBODY, D0), Errno.ESRCH),
    ("another's port", lambda b: b.alloc_unbound(D1, D2, D1), Errno.EPERM),
    ("remote unknown", lambda b: b.bind_interdomain(D2, NOBODY, Port(1)), Errno.ESRCH),
    ("not for us", lambda b: b.bind_interdomain(D0, D1, Port(1)), Errno.EINVAL),
    ("no such port", lambda b: b.bind_interdomain(D2, D1, Port(77)), Errno.EINVAL),
    ("not unbound", lambda b: b.bind_interdomain(D2, D1, Port(2)), Errno.EINVAL),
    ("virq number", lambda b: b.bind_virq(D1, 24, VcpuId(0)), Errno.EINVAL),
    ("virq number, huge", lambda b: b.bind_virq(D1, 0xFFFFFFFF, VcpuId(0)), Errno.EINVAL),
    ("virq, vCPU", lambda b: b.bind_virq(D1, Virq.TIMER, VcpuId(2)), Errno.ENOENT),
    ("virq, taken", lambda b: b.bind_virq(D1, Virq.TIMER, VcpuId(0)), Errno.EEXIST),
    ("global virq, vCPU 1", lambda b: b.bind_virq(D1, Virq.CONSOLE, VcpuId(1)), Errno.EINVAL),
    ("global virq of dom0", lambda b: b.bind_virq(D1, Virq.DOM_EXC, VcpuId(0)), Errno.EBUSY),
    ("ipi, vCPU", lambda b: b.bind_ipi(D1, VcpuId(2)), Errno.ENOENT),
    ("move, vCPU", lambda b: b.bind_vcpu(D1, Port(1), VcpuId(2)), Errno.ENOENT),
    ("move, port", lambda b: b.bind_vcpu(D1, Port(5), VcpuId(0)), Errno.EINVAL),
    ("move an IPI", lambda b: b.bind_vcpu(D1, Port(2), VcpuId(0)), Errno.EINVAL),
    ("move a timer", lambda b: b.bind_vcpu(D1, Port(3), VcpuId(1)), Errno.EINVAL),
    ("close nothing", lambda b: b.close(D1, Port(5)), Errno.EINVAL),
    ("close port 0", lambda b: b.close(D1, Port(0)), Errno.EINVAL),
    ("status of another", lambda b: b.status(D1, D2, Port(1)), Errno.EPERM),
    ("status of nobody", lambda b: b.status(D0, NOBODY, Port(1)), Errno.ESRCH),
    ("status of port 0", lambda b: b.status(D1, D1, Port(0)), Errno.EINVAL),
    ("status of port 4096", lambda b: b.status(D1, D1, Port(4096)), Errno.EINVAL),
    ("reset of another", lambda b: b.reset(D1, D2), Errno.EPERM),
    ("send a VIRQ", lambda b: b.send(D1, Port(3)), Errno.EINVAL),
    ("send nothing", lambda b: b.send(D1, Port(4)), Errno.EINVAL),
]


@pytest.mark.parametrize(("what", "operation", "errno"), REFUSED, ids=[r[0] for r in REFUSED])
def test_refused(what: str, operation: B, errno: Errno) -> None:
    broker = make_broker()
    before = broker.save()
    with pytest.raises(XenError) as caught:
        operation(broker)
    assert caught.value.errno == errno
    assert broker.save() == before


def test_the_life_of_a_channel() -> None:
    broker = make_broker()
    assert broker.send(D1, Port(1)) is None
    assert broker.status(D0, D1, Port(1)) == EvtchnStatus(ChannelState.UNBOUND, remote=D2)
    far = broker.bind_interdomain(D2, D1, Port(1))
    assert far == 1
    assert broker.status(D1, DOMID_SELF, Port(1)) == EvtchnStatus(ChannelState.INTERDOMAIN, remote=D2, remote_port=far)
    assert broker.send(D1, Port(1)) == Delivery(D2, far)
    assert broker.send(D2, far) == Delivery(D1, Port(1))
    broker.bind_vcpu(D1, Port(1), VcpuId(1))
    broker.close(D2, far)
    assert broker.status(D1, D1, Port(1)) == EvtchnStatus(ChannelState.UNBOUND, VcpuId(1), D2)
    assert broker.bind_interdomain(D2, D1, Port(1)) == far
    broker.remove_domain(D2)
    assert broker.status(D1, D1, Port(1)).state == ChannelState.UNBOUND
    broker.reset(D1, DOMID_SELF)
    assert list(broker.ports(D1)) == []


def test_ports_are_given_from_below_and_run_out() -> None:
    broker = make_broker()
    assert [broker.bind_ipi(D1, VcpuId(0)) for _ in range(3)] == [4, 5, 6]
    with pytest.raises(XenError) as caught:
        broker.bind_ipi(D1, VcpuId(0))
    assert caught.value.errno == Errno.ENOSPC
    broker.close(D1, Port(5))
    broker.close(D1, Port(2))
    assert [broker.bind_ipi(D1, VcpuId(0)) for _ in range(2)] == [2, 5]


def test_a_global_virq_is_bound_once_wherever_it_moved() -> None:
    broker = make_broker()
    port = broker.bind_virq(D1, Virq.ARGO, VcpuId(0))
    broker.bind_vcpu(D1, port, VcpuId(1))
    with pytest.raises(XenError) as caught:
        broker.bind_virq(D1, Virq.ARGO, VcpuId(0))
    assert caught.value.errno == Errno.EEXIST
    assert broker.bind_virq(D1, Virq.TIMER, VcpuId(1))


class Bindings(RuleBasedStateMachine):
    """Bindings stay symmetric, and a saved broker is the same broker."""

    def __init__(self) -> None:
        super().__init__()
        self.broker = EventBroker()
        for domid in range(3):
            self.broker.add_domain(DomId(domid), 2, max_port=8)

    def attempt(self, operation: Callable[[], object]) -> None:
        try:
            operation()
        except XenError:
            return

    domids = st.integers(0, 2).map(DomId)
    ports = st.integers(0, 9).map(Port)

    @rule(caller=domids, owner=domids, remote=domids)
    def alloc(self, caller: DomId, owner: DomId, remote: DomId) -> None:
        self.attempt(lambda: self.broker.alloc_unbound(caller, owner, remote))

    @rule(caller=domids, remote=domids, port=ports)
    def bind(self, caller: DomId, remote: DomId, port: Port) -> None:
        self.attempt(lambda: self.broker.bind_interdomain(caller, remote, port))

    @rule(caller=domids, virq=st.integers(0, 24), vcpu=st.integers(0, 2).map(VcpuId))
    def virq(self, caller: DomId, virq: int, vcpu: VcpuId) -> None:
        self.attempt(lambda: self.broker.bind_virq(caller, virq, vcpu))

    @rule(caller=domids, port=ports, vcpu=st.integers(0, 2).map(VcpuId))
    def move(self, caller: DomId, port: Port, vcpu: VcpuId) -> None:
        self.attempt(lambda: self.broker.bind_vcpu(caller, port, vcpu))

    @rule(caller=domids, port=ports)
    def close(self, caller: DomId, port: Port) -> None:
        self.attempt(lambda: self.broker.close(caller, port))

    @rule(caller=domids)
    def reset(self, caller: DomId) -> None:
        self.attempt(lambda: self.broker.reset(caller, caller))

    @invariant()
    def symmetric(self) -> None:
        channels: dict[tuple[int, int], Channel] = {}
        for domid in range(3):
            channels |= {(domid, port): channel for port, channel in self.broker.ports(DomId(domid))}
        virqs = []
        for (domid, port), channel in channels.items():
            assert 1 <= port <= 8
            if channel.state == ChannelState.INTERDOMAIN:
                other = channels[channel.remote, channel.remote_port]
                assert (other.state, other.remote, other.remote_port) == (ChannelState.INTERDOMAIN, domid, port)
                assert self.broker.send(DomId(domid), Port(port)) == Delivery(channel.remote, channel.remote_port)
            if channel.state == ChannelState.VIRQ:
                virqs.append((domid, channel.virq, channel.vcpu))
        assert len(virqs) == len(set(virqs))

    @invariant()
    def saveable(self) -> None:
        state = msgpack.unpackb(msgpack.packb(self.broker.save()))
        again = EventBroker()
        again.restore(state)
        assert again.save() == self.broker.save()


TestBindings = Bindings.TestCase
TestBindings.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@pytest.fixture
def pending() -> tuple[PendingEvents, bytearray, list[bytearray]]:
    shared, infos = bytearray(4096), [bytearray(64), bytearray(64)]
    events = PendingEvents(memoryview(shared), lambda v: memoryview(infos[v]))
    events.opened(Port(5), LocalPort(ChannelState.UNBOUND, VcpuId(0)))
    events.opened(Port(130), LocalPort(ChannelState.IPI, VcpuId(1)))
    events.opened(Port(6), LocalPort(ChannelState.VIRQ, VcpuId(0), Virq.TIMER))
    return events, shared, infos


Pending = tuple[PendingEvents, bytearray, list[bytearray]]


def test_raising_and_the_bits_it_sets(pending: Pending) -> None:
    events, shared, infos = pending
    assert events.raise_port(Port(130)) == 1
    assert shared[2048 + 16] == 1 << 2
    assert infos[1][:16] == b"\1" + bytes(7) + b"\4" + bytes(7)
    assert infos[0] == bytes(64)
    assert events.raise_port(Port(130)) is None  # pending already
    assert events.is_pending(130)
    assert events.raise_port(Port(5)) == 0


def test_masked_events_wait_for_the_unmask(pending: Pending) -> None:
    events, shared, infos = pending
    shared[2560] = 1 << 5
    assert events.raise_port(Port(5)) is None
    assert shared[2048] == 1 << 5
    assert infos[0][0] == 0
    events.unmask(Port(5))
    assert shared[2560] == 0
    assert (infos[0][0], infos[0][8]) == (1, 1)
    infos[0][0] = 0
    infos[0][8] = 0
    events.unmask(Port(5))  # not masked: nothing to see to
    assert infos[0][0] == 0


def test_closed_ports_are_left_alone(pending: Pending) -> None:
    events, shared, _infos = pending
    events.raise_port(Port(5))
    events.closed(Port(5))
    assert shared[2048] == 0
    assert events.raise_port(Port(5)) is None
    assert events.raise_port(Port(4095)) is None
    assert shared[2048:2560] == bytes(512)
    assert events.virq_port(Virq.TIMER, VcpuId(0)) == 6
    events.closed(Port(6))
    assert events.virq_port(Virq.TIMER, VcpuId(0)) is None


def test_moving(pending: Pending) -> None:
    events, _shared, infos = pending
    events.moved(Port(5), VcpuId(1))
    assert events.raise_port(Port(5)) == 1
    assert infos[1][0] == 1


def op(machine: Machine, command: int, layout: str, *fields: int) -> tuple[int, tuple[int, ...]]:
    """An event_channel_op; its result and the structure afterwards."""
    machine.put(DATA, struct.pack(layout, *fields))
    result = machine.call(Hypercall.EVENT_CHANNEL_OP, command, VA(DATA))
    return result, struct.unpack(layout, machine.get(DATA, struct.calcsize(layout)))


def test_every_operation_of_a_guest(machine: Machine) -> None:
    events = machine.domain.events
    first = max(events.ports) + 1
    assert op(machine, ALLOC_UNBOUND, "<HHI", DOMID_SELF, 0, 0) == (0, (DOMID_SELF, 0, first))
    assert op(machine, BIND_VIRQ, "<III", Virq.TIMER, 0, 0) == (0, (Virq.TIMER, 0, first + 1))
    assert op(machine, BIND_VIRQ, "<III", Virq.TIMER, 0, 0)[0] == -Errno.EEXIST
    assert op(machine, BIND_IPI, "<II", 0, 0) == (0, (0, first + 2))
    theirs = machine.broker.alloc_unbound(D2, D2, D1)
    assert op(machine, BIND_INTERDOMAIN, "<HxxII", 2, theirs, 0) == (0, (2, theirs, first + 3))
    assert events.is_pending(first + 3)
    for port, fields in (
        (first, (1, 0, 0, 0)),
        (first + 1, (4, 0, Virq.TIMER, 0)),
        (first + 2, (5, 0, 0, 0)),
        (first + 3, (2, 0, 2, theirs)),
        (first + 4, (0, 0, 0, 0)),
    ):
        assert op(machine, STATUS, "<HxxIIIII", DOMID_SELF, port, 0, 0, 0, 0) == (0, (DOMID_SELF, port, *fields))
    assert op(machine, SEND, "<I", first + 3)[0] == 0
    assert machine.delivered == [Delivery(D2, theirs)]
    assert op(machine, SEND, "<I", first)[0] == 0
    assert len(machine.delivered) == 1
    assert op(machine, SEND, "<I", first + 2)[0] == 0
    assert events.is_pending(first + 2)
    assert op(machine, SEND, "<I", first + 1)[0] == -Errno.EINVAL
    for bad in (0, 4095, 4096, 0xFFFFFFFF):
        for command in (SEND, CLOSE, UNMASK):
            assert op(machine, command, "<I", bad)[0] == -Errno.EINVAL
        assert op(machine, BIND_VCPU, "<II", bad, 0)[0] == -Errno.EINVAL
    assert op(machine, BIND_VCPU, "<II", first, 1)[0] == -Errno.ENOENT
    assert op(machine, BIND_VCPU, "<II", first, 0)[0] == 0
    assert op(machine, CLOSE, "<I", first + 2)[0] == 0
    assert not events.is_pending(first + 2)
    assert op(machine, CLOSE, "<I", first + 2)[0] == -Errno.EINVAL
    assert op(machine, RESET, "<Hxx", 2)[0] == -Errno.EPERM
    assert op(machine, RESET, "<Hxx", DOMID_SELF)[0] == 0
    assert events.ports == {}
    for command in (2, 11, 12, 13, 99):
        assert machine.call(Hypercall.EVENT_CHANNEL_OP, command, VA(DATA)) == -Errno.ENOSYS


@pytest.mark.parametrize("command", [0, 1, 3, 4, 5, 6, 7, 8, 9, 10])
@pytest.mark.parametrize("pointer", [0, VA(70), 0xFFFF800000000000, (1 << 64) - 1, 1 << 63])
def test_bad_pointers(machine: Machine, command: int, pointer: int) -> None:
    assert machine.call(Hypercall.EVENT_CHANNEL_OP, command, pointer) == -Errno.EFAULT


def test_a_channel_to_itself_delivers_at_once(machine: Machine) -> None:
    events = machine.domain.events
    _, (_, _, near) = op(machine, ALLOC_UNBOUND, "<HHI", DOMID_SELF, DOMID_SELF, 0)
    _, (_, _, far) = op(machine, BIND_INTERDOMAIN, "<HxxII", DOMID_SELF, near, 0)
    assert events.is_pending(far)
    assert op(machine, SEND, "<I", far)[0] == 0
    assert events.is_pending(near)
    assert machine.delivered == []
    assert op(machine, CLOSE, "<I", near)[0] == 0
    assert op(machine, SEND, "<I", far)[0] == 0
    assert not events.is_pending(near)
