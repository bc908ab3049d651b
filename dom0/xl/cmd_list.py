# SPDX-License-Identifier: GPL-2.0-only
"""Commands that show domains: list, vm-list, vcpu-list, domid, domname, uptime.

They change nothing. On a machine where no host runs they start one, so that Domain-0 shows as on a fresh Xen.
"""

from __future__ import annotations

import time
from typing import Any

from dom0.toolstack.config import ConfigError, DomainConfig, domain_zero_libxl, libxl_json
from dom0.xl import formats
from dom0.xl.client import Client, HostError, HostUnavailable
from dom0.xl.commands import help_text, spec
from dom0.xl.domains import DomainRow, VcpuRow, all_domains, find_domain, invalid_domain, named
from dom0.xl.options import no_options, read_options
from dom0.xl.session import EXIT_FAILURE, EXIT_SUCCESS, Session, Stop

_LONG_OPTIONS = {"long": "l", "verbose": "v", "context": "Z", "cpupool": "c", "numa": "n"}


def list_domains(session: Session, words: list[str]) -> int:
    """`xl list`."""
    options, arguments = read_options(session, "list", words, "lvZcn", _LONG_OPTIONS, 0)
    if len(arguments) > 1:
        session.out(help_text(spec("list")))
        return EXIT_FAILURE
    letters = {letter for letter, _ in options}
    with session.connect(start=True) as client:
        domains = all_domains(client)
        if arguments:
            domains = [_listed(domains, arguments[0])]
        if "l" in letters:
            session.out(libxl_json(_details(client, domains)) + "\n")
            return EXIT_SUCCESS
    session.out(
        formats.domain_list(
            domains, verbose="v" in letters, context="Z" in letters, cpupool="c" in letters, numa="n" in letters
        )
    )
    return EXIT_SUCCESS


def _listed(domains: list[DomainRow], word: str) -> DomainRow:
    domain = named(domains, word)
    if domain is not None:
        return domain
    if word.isascii() and word.isdigit():
        raise Stop(EXIT_FAILURE, f"Error: Domain '{word}' does not exist.")
    raise invalid_domain(word)


def _details(client: Client, domains: list[DomainRow]) -> list[dict[str, Any]]:
    details = []
    for domain in domains:
        if domain.domid == 0:
            config = domain_zero_libxl(domain.mem_kb)
        else:
            try:
                plain = client.call("domain.config", {"domid": domain.domid})
            except HostError:
                continue  # gone since it was listed
            try:
                config = DomainConfig.from_plain(plain).to_libxl(running=True)
            except ConfigError as error:
                raise HostUnavailable(f"xl: the xen-py host sent a bad configuration: {error}") from error
        details.append({"domid": domain.domid, "config": config})
    return details


def vm_list(session: Session, words: list[str]) -> int:
    """`xl vm-list`."""
    no_options(session, "vm-list", words, 0)
    with session.connect(start=True) as client:
        session.out(formats.vm_list(all_domains(client)))
    return EXIT_SUCCESS


def vcpu_list(session: Session, words: list[str]) -> int:
    """`xl vcpu-list`."""
    arguments = no_options(session, "vcpu-list", words, 0)
    with session.connect(start=True) as client:
        session.out(formats.VCPU_LIST_HEADER)
        domains = [find_domain(client, word) for word in arguments] if arguments else all_domains(client)
        for domain in domains:
            try:
                vcpus = client.call("domain.vcpus", {"domid": domain.domid})
            except HostError:
                continue  # gone since it was listed
            for line in formats.vcpu_list(domain, map(VcpuRow.from_plain, vcpus)):
                session.out(line)
    return EXIT_SUCCESS


def domid(session: Session, words: list[str]) -> int:
    """`xl domid NAME`."""
    (name, *_) = no_options(session, "domid", words, 1)
    with session.connect(start=True) as client:
        domain = next((domain for domain in all_domains(client) if domain.name == name), None)
    if domain is None:
        raise Stop(EXIT_FAILURE, f"Can't get domid of domain name '{name}', maybe this domain does not exist.")
    session.out(str(domain.domid))
    return EXIT_SUCCESS


def domname(session: Session, words: list[str]) -> int:
    """`xl domname ID`."""
    (word, *_) = no_options(session, "domname", words, 1)
    if not (word.isascii() and word.isdigit()):
        raise Stop(EXIT_FAILURE, "Invalid domain id.\n")
    with session.connect(start=True) as client:
        domain = named(all_domains(client), word)
    if domain is None:
        raise Stop(EXIT_FAILURE, f"Can't get domain name of domain id '{word}', maybe this domain does not exist.")
    session.out(domain.name)
    return EXIT_SUCCESS


def uptime(session: Session, words: list[str]) -> int:
    """`xl uptime`."""
    options, arguments = read_options(session, "uptime", words, "s", {}, 0)
    with session.connect(start=True) as client:
        domains = all_domains(client)
        if arguments:
            domains = [find_domain(client, word) for word in arguments]
    session.out(formats.uptime(domains, time.time(), short=bool(options)))
    return EXIT_SUCCESS
