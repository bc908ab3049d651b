# SPDX-License-Identifier: GPL-2.0-only
"""`xl create`: read the configuration, have the host make the domain, then attach, wait or go.

What xl's background process does on a domain's end (restart, destroy, preserve) is the host's work here; `-F` only
watches, and `-e` asks the host to leave the domain as it ended. Order of events and words as `main_create` and
`create_domain` in tools/xl/xl_vmcontrol.c.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import attrs

from dom0.image.paths import PREFIX, resolve
from dom0.toolstack.config import DomainConfig, ShutdownAction
from dom0.toolstack.xlcfg import ConfigError, ConfigSyntaxError, parse_config, read_config_file
from dom0.xl.client import Client, HostError, HostUnavailable
from dom0.xl.cmd_console import attach
from dom0.xl.commands import help_text, spec
from dom0.xl.domains import all_domains
from dom0.xl.options import read_options
from dom0.xl.progress import ProgressDisplay
from dom0.xl.session import EXIT_FAILURE, EXIT_LIBXL_FAIL, EXIT_LIBXL_INVAL, EXIT_SUCCESS, EXIT_USAGE, Session, Stop
from dom0.xl.terminal import run_console
from xen_py.spec import Program
from xen_py.types import DomId

_LONG_OPTIONS = {
    "defconfig=": "f",
    "dryrun": "n",
    "ignore-global-affinity-masks": "i",
    "quiet": "q",
    "vncviewer": "V",
    "vncviewer-autopass": "A",
}
_ON_REASON = {0: "on_poweroff", 1: "on_reboot", 3: "on_crash", 4: "on_watchdog", 5: "on_soft_reset"}
_SUSPENDED = 2
_RESTART_PATIENCE = 30.0
"""Seconds the host is given to bring a restarting domain back before `-F` takes it for gone."""


@attrs.define
class _Request:
    """What the command line asked for."""

    config_file: str | None = None
    overrides: list[str] = attrs.field(factory=list)
    console: bool = False
    debug: bool = False
    foreground: bool = False
    unwatched: bool = False
    paused: bool = False
    quiet: bool = False


def create(session: Session, words: list[str]) -> int:
    """`xl create`."""
    request = _request(session, words)
    config = _configuration(session, request)
    if session.dry_run or request.debug:
        (sys.stdout if session.dry_run else sys.stderr).write(config.to_libxl_json() + "\n")
    if session.dry_run:
        return EXIT_SUCCESS
    if config.bootloader is None:  # else they are the disk's
        kernel = config.kernel if Program.parse(config.kernel) else _found(config.kernel)
        config = attrs.evolve(config, kernel=kernel, ramdisk=config.ramdisk and _found(config.ramdisk))
    config = attrs.evolve(config, disks=tuple(disk.located() for disk in config.disks))
    if request.unwatched:
        left_alone: dict[str, Any] = dict.fromkeys(_ON_REASON.values(), ShutdownAction.PRESERVE)
        config = attrs.evolve(config, **left_alone)
    with session.connect(start=True) as client:
        domid = _make(session, client, request, config)
        if request.console:
            _run_attached(client, domid, request)
        if request.foreground:
            _watch(session, client, domid, config)
    return EXIT_SUCCESS


def _request(session: Session, words: list[str]) -> _Request:
    request = _Request()
    if words and not words[0].startswith("-") and "=" not in words[0]:
        request.config_file, *words = words
    options, arguments = read_options(session, "create", words, "AFVcdef:inpq", _LONG_OPTIONS, 0)
    for letter, value in options:
        match letter:
            case "A" | "V":
                raise Stop(EXIT_FAILURE, f"xl create -{letter}: xen-py does not have this yet")
            case "F":
                request.foreground = True
            case "c":
                request.console = True
            case "d":
                request.debug = True
            case "e":
                request.unwatched = True
            case "f":
                request.config_file = value
            case "n":
                session.dry_run = True
            case "p":
                request.paused = True
            case "q":
                request.quiet = True
    for argument in arguments:
        if "=" in argument:
            request.overrides.append(argument)
        elif request.config_file is None:
            request.config_file = argument
        else:
            session.out(help_text(spec("create")))
            raise Stop(EXIT_USAGE)
    if request.unwatched:
        request.foreground = False
    return request


def _configuration(session: Session, request: _Request) -> DomainConfig:
    path = request.config_file
    if path is None:
        raise Stop(EXIT_LIBXL_INVAL, "Config file not specified and none in save file")
    try:
        text = read_config_file(path)
        if not request.quiet:
            session.say(f"Parsing config from {path}")
        return parse_config(text, path, request.overrides, session.say)
    except OSError as error:
        raise Stop(EXIT_LIBXL_FAIL, f"Failed to read config file: {path}: {error.strerror}") from error
    except ConfigSyntaxError as error:
        raise Stop(EXIT_FAILURE, *error.lines, "Failed to parse config: Invalid argument") from error
    except ConfigError as error:
        raise Stop(EXIT_FAILURE, str(error)) from error


def _found(path: str) -> str:
    """A path the host understands, whose working directory is another; `image:` paths are ours to look up."""
    absolute = os.path.abspath(resolve(path))
    if path.startswith(PREFIX) and not os.path.exists(absolute):
        image = path.removeprefix(PREFIX).partition("/")[0]
        raise Stop(EXIT_LIBXL_FAIL, f"{path}: there is no {absolute}; get it with: xen-py image fetch {image}")
    return absolute


def _make(session: Session, client: Client, request: _Request, config: DomainConfig) -> DomId:
    params = {"config": config.to_plain(), "paused": request.paused or request.console}
    with ProgressDisplay(quiet=request.quiet, carriage_return=session.progress_cr) as progress:
        answer: Any = client.call("domain.create", params, progress.update)
    domid = answer.get("domid") if isinstance(answer, dict) else None
    if not isinstance(domid, int):
        raise HostUnavailable("xl: the xen-py host did not say which domain it made; is it of another version?")
    return DomId(domid)


def _run_attached(client: Client, domid: DomId, request: _Request) -> None:
    """Attach first, so that not a byte is missed, then let the domain run."""
    try:
        connection = attach(client, domid)
    except (HostError, HostUnavailable):
        # The domain is made all the same; it runs as it would without -c, and the user learns why there is no console.
        if not request.paused:
            client.call("domain.unpause", {"domid": domid})
        raise
    with connection:
        if not request.paused:
            client.call("domain.unpause", {"domid": domid})
        sys.stdout.flush()
        run_console(connection, 0, 1)


def _watch(session: Session, client: Client, domid: DomId, config: DomainConfig) -> None:
    """`-F`: tell what happens to the domain until it is over, following it through restarts."""
    session.say(f"Waiting for domain {config.name} (domid {domid}) to die [pid {os.getpid()}]")
    while True:
        reason = _awaited(client, domid, "shutdown")
        if reason is None:
            session.say(f"Domain {domid} has been destroyed.")
            return
        session.say(f"Domain {domid} has shut down, reason code {reason} 0x{reason:x}")
        if reason == _SUSPENDED:
            session.say("Domain has suspended.")
            session.say("Done. Exiting now")
            return
        event = _ON_REASON.get(reason)
        action: ShutdownAction = getattr(config, event) if event else ShutdownAction.DESTROY
        session.say(f"Action for shutdown reason code {reason} is {action.value}")
        if action is ShutdownAction.PRESERVE:
            session.say("Done. Exiting now")
            return
        session.say(f"Domain {domid} needs to be cleaned up: destroying the domain")
        _awaited(client, domid, "death")
        successor = _successor(client, domid, config.uuid) if action is ShutdownAction.RESTART else None
        if successor is None:
            session.say("Done. Exiting now")
            return
        session.say("Done. Rebooting now")
        domid = successor
        session.say(f"Waiting for domain {config.name} (domid {domid}) to die [pid {os.getpid()}]")


def _awaited(client: Client, domid: DomId, event: str) -> int | None:
    """The reason of a shutdown; None when the domain is no more."""
    try:
        answer = client.call("domain.wait", {"domid": domid, "event": event})
    except HostError:
        return None
    reason = answer.get("reason") if isinstance(answer, dict) else None
    return reason if isinstance(reason, int) else None


def _successor(client: Client, domid: DomId, uuid: str) -> DomId | None:
    """The domain the host made in place of `domid`; the host may still be at it."""
    deadline = time.monotonic() + _RESTART_PATIENCE
    while time.monotonic() < deadline:
        for domain in all_domains(client):
            if domain.uuid == uuid and domain.domid != domid:
                return domain.domid
        time.sleep(0.05)
    return None
