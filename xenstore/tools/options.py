# SPDX-License-Identifier: GPL-2.0-only
"""Command lines read as GNU getopt_long reads them, so that the tools behave as Xen's do.

Options may stand anywhere, long ones may be shortened; what is wrong is reported and then ignored, as Xen's
tools do (Python's own getopt stops there). Pure apart from the messages on stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import NamedTuple


class Parsed(NamedTuple):
    options: list[tuple[str, str]]
    """(letter or long name, value); "?" was not understood."""
    arguments: list[str]


def parse(
    program: str, arguments: list[str], short: str, long: Mapping[str, str], values: frozenset[str] = frozenset()
) -> Parsed:
    """`short` as in getopt; `long` maps long names to the option they mean; `values` are those that take one."""
    options: list[tuple[str, str]] = []
    rest: list[str] = []
    taking = {letter for letter, follower in zip(short, short[1:] + " ", strict=True) if follower == ":"}
    at = 0

    def complain(text: str) -> None:
        print(f"{program}: {text}", file=sys.stderr)
        options.append(("?", ""))

    while at < len(arguments):
        word = arguments[at]
        at += 1
        if word == "--":
            rest += arguments[at:]
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            matches = [name] if name in long else [known for known in long if known.startswith(name)]
            meanings = {long[known] for known in matches}
            if not matches:
                complain(f"unrecognized option '--{name}'")
            elif len(meanings) > 1:
                complain(f"option '{word}' is ambiguous; possibilities: " + " ".join(f"'--{m}'" for m in matches))
            elif (meaning := meanings.pop()) in taking or meaning in values:
                if not equals:
                    if at == len(arguments):
                        complain(f"option '--{matches[0]}' requires an argument")
                        continue
                    value = arguments[at]
                    at += 1
                options.append((meaning, value))
            elif equals:
                complain(f"option '--{matches[0]}' doesn't allow an argument")
            else:
                options.append((meaning, ""))
        elif word.startswith("-") and len(word) > 1:
            letters = word[1:]
            while letters:
                letter, letters = letters[0], letters[1:]
                if letter == ":" or letter not in short:
                    complain(f"invalid option -- '{letter}'")
                elif letter in taking:
                    if not letters and at == len(arguments):
                        complain(f"option requires an argument -- '{letter}'")
                        break
                    if letters:
                        options.append((letter, letters))
                    else:
                        options.append((letter, arguments[at]))
                        at += 1
                    break
                else:
                    options.append((letter, ""))
        else:
            rest.append(word)
    return Parsed(options, rest)
