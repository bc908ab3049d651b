# SPDX-License-Identifier: GPL-2.0-only
"""The examples of docs/xenstore.md run, and do what they say."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable

import pytest

from tests.xenstore.conftest import CLONE, Xenstored

TEXT = (CLONE / "docs" / "xenstore.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python(number: int, xenstored: Xenstored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENSTORED_PATH", xenstored.socket)
    # Each example builds on the store that those before it have left.
    for code in PYTHON[: number + 1]:
        names: dict[str, object] = {}
        exec(compile("from xenstore import Client\n" + code, "docs/xenstore.md", "exec"), names)


def test_shell(xenstored: Xenstored, our_tool: Callable[[str], str]) -> None:
    (session,) = re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
    commands = [line[2:].split() for line in session.splitlines() if line.startswith("$ xenstore-")]
    output = ""
    for name, *words in commands:
        output += subprocess.run(
            [our_tool(name), *words], env=xenstored.environment, check=True, capture_output=True, text=True
        ).stdout
    assert output == "".join(line + "\n" for line in session.splitlines() if not line.startswith("$"))
