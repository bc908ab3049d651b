# SPDX-License-Identifier: GPL-2.0-only
"""The import directions of docs/architecture.md, held by reading every module's syntax tree.

Imports run downwards: dom0 and domU -> hypercalls -> xen_py. xenstore stands alone; dom0 and domU may import
it (a guest has a client of its own). dom0 and domU never import each other. Unicorn's name is known to xen_py/engine
only.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

MAY_IMPORT = {
    "xen_py": {"xen_py"},
    "hypercalls": {"hypercalls", "xen_py"},
    "xenstore": {"xenstore"},
    "dom0": {"dom0", "hypercalls", "xen_py", "xenstore"},
    "domU": {"domU", "hypercalls", "xen_py", "xenstore"},
}
NOT_PART_OF_THE_HOUSE = {"tests", "benchmarks", "native_build", "setup"}


def modules_of(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imported_names(source: str, package: list[str]) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of each import statement; relative ones are resolved against `package`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [node.module] if node.module else []
            for alias in node.names:
                yield node.lineno, ".".join([*base, *module, alias.name])


def violations(room: str, path: Path) -> list[str]:
    package = list(path.relative_to(ROOT).parent.parts)
    found = []
    for line, name in imported_names(path.read_text(), package):
        top = name.split(".")[0]
        forbidden = (
            top in NOT_PART_OF_THE_HOUSE
            or (top in MAY_IMPORT and top not in MAY_IMPORT[room])
            or (top == "unicorn" and package[:2] != ["xen_py", "engine"])
        )
        if forbidden:
            found.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_run_downwards(room: str) -> None:
    paths = modules_of(room)
    assert paths, f"no modules in {room}: has it moved?"
    assert [text for path in paths for text in violations(room, path)] == []


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import dom0.xl.main as x", ["dom0.xl.main"]),
        ("from xen_py import types, clock", ["xen_py.types", "xen_py.clock"]),
        ("from . import ring", ["xen_py.io.ring"]),
        ("from .. import types", ["xen_py.types"]),
        ("from ..abi.xen import X", ["xen_py.abi.xen.X"]),
        ("if TYPE_CHECKING:\n    from dom0 import host", ["dom0.host"]),
        ("def f():\n    import domU", ["domU"]),
    ],
)
def test_every_form_of_import_is_seen(source: str, names: list[str]) -> None:
    assert [name for _, name in imported_names(source, ["xen_py", "io"])] == names
