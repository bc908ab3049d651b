# SPDX-License-Identifier: GPL-2.0-only
"""`xl`, the command line of the system: global flags, which command, and the one place where errors become words.

Everything it does is asked of the host process over the control socket; xl itself holds no state. Order of events and
words follow `main` in tools/xl/xl.c.
"""

from __future__ import annotations

import getopt
import io
import os
import sys
from importlib import import_module

from dom0.xl.client import HostError, HostUnavailable
from dom0.xl.commands import help_text, lookup, overview
from dom0.xl.session import EXIT_FAILURE, EXIT_SUCCESS, Command, Session, Stop

EXIT_INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Run xl with the words after its name (those of the process unless given); returns the exit status."""
    session = Session()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name is no reason to fail where the locale lacks a letter
    try:
        status = _run(session, sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except Stop as stop:
        for line in stop.lines:
            session.say(line)
        status = stop.code
    except HostError as error:
        report(session, error)
        status = error.code
    except HostUnavailable as error:
        session.say(str(error))
        status = EXIT_FAILURE
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    except OSError as error:
        # Most likely our output: a full disk, or (no need to say so) a reader that has gone. What is left in the
        # buffer must not be tried again at exit.
        if not isinstance(error, BrokenPipeError):
            session.say(f"xl: {error}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = EXIT_FAILURE
    return status


def report(session: Session, error: HostError) -> None:
    """What the host said: one line, and the circumstances for `xl -v`."""
    session.log([error.message, *(error.lines if session.verbose else [])])


def _run(session: Session, words: list[str]) -> int:
    try:
        flags, words = getopt.getopt(words, "vftTN")
    except getopt.GetoptError:
        raise Stop(EXIT_FAILURE, "unknown global option") from None
    for flag, _ in flags:  # -f is accepted and, as in xl, nothing looks at it
        session.verbose += flag == "-v"
        session.dry_run |= flag == "-N"
        session.progress_cr |= flag == "-t"
        session.timestamps |= flag == "-T"
    if not words:
        session.out(overview())
        return EXIT_FAILURE
    name, *arguments = words
    command = lookup(name)
    if command is None:
        if name == "help":
            return _help(session, arguments)
        raise Stop(EXIT_FAILURE, "command not implemented")
    if session.dry_run and not command.can_dry_run:
        raise Stop(EXIT_FAILURE, "command does not implement -N (dryrun) option")
    if not command.run:
        raise Stop(EXIT_FAILURE, f"xl {command.name}: xen-py does not have this command yet")
    module, _, function = command.run.partition(":")
    run: Command = getattr(import_module(f"dom0.xl.{module}"), function)
    return run(session, arguments)


def _help(session: Session, words: list[str]) -> int:
    topics = [word for word in words if word != "--long"]
    if not topics or topics[0] == "help":
        session.out(overview())
    elif (command := lookup(topics[0])) is not None:
        session.out(help_text(command))
    else:
        session.out(f'command "{topics[0]}" not implemented')
    return EXIT_SUCCESS


if __name__ == "__main__":
    sys.exit(main())
