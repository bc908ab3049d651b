# SPDX-License-Identifier: GPL-2.0-only
"""What guests go through, for a few seconds in the system tests and for long in the soak runs.

Each function takes a running `Host`, does one thing as a user does it and asserts what must be so; it returns figures.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import attrs

from tests.system.harness import (
    HOST_TROUBLE,
    PATIENCE,
    TROUBLE,
    Footprint,
    Host,
    Session,
    SessionEnded,
    cpu_seconds,
    kill,
    until,
    waited_seconds,
)

PROMPT = r"^/ # "


def check_logs(host: Host, names: Iterable[str]) -> None:
    """Nothing in any console's log, nor in the host's, that should not be there."""
    for name in names:
        for line in host.log(name).splitlines():
            assert not TROUBLE.search(line), f"{name}: {line.decode(errors='replace')}"
    for text in host.host_log().splitlines():
        assert not HOST_TROUBLE.search(text), text


@attrs.frozen
class Stressed:
    """One boot with its stress; seconds."""

    prompt: float
    stress: float
    slept: float
    sleep: int
    cpu: float


def boot_and_stress(host: Host, ramdisk: Path, *, seconds: int, megabytes: int = 64) -> Stressed:
    """Boot Debian's kernel to its prompt, stress it, power it off."""
    started = time.monotonic()
    host.xl("create", host.debian("stressed", ramdisk))
    with host.session("console", "stressed") as console:
        console.expect(PROMPT)
        prompt = time.monotonic() - started
        stressed = time.monotonic()
        slept, sleep = stress(console, seconds, megabytes)
        took = time.monotonic() - stressed
        cpu = cpu_seconds(host.vm_process("stressed"))
        console.send("poweroff\n")
        assert console.finish() == 0
    until(lambda: "stressed" not in host.names(), "the guest is gone after poweroff")
    assert b"reboot: System halted" in host.log("stressed")
    check_logs(host, ["stressed"])
    return Stressed(prompt, took, slept, sleep, cpu)


def stress(console: Session, seconds: int, megabytes: int) -> tuple[float, int]:
    """At a guest's prompt: run the stress to its end. How long its sleep took by our clock, and should have."""
    console.send(f"stress {seconds} {megabytes}\n")
    patience = 120 + 10.0 * seconds
    sleep = int(console.expect(r"^stress: sleep (\d+) begins", patience)[1])
    begun = time.monotonic()
    console.expect(r"^stress: sleep \d+ ends", patience)
    slept = time.monotonic() - begun
    expect_verdict(console, patience)
    return slept, sleep


def expect_verdict(console: Session, patience: float = PATIENCE) -> None:
    """The stress that runs there comes to its end, and has found nothing wrong."""
    verdict = console.expect(r"^stress: (passed|FAILED)", patience)[1]
    assert verdict == b"passed", console.output.decode(errors="replace")[-3000:]
    console.expect(PROMPT)


@contextmanager
def two_debians(host: Host, ramdisk: Path) -> Iterator[tuple[Session, Session]]:
    """Guests `one` and `two` at their prompts. What is left of them in the end is destroyed."""
    for name in ("one", "two"):
        path = host.debian(name, ramdisk)
        path.write_text(path.read_text() + "on_crash = 'preserve'\n")
        host.xl("create", path)
    with ExitStack() as stack:
        consoles = [stack.enter_context(host.session("console", name)) for name in ("one", "two")]
        for console in consoles:
            console.expect(PROMPT)
        yield consoles[0], consoles[1]
    for name in host.names():
        host.xl("destroy", name)


def state(host: Host, name: str) -> str:
    """The State column of `xl list`."""
    return host.xl("list", name).splitlines()[1].split()[4]


def pause_one(host: Host, seconds: float) -> None:
    """While both guests are busy: pause `one`, see that it stands still and `two` goes on, let it go on."""
    one, two = host.vm_process("one"), host.vm_process("two")
    host.xl("pause", "one")
    assert state(host, "one") == "--p---", state(host, "one")
    used_by_one, used_by_two = cpu_seconds(one), cpu_seconds(two)
    time.sleep(seconds)
    assert cpu_seconds(one) == used_by_one, "a paused guest uses CPU time"
    assert cpu_seconds(two) > used_by_two, "the other guest stands still"
    host.xl("unpause", "one")
    until(lambda: cpu_seconds(one) > used_by_one, "the guest goes on after unpause")


def busy_cores(host: Host, consoles: Iterable[Session], seconds: float) -> tuple[float, float]:
    """Both guests in an endless loop: cores they use, and cores they wait for because others use them."""
    for console in consoles:
        console.send("while :; do :; done\n")
    pids = [host.vm_process("one"), host.vm_process("two")]
    began, used, waited = time.monotonic(), sum(map(cpu_seconds, pids)), sum(map(waited_seconds, pids))
    time.sleep(seconds)
    elapsed = time.monotonic() - began
    used, waited = sum(map(cpu_seconds, pids)) - used, sum(map(waited_seconds, pids)) - waited
    for console in consoles:
        console.send("\x03")
        console.expect(PROMPT)
    return used / elapsed, waited / elapsed


def kill_one(host: Host, consoles: tuple[Session, Session]) -> None:
    """kill -9 of `one`'s VM process: a crashed domain that says why, and `two` does not notice."""
    kill(host.vm_process("one"))
    until(lambda: "c" in state(host, "one"), "the killed guest counts as crashed")
    reason = host.xl("list", "-v", "one").splitlines()[1]
    assert re.search("kill|signal 9", reason), reason
    with suppress(SessionEnded):
        consoles[0].expect(r"[^\d\D]", 5)
    consoles[1].send("\x03")
    consoles[1].expect(PROMPT)
    consoles[1].send("echo $((6 * 7)) lives\n")
    consoles[1].expect("^42 lives")
    host.xl("destroy", "one")


def destroy_busy(host: Host, name: str) -> None:
    """xl destroy in the middle of whatever it does: its process is gone when the command returns."""
    pid = host.vm_process(name)
    host.xl("destroy", name)
    assert not Path(f"/proc/{pid}").exists()
    assert name not in host.names()


def cycle_hello(host: Host) -> None:
    """The small guest created, seen to run, and destroyed."""
    host.xl("create", host.hello("hello"))
    with host.session("console", "hello") as console:
        console.expect("greetings from the harness")
    host.xl("destroy", "hello")


def footprint_of_a_used_host(host: Host) -> Footprint:
    """What the host holds once it has had a guest, and threads of its own for what a guest needs of it."""
    cycle_hello(host)
    return host.footprint()


def check_footprint(host: Host, before: Footprint) -> Footprint:
    """The host has let go of all it took since `before`; what it holds now."""
    with suppress(TimeoutError):
        until(lambda: not host.footprint().more_than(before), "settled", 30)
    after = host.footprint()
    assert not after.more_than(before), after.more_than(before)
    return after
