# SPDX-License-Identifier: GPL-2.0-only
"""Traces: a running guest shows what it does, switching it on and off costs nothing afterwards, and nobody waits."""

from __future__ import annotations

import json

import pytest
import trio
from echo_device.backend import EchoBackend
from echo_device.frontend import EchoFrontend

import native_build
from dom0.host.looptrace import LoopTrace
from dom0.host.machine import open_machine
from dom0.host.tracestream import MOST_WAITING, TraceStream
from dom0.kit.guests import inside
from dom0.toolstack.config import DomainConfig
from dom0.xl.traceform import Perfetto, line
from xen_py.clock import VirtualClock
from xen_py.trace import KINDS, Record, Tracer

HELLO = DomainConfig(name="hello", kernel=str(native_build.GUEST_OUTPUT / "hello.elf"), memory_kb=16 * 1024)


@pytest.mark.parametrize("processes", [False, True], ids=["thread", "process"])
async def test_a_native_guest_shows_what_it_does(processes: bool) -> None:
    with trio.fail_after(60):
        async with open_machine(processes=processes) as machine:
            guest = await machine.create(HELLO, paused=True)
            seen: list[Record] = []
            await machine.trace.add(seen.append)
            await guest.unpause()
            calls = {("hypercall", "set_trap_table"), ("hypercall", "xen_version")}
            wanted = calls | {("event", "send"), ("store", "read")}
            while not wanted <= {(record.kind, record.name) for record in seen if record.domid == guest.domid}:
                await trio.sleep(0.01)
            versions = [record.fields["command"] for record in seen if record.name == "xen_version"]
            assert "version" in versions
            await machine.trace.remove(seen.append)
            count = len(seen)
            await guest.console.send("hello\r")
            await guest.console.expect("hello")
            await trio.sleep(0.05)
            assert len(seen) == count


async def test_it_goes_on_and_off_under_a_guest_that_works() -> None:
    with trio.fail_after(60):
        async with open_machine() as machine:
            guest = await machine.create(HELLO)
            for number in range(20):
                async with TraceStream(machine, guest.domid, ["event"]) as stream:
                    await guest.console.send(f"number {number}\r")
                    records, lost = await stream.take()
                    assert records and not lost
                    assert {record[2] for record in records} == {"event"}
                await guest.console.expect(f"number {number}")
            assert not machine.trace.tracer.on


async def test_a_client_that_does_not_read_costs_records_and_nothing_else() -> None:
    async with open_machine() as machine, TraceStream(machine, None, None) as stream:
        for number in range(MOST_WAITING + 7):
            machine.trace.tracer.record(1, "domain", "x", number=number)
        taken, lost = await stream.take()
        assert lost == 7
        assert taken[0][4] == {"number": 0}


class _Host:
    """A host's end that takes nothing for a while."""

    def __init__(self) -> None:
        self.takes = False
        self.got: list[tuple[int, int]] = []

    def records(self, lost: int, records: list[list[object]]) -> bool:
        if self.takes:
            self.got.append((lost, len(records)))
        return self.takes


class _Domain:
    tracer: Tracer | None = None

    def trace(self, tracer: Tracer | None) -> None:
        self.tracer = tracer


def test_a_domain_never_waits_for_who_looks_at_it() -> None:
    host, domain = _Host(), _Domain()
    trace = LoopTrace(domain, host, VirtualClock())  # type: ignore[arg-type]
    trace.switch(True)
    assert domain.tracer is not None
    for _ in range(5000):
        domain.tracer.record(1, "hypercall", "x")
    host.takes = True
    trace.send()
    assert sum(count for _, count in host.got) == 4096
    assert host.got[0][0] == 5000 - 4096
    trace.switch(False)
    assert domain.tracer is None


RECORDS = [
    Record(2_000_000, 1, "hypercall", "event_channel_op",
           {"command": "send", "arguments": [4, 4096, 0, 0, 0, 7], "result": 0, "ns": 3000, "vcpu": 0}),
    Record(3_000_000, 1, "event", "send", {"port": 3, "to": 0, "to_port": 9}),
    Record(3_500_000, 1, "store", "read", {"request": "name", "reply": "x", "connection": 2}),
    Record(4_000_000, 0, "ring", "echo request", {"device": "d1 echo 0", "id": 1, "data": b"hi\0\0"}),
    Record(4_500_000, 0, "grant", "pin", {"domain": 1, "refs": [8, 9], "refused": {}}),
    Record(5_000_000, 0, "xenbus", "d1 echo 0",
           {"ours": "init_wait", "theirs": "initialised", "event": "wanted", "do": "connect", "to": "connected"}),
]  # fmt: skip


def test_lines_for_people() -> None:
    assert [line(record, 1_000_000) for record in RECORDS] == [
        "    0.001000  d1   hypercall event_channel_op.send(0x1000) = 0  (3 us)",
        "    0.002000  d1   event     port 3 -> d0 port 9",
        "    0.002500  d1   store     read name -> x",
        "    0.003000  d0   ring      echo request device=d1 echo 0 id=1 data='hi'",
        "    0.003500  d0   grant     pin domain=1 refs=[8, 9] refused={}",
        "    0.004000  d0   xenbus    d1 echo 0: init_wait/initialised wanted: connect -> connected",
    ]


def test_a_line_does_not_work_the_terminal() -> None:
    """Whatever a guest writes into the store: escape sequences and line ends are shown, not sent."""
    record = Record(0, 1, "store", "write", {"request": "data/x \x1b[2J\r\n\u202e\x9b", "connection": 1})
    assert line(record, 0).endswith("write data/x \\x1b[2J\\r\\n\\u202e\\x9b")


@pytest.mark.parametrize(
    ("record", "concerned"),
    [
        (Record(0, 5, "hypercall", "x", {}), True),
        (Record(0, 0, "event", "send", {"to": 5}), True),
        (Record(0, 0, "grant", "pin", {"domain": 5}), True),
        (Record(0, 0, "grant", "pin", {"domain": 6}), False),
        (Record(0, 0, "store", "write", {"request": "/local/domain/5/device/vbd/1 x"}), True),
        (Record(0, 0, "store", "rm", {"request": "/local/domain/5"}), True),
        (Record(0, 0, "store", "write", {"request": "/local/domain/0/backend/vbd/5/51712/state 4"}), True),
        (Record(0, 0, "store", "write", {"request": "/local/domain/55/name x"}), False),
        (Record(0, 0, "store", "write", {"request": "/local/domain/0/backend/vbd/55/5/state 4"}), False),
    ],
)
def test_what_concerns_a_domain(record: Record, concerned: bool) -> None:
    assert record.concerns(5) == concerned


async def test_a_device_is_seen_from_both_sides() -> None:
    """Both halves' steps, the pins of the ring, the requests: all with the domain that they are about."""
    with trio.fail_after(60):
        async with open_machine() as machine:
            machine.backends.register(EchoBackend)
            seen: list[Record] = []
            await machine.trace.add(seen.append)
            async with inside(machine, "type=echo") as guest, guest.device(EchoFrontend) as echo:
                await echo.wait_connected()
                assert await echo.say(b"hi") == b"hi"
                domid = guest.domid
            await machine.trace.remove(seen.append)
            steps = {(record.domid, record.fields["do"]) for record in seen if record.kind == "xenbus"}
            assert {(0, "connect"), (domid, "publish"), (domid, "connect")} <= steps
            assert {record.kind for record in seen} >= set(KINDS) - {"domain"}
            assert {"pin", "unpin"} <= {record.name for record in seen if record.kind == "grant"}
            assert all(record.concerns(domid) for record in seen if record.kind in ("grant", "ring", "xenbus"))


def test_a_file_for_perfetto() -> None:
    perfetto = Perfetto()
    for record in RECORDS:
        perfetto.add(record)
    events = json.loads(perfetto.text())["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "i", "s", "f"}
    assert all(isinstance(event["pid"], int) and isinstance(event["tid"], int) for event in events)
    (call,) = [event for event in events if event["name"] == "event_channel_op.send"]
    assert (call["ts"], call["dur"]) == (1997.0, 3.0)
    starts, ends = ([event["id"] for event in events if event["ph"] == phase] for phase in "sf")
    assert starts == ends


@pytest.mark.parametrize("plain", [[1, 2], "x", [1, 2, "no kind", "x", {}], [1, 2, "event", "x", []], None])
def test_what_is_no_record_is_refused(plain: object) -> None:
    with pytest.raises(ValueError, match="not a record"):
        Record.from_plain(plain)


def test_records_are_the_same_text_everywhere() -> None:
    record = Record(1, 2, KINDS[0], "x", {"b": b"\xff\0", "a": 1})
    assert record.to_json() == '[1,2,"domain","x",{"a":1,"b":"\\\\xff\\u0000"}]'
    assert Record.from_plain(record.to_plain()) == record
