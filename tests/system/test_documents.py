# SPDX-License-Identifier: GPL-2.0-only
"""What the front page and docs/getting-started.md tell a newcomer is so."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from native_build import ROOT
from tests.system.harness import Host

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        assert "://" in target or (document.parent / target).exists(), target


def test_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for word in re.findall(r"\bmake ([a-z]+)\b(?=[`\s]* )", (ROOT / "README.md").read_text()):
        assert word in targets, word


def commands(section: str) -> list[list[str]]:
    """The commands of one section of docs/getting-started.md."""
    text = (ROOT / "docs" / "getting-started.md").read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    return [shlex.split(line, comments=True) for line in text.splitlines() if line.startswith("    ")]


def test_the_first_commands_work(host: Host) -> None:
    first, *others = commands("A guest in a second")
    with host.session(*first[1:], terminal=(30, 100)) as terminal:
        terminal.expect("greetings from examples/hello.cfg")
        terminal.send("\x1d")
        assert terminal.finish() == 0
    for name, *arguments in others:
        host.command(name, *arguments)
    assert host.names() == []


def test_the_store_commands_work(host: Host) -> None:
    setting, *others = commands("The store")
    name, value = setting[1].split("=")
    host.environment[name] = value.replace("$XENPY_RUNDIR", str(host.rundir))
    for command, *arguments in others:
        if "--live" not in arguments:
            answer = host.command(command, *arguments)
    assert answer == "hello\n"
