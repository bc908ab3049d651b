# SPDX-License-Identifier: GPL-2.0-only
"""`xenstore-read`: print the values of nodes, all as of one moment."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import ClassVar

from xenstore.errors import XenstoreError
from xenstore.operations import Operations
from xenstore.tools.common import Tool, json_text, json_value, quoted


class Read(Tool):
    usage = "[-h] [-p] [-s] [-R] key [...]"
    allowed = "pR"
    extra: ClassVar[Mapping[str, bool]] = {"json": False}

    def perform(self, store: Operations) -> int:
        found = {}
        for path in self.arguments:
            try:
                value = store.read(path)
            except XenstoreError:
                self.warn(f"couldn't read path {path}")
                return 1
            found[path] = json_value(value)
            if "json" in self.options:
                continue
            if "p" in self.options:
                self.output(f"{path}: ")
            self.output(value if "R" in self.options else quoted(value) + "\n")
        if "json" in self.options:
            self.output(json_text(found))
        return 0


def main() -> int | None:
    tool = Read("read")
    return tool.run(tool.perform, transaction=len(tool.arguments) > 1)


if __name__ == "__main__":
    sys.exit(main())
