# SPDX-License-Identifier: GPL-2.0-only
"""Pages of docs/ that are carried out: their files written, their commands run, the output compared.

A listing is a fenced block whose first line is a comment with the file's name (`# test_echo.py`). A session is a block
of the language `console`: a line that begins with `$ ` is a command, the lines below it are what it prints. `...` in
them stands for anything, as in doctest.
"""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import native_build

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_NAME = re.compile(r"# ([\w/.-]+)\n")
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def listings(page: str) -> dict[str, str]:
    """The page's files by their names."""
    blocks = [text for language, text in _BLOCK.findall(page) if language != "console"]
    return {match[1]: text for text in blocks if (match := _NAME.match(text))}


def commands(page: str) -> list[tuple[str, str]]:
    """Commands and what they print, in order."""
    found: list[tuple[str, str]] = []
    for text in [text for language, text in _BLOCK.findall(page) if language == "console"]:
        for line in text.splitlines(keepends=True):
            if line.startswith("$ "):
                found.append((line[2:].strip(), ""))
            else:
                command, output = found.pop()
                found.append((command, output + line))
    return found


def carry_out(page: Path, folder: Path, *paths: Path) -> None:
    """Follow the page in `folder`, with our commands in PATH and `paths` among Python's."""
    environment = {
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(map(os.fspath, (native_build.ROOT, *paths))),
    }
    follow(page, folder, environment)


def follow(page: Path, folder: Path, variables: dict[str, str]) -> None:
    """Write the page's files into `folder`, run its commands there with these variables, compare what they print."""
    text = page.read_text()
    for name, content in listings(text).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "100"} | variables
    checker = doctest.OutputChecker()
    for command, wanted in commands(text):
        done = subprocess.run(
            f"{command} 2>&1", shell=True, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
        )
        assert checker.check_output(wanted, done.stdout, _FLAGS), (
            f"{page.name}: `{command}` prints\n{done.stdout}\ninstead of\n{wanted}"
        )
