# SPDX-License-Identifier: GPL-2.0-only
"""The domains as the host lists them, and how a word of the command line names one of them.

Values only; asked for anew by every command, for domains come and go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import attrs

from dom0.xl.client import Client, HostUnavailable, NoHost
from dom0.xl.session import EXIT_FAILURE, EXIT_SUCCESS, Session, Stop
from xen_py.types import DomId

ERROR_INVAL = -6


@attrs.frozen
class DomainRow:
    """One line of `domain.list`."""

    domid: DomId
    name: str
    uuid: str
    mem_kb: int
    vcpus_online: int
    running: bool
    blocked: bool
    paused: bool
    shutdown: bool
    dying: bool
    shutdown_reason: int | None
    reason_text: str | None
    cpu_time_ns: int
    start_time: float

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        return cls(**_fields(cls, plain))


@attrs.frozen
class VcpuRow:
    """One line of `domain.vcpus`."""

    vcpu: int
    cpu: int
    online: bool
    running: bool
    blocked: bool
    cpu_time_ns: int

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        return cls(**_fields(cls, plain))


def _fields(kind: type[attrs.AttrsInstance], plain: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {field.name: plain[field.name] for field in attrs.fields(kind)}
    except (KeyError, TypeError) as error:
        raise HostUnavailable(f"xl: the xen-py host left out {error} in a list; is it of another version?") from None


def all_domains(client: Client) -> list[DomainRow]:
    """Every domain by ascending id, Domain-0 first."""
    return [DomainRow.from_plain(plain) for plain in client.call("domain.list")]


def named(domains: list[DomainRow], word: str) -> DomainRow | None:
    """The domain that `word` means: digits are an id, anything else a name."""
    if word.isascii() and word.isdigit():
        return next((domain for domain in domains if str(domain.domid) == str(int(word[:10]))), None)
    return next((domain for domain in domains if domain.name == word), None)


def invalid_domain(word: str) -> Stop:
    return Stop(EXIT_FAILURE, f"{word} is an invalid domain identifier (rc={ERROR_INVAL})")


def find_domain(client: Client, word: str) -> DomainRow:
    """As `named`; raises `Stop` with xl's words when there is none."""
    domain = named(all_domains(client), word)
    if domain is None:
        raise invalid_domain(word)
    return domain


@contextmanager
def on_domain(session: Session, word: str) -> Iterator[tuple[Client, DomainRow]]:
    """The host and the domain that `word` names; where no host runs there is no domain, and none is started."""
    try:
        client = session.connect(start=False)
    except NoHost:
        raise invalid_domain(word) from None
    with client:
        yield client, find_domain(client, word)


def list_devices(session: Session, method: str, names: list[str], show: Callable[[Mapping[str, Any]], str]) -> int:
    """`xl block-list` and its kin, below their heading: the rows that the host has of each domain's devices."""
    try:
        client = session.connect(start=False)
    except NoHost:
        for name in names:
            session.say(f"{name} is an invalid domain identifier")
        return EXIT_SUCCESS
    with client:
        for name in names:
            domain = named(all_domains(client), name)
            if domain is None:
                session.say(f"{name} is an invalid domain identifier")
                continue
            rows: Any = client.call(method, {"domid": domain.domid})
            for row in rows:
                session.out(show(row))
    return EXIT_SUCCESS
