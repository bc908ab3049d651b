# SPDX-License-Identifier: GPL-2.0-only
"""Commands about guests' network cards: network-attach, network-list, network-detach.

Words and exit codes are those of tools/xl/xl_nic.c.
"""

from __future__ import annotations

from dom0.toolstack.config import libxl_json
from dom0.toolstack.vifspec import NicConfig, NicSyntaxError, parse
from dom0.xl.client import HostError
from dom0.xl.domains import list_devices, on_domain
from dom0.xl.options import no_options
from dom0.xl.session import EXIT_FAILURE, EXIT_SUCCESS, Session, Stop

_HEAD = "{:<3} {:<2} {:<17} {:<6} {:<5} {:<6} {:>5}/{:<5} {:<30}"
_NAMES = ("Idx", "BE", "Mac Addr.", "handle", "state", "evt-ch", "tx-", "rx-ring-ref", "BE-path")
_ROW = "{devid:<3d} {backend_id:<2d} {mac}{handle:6d} {state:5d} {evtch:6d} {rref_tx:5d}/{rref_rx:<11d} {backend:<30}"


def network_attach(session: Session, words: list[str]) -> int:
    """`xl network-attach`."""
    word, *specs = no_options(session, "network-attach", words, 1)
    with on_domain(session, word) as (client, domain):
        nic = _parsed(session, specs)
        if session.dry_run:
            session.out("vif: " + libxl_json(nic.to_libxl()))
            return EXIT_SUCCESS
        try:
            client.call("network.attach", {"domid": domain.domid, "nic": nic.to_plain()})
        except HostError as error:
            session.log([f"libxl: error: {error.message}"])
            raise Stop(EXIT_FAILURE, "libxl_device_nic_add failed.") from error
    return EXIT_SUCCESS


def _parsed(session: Session, specs: list[str]) -> NicConfig:
    try:
        return parse(specs, "command line", session.say)
    except NicSyntaxError as error:
        raise Stop(EXIT_FAILURE, str(error)) from None


def network_list(session: Session, words: list[str]) -> int:
    """`xl network-list`."""
    names = no_options(session, "network-list", words, 1)
    session.out(_HEAD.format(*_NAMES))
    return list_devices(session, "network.list", names, lambda row: _ROW.format(**row))


def network_detach(session: Session, words: list[str]) -> int:
    """`xl network-detach`."""
    word, name, *_ = no_options(session, "network-detach", words, 2)
    with on_domain(session, word) as (client, domain):
        try:
            client.call("network.detach", {"domid": domain.domid, "device": name})
        except HostError as error:
            if error.message.startswith("Unknown device"):
                raise Stop(EXIT_FAILURE, error.message) from error
            session.log([f"libxl: error: {error.message}"])
            raise Stop(EXIT_FAILURE, "libxl_device_nic_del failed.") from error
    return EXIT_SUCCESS
