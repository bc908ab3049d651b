# SPDX-License-Identifier: GPL-2.0-only
"""A command's options, read and complained about as xl does (`def_getopt` in tools/xl/xl_utils.c).

getopt rather than argparse: options may follow arguments, may be bundled, long ones may be shortened, and the words
and exit codes of mistakes are fixed by xl.
"""

from __future__ import annotations

import getopt
from collections.abc import Mapping

from dom0.xl.commands import help_text, spec
from dom0.xl.session import EXIT_USAGE, Session, Stop


def read_options(
    session: Session, command: str, words: list[str], short: str, long: Mapping[str, str], required: int
) -> tuple[list[tuple[str, str]], list[str]]:
    """Options as (letter, value) in order, and the arguments.

    `long` maps names (with a final `=` where a value follows) to letters. Raises `Stop` after `-h`, for an unknown
    option, and when fewer than `required` arguments are left.
    """
    letters = {name.rstrip("="): letter for name, letter in long.items()} | {"help": "h"}
    try:
        found, arguments = getopt.gnu_getopt(words, short + "h", [*long, "help"])
    except getopt.GetoptError as error:
        name = error.opt if len(error.opt) == 1 else f"--{error.opt}"
        raise Stop(EXIT_USAGE, f"option `{name}' not supported.") from None
    options = [(letters[name[2:]] if name.startswith("--") else name[1:], value) for name, value in found]
    if any(letter == "h" for letter, _ in options):
        session.out(help_text(spec(command)))
        raise Stop(0)
    if len(arguments) < required:
        session.say(f"'xl {command}' requires at least {required} argument{'s' if required > 1 else ''}.\n")
        session.out(help_text(spec(command)))
        raise Stop(EXIT_USAGE)
    return options, arguments


def no_options(session: Session, command: str, words: list[str], required: int) -> list[str]:
    """The arguments of a command that has no options but `-h`."""
    return read_options(session, command, words, "", {}, required)[1]
