# SPDX-License-Identifier: GPL-2.0-only
"""Commands that act on running domains: destroy, shutdown, reboot, pause, unpause, rename.

Where no host runs there is no domain to act on, and none is started.
"""

from __future__ import annotations

from contextlib import ExitStack
from selectors import EVENT_READ, DefaultSelector

import attrs

from dom0.xl.client import Client, HostError, NoHost
from dom0.xl.domains import DomainRow, all_domains, on_domain
from dom0.xl.options import no_options, read_options
from dom0.xl.session import EXIT_FAILURE, EXIT_SUCCESS, Session, Stop

_STOP_OPTIONS = {"all": "a", "wait": "w"}


def destroy(session: Session, words: list[str]) -> int:
    """`xl destroy`."""
    options, (word, *_) = read_options(session, "destroy", words, "f", {}, 1)
    with on_domain(session, word) as (client, domain):
        if domain.domid == 0 and not options:
            raise Stop(
                EXIT_FAILURE,
                "Not destroying domain 0; use -f to force.",
                "This can only be done when using a disaggregated hardware domain and toolstack.\n",
            )
        client.call("domain.destroy", {"domid": domain.domid})
    return EXIT_SUCCESS


def pause(session: Session, words: list[str]) -> int:
    """`xl pause`."""
    return _simple(session, "pause", words)


def unpause(session: Session, words: list[str]) -> int:
    """`xl unpause`."""
    return _simple(session, "unpause", words)


def _simple(session: Session, command: str, words: list[str]) -> int:
    (word, *_) = no_options(session, command, words, 1)
    with on_domain(session, word) as (client, domain):
        client.call(f"domain.{command}", {"domid": domain.domid})
    return EXIT_SUCCESS


def rename(session: Session, words: list[str]) -> int:
    """`xl rename`."""
    word, name, *_ = no_options(session, "rename", words, 2)
    with on_domain(session, word) as (client, domain):
        try:
            client.call("domain.rename", {"domid": domain.domid, "name": name})
        except HostError as error:
            session.log([error.message])
            raise Stop(EXIT_FAILURE, f"Can't rename domain '{word}'.") from error
    return EXIT_SUCCESS


def shutdown(session: Session, words: list[str]) -> int:
    """`xl shutdown`."""
    return _stop(session, "shutdown", "poweroff", "Shutting down domain", words)


def reboot(session: Session, words: list[str]) -> int:
    """`xl reboot`."""
    return _stop(session, "reboot", "reboot", "Rebooting domain", words)


def _stop(session: Session, command: str, reason: str, announcement: str, words: list[str]) -> int:
    options, arguments = read_options(session, command, words, "awF", _STOP_OPTIONS, 0)
    letters = [letter for letter, _ in options]
    if not arguments and "a" not in letters:
        raise Stop(EXIT_FAILURE, "You must specify -a or a domain id.\n")
    with ExitStack() as stack:
        if "a" in letters:
            try:
                client = stack.enter_context(session.connect(start=False))
            except NoHost:
                return EXIT_SUCCESS
            domains = [domain for domain in all_domains(client) if domain.domid != 0]
        else:
            client, domain = stack.enter_context(on_domain(session, arguments[0]))
            domains = [domain]
        waits: list[_Wait] = []
        for domain in domains:
            if "w" in letters:
                waits.append(_Wait(stack.enter_context(session.connect(start=False)), domain))
                waits[-1].ask("shutdown")
            session.say(f"{announcement} {domain.domid}")
            try:
                client.call("domain.shutdown", {"domid": domain.domid, "reason": reason})
            except HostError as error:
                session.log([error.message])
                raise Stop(EXIT_FAILURE, f"{command} failed (rc=-3)") from error
        if waits:
            session.say(f"Waiting for {len(waits)} domains")
            _wait(session, waits, for_death=letters.count("w") > 1)
    return EXIT_SUCCESS


@attrs.define
class _Wait:
    """A connection of its own on which one domain's end is awaited, asked for before the end is brought about."""

    client: Client
    domain: DomainRow

    def ask(self, event: str) -> None:
        self.client.send("domain.wait", {"domid": self.domain.domid, "event": event})

    def reason(self) -> int | None:
        """The shutdown reason, or None when the domain is no more."""
        try:
            answer = self.client.receive()
        except HostError:
            return None  # destroyed before the host came to the question
        reason = answer.get("reason") if isinstance(answer, dict) else None
        return reason if isinstance(reason, int) else None


def _wait(session: Session, waits: list[_Wait], *, for_death: bool) -> None:
    with DefaultSelector() as selector:
        for wait in waits:
            selector.register(wait.client, EVENT_READ, wait)
        shut_down: set[int] = set()
        while selector.get_map():
            for key, _ in selector.select():
                wait = key.data
                domid = wait.domain.domid
                reason = wait.reason()
                if domid in shut_down or reason is None:
                    session.say(f"Domain {domid} has been destroyed")
                else:
                    session.say(f"Domain {domid} has been shut down, reason code {reason}")
                    if for_death:
                        session.say(f"Domain {domid} continue waiting for death")
                        shut_down.add(domid)
                        wait.ask("death")
                        continue
                selector.unregister(wait.client)
