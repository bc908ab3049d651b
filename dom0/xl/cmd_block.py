# SPDX-License-Identifier: GPL-2.0-only
"""Commands about guests' disks: block-attach, block-list, block-detach, cd-insert, cd-eject.

Words and exit codes are those of tools/xl/xl_block.c and xl_cdrom.c.
"""

from __future__ import annotations

import json

from dom0.toolstack.diskspec import DiskConfig, DiskSyntaxError, parse
from dom0.xl.client import HostError
from dom0.xl.domains import list_devices, on_domain
from dom0.xl.options import no_options, read_options
from dom0.xl.session import EXIT_FAILURE, EXIT_SUCCESS, Session, Stop

_HEAD = ("Vdev", "BE", "handle", "state", "evt-ch", "ring-ref", "BE-path")
_HEAD_FORM = "{:<5} {:<3} {:<6} {:<5} {:<6} {:<8} {:<30}"
_COLUMNS = ("devid", "backend_id", "frontend_id", "state", "evtch", "rref", "backend")
_NEEDS_HVM = "cdrom-insert requires an HVM domain"


def block_attach(session: Session, words: list[str]) -> int:
    """`xl block-attach`."""
    word, *specs = no_options(session, "block-attach", words, 2)
    with on_domain(session, word) as (client, domain):
        disk = _parsed(specs)
        if session.dry_run:
            session.out("disk: " + json.dumps(disk.to_libxl(), indent=4))
            return EXIT_SUCCESS
        try:
            client.call("block.attach", {"domid": domain.domid, "disk": disk.located().to_plain()})
        except HostError as error:
            session.log([f"libxl: error: {error.message}"])
            raise Stop(EXIT_FAILURE, "libxl_device_disk_add failed.") from error
    return EXIT_SUCCESS


def _parsed(specs: list[str]) -> DiskConfig:
    try:
        return parse(specs)
    except DiskSyntaxError as error:
        raise Stop(EXIT_FAILURE, f"command line: {error}") from None


def block_list(session: Session, words: list[str]) -> int:
    """`xl block-list`."""
    names = no_options(session, "block-list", words, 1)
    session.out(_HEAD_FORM.format(*_HEAD))
    return list_devices(
        session, "block.list", names, lambda row: _HEAD_FORM.format(*(row[column] for column in _COLUMNS))
    )


def block_detach(session: Session, words: list[str]) -> int:
    """`xl block-detach`."""
    options, (word, name, *_) = read_options(session, "block-detach", words, "f", {"force": "f"}, 2)
    with on_domain(session, word) as (client, domain):
        try:
            client.call("block.detach", {"domid": domain.domid, "vdev": name, "force": bool(options)})
        except HostError as error:
            if error.message.startswith("Error: Device"):
                raise Stop(EXIT_FAILURE, error.message) from error
            session.log([f"libxl: error: {error.message}"])
            raise Stop(EXIT_FAILURE, f"libxl_device_disk_{'destroy' if options else 'safe_remove'} failed.") from error
    return EXIT_SUCCESS


def cd_insert(session: Session, words: list[str]) -> int:
    """`xl cd-insert`, which libxl refuses for PV guests."""
    word, name, path, *_ = no_options(session, "cd-insert", words, 3)
    return _change_disc(session, word, name, path)


def cd_eject(session: Session, words: list[str]) -> int:
    """`xl cd-eject`, which libxl refuses for PV guests."""
    word, name, *_ = no_options(session, "cd-eject", words, 2)
    return _change_disc(session, word, name, "")


def _change_disc(session: Session, word: str, name: str, path: str) -> int:
    with on_domain(session, word) as (_, domain):
        disk = _parsed([f"vdev={name},access=ro,devtype=cdrom,target={path}"])
        if session.dry_run:
            session.out("disk: " + json.dumps(disk.to_libxl(), indent=4))
            return EXIT_SUCCESS
        session.log([f"libxl: error: Domain {domain.domid}:{_NEEDS_HVM}"])
    return EXIT_FAILURE
