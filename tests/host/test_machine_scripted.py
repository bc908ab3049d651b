# SPDX-License-Identifier: GPL-2.0-only
"""A machine with scripted domains: the loop, the link, events, pauses and every kind of end."""

import errno
import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from dom0.host.machine import ConsoleClosed
from dom0.toolstack.config import ShutdownAction
from dom0.toolstack.domain import ToolstackError
from tests.host.guests import HELLO, ScriptedDomain, hello, scripted, watched_machine
from xen_py.abi.xen import ShutdownReason
from xen_py.evtchn import ChannelState
from xen_py.spec import Blocked, Kicked, Shutdown, Step
from xen_py.types import DomId, Errno, Port, VcpuId, XenError


def idle(domain: ScriptedDomain) -> Iterator[Step]:
    domain.say(b"up\n")
    while True:
        yield Blocked(None)


def poweroff(domain: ScriptedDomain) -> Iterator[Step]:
    domain.console.put_output(b"last words\n")
    yield Shutdown(ShutdownReason.POWEROFF, "done")


def crash(_domain: ScriptedDomain) -> Iterator[Step]:
    yield Shutdown(ShutdownReason.CRASH, "jumped into the void")


def busy(domain: ScriptedDomain) -> Iterator[Step]:
    """Runs until it is kicked, as a guest that never sleeps does."""
    domain.say(b"up\n")
    while True:
        select.select([domain.paths.doorbell.inbox.eventfd], [], [])
        yield Kicked()


async def test_console_both_ways_and_events() -> None:
    def echo(domain: ScriptedDomain) -> Iterator[Step]:
        domain.say(b"hello\n")
        while True:
            yield Blocked(None)
            data = domain.console.take_input()
            if data:
                domain.say(data.upper())

    async with watched_machine(make=scripted(echo)) as machine:
        guest = await machine.create(hello())
        await guest.console.expect("hello\n")
        for n in range(200):
            await guest.console.send(f"line {n}\n")
            await guest.console.expect(f"LINE {n}\n")


async def test_timeouts_are_waited_for() -> None:
    waited: list[int] = []

    def sleeper(domain: ScriptedDomain) -> Iterator[Step]:
        start = domain.clock.now()
        while domain.clock.now() < start + 30_000_000:
            yield Blocked(start + 30_000_000)
        waited.append(domain.clock.now() - start)
        yield Shutdown(ShutdownReason.POWEROFF, "slept")

    async with watched_machine(make=scripted(sleeper)) as machine:
        guest = await machine.create(hello())
        assert await guest.wait_shutdown() == ShutdownReason.POWEROFF
    assert waited[0] >= 30_000_000


async def test_last_words_reach_the_log_and_the_domain_goes() -> None:
    async with watched_machine(make=scripted(poweroff)) as machine:
        guest = await machine.create(hello())
        await guest.wait_gone()
        assert await guest.console.read_to_end() == "last words\n"
        assert (machine.rundir / "log" / "guest-hello.log").read_text() == "last words\n"
        assert machine.toolstack.domains == {}
        with pytest.raises(ConsoleClosed, match="last words"):
            await guest.console.expect("login:")


async def test_what_a_domain_asks_of_the_host() -> None:
    seen: list[object] = []

    def ask(domain: ScriptedDomain) -> Iterator[Step]:
        link = domain.link
        yield Blocked(domain.clock.now())
        seen.append(link.evtchn_status(domain.spec.domid, domain.spec.console_port).state)
        port = link.evtchn_alloc_unbound(DomId(0x7FF0), DomId(0))
        seen.append(port)
        seen.append(link.evtchn_bind_virq(0, VcpuId(0)))
        ipi = link.evtchn_bind_ipi(VcpuId(0))
        link.evtchn_bind_vcpu(port, VcpuId(0))
        link.evtchn_close(ipi)
        for call in (
            lambda: link.evtchn_bind_virq(0, VcpuId(0)),
            lambda: link.evtchn_close(Port(77)),
            lambda: link.evtchn_bind_interdomain(DomId(99), Port(1)),
            lambda: link.evtchn_status(DomId(0), Port(1)),
        ):
            with pytest.raises(XenError) as error:
                call()
            seen.append(error.value.errno)
        link.evtchn_notify(Port(77))
        link.console_write(b"by console_io\n")
        link.log("d1: a message")
        link.evtchn_reset(domain.spec.domid)
        yield Shutdown(ShutdownReason.POWEROFF, "asked")

    async with watched_machine(make=scripted(ask)) as machine:
        guest = await machine.create(hello())
        await guest.wait_gone()
        text = machine.messages.text()
        assert "by console_io" in await guest.console.read_to_end()
    assert seen == [ChannelState.INTERDOMAIN, 3, 4, Errno.EEXIST, Errno.EINVAL, Errno.ESRCH, Errno.EPERM]
    assert "(d1) by console_io\n(XEN) d1: a message\n" in text


@pytest.mark.parametrize("script", [idle, busy])
async def test_pauses_count_and_hold_events(script: object) -> None:
    domains: list[ScriptedDomain] = []

    def kept(domain: ScriptedDomain) -> Iterator[Step]:
        domains.append(domain)
        yield from script(domain)  # type: ignore[operator]

    async with watched_machine(make=scripted(kept)) as machine:
        guest = await machine.create(hello())
        await guest.console.expect("up")
        await guest.pause()
        await guest.pause()
        row = machine.toolstack.rows()[1]
        assert row["paused"] and not row["running"] and not row["blocked"]
        before = len(domains[0].delivered)
        await guest.console.send("x")
        await guest.unpause()
        assert machine.toolstack.rows()[1]["paused"]
        assert len(domains[0].delivered) == before
        await guest.unpause()
        assert not machine.toolstack.rows()[1]["paused"]
        while len(domains[0].delivered) == before:
            await trio.sleep(0.001)
        await guest.unpause()
        assert not machine.toolstack.rows()[1]["paused"]


async def test_a_domain_created_paused_has_done_nothing() -> None:
    async with watched_machine(make=scripted(idle)) as machine:
        guest = await machine.create(hello(), paused=True)
        row = machine.toolstack.rows()[1]
        assert row["paused"] and row["vcpus_online"] == 1 and row["mem_kb"] == 16384
        assert guest.console.text == ""
        await guest.unpause()
        await guest.console.expect("up")


async def test_crash_is_told_and_preserved() -> None:
    async with watched_machine(make=scripted(crash)) as machine:
        guest = await machine.create(hello(on_crash=ShutdownAction.PRESERVE))
        assert await guest.wait_shutdown() == ShutdownReason.CRASH
        row = machine.toolstack.rows()[1]
        assert (row["shutdown"], row["shutdown_reason"]) == (True, 3)
        assert row["reason_text"] == "jumped into the void"
        assert "jumped into the void" in machine.messages.text()
        await guest.pause()
        await guest.destroy()
        assert len(machine.toolstack.rows()) == 1


async def test_restart_gets_a_new_id_and_the_same_configuration() -> None:
    lives = 0

    def reboot_once(domain: ScriptedDomain) -> Iterator[Step]:
        nonlocal lives
        lives += 1
        domain.say(b"life %d\n" % lives)
        yield Blocked(domain.clock.now())
        if lives == 1:
            yield Shutdown(ShutdownReason.REBOOT, "again")
        while True:
            yield Blocked(None)

    async with watched_machine(make=scripted(reboot_once)) as machine:
        config = hello(on_reboot=ShutdownAction.RESTART)
        guest = await machine.create(config)
        await guest.wait_gone()
        while lives < 2 or machine.toolstack.domains[DomId(2)].building is not None:
            await trio.sleep(0.01)
        again = machine.toolstack.domains[DomId(2)]
        assert again.config == config
        assert machine.store.read(f"/vm/{config.uuid}/name") == b"hello"
        assert machine.store.read("/local/domain/2/vm") == f"/vm/{config.uuid}".encode()
        assert not machine.store.exists("/local/domain/1")
    assert (lives, again.domid) == (2, 2)


async def test_a_restart_that_fails_is_told(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(HELLO.read_bytes())

    def reboot(_domain: ScriptedDomain) -> Iterator[Step]:
        kernel.unlink()
        yield Shutdown(ShutdownReason.REBOOT, "again")

    async with watched_machine(make=scripted(reboot)) as machine:
        guest = await machine.create(hello(kernel=str(kernel)))
        await guest.wait_gone()
        while "cannot be restarted" not in machine.messages.text():
            await trio.sleep(0.01)
        assert machine.toolstack.domains == {}


async def test_rename_restart_sets_the_old_one_aside() -> None:
    first = True

    def once(_domain: ScriptedDomain) -> Iterator[Step]:
        nonlocal first
        if first:
            first = False
            yield Shutdown(ShutdownReason.CRASH, "once")
        while True:
            yield Blocked(None)

    async with watched_machine(make=scripted(once)) as machine:
        await machine.create(hello(on_crash=ShutdownAction.RENAME_RESTART))
        while len(machine.toolstack.domains) < 2:
            await trio.sleep(0.01)
        old, new = machine.toolstack.domains.values()
        assert new.name == "hello" and old.name.startswith("hello-2") and old.uuid != new.uuid
        assert machine.store.read(f"/local/domain/{old.domid}/name").decode() == old.name


async def test_a_bug_in_the_domain_costs_the_domain() -> None:
    def bug(_domain: ScriptedDomain) -> Iterator[Step]:
        yield Blocked(0)
        raise RuntimeError("a bug of ours")

    async with watched_machine(make=scripted(bug)) as machine:
        guest = await machine.create(hello())
        assert await guest.wait_shutdown() == ShutdownReason.CRASH
        assert machine.toolstack.rows()[1]["reason_text"] == "xen-py failed: RuntimeError: a bug of ours"
        assert "Traceback" in machine.messages.text()
        await guest.destroy()


@pytest.mark.parametrize("nonsense", [b"", b"\xc1", b"\x01", b"\x91\x01", b"\x91\xa4what", b"\x93\xa4call\xa4exec\x90"])
async def test_a_loop_that_breaks_the_link_is_ended(nonsense: bytes) -> None:
    def hostile(domain: ScriptedDomain) -> Iterator[Step]:
        domain.link._socket.send(nonsense)  # type: ignore[attr-defined]
        while True:
            yield Blocked(None)

    async with watched_machine(make=scripted(hostile)) as machine:
        guest = await machine.create(hello("bad"))
        assert await guest.wait_shutdown() == ShutdownReason.CRASH
        other = await machine.create(hello("good"), paused=True)
        assert other.domid == 2
        await guest.destroy()


async def test_a_page_full_of_nonsense_harms_nobody() -> None:
    def hostile(domain: ScriptedDomain) -> Iterator[Step]:
        domain.memory.frame(domain.spec.console_mfn)[:] = b"\xff" * 4096
        domain.memory.frame(domain.spec.store_mfn)[:] = b"\xff" * 4096
        os.pwrite(domain.link._doorbell.fds[0], b"\xff" * 4096, 0)  # type: ignore[attr-defined]
        domain.link._doorbell.outbox.poke()  # type: ignore[attr-defined]
        domain.link.evtchn_notify(domain.spec.store_port)
        while True:
            yield Blocked(None)

    async with watched_machine(make=scripted(hostile)) as machine:
        guest = await machine.create(hello())
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(machine.toolstack.rows()) == 2
        assert len(machine.toolstack.vcpus(1)) <= 64
        await guest.destroy()


async def test_shutdown_request_is_acknowledged() -> None:
    async with watched_machine(make=scripted(idle)) as machine:
        guest = await machine.create(hello())
        path = f"/local/domain/{guest.domid}/control/shutdown"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(guest.shutdown)
            await trio.testing.wait_all_tasks_blocked()
            assert machine.store.read(path) == b"poweroff"
            machine.store.write(path, "")
        with pytest.raises(ToolstackError, match="cannot be asked"):
            await guest.shutdown("dance")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guest.shutdown, "reboot")
            await trio.testing.wait_all_tasks_blocked()
            await guest.destroy()


async def test_names_and_numbers() -> None:
    async with watched_machine(make=scripted(idle)) as machine:
        toolstack = machine.toolstack
        one = await machine.create(hello("one"))
        for name in ("one", "Domain-0"):
            with pytest.raises(ToolstackError, match=f'Domain with name "{name}" already exists') as error:
                await machine.create(hello(name))
            assert error.value.code == 3
        toolstack.rename(one.domid, "uno")
        assert machine.store.read("/local/domain/1/name") == b"uno"
        with pytest.raises(ToolstackError, match="already exists"):
            two = await machine.create(hello("one"))
            toolstack.rename(two.domid, "uno")
        with pytest.raises(ToolstackError, match="may not contain"):
            toolstack.rename(one.domid, "a/b")
        with pytest.raises(ToolstackError, match="domain 77 does not exist"):
            await toolstack.pause(77)
        assert sorted(toolstack.domains) == [1, 4]
        assert [row["domid"] for row in toolstack.rows()] == [0, 1, 4]


async def test_too_much_memory_and_failed_builds_leave_nothing() -> None:
    async with watched_machine(make=scripted(idle)) as machine:
        before = set(machine.store.directory("/local/domain"))
        descriptors = os.listdir("/proc/self/fd")
        for config, words in (
            (hello(memory_kb=1 << 29), "cannot have 524288 MB of memory: the host can give"),
            (hello(maxmem_kb=1 << 40), "do not fit"),
            (hello(kernel="/nonexistent/kernel"), "kernel"),
            (hello(kernel="/etc/passwd"), "kernel"),
            (hello(ramdisk="/nonexistent/ramdisk"), "ramdisk"),
            (hello(memory_kb=64), "Domain 6:"),
        ):
            with pytest.raises(ToolstackError, match=words) as error:
                await machine.create(config)
            assert error.value.code == 3
            assert "\n" not in str(error.value)
        assert machine.toolstack.domains == {}
        assert set(machine.store.directory("/local/domain")) == before
        assert machine.store.directory("/vm") == machine.store.directory("/libxl") == []
        assert len(os.listdir("/proc/self/fd")) == len(descriptors)
        assert machine.switchboard.broker.statistics()["domains"] == 1
        assert os.listdir(machine.rundir / "console") == []


async def test_a_create_can_be_destroyed_midway(monkeypatch: pytest.MonkeyPatch) -> None:
    async with watched_machine(make=scripted(idle)) as machine:
        async with trio.open_nursery() as nursery:

            async def create() -> None:
                with pytest.raises(ToolstackError, match="destroyed while it was being created"):
                    await machine.create(hello())

            nursery.start_soon(create)
            while not machine.toolstack.domains:
                await trio.lowlevel.checkpoint()
            assert machine.toolstack.rows()[1]["paused"]
            with pytest.raises(ToolstackError, match="already exists"):
                await machine.create(hello())
            await machine.toolstack.destroy(1)
        assert machine.toolstack.domains == {}


async def test_out_of_descriptors_fails_a_create_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_args: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with watched_machine(make=scripted(idle)) as machine:
        with monkeypatch.context() as patch:
            patch.setattr("xen_py.doorbell.os.memfd_create", none_left)
            with pytest.raises(ToolstackError, match="Too many open files"):
                await machine.create(hello())
        assert machine.toolstack.domains == {}
        await machine.create(hello())


async def test_whoever_asks_late_still_learns_how_it_ended() -> None:
    """xl create -F begins to wait when the domain may have come and gone."""
    async with watched_machine(make=scripted(poweroff)) as machine:
        guest = await machine.create(hello())
        await guest.wait_gone()
        for event in ("shutdown", "death"):
            assert await machine.toolstack.wait(guest.domid, event) == ShutdownReason.POWEROFF
        with pytest.raises(ToolstackError, match="does not exist"):
            await machine.toolstack.wait(guest.domid + 1, "death")
